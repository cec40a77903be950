"""VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning.

Bardes, Ponce, LeCun, ICLR 2022. https://arxiv.org/abs/2105.04906
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.parts.gather import gather
from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective

Weight = Annotated[float, Ge(0)]


class VICReg(Objective):
    """Section 4: two views have near embeddings, whose variables keep their variance and are uncorrelated.

    hidden, dim: widths of the three-layer expander's hidden layers and output (Section 4.2).
    invariance, variance, covariance: lambda, mu and nu of Equation 6.

    Statistics are those of the global batch. As in the authors' code, the invariance is averaged over the
    variables too, and the variance terms of the two views are averaged, not added; the weights are for these.
    """

    views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Annotated[int, Gt(0)] = 8192,
        dim: Annotated[int, Gt(0)] = 8192,
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.expander = mlp([backbone.dim, hidden, hidden, dim])
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def forward(self, batch: Batch) -> Loss:
        """Equation 6."""
        a, b = (gather(self.expander(self.backbone(**view)).float()) for view in batch["views"])
        near = F.mse_loss(a, b)  # Equation 5, per variable
        spread = (variance_loss(a) + variance_loss(b)) / 2
        common = covariance_loss(a) + covariance_loss(b)
        value = self.invariance * near + self.variance * spread + self.covariance * common
        log = {"invariance": near.detach(), "variance": spread.detach(), "covariance": common.detach()}
        return Loss(value, log)


def covariances(z: Tensor) -> Tensor:
    """C of Equation 3: (N, dim) -> (dim, dim), over N - 1. Of one row it is zero. In fp32."""
    z = z.float() - z.float().mean(0)
    with torch.autocast(z.device.type, enabled=False):
        return z.T @ z / max(len(z) - 1, 1)


def variance_loss(z: Tensor) -> Tensor:
    """Equations 1 and 2, with gamma 1 and epsilon 1e-4: how far each column's deviation falls short, on average."""
    z = z.float() - z.float().mean(0)
    deviation = (z.square().sum(0) / max(len(z) - 1, 1) + 1e-4).sqrt()
    return F.relu(1 - deviation).mean()


def covariance_loss(z: Tensor) -> Tensor:
    """Equation 4: the squared covariances of different columns of (N, dim), summed and divided by dim."""
    c = covariances(z)
    return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]
