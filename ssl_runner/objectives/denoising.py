"""Denoising autoencoder: Extracting and Composing Robust Features with Denoising Autoencoders.

Vincent, Larochelle, Bengio, Manzagol, ICML 2008. https://doi.org/10.1145/1390156.1390294
Its other corruptions: Vincent et al., Stacked Denoising Autoencoders, JMLR 11, 2010, Section 3.3.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor

from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective

Corruption = Literal["masking", "gaussian"]


class Denoising(Objective):
    """2008, Section 2.3: the backbone sees a corrupted input, and a decoder rebuilds the clean one.

    shape: of a sample. hidden: width of the decoder's two hidden layers.
    corruption: "masking" sets values to zero, "gaussian" adds noise. amount: the probability that a value is set to
    zero, or the noise's standard deviation in units of the normalised input.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, ...],
        hidden: Annotated[int, Gt(0)] = 1024,
        corruption: Corruption = "masking",
        amount: Annotated[float, Gt(0), Le(1)] = 0.25,
    ):
        super().__init__()
        self.backbone = backbone
        self.corruption: Corruption = corruption
        self.amount = amount
        self.decoder = mlp([backbone.dim, hidden, hidden, math.prod(shape)], norm=False)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        seen = {**view, "x": corrupt(view["x"], self.corruption, self.amount)}
        return Loss(squared_error(self.decoder(self.backbone(**seen)), view["x"]))


def corrupt(x: Tensor, corruption: Corruption, amount: float) -> Tensor:
    """(B, ...) -> the same, each value disturbed on its own: 2010, Section 3.3. Drawn on the CPU."""
    if corruption == "masking":
        return x.masked_fill((torch.rand(x.shape) < amount).to(x.device), 0.0)
    return x + amount * torch.randn(x.shape).to(x)


def squared_error(prediction: Tensor, x: Tensor) -> Tensor:
    """2008, Equation 1: (B, D) and the clean (B, ...) -> their mean squared difference, in fp32."""
    return F.mse_loss(prediction.float(), x.flatten(1).float())
