"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction.

Zbontar, Jing, Misra, LeCun, Deny, ICML 2021. https://arxiv.org/abs/2103.03230
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.parts.gather import all_reduce, world_size
from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective


class BarlowTwins(Objective):
    """Section 2.1: the features of two views, each normalised over the batch, have the identity as correlation.

    hidden, dim: widths of the three-layer projector's hidden layers and output (Section 2.2).
    redundancy: lambda of Equation 1, the weight of what is off the diagonal.

    The correlation is that of the global batch. The projector ends in a BatchNorm without scale and shift,
    which normalises each view by its own statistics; in evaluation it uses the running ones.
    """

    views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Annotated[int, Gt(0)] = 8192,
        dim: Annotated[int, Gt(0)] = 8192,
        redundancy: Annotated[float, Ge(0)] = 0.0051,
    ):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, hidden, dim], last_norm=True)
        self.redundancy = redundancy

    def forward(self, batch: Batch) -> Loss:
        a, b = (self.projector(self.backbone(**view)) for view in batch["views"])
        return Loss(barlow(correlation(a, b), self.redundancy))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """C of Equation 2, over the rows of all ranks. In fp32.

    a, b: (n, dim) features of two views of the same n samples on this rank, each column of mean 0 and variance 1
    over the global batch. Gives (dim, dim).
    """
    with torch.autocast(a.device.type, enabled=False):
        return all_reduce(a.float().T @ b.float()) / (len(a) * world_size())


def barlow(c: Tensor, redundancy: float) -> Tensor:
    """Equation 1: the squared distance of (dim, dim) C from the identity, off the diagonal times lambda."""
    diagonal = c.diagonal()
    off_diagonal = c.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + redundancy * off_diagonal
