"""W-MSE: Whitening for Self-Supervised Representation Learning.

Ermolov, Siarohin, Sangineto, Sebe, ICML 2021. https://arxiv.org/abs/2007.06346
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ssl_runner.parts.gather import gather
from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective


class WMSE(Objective):
    """Section 3: two views have near embeddings after whitening, which keeps them from collapsing.

    hidden, dim: widths of the head's hidden layer and output.
    rows: least number of rows that are whitened together ("batch slicing"). More than `dim`; the
    paper takes 128 for 64. A smaller batch is whitened whole.
    eps: share of the identity mixed into a covariance, so that one of too few rows has a Cholesky factor.

    The batch that is sliced is the global one. Every rank slices it by its own random permutation.
    """

    views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Annotated[int, Gt(0)] = 1024,
        dim: Annotated[int, Gt(0)] = 64,
        rows: Annotated[int, Gt(1)] = 128,
        eps: Annotated[float, Ge(0), Lt(1)] = 1e-3,
    ):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, dim])
        self.rows, self.eps = rows, eps

    def forward(self, batch: Batch) -> Loss:
        a, b = (gather(self.projector(self.backbone(**view)).float()) for view in batch["views"])
        return Loss(whitened_mse(a, b, slices(len(a), self.rows), self.eps))


def slices(total: int, rows: int) -> list[Tensor]:
    """Batch slicing: the numbers below `total`, shuffled, in parts of `rows` or somewhat more. By the CPU generator."""
    return list(torch.randperm(total).tensor_split(max(1, total // rows)))


def whitened_mse(a: Tensor, b: Tensor, parts: list[Tensor], eps: float) -> Tensor:
    """The loss for two views: the squared distance of unit whitened rows, 2 - 2 cos, averaged over them.

    a, b: (N, dim) of the same samples. parts: row numbers; each part is whitened by itself, each view too.
    """
    losses = []
    for part in parts:
        rows = part.to(a.device)
        cosine = F.cosine_similarity(whiten(a[rows], eps), whiten(b[rows], eps), dim=1)
        losses.append(2 - 2 * cosine)
    return torch.cat(losses).mean()


def whiten(v: Tensor, eps: float) -> Tensor:
    """The whitening: W (v - mean), where W is the inverse of the covariance's Cholesky factor. In fp32.

    v: (k, dim). Gives (k, dim), whose covariance is the identity where k > dim and eps is 0.
    """
    v = v.float() - v.float().mean(0)
    with torch.autocast(v.device.type, enabled=False):
        covariance = v.T @ v / max(len(v) - 1, 1)
        identity = torch.eye(v.shape[1], device=v.device)
        factor = torch.linalg.cholesky((1 - eps) * covariance + eps * identity)
        return torch.linalg.solve_triangular(factor, v.T, upper=False).T
