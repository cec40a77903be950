"""Parts taken out of a sample, and other samples mixed in."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from ssl_runner.types import Transform
from ssl_runner.views.draws import Share, change_chosen


class Cutout(Transform):
    """A square of each image becomes `fill`, with probability p (DeVries & Taylor, 2017, https://arxiv.org/abs/1708.04552).

    side: the square's side as a share of the shorter side of the image, at least one pixel. Its centre is any pixel,
    so that a part of it may lie outside, as in the paper. fill: 0.5 is grey; the paper has 0 after normalisation.
    """

    def __init__(self, *, side: Annotated[float, Gt(0), Le(1)] = 0.5, fill: float = 0.5, p: Share = 1.0):
        super().__init__()
        self.side, self.fill, self.p = side, fill, p

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return change_chosen(x, self.p, self._cut)

    def _cut(self, x: Tensor) -> Tensor:
        n, (height, width) = len(x), x.shape[-2:]
        side = max(1, round(self.side * min(height, width)))
        rows = _covered(torch.randint(height, (n,)), side, height)
        columns = _covered(torch.randint(width, (n,)), side, width)
        hole = (rows[:, :, None] & columns[:, None, :])[:, None].to(x.device)
        return x.masked_fill(hole, self.fill)


class Mixup(Transform):
    """Blends each sample with another of the batch, with probability p (Zhang et al., 2018, Section 2).

    alpha: the share is drawn from Beta(alpha, alpha) for each sample. The larger share is the sample's own: a view has
    no label that could be mixed as well, so it stays a view of that sample.
    """

    def __init__(self, *, alpha: Annotated[float, Gt(0)] = 0.2, p: Share = 1.0):
        super().__init__()
        self.alpha, self.p = alpha, p

    def transform(self, x: Tensor) -> Tensor:
        """(B, ...) float -> the same."""
        n = len(x)
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((n,))
        share = torch.maximum(share, 1 - share).masked_fill(torch.rand(n) >= self.p, 1.0)
        own = share.to(x).view(-1, *[1] * (x.ndim - 1))
        return own * x + (1 - own) * x[torch.randperm(n).to(x.device)]


def _covered(centre: Tensor, side: int, length: int) -> Tensor:
    """(n,) centres -> (n, length) bool: the places of a stretch of `side` about each, as far as they exist."""
    first = centre[:, None] - side // 2
    place = torch.arange(length)
    return (place >= first) & (place < first + side)
