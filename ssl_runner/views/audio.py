"""Sounds: louder, noisier, in a room, as a spectrogram, and with parts of that taken out or mixed in."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.types import Transform, View
from ssl_runner.views.draws import Share, ascending, change_chosen, chosen, uniform

Seconds = Annotated[float, Gt(0)]
Hertz = Annotated[float, Ge(0)]
QUIET = 1e-10  # a power below which nothing is heard: its logarithm is still a number
NEAR = 1 << 17  # values, 512 KiB: what a processor's core has near it, together with as much again


class Gain(Transform):
    """Louder or quieter, by a number of decibels that is uniform within `db`, with probability p."""

    def __init__(self, *, db: tuple[float, float] = (-12.0, 6.0), p: Share = 1.0):
        super().__init__()
        self.db, self.p = ascending("Gain: db", db), p

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, n) float -> the same."""
        return change_chosen(x, self.p, lambda x: x * per_sample(10 ** (uniform(len(x), *self.db) / 20), x))


class Noise(Transform):
    """Adds white noise, with probability p. snr: its power lies this many decibels below the sample's, uniformly drawn.

    Padding stays as it is, and does not count for the power. A silent sample stays silent. The noise is drawn on the
    samples' own device.
    """

    def __init__(self, *, snr: tuple[float, float] = (5.0, 30.0), p: Share = 1.0):
        super().__init__()
        self.snr, self.p = ascending("Noise: snr", snr), p

    def forward(self, view: View) -> View:
        """{"x": (B, C, n) float} -> the same."""
        index = chosen(len(view["x"]), self.p).to(view["x"].device)
        if len(index) == 0:
            return view
        x, there = view["x"][index], _there(view)[index]
        power = (x.square() * there).flatten(1).sum(1) / (there.sum((1, 2)) * x.shape[1]).clamp(min=1)
        ratio = uniform(len(x), *self.snr).to(x.device)
        deviation = per_sample((power * 10 ** (-ratio / 10)).sqrt(), x)
        return _put(view, index, x + deviation * torch.randn_like(x) * there)


class Reverb(Transform):
    """As if heard in a room, with probability p: a drawn impulse response, at unchanged power.

    The response is one and, behind it, white noise that decays exponentially (Moorer, "About this reverberation
    business", 1979); as an augmentation in Ko et al., "A study on data augmentation of reverberant speech", 2017.
    decay: seconds until it has fallen by 60 dB, uniformly drawn. wet: power of the decaying part over that of the
    direct sound, uniformly drawn. rate: values a second. What would sound on into padding, or behind the end, is cut
    off.
    """

    def __init__(
        self,
        *,
        rate: int,
        decay: tuple[Seconds, Seconds] = (0.1, 0.6),
        wet: tuple[Annotated[float, Ge(0)], Annotated[float, Ge(0)]] = (0.1, 1.0),
        p: Share = 1.0,
    ):
        super().__init__()
        self.rate, self.p = rate, p
        self.decay, self.wet = ascending("Reverb: decay", decay), ascending("Reverb: wet", wet)

    def forward(self, view: View) -> View:
        """{"x": (B, C, n) float} -> the same."""
        index = chosen(len(view["x"]), self.p).to(view["x"].device)
        if len(index) == 0:
            return view
        x, there = view["x"][index], _there(view)[index]
        wet = convolve(x, self.responses(x)) * there
        before, after = ((each.square() * there).sum((1, 2), keepdim=True) for each in (x, wet))
        return _put(view, index, wet * (before / after.clamp(min=QUIET)).sqrt())

    def responses(self, x: Tensor) -> Tensor:
        """(B, k) impulse responses, the first value of each 1."""
        length = max(2, round(self.rate * self.decay[1]))
        decay, wet = uniform(len(x), *self.decay).to(x.device), uniform(len(x), *self.wet).to(x.device)
        time = torch.arange(1, length, device=x.device) / self.rate
        fall = 10 ** (-3 * time / decay[:, None])  # 60 dB of amplitude are a factor of 1000
        tail = torch.randn(len(x), length - 1, device=x.device) * fall
        scale = (wet[:, None] / tail.square().sum(1, keepdim=True).clamp(min=QUIET)).sqrt()
        return torch.cat([torch.ones_like(tail[:, :1]), tail * scale], 1)


def convolve(x: Tensor, response: Tensor) -> Tensor:
    """(B, C, n) and (B, k) -> (B, C, n): y[t] = sum over s of response[s] x[t - s]; x is 0 before its beginning."""
    n = x.shape[-1]
    size = 1 << (n + response.shape[1] - 2).bit_length()
    with torch.autocast(x.device.type, enabled=False):
        spectrum = torch.fft.rfft(x.float(), size) * torch.fft.rfft(response.float(), size)[:, None]
        return torch.fft.irfft(spectrum, size)[..., :n].to(x.dtype)


# --- spectrograms -------------------------------------------------------------------------------------------


class LogMel(Transform):
    """The natural logarithm of a mel spectrogram's power: (B, 1, n) -> (B, 1, mels, frames).

    rate: values a second. window, hop: seconds of a frame, and from one to the next; frame t is centred at t hop, so
    that there are 1 + n // hop of them, and the signal is reflected at its ends. The window is Hann's, the transform
    the next power of two. mels: bands between the frequencies low and high (None: half the rate), in hertz.
    scale: "htk", 2595 log10(1 + f / 700), with triangles of height 1; or "slaney" (Slaney, Auditory Toolbox, 1998),
    linear up to 1000 Hz and logarithmic above, with triangles of area 2 / width.

    "pad" goes along: a frame is padding if its centre is. Raises RequestError where bands are left without a frequency
    of the transform, and where a signal is shorter than half a transform.
    """

    def __init__(
        self,
        *,
        rate: int,
        window: Seconds = 0.025,
        hop: Seconds = 0.01,
        mels: Annotated[int, Gt(0)] = 64,
        low: Hertz = 60.0,
        high: Hertz | None = None,
        scale: Literal["htk", "slaney"] = "htk",
    ):
        super().__init__()
        self.width, self.hop, self.mels = round(window * rate), max(1, round(hop * rate)), mels
        self.size = 1 << (self.width - 1).bit_length()
        high = rate / 2 if high is None else high
        if not low < high <= rate / 2:
            raise RequestError(
                f"LogMel: low={low}, high={high}: give frequencies that rise, up to half of the data's rate, {rate / 2}"
            )
        # no buffers: they follow from the config, and a half-precision model would round them
        self.bank = mel_filters(rate, self.size, mels, low, high, scale)
        before = (self.size - self.width) // 2
        self.hann = F.pad(torch.hann_window(self.width), (before, self.size - self.width - before))
        if not self.bank.any(0).all():
            raise RequestError(
                f"LogMel: mels={mels}: some of so many bands lie between two frequencies of a transform of {self.size} "
                "values; lower mels or raise window"
            )

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, n = shape
        if n <= self.size // 2:
            raise RequestError(
                f"LogMel: samples of {n} values are too short for a transform of {self.size}; lower window, or raise "
                "data.seconds"
            )
        return channels, self.mels, 1 + n // self.hop

    def forward(self, view: View) -> View:
        x = view["x"]
        self.bank, self.hann = self.bank.to(x.device), self.hann.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            signals = F.pad(x.float(), (self.size // 2, self.size // 2), mode="reflect").flatten(0, 1)
            frames = signals.unfold(1, self.size, self.hop)
            mel = torch.cat([self._bands(some) for some in frames.split(self._together(frames))])
            mel = mel.clamp_(min=QUIET).log_()
        made = {**view, "x": mel.unflatten(0, x.shape[:2])}
        if "pad" in view:
            centres = torch.arange(mel.shape[-1], device=x.device) * self.hop
            made["pad"] = view["pad"][:, centres.clamp(max=x.shape[-1] - 1)]
        return made

    def _bands(self, frames: Tensor) -> Tensor:
        """(B, frames, size) -> (B, mels, frames), the power in each band."""
        parts = torch.view_as_real(torch.fft.rfft(frames * self.hann)).square_()
        return ((parts[..., 0] + parts[..., 1]) @ self.bank).transpose(1, 2)

    def _together(self, frames: Tensor) -> int:
        """How many signals are transformed at once: all, but on a processor so few that they stay in its cache."""
        return len(frames) if frames.device.type != "cpu" else max(1, NEAR // frames[0].numel())


def mel_filters(rate: int, size: int, mels: int, low: float, high: float, scale: Literal["htk", "slaney"]) -> Tensor:
    """(size // 2 + 1, mels) float32: what each frequency of a transform of `size` values adds to each band.

    Triangles from one band's centre to the next; centres and ends are equally far apart on the mel scale.
    """
    ends = torch.tensor([low, high], dtype=torch.float64)
    to_mel, to_hertz = _SCALES[scale]
    first, last = to_mel(ends).tolist()
    edge = to_hertz(torch.linspace(first, last, mels + 2, dtype=torch.float64))
    frequency = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequency - edge[:-2]) / (edge[1:-1] - edge[:-2])
    falling = (edge[2:] - frequency) / (edge[2:] - edge[1:-1])
    bank = torch.minimum(rising, falling).clamp(min=0)
    return (bank * (2 / (edge[2:] - edge[:-2])) if scale == "slaney" else bank).float()


STEP, BEND = 200 / 3, 15.0  # Slaney's scale: hertz per mel below 1000 Hz, which is 15 mels; above
GROWTH = math.log(6.4) / 27  # ... 27 mels are a factor of 6.4


def _slaney_mel(f: Tensor) -> Tensor:
    return torch.where(f < 1000, f / STEP, BEND + (f.clamp(min=1000) / 1000).log() / GROWTH)


def _slaney_hertz(m: Tensor) -> Tensor:
    return torch.where(m < BEND, m * STEP, 1000 * ((m - BEND).clamp(min=0) * GROWTH).exp())


_SCALES = {
    "htk": (lambda f: 2595 * torch.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1)),
    "slaney": (_slaney_mel, _slaney_hertz),
}


class LogMixup(Transform):
    """Another sample of the batch in the background: log((1 - s) exp(x) + s exp(other)), with s uniform in [0, share].

    Niizumi et al., "BYOL for Audio: Self-Supervised Learning for General-Purpose Audio Representation", 2021,
    https://arxiv.org/abs/2103.06695: mixing, as loudness adds up, of the power and not of its logarithm. There the
    other is one of 2048 samples that came before; here it is of the same batch, so that no state is kept.
    """

    def __init__(self, *, share: Share = 0.4):
        super().__init__()
        self.share = share

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, mels, frames), logarithms of power -> the same."""
        other = x[torch.randperm(len(x)).to(x.device)]
        share = per_sample(uniform(len(x), 0, self.share), x)
        return torch.logaddexp(x + torch.log1p(-share), other + share.log())


class TimeFrequencyCrop(Transform):
    """A crop of random place, width and height, stretched to the spectrogram's own size: other pitch, other pace.

    Niizumi et al. (see LogMixup), "Random Resize Crop": the crop lies in a canvas as high as the spectrogram and
    `canvas` times as wide, with the spectrogram in the middle and its mean around it. time, frequency: bounds of the
    crop's share of the spectrogram's width and height; what exceeds the canvas is lowered to it.
    "pad" goes along in time; what surrounds the spectrogram is padding as well, where there is any.
    """

    def __init__(
        self,
        *,
        time: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.6, 1.5),
        frequency: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.6, 1.5),
        canvas: Annotated[float, Ge(1)] = 1.5,
    ):
        super().__init__()
        self.time = ascending("TimeFrequencyCrop: time", time)
        self.frequency = ascending("TimeFrequencyCrop: frequency", frequency)
        self.canvas = canvas

    def forward(self, view: View) -> View:
        """{"x": (B, C, mels, frames) float} -> the same."""
        x = view["x"]
        n, (mels, frames) = len(x), x.shape[-2:]
        width = uniform(n, *self.time).clamp(max=self.canvas)
        height = uniform(n, *self.frequency).clamp(max=1.0)
        left = uniform(n, 0, 1) * (self.canvas - width) - (self.canvas - 1) / 2  # shares of the spectrogram's sides
        low = uniform(n, 0, 1) * (1 - height)
        left, width, low, height = (each.to(x.device)[:, None] for each in (left, width, low, height))
        across = left + width * (torch.arange(frames, device=x.device) + 0.5) / frames  # (B, frames)
        up = low + height * (torch.arange(mels, device=x.device) + 0.5) / mels  # (B, mels)
        places = torch.stack([across[:, None].expand(-1, mels, -1), up[..., None].expand(-1, -1, frames)], -1)
        mean = x.mean((2, 3), keepdim=True)
        with torch.autocast(x.device.type, enabled=False):
            made = F.grid_sample((x - mean).float(), places * 2 - 1, padding_mode="zeros", align_corners=False)
        view = {**view, "x": made.to(x.dtype) + mean}
        if "pad" in view:
            source = (across * frames).floor().long()
            outside = (source < 0) | (source >= frames)
            view["pad"] = view["pad"].gather(1, source.clamp(0, frames - 1)) | outside
        return view


class MaskTime(Transform):
    """Stretches of time become the sample's mean (Park et al., "SpecAugment", 2019: time masking).

    count: how many. width: the widest is this share of all; each is uniform from nothing to that.
    """

    axis = -1

    def __init__(self, *, count: Annotated[int, Gt(0)] = 2, width: Annotated[float, Gt(0), Le(1)] = 0.2):
        super().__init__()
        self.count, self.width = count, width

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, mels, frames) float -> the same."""
        n, size = len(x), x.shape[self.axis]
        width = (torch.rand(n, self.count) * (self.width * size + 1)).floor().clamp(max=int(self.width * size))
        start = (torch.rand(n, self.count) * (size - width + 1)).floor()
        place = torch.arange(size)
        hidden = ((place >= start[..., None]) & (place < (start + width)[..., None])).any(1)  # (n, size)
        shape = [n, *[1] * (x.ndim - 1)]
        shape[self.axis] = size
        return torch.where(hidden.view(shape).to(x.device), x.mean((2, 3), keepdim=True), x)


class MaskFrequency(MaskTime):
    """Bands of frequencies become the sample's mean (SpecAugment: frequency masking). The rest as in MaskTime."""

    axis = -2


class Standardize(Transform):
    """Each sample to mean 0 and deviation 1, over all that is not padding, which becomes 0.

    padded: leave "pad" in the view. Without it a backbone that can't leave padding out takes it for the mean.
    """

    def __init__(self, *, padded: bool = True):
        super().__init__()
        self.padded = padded

    def forward(self, view: View) -> View:
        """{"x": (B, C, ..., n) float} -> the same in float32."""
        x, there = view["x"].float(), _there(view)
        axes = tuple(range(1, x.ndim))
        count = there.sum(axes, keepdim=True).clamp(min=1) * (x[0].numel() // x.shape[-1])
        mean = (x * there).sum(axes, keepdim=True) / count
        apart = (x - mean).mul_(there)
        deviation = apart.flatten(1).norm(dim=1).view_as(mean) / count.sqrt()
        kept = {name: tensor for name, tensor in view.items() if name != "pad" or self.padded}
        return {**kept, "x": apart.div_(deviation + 1e-6)}


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...) of x's rank, type and device."""
    return values.to(x).view(-1, *[1] * (x.ndim - 1))


def _there(view: View) -> Tensor:
    """(B, 1, ..., n), True where a view is not padding."""
    x = view["x"]
    if "pad" not in view:
        return torch.ones(len(x), *[1] * (x.ndim - 2), x.shape[-1], dtype=torch.bool, device=x.device)
    return ~view["pad"].view(len(x), *[1] * (x.ndim - 2), -1)


def _put(view: View, index: Tensor, changed: Tensor) -> View:
    """The view with some of its samples, at (m,) places, changed."""
    return {**view, "x": view["x"].index_copy(0, index, changed)}
