"""Random draws, one per sample, from torch's global CPU generator: one seed fixes them on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ssl_runner.errors import RequestError

Share = Annotated[float, Ge(0), Le(1)]
"""A probability, or a part of a whole."""


def uniform(n: int, low: float, high: float) -> Tensor:
    """(n,) float32 on the CPU, uniform in [low, high)."""
    return torch.rand(n).mul_(high - low).add_(low)


def chosen(n: int, p: float) -> Tensor:
    """Which of n samples something happens to, each with probability p: (m,) int64 positions, on the CPU."""
    return torch.rand(n).lt(p).nonzero()[:, 0]


def change_chosen(x: Tensor, p: float, change: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, ...) -> (B, ...): each sample becomes its changed form with probability p.

    change: (m, ...) -> (m, ...), called once with the chosen samples only; it may not write to its argument.
    """
    index = chosen(len(x), p)
    if len(index) == 0:
        return x
    if len(index) == len(x):
        return change(x)
    index = index.to(x.device)
    out = x.clone()
    out[index] = change(x[index])
    return out


def ascending(key: str, bounds: tuple[float, float]) -> tuple[float, float]:
    """The two bounds of a draw. Raises RequestError unless the lower one comes first."""
    low, high = bounds
    if low > high:
        raise RequestError(f"{key}=[{low}, {high}]: give the lower bound first")
    return low, high
