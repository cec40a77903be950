"""Autoencoder: Reducing the Dimensionality of Data with Neural Networks.

Hinton, Salakhutdinov, Science 313, 2006. https://doi.org/10.1126/science.1127647
"""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective, View


class Autoencoder(Objective):
    """The backbone's embedding is the code, from which a decoder rebuilds the input.

    shape: of a sample. hidden: width of the decoder's two hidden layers. Trained as a whole from the start, where the
    paper pretrains layer by layer.
    """

    views = 1

    def __init__(self, backbone: Backbone, *, shape: tuple[int, ...], hidden: Annotated[int, Gt(0)] = 1024):
        super().__init__()
        self.backbone = backbone
        self.decoder = mlp([backbone.dim, hidden, hidden, math.prod(shape)], norm=False)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        return Loss(squared_error(self.rebuild(view), view["x"]))

    def rebuild(self, view: View) -> Tensor:
        """View -> (B, D), all values of each sample in one row."""
        return self.decoder(self.backbone(**view))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, and what was rebuilt of it."""
        view = batch["views"][0]
        return {"reconstruction": [view["x"], self.rebuild(view).float().view_as(view["x"])]}


def squared_error(prediction: Tensor, x: Tensor) -> Tensor:
    """(B, D) and (B, ...) of D values a sample -> their mean squared difference, in fp32."""
    return F.mse_loss(prediction.float(), x.flatten(1).float())
