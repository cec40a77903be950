"""Projection and prediction heads."""

from __future__ import annotations

from torch import nn


def mlp(dims: list[int], *, norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear layers through the widths `dims`, ReLU between them.

    norm: BatchNorm before each ReLU; last_norm: an affine-free BatchNorm at the end. A Linear that a BatchNorm
    follows has no bias, for the norm would remove it.
    """
    layers: list[nn.Module] = []
    for n, (a, b) in enumerate(zip(dims, dims[1:], strict=False)):
        last = n == len(dims) - 2
        normed = last_norm if last else norm
        layers.append(nn.Linear(a, b, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(b, affine=not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
