"""Momentum teachers: slow copies of what learns, that give targets and get no gradient."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn


def cosine_momentum(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1 along half a cosine (Grill et al., 2020, Section 3.2)."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class Teacher(nn.Module):
    """An exponential moving average of a module, made of a deep copy at its construction.

    start, end: momentum at the beginning and the end of training.

    Parameters and floating-point buffers (BatchNorm's running statistics) are averaged in fp32; integer buffers
    (counters) are copied. It runs in the mode its owner is in, without gradients. `update` is for the owner's
    `after_step`, or, where a paper moves the teacher first, for its forward.
    """

    def __init__(self, online: nn.Module, start: float, end: float = 1.0):
        super().__init__()
        self.copy = copy.deepcopy(online).requires_grad_(False)
        self.start, self.end = start, end

    @torch.no_grad()
    def update(self, online: nn.Module, progress: float) -> None:
        momentum = cosine_momentum(self.start, self.end, progress)
        slow = [*self.copy.parameters(), *self.copy.buffers()]
        fast = [*online.parameters(), *online.buffers()]
        for mine, theirs in zip(slow, fast, strict=True):
            if mine.is_floating_point():
                mine.copy_(torch.lerp(theirs.float(), mine.float(), momentum))
            else:
                mine.copy_(theirs)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.copy(*args, **kwargs)
