"""Ids (words, items, codes) in another order."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge

from ssl_runner.parts.ids import parts_of
from ssl_runner.types import Transform, View


class ShuffleIds(Transform):
    """Local shuffle: no id moves further than `reach` places.

    After the word shuffle of Lample, Conneau, Denoyer, Ranzato, Unsupervised Machine Translation Using Monolingual
    Corpora Only, ICLR 2018 (Noise model, https://arxiv.org/abs/1711.00043): ids are sorted by i + u, where i is their
    place and u is drawn uniformly from 0 to reach + 1. Their reach is 3, of words; here it is of ids.

    special, separator: ids that stay where they are, and so does padding; places are counted without them. No id moves
    into another document.
    """

    def __init__(self, *, special: tuple[int, ...], separator: int | None, reach: Annotated[int, Ge(1)] = 3):
        super().__init__()
        self.separator, self.reach = separator, reach
        # no buffer: it is a constant of the config
        self.kept = torch.tensor([*special, *([] if separator is None else [separator])])

    def forward(self, view: View) -> View:
        """{"x": (B, L) ids, "pad": (B, L) or absent} -> the same."""
        x, pad = view["x"], view.get("pad")
        moves = ~torch.isin(x, self.kept.to(x.device))
        if pad is not None:
            moves &= ~pad
        key = moves.cumsum(1) + torch.rand(x.shape).to(x.device) * (self.reach + 1)
        part = parts_of(x, self.separator)
        if part is not None:
            key = key + part * (self.reach + 1)  # all of a document comes before the next one
        order = key.masked_fill(~moves, torch.inf).argsort(dim=1, stable=True)  # what moves, then the rest
        place = (~moves).int().argsort(dim=1, stable=True)  # where it was, then the rest
        return {**view, "x": x.scatter(1, place, x.gather(1, order))}
