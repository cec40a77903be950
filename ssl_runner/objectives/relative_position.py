"""Relative patch position: Unsupervised Visual Representation Learning by Context Prediction.

Doersch, Gupta, Efros, ICCV 2015. https://arxiv.org/abs/1505.05192
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.parts.choice import choice_loss
from ssl_runner.parts.heads import mlp
from ssl_runner.parts.tiles import crops, side_of
from ssl_runner.types import Backbone, Batch, Loss, Objective


class RelativePosition(Objective):
    """Two patches of an image, the second one of the first one's eight neighbours. Which?

    hidden: width of the two layers that see both patches.
    patch: side of a patch that is resized for the backbone (96 in the paper). None: the image's, which any takes.

    Patches are a quarter of the image's side, with gaps of half a patch: the paper's 96 and 48 on a layout of 384.
    Each is moved by up to 7/96 of its side. Against the colour fringes of lenses (its "trivial solutions") use views
    with `Grayscale`. Images are square; another shape raises RequestError.
    """

    views = 1

    def __init__(
        self, backbone: Backbone, *, hidden: Annotated[int, Ge(1)] = 4096, patch: Annotated[int, Gt(0)] | None = None
    ):
        super().__init__()
        self.backbone, self.patch = backbone, patch
        self.head = mlp([2 * backbone.dim, hidden, hidden, 8])

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        x = view["x"]
        pairs, where = patch_pairs(x)
        return choice_loss(self.scores(pairs, self.patch or x.shape[3]), where)

    def scores(self, pairs: Tensor, side: int) -> Tensor:
        """(B, 2, C, s, s), resized to `side` -> (B, 8): logits of the second patch's place."""
        patches = F.interpolate(pairs.flatten(0, 1), size=(side, side), mode="bilinear")
        features = self.backbone(patches).unflatten(0, (len(pairs), 2)).flatten(1)  # (B, 2 dim), first patch first
        return self.head(features)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The image, two of its patches as they lie, and as they were told to lie, the first one in the middle."""
        x = batch["views"][0]["x"]
        pairs, where = patch_pairs(x)
        told = self.scores(pairs, self.patch or x.shape[3]).argmax(1)
        return {"relative_position": [x, *(laid_out(pairs, place, x.shape[3]) for place in (where, told))]}


def patch_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, S, S) -> (B, 2, C, s, s), a patch and a neighbour of it, and (B,) which: 0 to 7, row by row.

    The first patch lies anywhere that leaves room for the drawn neighbour. Draws come from torch's global CPU
    generator.
    """
    whole = side_of(x, "RelativePosition")
    side, reach = whole // 4, whole // 4 + whole // 8
    if side < 2:
        raise RequestError(f"objective: RelativePosition needs images of 8 pixels or more, and these have {whole}")
    jitter = round(side * 7 / 96)
    where = torch.randint(8, (len(x),))
    corners = []
    for offset in offsets(where):
        lowest, highest = jitter + reach * (offset < 0), whole - side - jitter - reach * (offset > 0)
        first = lowest + (torch.rand(len(x)) * (highest - lowest + 1)).long()
        both = torch.stack([first, first + reach * offset], 1)  # (B, 2)
        corners.append(both + torch.randint(-jitter, jitter + 1, both.shape))
    top, left = corners
    return crops(x, top, left, side), where.to(x.device)


def offsets(where: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) places, 0 to 7 -> how many patches further down and to the right of the first one: -1, 0 or 1."""
    ninth = where + (where >= 4)  # the fifth of the nine places is the first patch's own
    return ninth // 3 - 1, ninth % 3 - 1


def laid_out(pairs: Tensor, where: Tensor, whole: int) -> Tensor:
    """(B, 2, C, s, s) and (B,) -> (B, C, whole, whole): the first patch in the middle, the second one at its place,
    and zeros around them."""
    side, reach = pairs.shape[3], whole // 4 + whole // 8
    middle = (whole - side) // 2
    board = pairs.new_zeros(len(pairs), pairs.shape[2], whole, whole)
    board[:, :, middle : middle + side, middle : middle + side] = pairs[:, 0]
    for n, (down, right) in enumerate(torch.stack(offsets(where), 1).tolist()):
        top, left = middle + reach * down, middle + reach * right
        board[n, :, top : top + side, left : left + side] = pairs[n, 1]
    return board
