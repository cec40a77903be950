"""Retrieval of samples of the same class: is one of them among the nearest?"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Len
from torch import Tensor

from ssl_runner.evaluators.scores import features
from ssl_runner.types import Embed, Evaluator

SIMILARITIES = 2**24  # held at a time: 64 MiB in float32


class Recall(Evaluator):
    """Each sample of the test part asks the train part for its class: the share of samples that find it among their k
    nearest, as in Xu et al., Self-Supervised Spatiotemporal Learning via Video Clip Order Prediction, CVPR 2019.

    ks: for which k. Nothing is fitted. Gives at_<k> for each.
    """

    def __init__(self, *, ks: Annotated[tuple[Annotated[int, Ge(1)], ...], Len(1)] = (1, 5, 10, 20)):
        self.ks = ks

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        bank, bank_label = features(embed, data, "train")
        query, label = features(embed, data, "test")
        before = ahead(query, label, bank, bank_label)
        return {f"at_{k}": (before < k).float().mean().item() for k in self.ks}


def ahead(query: Tensor, label: Tensor, bank: Tensor, bank_label: Tensor) -> Tensor:
    """(N,), how many of the bank's (M, D) rows come before the first one of the query's own class, by cosine. One of
    another class that is as near as that comes before it; where the bank has none of the class, all M do."""
    query, bank = F.normalize(query.float(), dim=1), F.normalize(bank.float(), dim=1)
    rows = max(1, SIMILARITIES // len(bank))
    counts = []
    for part, own in zip(query.split(rows), label.split(rows), strict=True):
        similarity = part @ bank.T
        same = own[:, None] == bank_label
        best = similarity.masked_fill(~same, float("-inf")).amax(1, keepdim=True)
        counts.append(((similarity >= best) & ~same).sum(1))
    return torch.cat(counts)
