"""data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language.

Baevski, Hsu, Xu, Babu, Gu, Auli, ICML 2022. https://arxiv.org/abs/2202.03555
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from ssl_runner.parts.masking import block_mask, grid_of, random_mask
from ssl_runner.parts.patches import masked_mean
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import COUNTS, Batch, FrameBackbone, Loss, Objective, TokenBackbone

Share = Annotated[float, Ge(0), Le(1)]


class Data2Vec(Objective):
    """Section 3: from a masked sample, regress what a slow copy of the network makes of the whole sample.

    ratio: share of tokens that are hidden. masking: in blocks of the backbone's grid (of the sequence, where it tells
    none), as the paper does for images, or each token for itself. beta: of the smooth L1 loss, where its square turns
    into a straight line. top: K, the last blocks whose outputs are averaged into targets; all that there are, if fewer.
    A backbone that does not tell its blocks' outputs (`layers`) gives its last output alone.
    momentum, momentum_end: tau of the teacher at the start and at the end of training, along half a cosine; the paper's
    rises in a straight line. Its values are for hundreds of thousands of steps.

    The teacher reads the student's own embedded tokens and drops nothing. Targets are the blocks' outputs; the
    paper's are their MLPs', before the last residual connection.
    """

    views = 1
    indivisible = COUNTS

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.6,
        masking: Literal["blocks", "tokens"] = "blocks",
        top: Annotated[int, Gt(0)] = 6,
        beta: Annotated[float, Gt(0)] = 2.0,
        momentum: Share = 0.999,
        momentum_end: Share = 0.9999,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.teacher = Teacher(backbone, momentum, momentum_end)
        self.mask_token = nn.Parameter(torch.zeros(backbone.dim))
        self.regressor = nn.Linear(backbone.dim, backbone.dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.ratio, self.blocks, self.top, self.beta = ratio, masking == "blocks", top, beta

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        pad = view.get("pad")
        patches = self.backbone.patchify(view["x"])
        tokens = self.backbone.embed(patches)
        mask = self.draw_mask(tokens)
        predicted = self.regressor(self.backbone.encode(self.hide(tokens, patches, mask), pad))
        target = self.targets(tokens, pad)
        hidden = mask if pad is None else mask & ~pad
        terms = {"predicted_std": deviation(predicted, hidden), "target_std": deviation(target, hidden)}
        return Loss(regression(predicted, target, hidden, self.beta), terms)

    def draw_mask(self, tokens: Tensor) -> Tensor:
        """(B, L) bool, True where hidden."""
        batch, length = tokens.shape[:2]
        if not self.blocks:
            return random_mask(batch, length, self.ratio, tokens.device)
        return block_mask(torch.full((batch,), self.ratio), grid_of(self.backbone, length)).to(tokens.device)

    def hide(self, tokens: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        """Section 3.2: the learned token in place of those hidden, at their positions. Tokens: (B, L, dim).

        A blank sample's tokens are the positions and a constant, which the learned token takes up.
        """
        blank = self.backbone.embed(torch.zeros_like(patches[:1]))
        return torch.where(mask[..., None], self.mask_token + blank, tokens)

    @torch.no_grad()
    def targets(self, tokens: Tensor, pad: Tensor | None) -> Tensor:
        """Section 3.3: (B, L, dim), the mean of the teacher's top K blocks for the whole sample, each block's tokens
        normalised."""
        teacher = cast(TokenBackbone, self.teacher.copy)
        outputs = list(teacher.layers(tokens.detach(), pad))[-self.top :]
        return torch.stack([F.layer_norm(each.float(), each.shape[2:]) for each in outputs]).mean(0)

    def after_step(self, progress: float) -> None:
        self.teacher.update(self.backbone, progress)

    def show(self, batch: Batch) -> Mapping[str, list[Tensor]]:
        """The input, and what of it the student may read."""
        (view,) = batch["views"]
        patches = self.backbone.patchify(view["x"])
        if patches.ndim == 2 or isinstance(self.backbone, FrameBackbone):  # ids have no blank, and frames no way back
            return {}
        mask = self.draw_mask(patches)
        return {"masked": [view["x"], self.backbone.unpatchify(torch.where(mask[..., None], 0.0, patches))]}


def regression(predicted: Tensor, target: Tensor, hidden: Tensor, beta: float) -> Tensor:
    """Smooth L1 (Section 3.4, "Objective"), averaged over features and over the hidden tokens of all ranks. In fp32.

    predicted, target: (B, L, dim). hidden: (B, L) bool. The mean over ranks is the loss of the joined batch.
    """
    loss = F.smooth_l1_loss(predicted.float(), target.detach().float(), beta=beta, reduction="none").mean(2)
    return masked_mean(loss, hidden)


@torch.no_grad()
def deviation(x: Tensor, hidden: Tensor) -> Tensor:
    """(): the standard deviation of (B, L, dim) features over the hidden tokens of this rank, averaged over features.

    Near 0 where the teacher, or the student, makes the same of everything (Section 6, "Discussion").
    """
    weight = hidden[..., None].float()
    weight = weight / weight.sum().clamp(min=1)
    centred = x.float() - (weight * x.float()).sum((0, 1))
    return (weight * centred.square()).sum((0, 1)).sqrt().mean()
