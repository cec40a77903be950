"""Which tokens are hidden: drawn per sample."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.types import TokenBackbone

Masking = Literal["random", "tubes"]
"""How a part of the tokens is chosen: each for itself, or all that lie behind each other along the first axis."""


def random_mask(batch: int, length: int, ratio: float, device: torch.device) -> Tensor:
    """(B, L) bool, True where hidden: the same number in each row, round(ratio L), at least one shown and one
    hidden; another choice for each sample. Drawn from torch's global CPU generator."""
    hidden = min(max(round(ratio * length), 1), length - 1)
    order = torch.rand(batch, length).argsort(1)
    return (order < hidden).to(device)


def tube_mask(batch: int, grid: tuple[int, ...], ratio: float, device: torch.device) -> Tensor:
    """(B, L) bool, True where hidden: one `random_mask` over all axes of the grid but the first, time, along which it
    is repeated (Tong et al., VideoMAE, NeurIPS 2022, tube masking). What hardly moves can't be copied from a frame
    before or behind."""
    steps, *places = grid
    return random_mask(batch, math.prod(places), ratio, device).repeat(1, steps)


def tubed(backbone: TokenBackbone, length: int) -> tuple[int, ...]:
    """The grid of `length` tokens. Raises RequestError where no tubes lie in it: it needs two axes, and two places
    behind the first one."""
    grid = grid_of(backbone, length)
    if len(grid) < 2 or math.prod(grid[1:]) < 2:
        raise RequestError(
            f"objective.mask=tubes: the backbone's tokens lie as {list(grid)}, and tubes go along the first of several "
            "axes, as time is of clips; use objective.mask=random"
        )
    return grid


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


def span_mask(may: Tensor, ratio: float, span: int) -> Tensor:
    """(B, L) bool, the tokens that can be hidden, which are the first of each row -> (B, L) bool, True where hidden.

    Of a row with n such tokens, ratio n / span spans of `span` tokens are hidden (rounded up or down at random, at
    least one), their beginnings drawn without repetition among those that leave room for a whole span; they may
    overlap (Baevski et al., wav2vec 2.0, 2020, "Masking"). A row that is shorter than a span is hidden whole.
    From torch's global CPU generator.
    """
    batch, length = may.shape
    order, chance = torch.rand(batch, length).to(may.device), torch.rand(batch, 1).to(may.device)
    count = may.sum(1, keepdim=True)
    place = torch.arange(length, device=may.device)
    can_begin = (place + span <= count) | (place == 0)
    spans = (ratio * count / span + chance).floor().clamp(min=1)
    begins = (order.masked_fill(~can_begin, 2.0).argsort(1).argsort(1) < spans) & can_begin
    begun = begins.long().cumsum(1)
    over = torch.nn.functional.pad(begun, (span, 0))[:, :length]  # those that are over again
    return (begun > over) & may


def most_hidden(length: int, ratio: float, span: int) -> int:
    """The most tokens that `span_mask` hides of a row of so many."""
    return min(length, max(1, span * (int(ratio * length / span) + 1)))


def hidden_places(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(B, L) bool, at most so many True in a row -> (B, K) places, K = most, those that are True first, in order; and
    (B, K) bool, which these are."""
    place = (~mask).long().argsort(dim=1, stable=True)[:, :most]
    return place, mask.gather(1, place)


def at(place: Tensor, tokens: Tensor) -> Tensor:
    """(B, K) places of (B, L, D) tokens -> (B, K, D)."""
    return tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[2]))
