"""Which ids of a sample are hidden, and what then stands in their places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_runner.errors import RequestError


class Hiding(nn.Module):
    """Hides ids as in BERT (Devlin et al., 2019, Section 3.1, Task 1); no parameters.

    vocab, mask, special, separator, ratio, mask_share, random_share, span, whole: as in
    ssl_runner.objectives.mlm.MLM. Raises RequestError where both stretches and words are asked for.
    """

    usual: Tensor
    is_usual: Tensor

    def __init__(
        self,
        *,
        vocab: int,
        mask: int,
        special: tuple[int, ...],
        separator: int | None,
        ratio: float,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        span: float | None = None,
        whole: bool = False,
    ):
        super().__init__()
        if whole and span is not None:
            raise RequestError(f"objective.span={span}: hides stretches, and objective.whole=true words; choose one")
        self.mask, self.ratio = mask, ratio
        self.mask_share, self.random_share = mask_share, random_share
        self.span, self.whole = span, whole
        hidden = {*special, mask} | ({separator} if separator is not None else set())
        usual = torch.tensor([n for n in range(vocab) if n not in hidden])
        self.register_buffer("usual", usual)  # ids that may be hidden, and drawn
        self.register_buffer("is_usual", torch.zeros(vocab, dtype=torch.bool).index_fill(0, usual, True))

    def choose(self, ids: Tensor, pad: Tensor | None, unit: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`chosen` among the usual ids that are no padding. Raises RequestError where words are asked for and `unit`,
        which tells them, is not there."""
        may = self.is_usual[ids]
        if self.whole and unit is None:
            raise RequestError("objective.whole=true: this data does not tell which ids make a word; set it to false")
        return chosen(may if pad is None else may & ~pad, self.ratio, self.span, unit if self.whole else None)

    def corrupted(self, ids: Tensor, place: Tensor, told: Tensor) -> Tensor:
        """(B, L) ids with those at the (B, K) places that are told replaced: mask, another id, or left."""
        kind = torch.rand(place.shape).to(ids.device)
        other = self.usual[torch.randint(len(self.usual), place.shape).to(ids.device)]
        after = torch.where(kind < self.mask_share, self.mask, ids.gather(1, place))
        after = torch.where((kind >= self.mask_share) & (kind < self.mask_share + self.random_share), other, after)
        return put(after, ids, place, told)


def put(others: Tensor, ids: Tensor, place: Tensor, told: Tensor) -> Tensor:
    """(B, K) other ids in the (B, L) ids, at the (B, K) places that are told -> (B, L)."""
    return ids.scatter(1, place, torch.where(told, others, ids.gather(1, place)))


def chosen(may: Tensor, ratio: float, span: float | None, unit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which ids of each sample are predicted. may: (B, L) bool, those that can be. unit: (B, L), the number of the word
    that each belongs to, -1 for none, or None; a word's ids are neighbours.

    Gives (B, K) int64 places, K = ceil(ratio L), and (B, K) bool: the first round(ratio n) of them are told, at least
    one, of a sample with n ids that can be; none of a sample without. With units, whole words in random order, as long
    as they fit into so many ids: the last to be cut is left out, and a word that is longer than all is never told.
    Drawn on the CPU.
    """
    batch, length = may.shape
    score = torch.rand(batch, length)
    if span is not None:
        score = spans(score, span)
    score = score.to(may.device)
    most = min(length, max(1, -int(-ratio * length // 1)))
    count = may.sum(1, keepdim=True)
    wanted = (ratio * count).round().clamp(min=1).minimum(count)
    if unit is not None:
        first = firsts(unit)
        size = torch.zeros_like(unit).scatter_add_(1, first, may.long()).gather(1, first)
        score = score.gather(1, first).masked_fill(size > wanted, 1.5)  # behind all that fit
    place = score.masked_fill(~may, 2.0).argsort(dim=1, stable=True)  # behind all that can be
    rank = torch.arange(length, device=may.device).expand(batch, -1)
    told = rank < wanted
    if unit is not None:
        word = first.gather(1, place)
        end = torch.zeros_like(word).scatter_reduce(1, word, (rank + 1) * may.gather(1, place), "amax").gather(1, word)
        told = told & (end <= wanted)
    return place[:, :most], told[:, :most]


def firsts(unit: Tensor) -> Tensor:
    """(B, L) numbers of words -> (B, L): the place of the first id of each id's word; its own, where it is in none."""
    starts = torch.ones_like(unit, dtype=torch.bool)
    starts[:, 1:] = (unit[:, 1:] != unit[:, :-1]) | (unit[:, 1:] < 0)
    at = torch.arange(unit.shape[1], device=unit.device).expand_as(unit)
    return torch.where(starts, at, 0).cummax(1).values


def spans(score: Tensor, mean: float) -> Tensor:
    """(B, L) draws -> (B, L): neighbours in one stretch share the draw of its first. A stretch is geometrically long,
    `mean` on average before it is cut at 10 (SpanBERT, Section 3.1)."""
    starts = torch.rand(score.shape) < 1 / mean
    starts[:, 0] = True
    at = torch.arange(score.shape[1]).expand_as(score)
    first = torch.where(starts, at, 0).cummax(1).values
    first = at - (at - first) % 10
    return score.gather(1, first)
