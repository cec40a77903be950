"""Ids (words, items, codes) hidden from a view.

After cutoff: Shen, Zheng, Shen, Qu, Chen, A Simple but Tough-to-Beat Data Augmentation Approach for Natural Language
Understanding and Generation, 2020. https://arxiv.org/abs/2009.13818. There a hidden token's embedding is zero; here its
id becomes `mask`, so that views stay ids.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ssl_runner.types import Transform, View
from ssl_runner.views.draws import Share

Id = Annotated[int, Ge(0)]


class DropIds(Transform):
    """Token cutoff: each id is hidden with the same probability, alone.

    mask: the id that stands for a hidden one. special, separator: ids that are never hidden. rate: that probability.
    """

    def __init__(self, *, mask: Id, special: tuple[int, ...], separator: int | None, rate: Share = 0.15):
        super().__init__()
        self.mask, self.kept, self.rate = mask, _kept(special, separator), rate

    def transform(self, x: Tensor) -> Tensor:
        """(B, L) ids -> (B, L)."""
        hidden = torch.rand(x.shape).lt(self.rate).to(x.device)
        return x.masked_fill(hidden & ~torch.isin(x, self.kept.to(x.device)), self.mask)


class CutSpan(Transform):
    """Span cutoff: one stretch of each sample is hidden, anywhere in what is not padding.

    mask: the id that stands for a hidden one. special, separator: ids that are never hidden. share: the stretch's
    length as a share of the sample's, padding not counted; rounded.
    """

    def __init__(
        self,
        *,
        mask: Id,
        special: tuple[int, ...],
        separator: int | None,
        share: Annotated[float, Gt(0), Lt(1)] = 0.15,
    ):
        super().__init__()
        self.mask, self.kept, self.share = mask, _kept(special, separator), share

    def forward(self, view: View) -> View:
        """{"x": (B, L) ids, "pad": (B, L) or absent} -> the same."""
        x, pad = view["x"], view.get("pad")
        there = torch.ones_like(x, dtype=torch.bool) if pad is None else ~pad
        length, place = there.sum(1, keepdim=True), there.cumsum(1) - 1
        span = (self.share * length).round()
        first = (torch.rand(len(x), 1).to(x.device) * (length - span + 1)).floor()
        hidden = there & (place >= first) & (place < first + span) & ~torch.isin(x, self.kept.to(x.device))
        return {**view, "x": x.masked_fill(hidden, self.mask)}


def _kept(special: tuple[int, ...], separator: int | None) -> Tensor:
    # no buffer: it is a constant of the config
    return torch.tensor([*special, *([] if separator is None else [separator])])
