"""VDSR's residual super-resolution as a pretext: Accurate Image Super-Resolution Using Very Deep Networks.

Kim, Lee, Lee, CVPR 2016. https://arxiv.org/abs/1511.04587
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.parts.upsampling import Decoder
from ssl_runner.types import Backbone, Batch, Loss, Objective


class SuperResolution(Objective):
    """Residual learning: from an image whose detail was lost, predict the residual, which is that detail.

    shape: (C, H, W) of the images. width: channels of the decoder. scale: how many times smaller the image was made.

    Unlike VDSR's network, which keeps the resolution throughout, the backbone gives one vector, from which a
    decoder draws the residual: all detail passes through the features that are to be learned.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, int, int],
        width: int = 64,
        scale: Annotated[float, Gt(1)] = 2.0,
    ):
        super().__init__()
        self.backbone, self.scale = backbone, scale
        self.decoder = Decoder(backbone.dim, shape, width)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        x = view["x"]
        low = degraded(x, self.scale)
        return Loss(residual_loss(self.detail(low), x, low))

    def detail(self, low: Tensor) -> Tensor:
        """(B, C, H, W) -> the same: the residual that is expected of the coarse image."""
        return self.decoder(self.backbone(low))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The coarse image, with the detail that was expected of it, and as it was."""
        x = batch["views"][0]["x"]
        low = degraded(x, self.scale)
        return {"super_resolution": [low, low + self.detail(low), x]}


def degraded(x: Tensor, scale: float) -> Tensor:
    """(B, C, H, W) -> the same size: made `scale` times smaller (antialiased) and enlarged again, both bicubic."""
    small = [max(1, round(side / scale)) for side in x.shape[2:]]
    low = F.interpolate(x.float(), size=small, mode="bicubic", antialias=True)
    return F.interpolate(low, size=x.shape[2:], mode="bicubic").to(x.dtype)


def residual_loss(predicted: Tensor, x: Tensor, low: Tensor) -> Tensor:
    """The paper's loss: 1/2 |r - f(low)|^2 with r = x - low, averaged over all values. All (B, C, H, W). In fp32."""
    return F.mse_loss(predicted.float(), x.float() - low.float()) / 2
