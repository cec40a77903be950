"""Momentum teachers: slow copies of what learns, that give targets and get no gradient."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def cosine_momentum(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1 along half a cosine (Grill et al., 2020, Section 3.3)."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class Teacher(nn.Module):
    """An exponential moving average of a module, made of a deep copy at its construction.

    start, end: momentum at the beginning and the end of training.

    Parameters and floating-point buffers (BatchNorm's running statistics) are averaged in fp32; integer buffers
    (counters) are copied. It drops nothing, whatever its backbone's dropout and drop-path: those are the student's
    alone (DINO, data2vec). Only its BatchNorm follows the owner's mode, as in BYOL. `update` is for the owner's
    `after_step`, or, where a paper moves the teacher first, for its forward.
    """

    def __init__(self, online: nn.Module, start: float, end: float = 1.0):
        super().__init__()
        self.copy = copy.deepcopy(online).requires_grad_(False)
        self.start, self.end = start, end
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        super().train(mode)
        for module in self.copy.modules():
            module.training = mode and isinstance(module, _BatchNorm)
        return self

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
