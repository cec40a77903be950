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
from ssl_runner.parts.heads import mlp
from ssl_runner.parts.tiles import crops, side_of
from ssl_runner.types import Backbone, Batch, Loss, Objective


class RelativePosition(Objective):
    """Section 3: two patches of an image, the second one of the first one's eight neighbours. Which?

    hidden: width of the layers that see both patches (fc7 and fc8, Figure 3).
    patch: side of a patch that is resized for the backbone (96 in the paper). None: the image's, which any takes.

    Patches are a quarter of the image's side, with gaps of half a patch: the paper's 96 and 48 on a layout of 384
    (Section 3.1). Each is moved by up to 7/96 of its side. Against the colour fringes of lenses (Section 3.1) use views
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
        side = self.patch or side_of(x, "RelativePosition")
        pairs, where = patch_pairs(x)
        patches = F.interpolate(pairs.flatten(0, 1), size=(side, side), mode="bilinear")
        features = self.backbone(patches).unflatten(0, (len(x), 2)).flatten(1)  # (B, 2 dim), first patch first
        logits = self.head(features).float()
        accuracy = (logits.detach().argmax(1) == where).float().mean()
        return Loss(F.cross_entropy(logits, where), {"accuracy": accuracy})


def patch_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, S, S) -> (B, 2, C, s, s), a patch and a neighbour of it, and (B,) which: 0 to 7, row by row.

    The first patch lies anywhere that leaves room for the drawn neighbour. Draws come from torch's global CPU
    generator.
    """
    whole = side_of(x, "RelativePosition")
    side, gap = whole // 4, whole // 8
    if side < 2:
        raise RequestError(f"objective: RelativePosition needs images of 8 pixels or more, and these have {whole}")
    reach, jitter = side + gap, round(side * 7 / 96)
    where = torch.randint(8, (len(x),))
    ninth = where + (where >= 4)  # the fifth of the nine places is the first patch's own
    corners = []
    for offset in (ninth // 3 - 1, ninth % 3 - 1):  # down, right: -1, 0 or 1
        lowest, highest = jitter + reach * (offset < 0), whole - side - jitter - reach * (offset > 0)
        first = lowest + (torch.rand(len(x)) * (highest - lowest + 1)).long()
        both = torch.stack([first, first + reach * offset], 1)  # (B, 2)
        corners.append(both + torch.randint(-jitter, jitter + 1, both.shape))
    top, left = corners
    return crops(x.float(), top, left, side), where.to(x.device)
