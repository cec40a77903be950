"""Time series disturbed: values along the last axis, in the data's own units.

Um et al., Data Augmentation of Wearable Sensor Data for Parkinson's Disease Monitoring using Convolutional Neural
Networks, ICMI 2017 (https://arxiv.org/abs/1706.00527), name jitter, scaling, permutation and time warping.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.types import Transform, View
from ssl_runner.views.draws import Share

Deviation = Annotated[float, Ge(0)]


class Jitter(Transform):
    """Noise on every value. sigma: its deviation, in units of std, which is each channel's own, or one for all."""

    def __init__(self, *, std: tuple[float, ...], sigma: Deviation = 0.1):
        super().__init__()
        self.sigma, self.std = sigma, torch.tensor(std)

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, n) -> the same."""
        return torch.randn(x.shape).to(x).mul_(self.sigma * _per_channel(self.std, x, "Jitter: std")).add_(x)


class Scaling(Transform):
    """Each channel times a factor of its own, about its mean: drawn from a normal distribution about `about`.

    sigma: its deviation. mean: of each channel, or one for all.
    """

    def __init__(self, *, mean: tuple[float, ...], sigma: Deviation = 0.1, about: float = 1.0):
        super().__init__()
        self.sigma, self.about, self.mean = sigma, about, torch.tensor(mean)

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, n) -> the same."""
        factor = self.about + self.sigma * torch.randn(x.shape[:2])[..., None].to(x)
        mean = _per_channel(self.mean, x, "Scaling: mean")
        return (x - mean).mul_(factor).add_(mean)


class Permutation(Transform):
    """Cut at random places into 1 to `most` pieces, which change places; all channels alike, and padding with them."""

    def __init__(self, *, most: Annotated[int, Gt(0)] = 5):
        super().__init__()
        self.most = most

    def forward(self, view: View) -> View:
        """{"x": (B, ..., n)} -> the same."""
        x = view["x"]
        batch, length = len(x), x.shape[-1]
        pieces = torch.randint(1, self.most + 1, (batch, 1))
        # the ends of the pieces: as many places as there are pieces but one, the others behind the end
        ends = torch.rand(batch, self.most - 1).mul_(length - 1).long() + 1
        ends = torch.where(torch.arange(1, self.most) < pieces, ends, length)
        piece = (torch.arange(length) >= ends[..., None]).sum(1)  # (B, n), ascending
        turn = torch.rand(batch, self.most).gather(1, piece)  # a piece's draw, the same for all of its places
        order = turn.argsort(dim=1, stable=True).to(x.device)
        return _rearranged(view, order)


class TimeWarp(Transform):
    """Time runs faster here and slower there; the ends stay, and values between two are interpolated.

    The speed is a line through `knots` random values, normal about 1 with deviation sigma, at least 0.1; Um et al. draw
    a cubic spline through such.
    """

    def __init__(self, *, sigma: Deviation = 0.2, knots: Annotated[int, Gt(1)] = 6):
        super().__init__()
        self.sigma, self.knots = sigma, knots

    def forward(self, view: View) -> View:
        """{"x": (B, ..., n)} -> the same; what is padding stays so, at its new time."""
        x = view["x"]
        batch, length = len(x), x.shape[-1]
        if length < 2:
            return view
        speed = (1 + self.sigma * torch.randn(batch, 1, self.knots)).clamp(min=0.1)
        speed = F.interpolate(speed, length - 1, mode="linear", align_corners=True)[:, 0]
        time = F.pad(speed.cumsum(1), (1, 0))
        time = (time / time[:, -1:] * (length - 1)).to(x.device)
        # a value that is met exactly owes nothing to its neighbours, which may be missing
        before, after = time.long(), time.ceil().long()
        share = time - before
        low, high = _rearranged(view, before), _rearranged(view, after)
        part = share.view(batch, *[1] * (x.ndim - 2), length).to(x.dtype)
        warped: View = {**view, "x": torch.lerp(low["x"], high["x"], part)}
        if "pad" in view:
            warped["pad"] = torch.where(share < 0.5, low["pad"], high["pad"])
        return warped


class MaskChannels(Transform):
    """Each channel of each sample is missing with probability p, but never all of them; the views' `last` then fills
    them in as it fills what is missing in the data."""

    def __init__(self, *, p: Share = 0.2):
        super().__init__()
        self.p = p

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same, NaN where hidden."""
        draw = torch.rand(x.shape[:2])
        hidden = (draw < self.p) & (draw < draw.amax(1, keepdim=True))
        return x.masked_fill(hidden.view(*x.shape[:2], *[1] * (x.ndim - 2)).to(x.device), float("nan"))


class Fill(Transform):
    """`value` where a value is missing (NaN), and at padding. Behind the normalisation 0 is the channel's mean."""

    def __init__(self, *, value: float = 0.0):
        super().__init__()
        self.value = value

    def forward(self, view: View) -> View:
        """{"x": (B, ..., n)} -> the same without NaN."""
        x = view["x"].nan_to_num(self.value, posinf=torch.inf, neginf=-torch.inf)
        if "pad" in view:
            x = x.masked_fill(view["pad"].view(len(x), *[1] * (x.ndim - 2), -1), self.value)
        return {**view, "x": x}


def _rearranged(view: View, order: Tensor) -> View:
    """The values, and their padding, at the places of (B, n)."""
    x = view["x"]
    place = order.view(len(x), *[1] * (x.ndim - 2), -1).expand(*x.shape[:-1], -1)
    taken: View = {**view, "x": x.gather(-1, place)}
    if "pad" in view:
        taken["pad"] = view["pad"].gather(1, order)
    return taken


def _per_channel(values: Tensor, x: Tensor, key: str) -> Tensor:
    """(C,) or (1,) -> what multiplies (B, C, ...)."""
    if len(values) not in (1, x.shape[1]):
        raise RequestError(f"{key} has {len(values)} values for samples of {x.shape[1]} channels")
    return values.to(x).view(-1, *[1] * (x.ndim - 2))
