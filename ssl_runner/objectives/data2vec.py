"""data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language.

Baevski, Hsu, Xu, Babu, Gu, Auli, ICML 2022. https://arxiv.org/abs/2202.03555
"""

from __future__ import annotations

from typing import Annotated, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from ssl_runner.parts.gather import all_reduce, world_size
from ssl_runner.parts.masking import random_mask
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone

Share = Annotated[float, Ge(0), Le(1)]


class Data2Vec(Objective):
    """Section 3: from a masked sample, regress what a slow copy of the network makes of the whole sample.

    ratio: share of tokens that are hidden. beta: of Equation 2, where its square turns into a straight line.
    momentum, momentum_end: tau of the teacher at the start and at the end of training.

    The teacher reads the student's own embedded tokens (Section 3.1) and has dropout off. Three things are
    simpler than in the paper, so that any token backbone will do: targets are the last layer's outputs (K = 1
    and not the mean of the top K), masks are drawn by token, not in blocks, and tau follows half a cosine.
    """

    views = 1

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.6,
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
        self.ratio, self.beta = ratio, beta
        self.train()

    def train(self, mode: bool = True) -> Data2Vec:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        pad = view.get("pad")
        patches = self.backbone.patchify(view["x"])
        tokens = self.backbone.embed(patches)
        mask = random_mask(len(tokens), tokens.shape[1], self.ratio, tokens.device)
        predicted = self.regressor(self.backbone.encode(self.hide(tokens, patches, mask), pad))
        hidden = mask if pad is None else mask & ~pad
        return Loss(regression(predicted, self.targets(tokens, pad), hidden, self.beta))

    def hide(self, tokens: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        """Section 3.2: the learned token in place of those hidden, at their positions. Tokens: (B, L, dim).

        A blank sample's tokens are the positions and a constant, which the learned token takes up.
        """
        blank = self.backbone.embed(torch.zeros_like(patches[:1]))
        return torch.where(mask[..., None], self.mask_token + blank, tokens)

    @torch.no_grad()
    def targets(self, tokens: Tensor, pad: Tensor | None) -> Tensor:
        """Section 3.3: (B, L, dim), the teacher's last layer for the whole sample, each token normalised."""
        whole = cast(TokenBackbone, self.teacher.copy).encode(tokens.detach(), pad).float()
        return F.layer_norm(whole, whole.shape[-1:])

    def after_step(self, progress: float) -> None:
        self.teacher.update(self.backbone, progress)


def regression(predicted: Tensor, target: Tensor, hidden: Tensor, beta: float) -> Tensor:
    """Equation 2, averaged over features and over the hidden tokens of all ranks. In fp32.

    predicted, target: (B, L, dim). hidden: (B, L) bool. The mean over ranks is the loss of the joined batch.
    """
    loss = F.smooth_l1_loss(predicted.float(), target.detach().float(), beta=beta, reduction="none").mean(2)
    count = all_reduce(hidden.sum().float()) / world_size()
    return loss.masked_fill(~hidden, 0.0).sum() / count.clamp(min=1e-6)
