"""wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations.

Baevski, Zhou, Mohamed, Auli, NeurIPS 2020. https://arxiv.org/abs/2006.11477
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ssl_runner.parts.masking import at, hidden_places, most_hidden, span_mask
from ssl_runner.parts.patches import masked_mean
from ssl_runner.parts.quantiser import Quantiser, perplexity
from ssl_runner.types import COUNTS, Batch, FrameBackbone, Loss, Objective

Count = Annotated[int, Gt(0)]
Positive = Annotated[float, Gt(0)]
Weight = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Le(1)]


class Wav2Vec2(Objective):
    """Section 3: spans of frames are hidden, and what the backbone makes of each hidden one tells its quantised frame
    from those of other hidden ones of the same sample.

    ratio, span: so many spans of `span` frames that they would make this share of a sample, if none overlapped.
    groups, codes, code_dim: G codebooks of V codes, together so wide; a target is one code of each. dim: of the space
    in which targets and predictions are compared. negatives: K, drawn for each hidden frame.
    temperature: kappa, of the cosines (Equation 3). start, end, decay: the temperature of the Gumbel softmax begins at
    `start`, is multiplied by `decay` after each update and ends at `end`; the paper's are for 400,000 updates.
    diversity: alpha, the weight of the diversity loss (Equation 4). penalty: weight of the frames' mean square.
    frame_gradient: the gradient that reaches the convolutions is multiplied by this.

    Targets are made of the frames as they are, and learn too. Negatives are other hidden frames of the sample, never
    the frame itself nor padding; those whose codes are the target's own count for nothing. A sample with one hidden
    frame tells nothing. The paper drops out frames, tokens and layers; here the backbone drops out what it does.
    """

    views = 1
    indivisible = COUNTS

    def __init__(
        self,
        backbone: FrameBackbone,
        *,
        ratio: Share = 0.65,
        span: Count = 10,
        groups: Count = 2,
        codes: Count = 320,
        code_dim: Count = 256,
        dim: Count = 256,
        negatives: Count = 100,
        temperature: Positive = 0.1,
        start: Positive = 2.0,
        end: Positive = 0.5,
        decay: Share = 0.999995,
        diversity: Weight = 0.1,
        penalty: Weight = 10.0,
        frame_gradient: Share = 0.1,
    ):
        super().__init__()
        self.backbone: FrameBackbone = backbone
        self.quantiser = Quantiser(
            backbone.frame_dim, groups=groups, codes=codes, dim=code_dim, start=start, end=end, decay=decay
        )
        self.mask_token = nn.Parameter(torch.rand(backbone.dim))
        self.predictor = nn.Linear(backbone.dim, dim)
        self.target = nn.Linear(code_dim, dim)
        self.ratio, self.span, self.negatives, self.temperature = ratio, span, negatives, temperature
        self.diversity, self.penalty, self.frame_gradient = diversity, penalty, frame_gradient

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        pad = view.get("pad")
        frames = self.backbone.patchify(view["x"])
        if frames.requires_grad:
            frames.register_hook(lambda gradient: gradient * self.frame_gradient)
        real = torch.ones_like(frames[..., 0], dtype=torch.bool) if pad is None else ~pad
        mask = span_mask(real, self.ratio, self.span)
        place, told = hidden_places(mask, most_hidden(mask.shape[1], self.ratio, self.span))
        normed = self.backbone.normalise(frames)
        predicted = at(place, self.context(normed, mask, pad))
        quantised = self.quantiser(at(place, normed))
        cosines = similarity(self.predictor(predicted), self.target(quantised.vectors.to(predicted.dtype)))
        drawn = draw_negatives(told, self.negatives)
        logits = candidates(cosines / self.temperature, alike(quantised.codes), drawn)
        contrastive = masked_mean(logits.logsumexp(2) - logits[..., 0], told)
        used = perplexity(quantised.chances, told)
        size = quantised.chances.shape[2] * quantised.chances.shape[3]
        unused = (size - used.sum()) / size  # Equation 4, as in the authors' code
        square = masked_mean(frames.float().square().mean(2), real)
        right = masked_mean((logits[..., 0] >= logits.amax(2)).float(), told)
        logs = {
            "contrastive": contrastive.detach(),
            "diversity": unused.detach(),
            "penalty": square.detach(),
            "accuracy": right.detach(),
            "codes_used": 1 - unused.detach(),
        }
        return Loss(contrastive + self.diversity * unused + self.penalty * square, logs)

    def context(self, normed: Tensor, mask: Tensor, pad: Tensor | None) -> Tensor:
        """(B, L, P) normalised frames -> (B, L, dim), without those that are hidden: the mask stands for these between
        projection and positions."""
        tokens = self.backbone.project(normed)
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        return self.backbone.encode(tokens, pad)

    def after_step(self, progress: float) -> None:
        self.quantiser.updates += 1


def similarity(predicted: Tensor, target: Tensor) -> Tensor:
    """(B, K, D), (B, K, D) -> (B, K, K), the cosine of each prediction with each target of its sample. In fp32."""
    with torch.autocast(predicted.device.type, enabled=False):
        return F.normalize(predicted.float(), dim=2) @ F.normalize(target.float(), dim=2).mT


def alike(codes: Tensor) -> Tensor:
    """(B, K, G) codes -> (B, K, K) bool, which targets of a sample are the same in all groups; each is like itself."""
    return (codes[:, :, None] == codes[:, None]).all(3)


def draw_negatives(told: Tensor, count: int) -> Tensor:
    """(B, K) bool, the first ones of each row -> (B, K, count) places among those that are told, with repetition, never
    the own. Where there is no other, a place is the own, or one that counts for nothing."""
    batch, most = told.shape
    others = told.sum(1)[:, None, None] - 1
    drawn = (torch.rand(batch, most, count).to(told.device) * others.clamp(min=1)).long()
    drawn = drawn + (drawn >= torch.arange(most, device=told.device)[:, None])
    return torch.where(others > 0, drawn, torch.arange(most, device=told.device)[:, None]).clamp(max=most - 1)


def candidates(logits: Tensor, same: Tensor, drawn: Tensor) -> Tensor:
    """(B, K, K) logits, which targets are the same, and (B, K, N) negatives -> (B, K, 1 + N): each prediction's logit
    with its own target, then with the negatives, -inf where these are no other than its target."""
    positive = logits.diagonal(dim1=1, dim2=2)[..., None]
    return torch.cat([positive, logits.masked_fill(same, float("-inf")).gather(2, drawn)], 2)
