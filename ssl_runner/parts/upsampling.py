"""From one feature vector back to an image: what pixel-predicting objectives put on a backbone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """A vector is laid out on a small map, which convolutions enlarge twofold, step by step: (B, dim) -> (B, C, H, W).

    shape: (C, H, W) of the output; any H and W. width: channels of the maps in between.
    The first map is the output halved until its longer side is at most 4.
    """

    def __init__(self, dim: int, shape: tuple[int, int, int], width: int):
        super().__init__()
        channels, *side = shape
        self.sizes = [tuple(side)]
        while max(self.sizes[0]) > 4:
            self.sizes.insert(0, tuple((s + 1) // 2 for s in self.sizes[0]))
        height, across = self.sizes[0]
        self.first = nn.Linear(dim, width * height * across)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for _ in self.sizes
        )
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        maps = self.first(features).unflatten(1, (-1, *self.sizes[0]))
        for size, step in zip(self.sizes, self.steps, strict=True):
            maps = step(F.interpolate(maps, size=size))
        return self.last(maps)
