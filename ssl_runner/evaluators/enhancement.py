"""How much noise an objective takes out of signals that it has not heard."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from ssl_runner.objectives.enhancement import Enhancement
from ssl_runner.parts.noise import noisy, si_sdr
from ssl_runner.types import Embed, Evaluator, seen_by


class Enhanced(Evaluator):
    """Scores of the test part's undisturbed samples, with noise that is always the same.

    snr: the noise's level, decibels below the signal's. colour: the exponent by which its power falls with frequency.

    Gives "si_sdr", the mean over samples in decibels, and "improvement", how much higher it is than that of the noisy
    signals. The raw input's figures are of these behind one filter: Wiener's, for this noise and for the mean spectrum
    of what was learned from.
    """

    asks = Enhancement
    labelled = False

    def __init__(self, *, snr: float = 5.0, colour: Annotated[float, Ge(0)] = 1.0):
        self.snr, self.colour = snr, colour

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        filtered = wiener(data, self.snr, self.colour) if embed.objective is None else None
        found: list[Tensor] = []
        for view, _ in data.plain(data.source.split("test")):
            clean, objective = view["x"], embed.objective
            level, colour = torch.full((len(clean),), self.snr), torch.full((len(clean),), self.colour)
            real = torch.ones_like(clean, dtype=torch.bool)
            if "pad" in view:
                real = real & ~view["pad"].view(len(clean), *[1] * (clean.ndim - 2), -1)
            heard = noisy(clean, level, colour, real, generator)
            if filtered is not None:
                made = torch.fft.irfft(torch.fft.rfft(heard.float()) * filtered, heard.shape[-1])
            else:
                assert isinstance(objective, Enhancement)
                made = objective.cleaned(heard, seen_by(objective.backbone, view).get("pad"))
            found.append(torch.stack([si_sdr(each, clean, real) for each in (made, heard)], 1).cpu())
        after, before = torch.cat(found).double().mean(0).tolist()
        return {"si_sdr": after, "improvement": after - before}


def wiener(data: Any, snr: float, colour: float) -> Tensor:
    """(n // 2 + 1,), what is left of each frequency along the last axis by the filter with the least square error:
    S / (S + N), with the signals' mean power S and the noise's N (Wiener, Extrapolation, Interpolation, and Smoothing
    of Stationary Time Series, 1949). Padding is silence.
    """
    power = sum(
        torch.fft.rfft(view["x"].float()).abs().square().flatten(0, -2).sum(0)
        for view, _ in data.plain(data.source.split("pretrain"))
    )
    noise = torch.arange(len(power), device=power.device).clamp(min=1) ** -colour
    noise = noise * power.sum() / noise.sum() * 10 ** (-snr / 10)
    return power / (power + noise)
