"""Enhancement: take the noise out of a signal, and learn features by it.

The loss is that of Luo & Mesgarani, Conv-TasNet, IEEE/ACM TASLP 2019, on the measure of Le Roux et al., ICASSP 2019.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ssl_runner.parts.noise import noisy, si_sdr
from ssl_runner.parts.patches import patch_sizes
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone
from ssl_runner.views.draws import ascending, uniform

Exponent = Annotated[float, Ge(0)]


class Enhancement(Objective):
    """Noise is added to a clean signal, and each token tells what to take away in its patch.

    shape: of a sample. snr: bounds of the noise's level, decibels below the signal's, uniformly drawn. colour: bounds
    of the exponent by which its power falls with frequency; 0 is white, 1 pink, 2 brown.

    The loss is -SI-SDR in decibels, averaged over samples. Patches that are padding get no noise and do not count.
    Raises RequestError for a backbone whose patches are no values of the input.
    """

    views = 1

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        shape: tuple[int, ...],
        snr: tuple[float, float] = (-5.0, 15.0),
        colour: tuple[Exponent, Exponent] = (0.0, 2.0),
    ):
        super().__init__()
        _, size = patch_sizes(backbone, shape)
        self.backbone: TokenBackbone = backbone
        self.head = nn.Linear(backbone.dim, size)
        # it begins by leaving everything as it is, nearly
        nn.init.trunc_normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)
        self.snr, self.colour = ascending("objective.snr", snr), ascending("objective.colour", colour)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        clean, pad = view["x"], view.get("pad")
        real = self.real(clean, pad)
        heard = noisy(clean, uniform(len(clean), *self.snr), uniform(len(clean), *self.colour), real)
        ratio = si_sdr(self.cleaned(heard, pad), clean, real).mean()
        before = si_sdr(heard, clean, real).mean()
        return Loss(-ratio, {"si_sdr": ratio.detach(), "improvement": (ratio - before).detach()})

    def real(self, x: Tensor, pad: Tensor | None) -> Tensor:
        """(B, ...) bool, which values lie in patches that are no padding. pad: (B, L)."""
        if pad is None:
            return torch.ones_like(x, dtype=torch.bool)
        patches = self.backbone.patchify(x)
        return self.backbone.unpatchify((~pad)[..., None].expand_as(patches))

    def cleaned(self, x: Tensor, pad: Tensor | None) -> Tensor:
        """(B, ...) noisy signals -> the same without what is taken for noise. pad: (B, L)."""
        patches = self.backbone.patchify(x)
        noise = self.head(self.backbone.encode(self.backbone.embed(patches), pad))
        return self.backbone.unpatchify(patches.float() - noise.float())

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, the same with noise, and what was made of that."""
        (view,) = batch["views"]
        clean, pad = view["x"], view.get("pad")
        at = uniform(len(clean), *self.snr), uniform(len(clean), *self.colour)
        heard = noisy(clean, *at, self.real(clean, pad))
        return {"enhanced": [clean, heard, self.cleaned(heard, pad)]}
