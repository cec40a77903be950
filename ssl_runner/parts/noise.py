"""Noise of any colour at any level, and how much of it is left."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 1e-8


def noisy(
    x: Tensor, decibels: Tensor, colour: Tensor, real: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """(B, ..., n) signals -> the same with noise whose power lies (B,) decibels below theirs.

    colour: (B,), the noise's power falls with frequency, along the last axis, to this exponent; 0 is white, 1 pink, 2
    brown. real: (B, ..., n) bool, where the signal is no padding; nothing is added elsewhere. Noise is drawn on the
    CPU, from torch's global generator or from the one that is given. A silent signal gets none.
    """
    white = torch.randn(x.shape, generator=generator).to(x.device)
    axes, wide = tuple(range(1, x.ndim)), [-1] + [1] * (x.ndim - 1)
    with torch.autocast(x.device.type, enabled=False):
        spectrum = torch.fft.rfft(white)
        frequency = torch.arange(spectrum.shape[-1], device=x.device).clamp(min=1)
        shaped = spectrum * frequency ** (-colour.to(x.device).view(wide) / 2)
        noise = torch.fft.irfft(shaped, x.shape[-1]) * real
        loud, level = ((each.float() * real).square().sum(axes, keepdim=True) for each in (x, noise))
        share = 10 ** (-decibels.to(x.device).float().view(wide) / 10)
        return x + noise * (loud * share / level.clamp(min=SMALL)).sqrt()


def si_sdr(made: Tensor, clean: Tensor, real: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in decibels, (B,), in fp32: of what is there without its mean.

    Le Roux, Wisdom, Erdogan, Hershey, SDR - Half-baked or Well Done?, ICASSP 2019.
    made, clean: (B, ...). real: the same, bool, where the signal is no padding.
    """
    with torch.autocast(made.device.type, enabled=False):
        weight = real.flatten(1).float()
        count = weight.sum(1, keepdim=True).clamp(min=1)
        flat = [each.flatten(1).float() for each in (made, clean)]
        found, wanted = ((x - (x * weight).sum(1, keepdim=True) / count) * weight for x in flat)
        scale = (found * wanted).sum(1, keepdim=True) / (wanted.square().sum(1, keepdim=True) + SMALL)
        kept = scale * wanted
        return 10 * torch.log10((kept.square().sum(1) + SMALL) / ((kept - found).square().sum(1) + SMALL))
