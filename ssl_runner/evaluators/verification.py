"""Verification: are two samples of one class, such as of one speaker? By the cosine of their features."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.evaluators.scores import features
from ssl_runner.types import Embed, Evaluator


class Verification(Evaluator):
    """The equal error rate over all pairs of the test part's samples. Nothing is fitted.

    samples: the most that are paired; of a larger test part always the same ones.

    Gives "eer": at the threshold where as large a share of pairs of different classes is accepted as of pairs of the
    same class refused, that share; 0.5 is chance, 0 is best. Where the two cross between thresholds, their mean there.
    Raises RequestError where the samples make no pair of the same class, or none of different ones.
    """

    def __init__(self, *, samples: Annotated[int, Gt(1)] = 4000):
        self.samples = samples

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        x, label = features(embed, data, "test")
        drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: self.samples].to(x.device)
        x, label = F.normalize(x[drawn].float(), dim=1), label[drawn]
        one, other = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
        return {"eer": equal_error_rate((x @ x.T)[one, other], label[one] == label[other])}


def equal_error_rate(score: Tensor, same: Tensor) -> float:
    """(N,) scores of pairs, the higher the more alike, and whether they are of the same class.

    Raises RequestError where all are, or none.
    """
    total, order = int(same.sum()), score.argsort(descending=True)
    if total in (0, len(same)):
        raise RequestError("evaluators: the test part needs two samples of one class, and two classes; give it more")
    others = len(same) - total
    score, same = score[order].double(), same[order].long()
    refused = total - same.cumsum(0)  # how many of the same class, where all up to here are accepted
    accepted = (1 - same).cumsum(0)
    last = torch.ones_like(same, dtype=torch.bool)
    last[:-1] = score[1:] != score[:-1]  # pairs of one score are accepted together
    refused, accepted = refused[last], accepted[last]
    best = (refused * others - accepted * total).abs().argmin()  # in whole numbers: of equally near ones, the first
    return float((refused[best] / total + accepted[best] / others) / 2)
