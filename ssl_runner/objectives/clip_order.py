"""Clip order: Self-Supervised Spatiotemporal Learning via Video Clip Order Prediction (VCOP).

Xu, Xiao, Zhao, Shao, Xie, Zhuang, CVPR 2019.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.choice import choice_loss
from ssl_runner.types import Backbone, Batch, Loss, Objective


class ClipOrder(Objective):
    """A sample is cut along its first axis, time, into a few short clips, which are shuffled. In which order?

    shape: of a sample, (C, T, ...). clips: how many are cut, three in the paper. hidden: width of the layer that sees
    each pair of clips.

    Each clip is a random stretch of its share of the sample, all but a quarter of it, so that clips do not touch: what
    ends one would tell the next. Clips are encoded one by one, at the sample's own number of frames, each held as long
    as it takes: so any backbone takes them. Raises RequestError for samples without time, or too short.
    """

    views = 1
    orders: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, ...],
        clips: Annotated[int, Ge(2), Le(5)] = 3,
        hidden: Annotated[int, Ge(1)] = 512,
    ):
        super().__init__()
        if len(shape) < 3 or shape[1] < 2 * clips:
            raise RequestError(
                f"objective.clips={clips}: cuts each into two frames at least, and samples are {tuple(shape)}; it is "
                "for clips of (channels, frames, ...): give data.frames, or fewer clips"
            )
        self.backbone, self.clips = backbone, clips
        orders = torch.tensor(list(itertools.permutations(range(clips))))
        self.register_buffer("orders", orders)
        pairs = math.comb(clips, 2)
        self.pair = nn.Sequential(nn.Linear(2 * backbone.dim, hidden), nn.ReLU())
        self.head = nn.Linear(pairs * hidden, len(orders))

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        pieces = cut(view["x"], self.clips)
        order = torch.randint(len(self.orders), (len(pieces),)).to(pieces.device)
        return choice_loss(self.scores(shuffled(pieces, self.orders[order])), order)

    def scores(self, pieces: Tensor) -> Tensor:
        """(B, n, C, T, ...) clips -> (B, n!): logits of the order that they are in."""
        features = self.backbone(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2])  # (B, n, dim)
        pairs = [
            torch.cat([features[:, i], features[:, j]], 1) for i, j in itertools.combinations(range(self.clips), 2)
        ]
        return self.head(torch.cat([self.pair(each) for each in pairs], 1))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The sample, its shuffled clips one behind the other, and these as they were told to lie; in as many frames as
        the sample has."""
        x = batch["views"][0]["x"]
        pieces = cut(x, self.clips)
        order = torch.randint(len(self.orders), (len(x),)).to(x.device)
        seen = shuffled(pieces, self.orders[order])
        told = self.orders[self.scores(seen).argmax(1)].argsort(1)
        rows = (each.transpose(1, 2).flatten(2, 3) for each in (seen, shuffled(seen, told)))
        together = (row[:, :, :: self.clips] for row in rows)
        return {"clip_order": [x, *together]}


def cut(x: Tensor, clips: int) -> Tensor:
    """(B, C, T, ...) -> (B, n, C, T, ...), n clips in their order in time.

    A clip is cut from the n-th share of the frames, T // n of them, at a random place: three quarters of these, two at
    least. Its frames are repeated, evenly, until there are T. Draws come from torch's global CPU generator.
    """
    length = x.shape[2]
    share = length // clips
    size = max(2, share * 3 // 4)
    start = torch.randint(share - size + 1, (len(x), clips)) + share * torch.arange(clips)
    place = start[:, :, None] + torch.arange(length) * size // length  # (B, n, T)
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    return x.transpose(1, 2)[sample, place.to(x.device)].transpose(2, 3)


def shuffled(pieces: Tensor, order: Tensor) -> Tensor:
    """(B, n, ...) and (B, n): place k gets clip order[k]."""
    return pieces[torch.arange(len(pieces), device=pieces.device)[:, None], order]
