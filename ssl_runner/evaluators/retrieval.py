"""Finding an input's partner among those of all held-out pairs, both ways.

Recall at K as in Hodosh, Young, Hockenmaier, Framing Image Description as a Ranking Task, JAIR 2013
(https://doi.org/10.1613/jair.3994), over the whole part, with nothing fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor

from ssl_runner.errors import RunError
from ssl_runner.types import Embed, Evaluator, Matching

SEED = 20260101  # of the samples that intervals are told from
AT_ONCE = 2**24  # scores held at a time: 64 MiB in float32


class Retrieval(Evaluator):
    """For each distinct first input of the test part, the place of its best partner among all distinct second inputs,
    by their dot product; and the reverse.

    k: for which K the recall is told. samples: bootstrap samples that intervals rest on.

    Where an input has several partners, as a picture has captions, the one that comes first counts, and the others are
    no candidates. What scores the same as it stands before it.
    Gives, for both ways, "to_second_..." and "to_first_...", "recall_K", the share of queries with a partner among the
    first K, and "median_rank"; and for each of these a 95% interval, "..._low" and "..._high": the 2.5th and 97.5th
    percentile over samples of as many queries, drawn with replacement. The candidates stay as they are.
    For the raw input, the figures of a random order: the two inputs as they are have nothing in common to be compared.
    Raises RunError where a score is NaN or infinite.

    It asks one thing of a source: `items` of its test part, as ssl_runner.datasets.pairs.Paired tells.
    """

    asks = Matching
    labelled = False

    def __init__(
        self,
        *,
        k: Annotated[Sequence[Annotated[int, Ge(1)]], MinLen(1)] = (1, 5, 10),
        samples: Annotated[int, Gt(0)] = 1000,
    ):
        self.k, self.samples = tuple(k), samples

    def refusal(self, source: Any) -> str | None:
        items = getattr(source.split("test"), "items", None)
        if items is None:
            return "looks for the partners of pairs, and this data has none; use data=pairs, or evaluators=none"
        if len(items) < 2:
            return "needs two pairs or more in the test part; give it a larger share, e.g. data.test=0.2"
        return None

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        test = data.source.split("test")
        if embed.objective is None:
            _, pairs = distinct(test.items)
            return {
                f"{way}_{name}": value
                for way, turned in (("to_second", pairs), ("to_first", pairs.flip(1)))
                for name, value in self.chance(turned).items()
            }
        assert isinstance(embed.objective, Matching)
        a, b, seen = embedded(embed.objective, data, test)
        (first, second), pairs = distinct(test.items[seen])
        a, b = a[first], b[second]
        found = {"to_second": ranks(a, b, pairs), "to_first": ranks(b, a, pairs.flip(1))}
        return {f"{way}_{name}": value for way, each in found.items() for name, value in self.figures(each).items()}

    def figures(self, rank: Tensor) -> dict[str, float]:
        """(Q,) places from 1 -> the figures and their intervals."""
        generator = torch.Generator().manual_seed(SEED)
        drawn = rank[torch.randint(len(rank), (self.samples, len(rank)), generator=generator)]
        found, spread = self.told(rank), self.told(drawn)
        figures: dict[str, float] = {}
        for name, value in found.items():
            low, high = spread[name].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            figures |= {name: value.item(), f"{name}_low": low, f"{name}_high": high}
        return figures

    def told(self, rank: Tensor) -> dict[str, Tensor]:
        """(..., Q) places -> (...) of each figure."""
        recalls = {f"recall_{k}": (rank <= k).double().mean(-1) for k in self.k}
        return {**recalls, "median_rank": rank.double().quantile(0.5, dim=-1)}

    def chance(self, pairs: Tensor) -> dict[str, float]:
        """The same figures, without intervals, of a random order of the candidates. pairs: as in `ranks`."""
        total = int(pairs[:, 1].max()) + 1
        partners = torch.bincount(pairs[:, 0]).double()
        before = torch.arange(total, dtype=torch.float64)
        # the share of queries of which none of the first r candidates is a partner, for r = 1 .. total
        none = ((total - partners[:, None] - before) / (total - before)).clamp(min=0).cumprod(1).mean(0)
        figures = {f"recall_{k}": 1 - none[min(k, total) - 1].item() for k in self.k}
        return {**figures, "median_rank": float((none > 0.5).sum() + 1)}


def embedded(objective: Matching, data: Any, part: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) and (N, D), both inputs of a part's pairs that can be read, and (N,), which pairs these are; all on the
    host."""
    firsts, seconds, index = [], [], []
    for _, samples in data.plain(part):
        first, second = data.views.plain_pair(samples)
        firsts.append(objective.first(first).cpu())
        seconds.append(objective.second(second).cpu())
        index.append(samples["index"])
    return torch.cat(firsts), torch.cat(seconds), torch.cat(index)


def distinct(items: Tensor) -> tuple[list[Tensor], Tensor]:
    """(N, 2) items -> for each column the places of its distinct items, and the (N, 2) pairs by their numbers among
    these."""
    places, numbers = [], []
    for column in items.unbind(1):
        values, number = column.unique(return_inverse=True)
        place = torch.empty_like(values)
        place[number] = torch.arange(len(column))
        places.append(place)
        numbers.append(number)
    return places, torch.stack(numbers, 1)


def ranks(query: Tensor, candidate: Tensor, pairs: Tensor) -> Tensor:
    """(Q,) int64, from 1: the place of each query's best partner among all candidates that are no partners of it.

    query: (Q, D). candidate: (C, D). pairs: (N, 2), which query goes with which candidate; each query with one at
    least. Equals stand before a partner. Raises RunError where a score is NaN or infinite.
    """
    found = []
    rows = max(1, AT_ONCE // len(candidate))
    for start in range(0, len(query), rows):
        scores = query[start : start + rows] @ candidate.T
        if not scores.isfinite().all():
            raise RunError("the scores of pairs are NaN or infinite; the objective has diverged")
        inside = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + rows)]
        partner = torch.zeros_like(scores, dtype=torch.bool)
        partner[inside[:, 0] - start, inside[:, 1]] = True
        best = scores.masked_fill(~partner, float("-inf")).amax(1, keepdim=True)
        found.append(1 + ((scores >= best) & ~partner).sum(1))
    return torch.cat(found)
