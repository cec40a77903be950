"""Blur and noise."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.types import Transform
from ssl_runner.views.crop import separable
from ssl_runner.views.draws import Share, ascending, change_chosen, uniform


class GaussianBlur(Transform):
    """A Gaussian blur of random width, with probability p; edges are reflected.

    kernel: pixels that the Gaussian spans, odd. None: a tenth of the shorter side, as in SimCLR (Chen et al.,
    2020, Appendix A), made odd and at least 3.
    sigma: bounds of its standard deviation, in pixels, uniform.

    The kernel is torchvision's: exp(-t^2 / (2 sigma^2)) at `kernel` points t that are evenly spaced over
    [-(kernel - 1) / 2, (kernel - 1) / 2], normalised.
    """

    def __init__(
        self,
        *,
        kernel: Annotated[int, Ge(1)] | None = None,
        sigma: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.1, 2.0),
        p: Share = 0.5,
    ):
        super().__init__()
        if kernel is not None and kernel % 2 == 0:
            raise RequestError(f"GaussianBlur: kernel={kernel}: must be odd, to have a middle")
        self.kernel, self.sigma, self.p = kernel, ascending("GaussianBlur: sigma", sigma), p

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ..., H, W) -> the same shape; all frames of a clip alike."""
        return change_chosen(x, self.p, self._blur)

    def _blur(self, x: Tensor) -> Tensor:
        kernel = self.kernel or max(3, 2 * (min(x.shape[-2:]) // 20) + 1)
        return blur(x, uniform(len(x), *self.sigma).to(x.device), kernel)


def blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """x: (B, C, ..., H, W); sigma: (B,) pixels; kernel: odd. Returns x's shape."""
    t = torch.arange(kernel, device=x.device) - kernel // 2
    weight = torch.softmax(-0.5 * (t / sigma[:, None]) ** 2, dim=1)  # (B, kernel)
    weight = F.threshold(weight, 1e-12, 0)  # far tails: subnormal numbers slow a CPU down several times
    rows, columns = (_reflected(weight, side) for side in x.shape[-2:])
    return separable(x, rows, columns)


def _reflected(weight: Tensor, side: int) -> Tensor:
    """(B, kernel) weights -> (B, side, side), the matrix that convolves a line reflected at its ends."""
    kernel, device = weight.shape[1], weight.device
    place = torch.arange(side, device=device)[:, None] + torch.arange(kernel, device=device) - kernel // 2
    period = max(1, 2 * (side - 1))
    place = place.abs() % period
    place = torch.minimum(place, period - place)  # (side, kernel): which pixel each weight meets
    if side == 1:
        place = torch.zeros_like(place)
    matrix = weight.new_zeros(len(weight), side, side)
    index, source = (t.expand(len(weight), side, kernel) for t in (place, weight[:, None]))
    return matrix.scatter_add_(2, index, source)


class GaussianNoise(Transform):
    """Adds normal noise of standard deviation `std`, with probability p. The result is not clamped.

    The noise, being as large as the samples, is drawn on their own device, which the learner seeds too.
    """

    def __init__(self, *, std: Annotated[float, Ge(0)], p: Share = 1.0):
        super().__init__()
        self.std, self.p = std, p

    def transform(self, x: Tensor) -> Tensor:
        """(B, ...) float -> the same."""
        return change_chosen(x, self.p, lambda x: torch.add(x, torch.randn_like(x), alpha=self.std))
