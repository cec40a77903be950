"""Anomalies: samples whose features lie far from those of the training part."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from ssl_runner.errors import RunError
from ssl_runner.evaluators.linear import standardiser
from ssl_runner.evaluators.scores import features
from ssl_runner.evaluators.similarity import ranks
from ssl_runner.types import Embed, Evaluator

DISTANCES = 2**24  # held at a time: 64 MiB in float32


class Anomaly(Evaluator):
    """How well the distance to the training part tells the second of two classes, the anomalies, in the test part.

    k: the distance is the mean of those to the k nearest samples of the train part, whose labels are not read; each
    feature is standardised by that part. Gives "auroc", the chance that an anomaly is farther off than a normal sample
    (equals count half), and "average_precision" over the samples in order of distance, the farthest first.
    Nothing is fitted. Raises RunError where the test part lacks one of the two classes.
    """

    def __init__(self, *, k: Annotated[int, Ge(1)] = 5):
        self.k = k

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        bank, _ = features(embed, data, "train")
        query, label = features(embed, data, "test")
        centre, scale = standardiser(bank)
        distance = nearest((query - centre) / scale, (bank - centre) / scale, self.k)
        return figures(distance.cpu(), label.cpu() == 1)

    def refusal(self, source: Any) -> str | None:
        if len(source.classes) != 2:
            return "needs samples of two classes, normal ones and anomalies, as data=series data.anomaly=COLUMN gives"
        return None


def nearest(query: Tensor, bank: Tensor, k: int) -> Tensor:
    """(N, D), (M, D) -> (N,): the mean distance to the k nearest of the bank, or to all of a smaller one."""
    rows = max(1, DISTANCES // len(bank))
    k = min(k, len(bank))
    return torch.cat([torch.cdist(part, bank).topk(k, 1, largest=False).values.mean(1) for part in query.split(rows)])


def figures(distance: Tensor, odd: Tensor) -> dict[str, float]:
    """Of (N,) distances and (N,) bool, which samples are anomalies."""
    count = int(odd.sum())
    if not 0 < count < len(odd):
        raise RunError(f"{count} of the {len(odd)} samples of the test part are anomalies; there must be some, not all")
    place = ranks(distance)
    auroc = (place[odd].sum() - count * (count + 1) / 2) / (count * (len(odd) - count))
    # samples at the same distance come together: precision and recall behind each distance
    _, group = distance.unique(return_inverse=True)
    sizes, hits = (torch.bincount(group, weights=w).flip(0) for w in (torch.ones_like(place), odd.double()))
    precision = hits.cumsum(0) / sizes.cumsum(0)
    return {"auroc": float(auroc), "average_precision": float((precision * hits / count).sum())}
