"""What brings images to one size: random crops while training, a fixed resize and centre crop otherwise.

All take clips too, (B, C, T, H, W), and give all frames of one the same crop.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.types import Sizer, View
from ssl_runner.views.draws import Share, ascending

Interpolation = Literal["bilinear", "bicubic"]
Side = Annotated[int, Ge(1)]
"""Pixels."""


class RandomResizedCrop(Sizer):
    """A crop of random area and aspect ratio, resized to (size, size) with antialiasing.

    Szegedy et al., "Going deeper with convolutions", 2015, Section 6; the distribution of the boxes and the
    resampling are torchvision's.

    scale: bounds of the crop's share of the image's area. ratio: bounds of its width / height.
    """

    def __init__(
        self,
        *,
        size: Side,
        scale: tuple[Share, Share] = (0.08, 1.0),
        ratio: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
    ):
        super().__init__()
        self.size, self.interpolation = size, interpolation
        self.scale = ascending("RandomResizedCrop: scale", scale)
        self.ratio = ascending("RandomResizedCrop: ratio", ratio)

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ..., H, W) float in [0, 1] -> (B, C, ..., size, size), another box for each sample."""
        height, width = x.shape[-2:]
        top, left, h, w = boxes(len(x), height, width, self.scale, self.ratio).to(x.device).unbind(1)
        rows = crop_matrix(top, h, height, self.size, self.interpolation)
        columns = crop_matrix(left, w, width, self.size, self.interpolation)
        return _bounded(separable(x, rows, columns), self.interpolation)

    def one(self, view: View) -> View:
        """{"x": (C, ..., h, w)}, uint8 or float in [0, 1] -> (C, ..., size, size), same dtype."""
        x = view["x"]
        (top, left, h, w), *_ = boxes(1, x.shape[-2], x.shape[-1], self.scale, self.ratio).tolist()
        return {"x": resize(x[None, ..., top : top + h, left : left + w], self.size, self.size, self.interpolation)[0]}


class Resize(Sizer):
    """The shorter side to size / crop, then the central (size, size): no randomness.

    crop: the share of the resized image's shorter side that is kept; 0.875 is usual for ImageNet.
    An image that is (size, size) already stays as it is.
    """

    def __init__(
        self,
        *,
        size: Side,
        crop: Annotated[float, Gt(0), Le(1)] = 1.0,
        interpolation: Interpolation = "bilinear",
    ):
        super().__init__()
        self.size, self.crop, self.interpolation = size, crop, interpolation

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ..., h, w), uint8 or float in [0, 1] -> (B, C, ..., size, size), same dtype."""
        if x.shape[-2:] == (self.size, self.size):
            return x
        reach = 4 * min(x.shape[-2:])
        x = _centre(x, reach, reach)  # a very long image would be enlarged beyond memory, only to be cut
        h, w = x.shape[-2:]
        short = round(self.size / self.crop)
        long = int(short * max(h, w) / min(h, w))
        x = resize(x, long if h > w else short, long if w > h else short, self.interpolation)
        return _centre(x, self.size, self.size)


class RandomCrop(Sizer):
    """A (size, size) window at a random place of the image and a border of zeros, as usual for CIFAR.

    padding: pixels added on each side. Raises RequestError where the padded image is smaller than the window.
    """

    def __init__(self, *, size: Side, padding: Annotated[int, Ge(0)] = 4):
        super().__init__()
        self.size, self.padding = size, padding

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ..., H, W) -> (B, C, ..., size, size), another place for each sample."""
        n, (height, width) = len(x), x.shape[-2:]
        down, right = height + 2 * self.padding - self.size, width + 2 * self.padding - self.size
        if down < 0 or right < 0:
            raise RequestError(
                f"RandomCrop: size={self.size} does not fit in a {height} x {width} image with padding="
                f"{self.padding}; lower the size, or use RandomResizedCrop, which also enlarges"
            )
        places = torch.stack([torch.arange(n), torch.randint(down + 1, (n,)), torch.randint(right + 1, (n,))])
        sample, top, left = places.to(x.device)
        windows = F.pad(x, [self.padding] * 4).unfold(-2, self.size, 1).unfold(-2, self.size, 1)
        return windows.movedim((-4, -3), (1, 2))[sample, top, left]


def boxes(n: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """n random crops of a (height, width) image: (n, 4) int64 of top, left, height, width, on the CPU.

    The area is uniform, the logarithm of the aspect ratio is uniform, and so is the place. Of ten draws the
    first that fits counts; if none does, the crop is the largest central one with an allowed ratio.
    """
    area = torch.empty(n, 10, dtype=torch.float64).uniform_(*scale).mul_(height * width)
    low, high = torch.tensor(ratio, dtype=torch.float64).log().tolist()
    aspect = torch.empty(n, 10, dtype=torch.float64).uniform_(low, high).exp_()
    h, w = (area / aspect).sqrt_().round_(), (area * aspect).sqrt_().round_()
    fits = (h >= 1) & (h <= height) & (w >= 1) & (w <= width)
    first = fits.byte().argmax(1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    top = (torch.rand(n, dtype=torch.float64) * (height - h + 1)).floor_()
    left = (torch.rand(n, dtype=torch.float64) * (width - w + 1)).floor_()
    drawn = torch.stack([top, left, h, w], 1).long()

    tall, wide = width / height < ratio[0], width / height > ratio[1]
    h_central = max(1, round(width / ratio[0])) if tall else height
    w_central = max(1, round(height * ratio[1])) if wide else width
    central = torch.tensor([(height - h_central) // 2, (width - w_central) // 2, h_central, w_central])
    return torch.where(fits.any(1, keepdim=True), drawn, central)


def crop_matrix(start: Tensor, length: Tensor, size: int, out: int, interpolation: Interpolation) -> Tensor:
    """What cuts [start, start + length) out of a line of `size` pixels and resizes that to `out` pixels.

    start, length: (B,) integers. Returns (B, out, size), rows of sum one. The filter is a triangle, or
    Keys' cubic with a = -1/2, stretched by the scale where it reduces (antialiasing) and cut off at the
    crop's ends, as in torch's `interpolate(antialias=True)` and Pillow.
    """
    start, length = start[:, None, None], length[:, None, None]
    pixel = torch.arange(size, device=start.device)
    step = length / out  # input pixels per output pixel
    centre = start + step * (torch.arange(out, device=start.device)[:, None] + 0.5)
    distance = (pixel + 0.5 - centre).mul_(step.reciprocal().clamp_(max=1)).abs_()
    inside = ((pixel >= start) & (pixel < start + length)).float()
    weight = _FILTERS[interpolation](distance).mul_(inside)
    return weight.div_(weight.sum(2, keepdim=True))


def _triangle(d: Tensor) -> Tensor:
    return d.neg_().add_(1).clamp_(min=0)


def _cubic(d: Tensor) -> Tensor:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981: the kernel; d >= 0.

    His two pieces, without a case: (2 - e)^2 (1 - e) / 2 is the outer one, and (1 - f)^2 (2 f - 1) what the
    inner one adds to it; each is held at its end, where it is zero.
    """
    e, f = d.clamp(max=2), d.clamp(max=1)
    outer = (e - 2).square_().mul_(e.neg_().add_(1)).mul_(0.5)
    return outer.add_((f - 1).square_().mul_(f.mul_(2).sub_(1)))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}


def separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ x @ columns^T for each sample and channel, in x's own precision whatever the autocast.

    x: (B, C, ..., H, W); rows: (B, h, H); columns: (B, w, W). Returns (B, C, ..., h, w).
    """
    planes = x.flatten(1, -3)
    with torch.autocast(x.device.type, enabled=False):
        lines = torch.bmm(planes.flatten(1, 2), columns.transpose(1, 2))
        made = torch.matmul(rows[:, None], lines.view(*planes.shape[:3], columns.shape[1]))
    return made.view(*x.shape[:-2], *made.shape[2:])


def resize(x: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    """(B, C, ..., h, w), uint8 or float in [0, 1] -> (B, C, ..., height, width), antialiased; x itself if it fits.

    Bytes are rounded and clamped after each axis, as in Pillow.
    """
    if x.shape[-2:] == (height, width):
        return x
    planes = x.shape[:-2]
    x = F.interpolate(x.flatten(1, -3), (height, width), mode=interpolation, align_corners=False, antialias=True)
    x = x.view(*planes, height, width)
    return x if x.dtype == torch.uint8 else _bounded(x, interpolation)


def _bounded(x: Tensor, interpolation: Interpolation) -> Tensor:
    """The cubic filter overshoots at edges; intensities do not leave [0, 1]."""
    return x.clamp_(0, 1) if interpolation == "bicubic" else x


def _centre(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of (..., h, w), at most (height, width)."""
    h, w = x.shape[-2:]
    top, left = max(0, round((h - height) / 2)), max(0, round((w - width) / 2))
    return x[..., top : top + height, left : left + width]
