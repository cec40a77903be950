"""The next item's rank among all items, by leave-one-out.

Every item is ranked: figures on a sample of them can put methods in another order (Krichene and Rendle, On Sampled
Metrics for Item Recommendation, KDD 2020. https://doi.org/10.1145/3394486.3403226).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from ssl_runner.errors import RunError
from ssl_runner.types import Embed, Evaluator, NextId


class Ranking(Evaluator):
    """Ranks the last item of each user's sequence, given all before it that a sample holds.

    special: ids that are no items, and never ranked. k: how long the lists of recommendations are.
    seen: whether items that the user had before, in the whole log and not in the sample alone, are left out of the
    candidates; the one to be found never is. RecBole keeps them for models of sequences.

    Gives for each k "hr_K", the share of users whose item is among the first K, "ndcg_K", the mean of
    1 / log2(1 + rank) where it is among them and 0 where not, and "ndcg_K_interval", half the width of its 95% interval
    over users (1.96 standard errors); and "mrr", the mean of 1 / rank. An item that scores the same as others stands
    behind them.
    For the raw input the items are ranked by how often they are in what was learned from. "..._markov" ranks them by
    how often they followed the user's last item there, equals by how often they are there at all.
    Raises RunError where a score is NaN.
    """

    asks = NextId
    labelled = False

    def __init__(
        self,
        *,
        special: tuple[int, ...],
        k: Annotated[Sequence[Annotated[int, Ge(1)]], MinLen(1)] = (5, 10, 20),
        seen: Literal["removed", "kept"] = "removed",
    ):
        self.special, self.k, self.seen = tuple(special), tuple(k), seen

    def refusal(self, source: Any) -> str | None:
        if source.past("test") is None:
            return "ranks the next item of a user, and this data is no log of users and items"
        return None

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        source = data.source
        past, learned = source.past("test"), source.past("pretrain")
        vocab = source.facts["vocab"]
        popular, chain = Popularity(learned, vocab), Markov(learned, vocab)
        places: dict[str, list[Tensor]] = {}
        for view, samples in data.plain(source.split("test")):
            before = [past[n] for n in samples["index"].tolist()]
            target = samples["label"]
            if isinstance(embed.objective, NextId):
                scores = {"": embed.objective.following(view["x"], view.get("pad")).float().cpu()}
            else:
                scores = {"": popular(before), "_markov": chain(before)}
            for name, each in scores.items():
                may = self.candidates(before, target, vocab)
                places.setdefault(name, []).append(rank(each, target, may))
        figures: dict[str, float] = {}
        for name, found in places.items():
            figures |= {f"{k}{name}": v for k, v in ranked(torch.cat(found), self.k).items()}
        return figures

    def candidates(self, before: Sequence[Tensor], target: Tensor, vocab: int) -> Tensor:
        """Each user's items so far, and the (B,) targets -> (B, V) bool."""
        may = torch.ones(len(before), vocab, dtype=torch.bool)
        if self.seen == "removed":
            for row, had in zip(may, before, strict=True):
                row[had.long()] = False
        may[:, list(self.special)] = False
        return may.scatter(1, target[:, None], True)


def rank(scores: Tensor, target: Tensor, may: Tensor) -> Tensor:
    """(B, V) scores, (B,) targets and (B, V) candidates, the target one of them -> (B,) ranks from 1, the worst among
    equals."""
    if scores.isnan().any():
        raise RunError("the scores of the next item are NaN; the model has diverged")
    return (may & (scores >= scores.gather(1, target[:, None]))).sum(1)


def ranked(place: Tensor, k: Sequence[int]) -> dict[str, float]:
    """(N,) ranks from 1 -> the figures that Ranking gives."""
    place = place.double()
    figures: dict[str, float] = {}
    for most in k:
        hit = (place <= most).double()
        gain = hit / torch.log2(1 + place)
        figures[f"hr_{most}"] = hit.mean().item()
        figures[f"ndcg_{most}"] = gain.mean().item()
        figures[f"ndcg_{most}_interval"] = 1.96 * gain.std(correction=0).item() / math.sqrt(len(gain))
    figures["mrr"] = (1 / place).mean().item()
    return figures


class Popularity:
    """Scores each item by how often it is in the sequences."""

    def __init__(self, sequences: Sequence[Tensor], vocab: int):
        self.count = torch.bincount(torch.cat(list(sequences)).long(), minlength=vocab)

    def __call__(self, before: Sequence[Tensor]) -> Tensor:
        """(B, V)."""
        return self.count.expand(len(before), -1).double()


class Markov:
    """Scores each item by how often it comes right behind the user's last in the sequences; equals by popularity."""

    def __init__(self, sequences: Sequence[Tensor], vocab: int):
        pairs = torch.cat([torch.stack([each[:-1], each[1:]]) for each in sequences], 1).long()
        first, order = pairs[0].sort(stable=True)
        self.following = pairs[1][order].split(torch.bincount(first, minlength=vocab).tolist())
        self.popularity = Popularity(sequences, vocab)

    def __call__(self, before: Sequence[Tensor]) -> Tensor:
        """(B, V)."""
        popular = self.popularity(before)
        behind = [torch.bincount(self.following[int(had[-1])], minlength=popular.shape[1]) for had in before]
        return torch.stack(behind) + popular / (1 + popular.max())
