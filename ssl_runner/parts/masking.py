"""Which tokens are hidden: drawn per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_runner.types import TokenBackbone


def random_mask(batch: int, length: int, ratio: float, device: torch.device) -> Tensor:
    """(B, L) bool, True where hidden: the same number in each row, round(ratio L), at least one shown and one
    hidden; another choice for each sample. Drawn from torch's global CPU generator."""
    hidden = min(max(round(ratio * length), 1), length - 1)
    order = torch.rand(batch, length).argsort(1)
    return (order < hidden).to(device)


def grid_of(backbone: TokenBackbone, length: int) -> tuple[int, ...]:
    """How many of `length` tokens lie along each axis: one axis, where the backbone tells no `grid`."""
    return backbone.grid if backbone.grid is not None and math.prod(backbone.grid) == length else (length,)


def block_mask(share: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B,) shares, and how many tokens lie along each of r axes -> (B, L) bool, True where hidden.

    Each row hides round(share L) tokens in random boxes (Bao et al., BEiT, 2022, block-wise masking), one put on
    another until there are enough; the last is cut. A box has a twelfth to two fifths of the tokens, and sides whose
    ratio, relative to the grid's, is at most 1 / 0.3. From torch's global CPU generator.
    """
    batch, rank, length, boxes = len(share), len(grid), math.prod(grid), 16
    sides = torch.tensor(grid)
    volume = 1 / 12 + (2 / 5 - 1 / 12) * torch.rand(batch, boxes, 1)
    stretch = (torch.rand(batch, boxes, rank) - 0.5) * math.log(1 / 0.3)
    size = volume ** (1 / rank) * (stretch - stretch.mean(2, keepdim=True)).exp() * sides
    size = size.round().clamp(min=1).minimum(sides)
    start = (torch.rand(batch, boxes, rank) * (sides - size + 1)).floor()
    cells = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(length, rank)
    inside = ((cells >= start[:, :, None]) & (cells < (start + size)[:, :, None])).all(3)
    first = torch.where(inside.any(1), inside.int().argmax(1), boxes)  # the box that hides a token; some have none
    place = (first * length + torch.arange(length)).argsort(1).argsort(1)
    return place < (share * length).round()[:, None]


def shown(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, L, D) tokens and a (B, L) mask that hides as many in each row -> (B, V, D), those not hidden, in order."""
    return tokens[~mask].view(len(tokens), -1, tokens.shape[2])


def restore(visible: Tensor, mask: Tensor, filler: Tensor) -> Tensor:
    """The inverse of `shown`: (B, V, D) back in their (B, L) places, `filler` (D,) at the hidden ones."""
    full = filler.to(visible.dtype).expand(*mask.shape, -1).clone()
    full[~mask] = visible.flatten(0, 1)
    return full
