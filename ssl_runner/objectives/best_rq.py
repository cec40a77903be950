"""BEST-RQ: Self-Supervised Learning with Random-Projection Quantizer for Speech Recognition.

Chiu, Qin, Zhang, Yu, Wu, ICML 2022. https://arxiv.org/abs/2202.01855
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ssl_runner.parts.masking import at, hidden_places, most_hidden, span_mask
from ssl_runner.parts.patches import masked_mean, patch_sizes
from ssl_runner.parts.prototypes import share_used
from ssl_runner.types import COUNTS, Batch, Loss, Objective, TokenBackbone

Count = Annotated[int, Gt(0)]


class BestRQ(Objective):
    """Section 3: spans of tokens are replaced by noise, and the backbone tells the codes of what was there, which a
    random projection and a random codebook give; neither is ever trained.

    shape: of a sample. codes, code_dim: entries of the codebook and their width; the paper's. ratio: share of the
    tokens that is hidden, before spans overlap. span: tokens; the paper's 400 ms are 10 tokens of 40 ms. noise: its
    standard deviation.

    Values are brought to mean 0 and deviation 1 before they get codes, without which few codes would be used (section
    3.1). Here that is each value of a patch over the tokens of its own sample that are no padding.
    """

    views = 1
    indivisible = COUNTS
    projection: Tensor
    codebook: Tensor

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        shape: tuple[int, ...],
        codes: Annotated[int, Gt(1)] = 8192,
        code_dim: Count = 16,
        ratio: Annotated[float, Gt(0), Le(1)] = 0.4,
        span: Count = 10,
        noise: Annotated[float, Ge(0)] = 0.1,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        _, values = patch_sizes(backbone, tuple(shape))
        self.register_buffer("projection", nn.init.xavier_uniform_(torch.empty(values, code_dim)))
        self.register_buffer("codebook", F.normalize(torch.randn(codes, code_dim), dim=1))
        self.head = nn.Linear(backbone.dim, codes)
        self.ratio, self.span, self.noise = ratio, span, noise

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        patches, pad = self.backbone.patchify(view["x"]), view.get("pad")
        real = torch.ones_like(patches[..., 0], dtype=torch.bool) if pad is None else ~pad
        mask = span_mask(real, self.ratio, self.span)
        place, told = hidden_places(mask, most_hidden(mask.shape[1], self.ratio, self.span))
        noise = self.noise * torch.randn(patches.shape).to(patches)
        tokens = self.backbone.encode(self.backbone.embed(torch.where(mask[..., None], noise, patches)), pad)
        wanted = nearest_code(at(place, standardised(patches, real)), self.projection, self.codebook)
        logits = self.head(at(place, tokens)).float()
        losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        right = masked_mean((logits.argmax(2) == wanted).float(), told)
        used = share_used(F.one_hot(wanted[told], len(self.codebook)).float())
        return Loss(masked_mean(losses, told), {"accuracy": right.detach(), "codes_used": used})


def standardised(patches: Tensor, real: Tensor) -> Tensor:
    """(B, L, P), (B, L) True where no padding -> (B, L, P) in fp32: each of the P values with mean 0 and deviation 1
    over the tokens of its sample."""
    x, weight = patches.float(), real[..., None].float()
    count = weight.sum(1, keepdim=True).clamp(min=1)
    mean = (x * weight).sum(1, keepdim=True) / count
    deviation = ((x - mean).square() * weight).sum(1, keepdim=True).div(count).sqrt()
    return (x - mean) / (deviation + 1e-5)


def nearest_code(x: Tensor, projection: Tensor, codebook: Tensor) -> Tensor:
    """Equation 1: (..., P) values, (P, D), (K, D) of unit length -> (...) the code nearest to the projected values,
    both of unit length; which is that with the greatest dot product, in fp32."""
    with torch.autocast(x.device.type, enabled=False):
        return (x.float() @ projection.float() @ codebook.float().T).argmax(-1)
