"""BYOL: Bootstrap Your Own Latent, A New Approach to Self-Supervised Learning.

Grill et al., NeurIPS 2020. https://arxiv.org/abs/2006.07733
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.parts.heads import mlp
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Backbone, Batch, Loss, Objective, View

Width = Annotated[int, Gt(0)]


class BYOL(Objective):
    """Section 3.1: an online network predicts what a slow copy of it, the target, says of the other view.

    hidden, dim: widths of projector and predictor, hidden layer and output (Section 3.3).
    momentum: tau_base, the target's momentum at the start; it grows to 1 along half a cosine (Section 3.3).

    The target has the backbone and the projector, no predictor, and gets no gradient. It moves after each
    optimiser step. Its BatchNorm uses the batch's own statistics in training, as the online network's does.
    """

    views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Width = 4096,
        dim: Width = 256,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.996,
    ):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, dim])
        self.predictor = mlp([dim, hidden, dim])
        self.target_backbone = Teacher(backbone, momentum)
        self.target_projector = Teacher(self.projector, momentum)

    def online(self, view: View) -> Tensor:
        """q(g(f(v))): (B, dim)."""
        return self.predictor(self.projector(self.backbone(**view)))

    def target(self, view: View) -> Tensor:
        """g'(f'(v)): (B, dim), without gradients."""
        return self.target_projector(self.target_backbone(**view))

    def forward(self, batch: Batch) -> Loss:
        """Equation 2 and its mirror image, with the views exchanged."""
        a, b = batch["views"]
        return Loss(regression(self.online(a), self.target(b)) + regression(self.online(b), self.target(a)))

    def after_step(self, progress: float) -> None:
        """Equation 1."""
        self.target_backbone.update(self.backbone, progress)
        self.target_projector.update(self.projector, progress)


def regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 2: the squared distance of unit rows, 2 - 2 cos, averaged over the rows.

    prediction, target: (n, dim); gradients reach the prediction alone. In fp32.
    """
    cosine = F.cosine_similarity(prediction.float(), target.detach().float(), dim=1)
    return (2 - 2 * cosine).mean()
