"""What sources of clips share: their facts, the baseline on the raw input, and animations to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_runner.pictures import grid
from ssl_runner.types import View

PAUSE = 150  # milliseconds that a frame is shown
SIDE = 16  # pixels along a side of what the baseline sees


def clip_facts(*, frames: int, size: int, mean: Sequence[float], std: Sequence[float], classes: int) -> dict[str, Any]:
    """The facts of a source of square colour clips."""
    return {
        "shape": (3, frames, size, size),
        "frames": frames,
        "size": size,
        "mean": tuple(mean),
        "std": tuple(std),
        "num_classes": classes,
    }


def look_and_motion(view: View) -> Tensor:
    """(B, C, T, H, W) -> (B, 2 C h w): the mean frame, and how much each pixel changes from frame to frame, on average;
    both on a grid of at most 16 x 16."""
    x = view["x"]
    change = x.diff(dim=2).abs().mean(2) if x.shape[2] > 1 else torch.zeros_like(x[:, :, 0])
    sides = (min(x.shape[-2], SIDE), min(x.shape[-1], SIDE))
    return F.adaptive_avg_pool2d(torch.cat([x.mean(2), change], 1), sides).flatten(1)


def animate(columns: Sequence[Tensor], path: Path) -> Path | None:
    """Writes a GIF with a row for each clip. columns: (n, C, T, h, w) each, in [0, 1]. None if they are no clips."""
    if any(column.ndim != 5 or column.shape[1] not in (1, 3) for column in columns):
        return None
    from PIL import Image

    file, length = path.with_suffix(".gif"), max(column.shape[2] for column in columns)
    held = [column[:, :, torch.arange(length).clamp(max=column.shape[2] - 1)] for column in columns]
    frames = [Image.fromarray(grid([column[:, :, t] for column in held]).numpy()) for t in range(length)]
    file.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=PAUSE, loop=0)
    return file
