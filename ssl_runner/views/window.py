"""What brings signals (audio, series) to one length: a random window while training, the middle one otherwise."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.types import Sizer, View

Size = Annotated[int, Gt(0)]
"""Values along the last axis."""


class Window(Sizer):
    """The middle `size` values along the last axis; what is shorter has zeros behind it.

    padded: give "pad" too, (B, size), True at those zeros and at padding that the view came with. Without it a view
    loses its "pad", and whoever sees it takes the zeros for values.
    """

    def __init__(self, *, size: Size, padded: bool = False):
        super().__init__()
        self.size, self.padded = size, padded

    def forward(self, view: View) -> View:
        """{"x": (B, ..., n)} -> {"x": (B, ..., size)}, same dtype."""
        x, given = view["x"], view.get("pad")
        short = max(0, self.size - x.shape[-1])
        pad = torch.zeros(len(x), x.shape[-1], dtype=torch.bool, device=x.device) if given is None else given
        x, pad = F.pad(x, (0, short)), F.pad(pad, (0, short), value=True)
        if x.shape[-1] > self.size:
            # only as far as there is something to see: a window of padding alone would teach nothing
            room = ((~pad).sum(1) - self.size).clamp(min=0)
            start = self.starts(room).view(-1, *[1] * (x.ndim - 1))
            place = start + torch.arange(self.size, device=x.device)
            x, pad = x.gather(-1, place.expand(*x.shape[:-1], -1)), pad.gather(1, place.view(len(x), -1))
        return {**view, "x": x, "pad": pad} if self.padded else {**_without_pad(view), "x": x}

    def one(self, view: View) -> View:
        """{"x": (C, ..., n)} -> {"x": (C, ..., size)}, same dtype: a slice, where it came without padding."""
        if "pad" in view:
            return super().one(view)
        x, length = view["x"], view["x"].shape[-1]
        if length > self.size:
            start = int(self.starts(torch.tensor([length - self.size])))
            x = x[..., start : start + self.size]
        elif length < self.size:
            x = F.pad(x, (0, self.size - length))
        made = {**view, "x": x}
        return {**made, "pad": torch.arange(self.size) >= length} if self.padded else made

    def starts(self, room: Tensor) -> Tensor:
        """room: (B,) values that do not fit -> (B,) where each window begins."""
        return room // 2


class RandomWindow(Window):
    """`size` successive values from a random place, another for each sample. The rest as in Window."""

    def starts(self, room: Tensor) -> Tensor:
        share = torch.rand(len(room), dtype=torch.float64).to(room.device, torch.float32)
        return (share * (room + 1)).long().minimum(room)


def _without_pad(view: View) -> View:
    return {name: tensor for name, tensor in view.items() if name != "pad"}
