"""SimSiam: Exploring Simple Siamese Representation Learning.

Chen, He, CVPR 2021. https://arxiv.org/abs/2011.10566
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective

Width = Annotated[int, Gt(0)]


class SimSiam(Objective):
    """Section 3: each view predicts the other's projection, through which no gradient passes.

    hidden, dim: widths of the projector's two hidden layers and of its output (Section 3, baseline settings).
    width: of the predictor's hidden layer, the bottleneck.

    The projector ends in a BatchNorm without affine parameters, as the authors' code does.
    """

    views = 2

    def __init__(self, backbone: Backbone, *, hidden: Width = 2048, dim: Width = 2048, width: Width = 512):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, hidden, dim], last_norm=True)
        self.predictor = mlp([dim, width, dim])

    def forward(self, batch: Batch) -> Loss:
        """Equation 4, Algorithm 1."""
        za, zb = (self.projector(self.backbone(**view)) for view in batch["views"])
        pa, pb = self.predictor(za), self.predictor(zb)
        return Loss((distance(pa, zb) + distance(pb, za)) / 2)


def distance(p: Tensor, z: Tensor) -> Tensor:
    """Equations 1 and 3: minus the cosine of prediction and projection, averaged over the rows.

    p, z: (n, dim); gradients reach p alone. In fp32.
    """
    return -F.cosine_similarity(p.float(), z.detach().float(), dim=1).mean()
