"""Two backbones side by side, one for each input of pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssl_runner.types import Backbone, seen_by


class Towers(Backbone):
    """Two towers that share nothing: as a backbone it is the first, and `other` embeds the second input of pairs.

    first, second: any backbones, of any kinds of input; what `second` leaves out is told by the second input.

    Evaluators of features score the first tower, and finetuning trains it. Padding is told as data and views make it,
    for the two count their tokens differently; each tower gets its own.
    """

    def __init__(self, *, first: Backbone, second: Backbone):
        super().__init__()
        self.first, self.second, self.dim = first, second, first.dim

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, ...) first inputs -> (B, dim). pad: (B, n) bool along the last axis of x."""
        return _embedded(self.first, x, pad)

    def other(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, ...) second inputs -> (B, second.dim). pad: (B, n) bool along the last axis of x."""
        return _embedded(self.second, x, pad)

    @property
    def advice(self) -> str | None:
        """What the towers advise, if anything."""
        told = [getattr(tower, "advice", None) for tower in (self.first, self.second)]
        return "; ".join(each for each in told if each) or None

    def pinned(self) -> dict[str, Any]:
        """What the towers pin, each its own."""
        return {name: getattr(getattr(self, name), "pinned", dict)() for name in ("first", "second")}


def _embedded(tower: Backbone, x: Tensor, pad: Tensor | None) -> Tensor:
    return tower(**seen_by(tower, {"x": x} if pad is None else {"x": x, "pad": pad}))
