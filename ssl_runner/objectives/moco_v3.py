"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers.

Chen, Xie, He, ICCV 2021. https://arxiv.org/abs/2104.02057
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.heads import mlp
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Backbone, Batch, Loss, Objective, View


class MoCoV3(Objective):
    """Algorithm 1: each view's query, with a predictor, against the batch's momentum keys of the other view.

    hidden, dim: widths of both heads' hidden layers and outputs (Section 5).
    layers: of the projector; 3 in Section 5, 2 in the authors' code for ResNets.
    predictor_norm: BatchNorm at the end of the predictor too; the authors' code has none for ResNets.
    temperature: tau of Equation 1 (0.2 for ViT, 1.0 for ResNet-50).
    momentum, end_momentum: of the key encoder, along half a cosine (Appendix A, for ResNet-50).

    The batch that contrasts is the global one. The key encoder moves after the optimiser step, which is before
    the next keys. The stop at a ViT's patch embedding (Section 4.2) is not part of this class.
    """

    views = 2
    contrasts = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Annotated[int, Gt(0)] = 4096,
        dim: Annotated[int, Gt(0)] = 256,
        layers: Literal[2, 3] = 3,
        predictor_norm: bool = True,
        temperature: Annotated[float, Gt(0)] = 0.2,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.99,
        end_momentum: Annotated[float, Ge(0), Le(1)] = 1.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *[hidden] * (layers - 1), dim], last_norm=True)
        self.predictor = mlp([dim, hidden, dim], last_norm=predictor_norm)
        self.key_backbone = Teacher(backbone, momentum, end_momentum)
        self.key_projector = Teacher(self.projector, momentum, end_momentum)
        self.temperature = temperature

    def query(self, view: View) -> Tensor:
        """View -> (n, dim): f_q of Algorithm 1."""
        return self.predictor(self.projector(self.backbone(**view)))

    def key(self, view: View) -> Tensor:
        """View -> (n, dim): f_k of Algorithm 1, without gradients and without the predictor."""
        return self.key_projector(self.key_backbone(**view))

    def forward(self, batch: Batch) -> Loss:
        first, second = batch["views"]
        one = contrast(self.query(first), self.key(second), self.temperature)
        two = contrast(self.query(second), self.key(first), self.temperature)
        return Loss(one + two)

    def after_step(self, progress: float) -> None:
        self.key_backbone.update(self.backbone, progress)
        self.key_projector.update(self.projector, progress)


def contrast(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """ctr of Algorithm 1: Equation 1 averaged over the n queries, times 2 tau. In fp32.

    query, key: (n, dim) of the same n samples on this rank. A query is compared with the keys of all ranks.
    """
    query, every = F.normalize(query.float(), dim=1), gather(F.normalize(key.float(), dim=1))
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ every.T / temperature
    positive = torch.arange(len(query), device=query.device) + rank() * len(query)
    return F.cross_entropy(logits, positive) * 2 * temperature
