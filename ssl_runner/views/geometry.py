"""Mirror images, rotation, shift, zoom and shear."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from ssl_runner.types import Transform
from ssl_runner.views.draws import Share, ascending, change_chosen, uniform


class HorizontalFlip(Transform):
    """Left to right with probability p."""

    def __init__(self, *, p: Share = 0.5):
        super().__init__()
        self.p = p

    def transform(self, x: Tensor) -> Tensor:
        """(B, ..., W) -> (B, ..., W)."""
        return change_chosen(x, self.p, lambda x: x.flip(-1))


class VerticalFlip(Transform):
    """Upside down with probability p."""

    def __init__(self, *, p: Share = 0.5):
        super().__init__()
        self.p = p

    def transform(self, x: Tensor) -> Tensor:
        """(B, ..., H, W) -> (B, ..., H, W)."""
        return change_chosen(x, self.p, lambda x: x.flip(-2))


class Affine(Transform):
    """A random affine map about the image's centre, of the same size, with probability p: rotation, shift, zoom, shear.

    degrees: the angle is uniform in [-degrees, degrees].
    translate: the shift is uniform within this share of the width and of the height, in whole pixels.
    scale: bounds of the zoom. shear: the horizontal shear is uniform in [-shear, shear], in degrees.
    fill: what lies outside the image; bilinear interpolation blends the image's edge with it.

    The parameters and the map are those of torchvision's RandomAffine.
    """

    def __init__(
        self,
        *,
        degrees: Annotated[float, Ge(0), Le(180)] = 0.0,
        translate: Share = 0.0,
        scale: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (1.0, 1.0),
        shear: Annotated[float, Ge(0), Lt(90)] = 0.0,
        p: Share = 1.0,
        interpolation: Literal["nearest", "bilinear"] = "bilinear",
        fill: float = 0.0,
    ):
        super().__init__()
        self.degrees, self.translate, self.shear = degrees, translate, shear
        self.scale = ascending("Affine: scale", scale)
        self.p, self.interpolation, self.fill = p, interpolation, fill

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ..., H, W) -> the same shape; all frames of a clip alike."""
        return change_chosen(x, self.p, lambda x: affine(x, self.draw(x), self.interpolation, self.fill))

    def draw(self, x: Tensor) -> Tensor:
        """(5, B) on the CPU: angle and shear in degrees, zoom, shift right and down in pixels."""
        n, (height, width) = len(x), x.shape[-2:]
        angle = uniform(n, -self.degrees, self.degrees)
        shear = uniform(n, -self.shear, self.shear)
        zoom = uniform(n, *self.scale)
        right, down = (uniform(n, -self.translate * s, self.translate * s).round_() for s in (width, height))
        return torch.stack([angle, shear, zoom, right, down])


def affine(x: Tensor, parameters: Tensor, interpolation: Literal["nearest", "bilinear"], fill: float) -> Tensor:
    """Shears, then zooms, rotates clockwise and shifts each sample.

    x: (B, C, ..., H, W); parameters: (5, B), as `Affine.draw` gives them. A pixel at (u, v) from the centre shows
    what lay at R^-1 ((u, v) - shift), R = rotation(angle) * zoom * [[1, -tan shear], [0, 1]].
    """
    height, width = x.shape[-2:]
    angle, shear, zoom, right, down = parameters.to(x.device)[:, :, None, None]
    angle, slope = angle * (math.pi / 180), (shear * (math.pi / 180)).tan()
    u = torch.arange(width, device=x.device) - (width - 1) / 2 - right  # (B, 1, W)
    v = torch.arange(height, device=x.device)[:, None] - (height - 1) / 2 - down  # (B, H, 1)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    from_y = cos * v - sin * u  # unrotated; what is left is the shear
    from_x = cos * u + sin * v + slope * from_y
    grid = torch.stack([from_x * (2 / width), from_y * (2 / height)], dim=-1)
    # zeros lie outside, so `fill` is taken off before and put on after
    planes = (x - fill).flatten(1, -3)
    moved = F.grid_sample(planes, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return moved.view(x.shape) + fill
