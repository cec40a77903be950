"""Changes of brightness and colour. Samples are intensities in [0, 1]; three channels: red, green, blue.

All take clips too, (B, C, T, H, W): all frames of one are changed alike.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ssl_runner.types import Transform
from ssl_runner.views.draws import Share, change_chosen, uniform


class ColorJitter(Transform):
    """Random brightness, contrast, saturation and hue in a random order, with probability p.

    brightness, contrast, saturation: the factor is uniform in [max(0, 1 - value), 1 + value].
    hue: the shift is uniform in [-hue, hue], in turns of the colour circle; at most 0.5.
    A value of zero leaves its step out, and so do saturation and hue where there are not three channels.

    The steps are those of torchvision's ColorJitter; factors and order differ per sample.
    """

    def __init__(
        self,
        *,
        brightness: Annotated[float, Ge(0)] = 0.0,
        contrast: Annotated[float, Ge(0)] = 0.0,
        saturation: Annotated[float, Ge(0)] = 0.0,
        hue: Annotated[float, Ge(0), Le(0.5)] = 0.0,
        p: Share = 0.8,
    ):
        super().__init__()
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.p = hue, p

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ..., H, W) float in [0, 1] -> the same.

        Brightness, contrast and saturation are blends, so that one kernel serves all three: in round r each
        sample undergoes the r-th of its blends, whichever that is. Hue costs more and comes once a sample, at
        one of the moments before, between and after the rounds. Samples are sorted by that moment, those that
        stay as they are at the end, so that whoever has its turn is a slice.
        """
        n, rgb = len(x), x.shape[1] == 3
        blends = self.draw_blends(n, rgb)
        rounds = blends.shape[1]
        moment = torch.randint(rounds + 1, (n,)).masked_fill_(torch.rand(n) >= self.p, rounds + 1)
        order = moment.argsort()
        ends = moment.bincount(minlength=rounds + 1).cumsum(0)[: rounds + 1].tolist()
        shift = uniform(n, -self.hue, self.hue).to(x.device)
        blends, back, order = (each.to(x.device) for each in (blends, order.argsort(), order))

        x = x[order]
        changed, blends = x[: ends[-1]], blends[:, :, : ends[-1]]
        for r, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if rgb and self.hue > 0:
                shift_hue_(x[start:end], shift[start:end])
            if r < rounds:
                blend_(changed, *blends[:, r])
        return x[back]

    def draw_blends(self, n: int, rgb: bool) -> Tensor:
        """The arguments of `blend_`: (3, rounds, n), on the CPU; each sample has its own order of rounds."""
        values = [self.brightness, self.contrast, self.saturation if rgb else 0.0]
        active = [kind for kind, value in enumerate(values) if value > 0]
        factor = torch.empty(len(active), n)
        for row, kind in zip(factor, active, strict=True):
            row.uniform_(max(0.0, 1 - values[kind]), 1 + values[kind])
        order = torch.rand(len(active), n).argsort(0)
        factor, kinds = factor.gather(0, order), torch.tensor(active)[order]
        return torch.stack([factor, (1 - factor) * (kinds == 1), (1 - factor) * (kinds == 2)])


def luminance(x: Tensor) -> Tensor:
    """(B, C, ..., H, W) -> (B, ..., H, W), a fresh tensor: ITU-R BT.601 for three channels, else their mean."""
    if x.shape[1] != 3:
        return x.mean(1)
    red, green, blue = x.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend_(x: Tensor, factor: Tensor, to_mean: Tensor, to_grey: Tensor) -> Tensor:
    """factor * x + to_mean * (the image's mean grey) + to_grey * (the pixel's grey), clamped; in place.

    x: (B, C, ..., H, W) in [0, 1]; the others: (B,).
    Brightness f is (f, 0, 0), contrast (f, 1 - f, 0), saturation (f, 0, 1 - f).
    """
    grey = luminance(x)
    each = (-1, *[1] * (grey.ndim - 1))
    mean = (to_mean * grey.flatten(1).mean(1)).view(each)
    torch.addcmul(mean, grey, to_grey.view(each), out=grey)
    torch.addcmul(grey[:, None], x, factor.view(*each, 1), out=x)
    return x.clamp_(0, 1)


def shift_hue_(x: Tensor, shift: Tensor) -> Tensor:
    """Turns each sample's hue by `shift`, in place; value and saturation stay.

    x: (B, 3, ..., H, W); shift: (B,), in turns.

    With h the hue in [0, 6], 0 at red and 2 at green, a = max - min over the channels, and
    k(t) = clamp(|t| - 1, 0, 1), a colour is
        red = min + a k(h - 3), green = max - a k(h - 2), blue = max - a k(h - 4).
    Where green >= blue, which is where h <= 3, these give h = 1 + (green + blue - red - min) / a; elsewhere
    they give that for 6 - h. So h - 3 is one expression with the sign of blue - green, and no case is told
    apart by which channel is the largest. Here `turn` is (h - 3) / 6 and `six` is 6 a.
    """
    red, green, blue = x.unbind(1)
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    six = (high - low).mul_(6)
    turn = (green + blue).sub_(red).sub_(low).div_(six.clamp_min(1e-20)).sub_(1 / 3)
    torch.copysign(turn, blue - green, out=turn)
    turn.add_(shift.view(-1, *[1] * (turn.ndim - 1)))
    turn.sub_(turn.round())
    low.sub_(six, alpha=1 / 6)  # six * clamp(|turn|, 1/6, 1/3) is a (k + 1): the one is taken off here
    high.add_(six, alpha=1 / 6)
    torch.addcmul(low, six, turn.abs().clamp_(1 / 6, 1 / 3), out=red)
    torch.addcmul(high, six, turn.add(1 / 6).abs_().clamp_(1 / 6, 1 / 3), value=-1, out=green)
    torch.addcmul(high, six, turn.sub(1 / 6).abs_().clamp_(1 / 6, 1 / 3), value=-1, out=blue)
    return x


class Grayscale(Transform):
    """Three channels become their luminance, with probability p; other numbers of channels stay."""

    def __init__(self, *, p: Share = 0.2):
        super().__init__()
        self.p = p

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ..., H, W) -> the same."""
        if x.shape[1] != 3:
            return x
        return change_chosen(x, self.p, lambda x: torch.stack([luminance(x)] * 3, 1))


class Solarize(Transform):
    """Inverts the values at or above the threshold, with probability p.

    threshold: on the scale 0..1; 0.5 is what 128 is to uint8 intensities.
    """

    def __init__(self, *, threshold: Share = 0.5, p: Share = 0.2):
        super().__init__()
        self.threshold, self.p = threshold, p

    def transform(self, x: Tensor) -> Tensor:
        """(B, ...) float in [0, 1] -> the same."""
        return change_chosen(x, self.p, lambda x: torch.where(x >= self.threshold, 1 - x, x))
