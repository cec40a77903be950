"""RotNet: Unsupervised Representation Learning by Predicting Image Rotations.

Gidaris, Singh, Komodakis, ICLR 2018. https://arxiv.org/abs/1803.07728
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.parts.tiles import side_of
from ssl_runner.types import Backbone, Batch, Loss, Objective


class Rotation(Objective):
    """Section 3.1: by how many quarter turns was the image rotated? A linear classifier on the features.

    Each image is seen in all four rotations at once, in one pass of 4B (Section 3.2, implementation).
    Images are square; another shape raises RequestError.
    """

    views = 1

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, 4)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        side_of(view["x"], "Rotation")
        x, turns = rotations(view["x"])
        logits = self.head(self.backbone(x)).float()
        accuracy = (logits.detach().argmax(1) == turns).float().mean()
        return Loss(F.cross_entropy(logits, turns), {"accuracy": accuracy})  # Equations 2 and 3


def rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, S, S) -> (4B, C, S, S), turned anticlockwise by 0 to 3 quarter turns, and (4B,) by how many."""
    turned = torch.cat([torch.rot90(x, k, (2, 3)) for k in range(4)])
    return turned, torch.arange(4, device=x.device).repeat_interleave(len(x))
