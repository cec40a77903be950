"""Pictures of what a run does: its views, and what its objective makes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_runner.types import Objective, Samples, as_batch
from ssl_runner.views.base import Views

SIDE = 64  # pixels of the smallest picture
SHOWN = 8  # samples in one grid


def draw(columns: list[Tensor], path: Path) -> bool:
    """Writes a grid with a row for each sample. columns: (n, C, h, w) each, in [0, 1]. False if they are no images."""
    if any(column.ndim != 4 or column.shape[1] not in (1, 3) for column in columns):
        return False
    from PIL import Image

    side = max(SIDE, max(c.shape[-1] for c in columns))
    columns = [nn.functional.interpolate(c.float(), size=(side, side), mode="nearest") for c in columns]
    columns = [nn.functional.pad(c.expand(-1, 3, -1, -1), (2, 2, 2, 2), value=1.0) for c in columns]
    rows = torch.cat([torch.cat(list(c), dim=1) for c in columns], dim=2)
    pixels = rows.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.cpu().numpy()).save(path)
    return True


@torch.no_grad()
def write(objective: Objective, views: Views, samples: Samples, device: torch.device, folder: Path) -> list[Path]:
    """Writes what the objective shows of some samples, one NAME.png each, and gives the files."""
    seen = [{name: t.to(device) for name, t in view.items()} for view in views(samples)]
    objective.eval()
    written = []
    for name, columns in objective.show(as_batch(samples, seen)).items():
        path = folder / f"{name}.png"
        if draw([undo(column.cpu(), views.last) for column in columns], path):
            written.append(path)
    return written


def undo(x: Tensor, last: nn.ModuleDict) -> Tensor:
    """Undoes the normalisation at the end of a view, whatever its place among the last transforms."""
    for transform in reversed(list(last.values())):
        mean, std = getattr(transform, "mean", None), getattr(transform, "std", None)
        if isinstance(mean, Tensor) and isinstance(std, Tensor) and x.ndim == 4:
            x = x * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)
    return x
