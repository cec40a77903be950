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
    """(B, C, L, n), what each of L frames sees of a signal -> (B, L, dim)."""

    dim: int

    def forward(self, windows: Tensor) -> Tensor:
        raise NotImplementedError


class Cepstra(Features):
    """Mel-frequency cepstral coefficients (Davis & Mermelstein, 1980) with how they change, and how that changes.

    rate: values a second. count: of coefficients, the first of which tells loudness; dim is three times as many.
    mels: bands whose logarithms of power they are the cosine transform of.

    Pre-emphasis of 0.97 and Hann's window come first. Changes are the slopes over two frames to each side (Furui,
    1986). Several channels are averaged. In fp32. Raises RequestError for more coefficients than bands.
    """

    def __init__(self, *, rate: Count, count: Count = 13, mels: Count = 23):
        super().__init__()
        if count > mels:
            raise RequestError(f"objective.features.count={count}: more coefficients than mels={mels}; give fewer")
        self.rate, self.mels, self.dim = rate, mels, 3 * count
        band, n = torch.arange(mels, dtype=torch.float64), torch.arange(count, dtype=torch.float64)[:, None]
        cosines = (math.pi / mels * (band + 0.5) * n).cos() * math.sqrt(2 / mels)
        cosines[0] /= math.sqrt(2)
        self.cosines = cosines.float()  # no buffer: it follows from the config

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
            cepstra = (power @ bank).clamp(min=QUIET).log() @ self.cosines.to(x.device).T
            slopes = changes(cepstra)
            return torch.cat([cepstra, slopes, changes(slopes)], 2)


def changes(x: Tensor) -> Tensor:
    """(B, L, D) -> the same: the slope of the line through each frame and two to each side; at the ends these are the
    last."""
    padded = F.pad(x.mT, (2, 2), mode="replicate").mT
    length = x.shape[1]
    ahead = [padded[:, 2 + k : 2 + k + length] - padded[:, 2 - k : 2 - k + length] for k in (1, 2)]
    return (ahead[0] + 2 * ahead[1]) / 10
