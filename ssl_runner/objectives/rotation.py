"""RotNet: Unsupervised Representation Learning by Predicting Image Rotations.

Gidaris, Singh, Komodakis, ICLR 2018. https://arxiv.org/abs/1803.07728
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_runner.parts.choice import choice_loss
from ssl_runner.parts.tiles import side_of
from ssl_runner.types import Backbone, Batch, Loss, Objective


class Rotation(Objective):
    """By how many quarter turns was the image rotated? A linear classifier on the features.

    Each image is seen in all four rotations at once, in one pass of 4B, as the paper found best.
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
        return choice_loss(self.scores(x), turns)  # Equations 2 and 3

    def scores(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, 4): logits of the quarter turns by which each was rotated."""
        return self.head(self.backbone(x))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Each image in one rotation, drawn on the CPU, and turned back by as much as was told: upright if right."""
        x = batch["views"][0]["x"]
        seen = turned(x, torch.randint(4, (len(x),)).to(x.device))
        return {"rotation": [seen, turned(seen, -self.scores(seen).argmax(1))]}


def rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, S, S) -> (4B, C, S, S), turned anticlockwise by 0 to 3 quarter turns, and (4B,) by how many."""
    every = torch.cat([torch.rot90(x, k, (2, 3)) for k in range(4)])
    return every, torch.arange(4, device=x.device).repeat_interleave(len(x))


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """(B, C, S, S) and (B,) -> (B, C, S, S): each image turned anticlockwise by its own number of quarter turns."""
    every = rotations(x)[0].unflatten(0, (4, -1))
    return every[turns % 4, torch.arange(len(x), device=x.device)]
