"""Context encoders: Feature Learning by Inpainting, without the adversarial part.

Pathak, Krahenbuhl, Donahue, Darrell, Efros, CVPR 2016. https://arxiv.org/abs/1604.07379
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ssl_runner.parts.gather import all_reduce, world_size
from ssl_runner.parts.upsampling import Decoder
from ssl_runner.types import Backbone, Batch, Loss, Objective


class Inpainting(Objective):
    """An image with parts removed is encoded, and a decoder paints what was there.

    shape: (C, H, W) of the images. width: channels of the decoder.
    blocks, side: the "random block" of the paper's region masks: so many squares, each of this share of the image's
    sides, placed at random in each image; they may overlap. The defaults remove at most a quarter.

    Views are normalised, so the mean colour that fills the holes is 0.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, int, int],
        width: int = 64,
        blocks: Annotated[int, Ge(1)] = 4,
        side: Annotated[float, Gt(0), Lt(1)] = 0.25,
    ):
        super().__init__()
        self.backbone, self.blocks, self.side = backbone, blocks, side
        self.decoder = Decoder(backbone.dim, shape, width)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        x = view["x"]
        hole = holes(x, self.blocks, self.side)
        return Loss(masked_mse(self.paint(x.masked_fill(hole, 0)), x, hole))

    def paint(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, as the decoder sees it from the features alone."""
        return self.decoder(self.backbone(x))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The image with its holes, with the holes painted, and as it was."""
        x = batch["views"][0]["x"]
        hole = holes(x, self.blocks, self.side)
        seen = x.masked_fill(hole, 0)
        return {"inpainting": [seen, torch.where(hole, self.paint(seen).float(), x.float()), x]}


def holes(x: Tensor, blocks: int, side: float) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W) bool, True in the removed squares. Drawn from torch's global CPU generator."""
    spans = []
    for length in x.shape[2:]:
        size = max(1, round(side * length))
        start = torch.randint(length - size + 1, (len(x), blocks, 1))
        place = torch.arange(length)
        spans.append((place >= start) & (place < start + size))  # (B, blocks, length)
    rows, columns = spans
    return (rows[:, :, :, None] & columns[:, :, None, :]).any(1, keepdim=True).to(x.device)


def masked_mse(painted: Tensor, x: Tensor, hole: Tensor) -> Tensor:
    """The paper's reconstruction loss, |M (x - F((1 - M) x))|^2, per removed value of all ranks. In fp32.

    painted, x: (B, C, H, W); hole: (B, 1, H, W), the paper's M. Ranks may remove different numbers of values: each
    divides by their mean, so that the mean over ranks is the joined batch's loss.
    """
    error = (painted.float() - x.float()).square() * hole
    removed = all_reduce(hole.sum() * x.shape[1]) / world_size()
    return error.sum() / removed
