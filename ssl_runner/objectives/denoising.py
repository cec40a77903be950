"""Denoising autoencoder: Extracting and Composing Robust Features with Denoising Autoencoders.

Vincent, Larochelle, Bengio, Manzagol, ICML 2008. https://doi.org/10.1145/1390156.1390294
Its other corruptions: Vincent, Larochelle, Lajoie, Bengio, Manzagol, Stacked Denoising Autoencoders, JMLR 11, 2010.
https://jmlr.org/papers/v11/vincent10a.html
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor

from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective, View

Corruption = Literal["masking", "gaussian", "salt_and_pepper"]


class Denoising(Objective):
    """The backbone sees a corrupted input, and a decoder rebuilds the clean one.

    shape: of a sample. hidden: width of the decoder's two hidden layers.
    corruption: "masking" sets values to zero, "salt_and_pepper" to the lowest or the highest value of their sample,
    "gaussian" adds noise. amount: the probability that a value is set, or the noise's standard deviation in units of
    the normalised input.

    Each value is set or not on its own, where the papers set a fixed number of each sample's. Zero is the mean of the
    normalised input. Trained as a whole from the start, where the papers pretrain layer by layer.
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
        return Loss(squared_error(self.rebuild(self.corrupted(view)), view["x"]))

    def corrupted(self, view: View) -> View:
        return {**view, "x": corrupt(view["x"], self.corruption, self.amount)}

    def rebuild(self, view: View) -> Tensor:
        """View -> (B, D), all values of each sample in one row."""
        return self.decoder(self.backbone(**view))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The clean input, the corrupted one, and what was rebuilt of it."""
        view = batch["views"][0]
        seen = self.corrupted(view)
        return {"reconstruction": [view["x"], seen["x"], self.rebuild(seen).float().view_as(view["x"])]}


def corrupt(x: Tensor, corruption: Corruption, amount: float) -> Tensor:
    """(B, ...) -> the same, each value disturbed on its own: 2010, its types of corruption. Drawn on the CPU."""
    if corruption == "gaussian":
        return x + amount * torch.randn(x.shape).to(x)
    draw = torch.rand(x.shape)
    if corruption == "masking":
        return x.masked_fill((draw < amount).to(x.device), 0.0)
    axes = tuple(range(1, x.ndim))
    pepper, salt = (draw < amount / 2).to(x.device), ((draw >= amount / 2) & (draw < amount)).to(x.device)
    return torch.where(salt, x.amax(axes, keepdim=True), torch.where(pepper, x.amin(axes, keepdim=True), x))


def squared_error(prediction: Tensor, x: Tensor) -> Tensor:
    """(B, D) and the clean (B, ...) of D values a sample -> their mean squared difference, in fp32."""
    return F.mse_loss(prediction.float(), x.flatten(1).float())
