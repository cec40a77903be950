"""Pictures: a grid of images in a file, and images as they were before they were normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

SIDE = 64  # pixels of the smallest picture


def draw(columns: Sequence[Tensor], path: Path) -> bool:
    """Writes a grid with a row for each sample. columns: (n, C, h, w) each, in [0, 1]. False if they are no images."""
    if any(column.ndim != 4 or column.shape[1] not in (1, 3) for column in columns):
        return False
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(columns).numpy()).save(path)
    return True


def grid(columns: Sequence[Tensor]) -> Tensor:
    """(n, C, h, w) each, in [0, 1], C of 1 or 3 -> (height, width, 3) uint8, a row for each sample; on the CPU."""
    side = max(SIDE, max(c.shape[-1] for c in columns))
    columns = [nn.functional.interpolate(c.float(), size=(side, side), mode="nearest") for c in columns]
    columns = [nn.functional.pad(c.expand(-1, 3, -1, -1), (2, 2, 2, 2), value=1.0) for c in columns]
    rows = torch.cat([torch.cat(list(c), dim=1) for c in columns], dim=2)
    return rows.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu()


def undo(x: Tensor, last: nn.ModuleDict) -> Tensor:
    """Undoes the normalisation at the end of a view, whatever its place among the last transforms, and what has an
    `inverse`. Other ids stay as they are."""
    for transform in reversed(list(last.values())):
        inverse = getattr(transform, "inverse", None)
        x = x if inverse is None else inverse(x)
        mean, std = getattr(transform, "mean", None), getattr(transform, "std", None)
        if isinstance(mean, Tensor) and isinstance(std, Tensor) and x.is_floating_point():
            shape = (-1, *[1] * (x.ndim - 2))
            x = x * std.view(shape) + mean.view(shape)
    return x
