"""Squares cut out of images, each at its own place, for pretexts about how parts lie to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_runner.errors import RequestError


def crops(x: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """(B, C, H, W) and the (B, n) corners of n squares in each -> (B, n, C, side, side)."""
    steps = torch.arange(side)
    rows = (top[:, :, None] + steps)[:, :, :, None].to(x.device)  # (B, n, side, 1)
    columns = (left[:, :, None] + steps)[:, :, None, :].to(x.device)  # (B, n, 1, side)
    sample = torch.arange(len(x), device=x.device)[:, None, None, None]
    return x[sample, :, rows, columns].permute(0, 1, 4, 2, 3)


def side_of(x: Tensor, asks: str) -> int:
    """The side of square images. asks: who asks, for the error.

    Raises RequestError for anything but (B, C, S, S).
    """
    if x.ndim != 4 or x.shape[2] != x.shape[3]:
        raise RequestError(
            f"objective: {asks} needs square images, and samples are {tuple(x.shape[1:])}; "
            "use views that crop to a square, such as views=finetune"
        )
    return x.shape[3]
