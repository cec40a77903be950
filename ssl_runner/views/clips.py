"""What brings clips to one length and size: a random stretch of time while training, the middle one otherwise.

The transforms of images serve clips as they are: they draw once for a clip and treat all of its frames alike.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from ssl_runner.types import Sizer, View


class MiddleFrames(Sizer):
    """The middle `frames` of (C, T, H, W) clips; a shorter one stands still on its last frame.

    each: what brings the frames to size, all of a clip in the same way.
    """

    def __init__(self, *, frames: Annotated[int, Gt(0)], each: Sizer):
        super().__init__()
        self.frames, self.each = frames, each

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, frames, h, w), same dtype."""
        return self.each({"x": self._stretch(x)})["x"]

    def one(self, view: View) -> View:
        """{"x": (C, T, H, W)} of any length and size -> (C, frames, h, w), same dtype."""
        return self.each.one({"x": self._stretch(view["x"][None])[0]})

    def starts(self, count: int, room: int) -> Tensor:
        """(count,) on the CPU: with which frame each clip begins, from 0 to room."""
        return torch.full((count,), room // 2)

    def _stretch(self, x: Tensor) -> Tensor:
        room = x.shape[2] - self.frames
        if room <= 0:
            return torch.cat([x, x[:, :, -1:].expand(-1, -1, -room, -1, -1)], 2)
        start = self.starts(len(x), room).to(x.device)
        place = start[:, None] + torch.arange(self.frames, device=x.device)
        return x[torch.arange(len(x), device=x.device)[:, None], :, place].transpose(1, 2)


class RandomFrames(MiddleFrames):
    """`frames` successive frames from a random place in time, another for each clip. The rest as in MiddleFrames."""

    def starts(self, count: int, room: int) -> Tensor:
        return torch.randint(room + 1, (count,))
