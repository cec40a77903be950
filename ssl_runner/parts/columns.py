"""Rows of a table: numbers and categories side by side, and draws from a column's own values.

A row is (C,) float32: a number, a category's code 0 .. K - 1, or NaN where the value is missing. `columns` says which
column is what: 0 for numbers, K for K categories.
"""

from __future__ import annotations

import torch
from torch import Tensor


def width(columns: tuple[int, ...]) -> int:
    """How many values `spread` gives for each column."""
    return 2 + max(columns)


def spread(x: Tensor, columns: Tensor, wide: int) -> Tensor:
    """(B, C) rows -> (B, C, wide): a number, whether the value is missing, and each category as 0 or 1. No NaN.

    columns: (C,) int64. A missing value is 0 and no category. wide: `width(columns)`.
    """
    missing = x.isnan()
    category = columns > 0
    number = x.masked_fill(missing | category, 0.0)
    code = x.masked_fill(missing | ~category, -1.0)
    hot = code[..., None] == torch.arange(wide - 2, device=x.device)
    return torch.cat([torch.stack([number, missing.to(x.dtype)], 2), hot.to(x.dtype)], 2)


def joined(patches: Tensor, columns: Tensor) -> Tensor:
    """The inverse of `spread`, for guesses too: (B, C, wide) -> (B, C), the likeliest category of those there are."""
    number, missing, hot = patches[..., 0], patches[..., 1], patches[..., 2:]
    if hot.shape[2]:
        there = torch.arange(hot.shape[2], device=hot.device) < columns[:, None]
        code = hot.masked_fill(~there, float("-inf")).argmax(2)
        number = torch.where(columns > 0, code.to(number.dtype), number)
    return number.masked_fill(missing > 0.5, float("nan"))


def useful(columns: tuple[int, ...], flagged: Tensor | None = None) -> Tensor:
    """(M,) int64: which of the flattened C x wide values of `spread` can differ from 0.

    flagged: (C,) bool, the columns that have missing values; None: any may have.
    """
    wide = width(columns)
    kept = torch.zeros(len(columns), wide, dtype=torch.bool)
    counts = torch.tensor(columns)
    kept[:, 0] = counts == 0
    kept[:, 1] = True if flagged is None else flagged
    kept[:, 2:] = torch.arange(wide - 2) < counts[:, None]
    return kept.flatten().nonzero()[:, 0]


def of_others(x: Tensor, among: Tensor, first: int = 0) -> Tensor:
    """(B, C) rows -> (B, C): every value is that of another row, drawn anew for each value: a draw from the column's
    empirical marginal. From torch's global CPU generator.

    among: (N, C), all rows to draw from; x is its rows from `first` on. A row that is alone stays as it is.
    """
    row = torch.arange(first, first + len(x))[:, None]
    step = torch.randint(1, max(2, len(among)), x.shape)
    return among.gather(0, ((row + step) % len(among)).to(among.device))
