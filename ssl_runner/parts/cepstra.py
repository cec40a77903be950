"""What a frame's values look like, for clusters that no network had a part in."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.views.audio import QUIET, mel_filters

Count = Annotated[int, Gt(0)]


class Features(nn.Module):
    """(B, C, L, n), what each of L frames sees of C channels, or of as many bands -> (B, L, dim)."""

    dim: int

    def forward(self, windows: Tensor) -> Tensor:
        raise NotImplementedError


class Cepstra(Features):
    """Mel-frequency cepstral coefficients (Davis & Mermelstein, 1980) with how they change, and how that changes.

    shape: (C, n) of one sample. rate: values a second. count: of coefficients, the first of which tells loudness; dim
    is three times as many. mels: bands whose logarithms of power they are the cosine transform of.

    Pre-emphasis of 0.97 and Hann's window come first. Changes are the slopes over two frames to each side (Furui,
    1986). Several channels are averaged. In fp32.
    Raises RequestError for more coefficients than bands, and for samples that are no signals.
    """

    def __init__(self, *, shape: tuple[int, ...], rate: Count, count: Count = 13, mels: Count = 23):
        super().__init__()
        if len(shape) != 2:
            raise RequestError(
                f"objective.features: Cepstra are of signals, (C, n), and samples are {tuple(shape)}; of spectrograms "
                "take ssl_runner.parts.cepstra.BandCepstra"
            )
        self.rate, self.mels, self.dim = rate, mels, 3 * count
        self.cosines = cosine_transform(mels, count)  # no buffer: it follows from the config

    @torch.no_grad()
    def forward(self, windows: Tensor) -> Tensor:
        """(B, C, L, n) -> (B, L, 3 count)."""
        with torch.autocast(windows.device.type, enabled=False):
            x = windows.float().mean(1)
            n = x.shape[2]
            size = 1 << (n - 1).bit_length()
            x = x - 0.97 * F.pad(x, (1, 0), mode="replicate")[..., :-1]
            power = torch.fft.rfft(x * torch.hann_window(n, device=x.device), size).abs().square()
            bank = mel_filters(self.rate, size, self.mels, 20.0, self.rate / 2, "htk").to(x.device)
            return with_changes((power @ bank).clamp(min=QUIET).log() @ self.cosines.to(x.device).T)


class BandCepstra(Features):
    """The same of a log-mel spectrogram: the cosine transform of the mean of a frame's columns, and its changes.

    shape: (1, mels, n) of one sample. count: of coefficients, the first of which tells loudness; dim is three times as
    many. In fp32. Raises RequestError for more coefficients than bands, and for samples that are no spectrograms.
    """

    def __init__(self, *, shape: tuple[int, ...], count: Count = 13):
        super().__init__()
        if len(shape) != 3 or shape[0] != 1:
            raise RequestError(
                f"objective.features: BandCepstra are of spectrograms, (1, mels, n), and samples are {tuple(shape)}; "
                "of signals take ssl_runner.parts.cepstra.Cepstra"
            )
        self.dim = 3 * count
        self.cosines = cosine_transform(shape[1], count)

    @torch.no_grad()
    def forward(self, windows: Tensor) -> Tensor:
        """(B, mels, L, n) -> (B, L, 3 count)."""
        with torch.autocast(windows.device.type, enabled=False):
            return with_changes(windows.float().mean(3).mT @ self.cosines.to(windows.device).T)


def cosine_transform(bands: int, count: int) -> Tensor:
    """(count, bands) fp32: the first rows of the orthonormal cosine transform of `bands` values."""
    if count > bands:
        raise RequestError(f"objective.features.count={count}: more coefficients than bands, {bands}; give fewer")
    band, n = torch.arange(bands, dtype=torch.float64), torch.arange(count, dtype=torch.float64)[:, None]
    cosines = (math.pi / bands * (band + 0.5) * n).cos() * math.sqrt(2 / bands)
    cosines[0] /= math.sqrt(2)
    return cosines.float()


def with_changes(cepstra: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, 3 D): beside them how they change, and how that changes."""
    slopes = changes(cepstra)
    return torch.cat([cepstra, slopes, changes(slopes)], 2)


def changes(x: Tensor) -> Tensor:
    """(B, L, D) -> the same: the slope of the line through each frame and two to each side; at the ends these are the
    last."""
    padded = F.pad(x.mT, (2, 2), mode="replicate").mT
    length = x.shape[1]
    ahead = [padded[:, 2 + k : 2 + k + length] - padded[:, 2 - k : 2 - k + length] for k in (1, 2)]
    return (ahead[0] + 2 * ahead[1]) / 10
