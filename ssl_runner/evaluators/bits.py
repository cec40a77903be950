"""How likely held-out sequences are, each for itself: bits per id, beside what the id before tells."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_runner.errors import RequestError, RunError
from ssl_runner.types import Embed, Evaluator, Likelihood, seen_by


class Bits(Evaluator):
    """Scores of the test part's undisturbed samples: -log2 p of each id given those before it in its sample.

    Gives "bits_per_id", the mean over the ids that the objective predicts. Of the raw input it is that of counted pairs
    of neighbours in what was learned from, with one more of each (Laplace), over all ids but the first of a sample.
    For data that is one long text see ssl_runner.evaluators.likelihood.
    """

    asks = Likelihood
    labelled = False

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        total = torch.zeros(2, dtype=torch.float64)
        chances = pairs(data) if embed.objective is None else None
        for view, _ in data.plain(data.source.pretext("test")):
            if chances is not None:
                before, after = neighbours(view)
                nats, told = -chances[before, after].log(), torch.ones_like(before, dtype=torch.bool)
            else:
                assert isinstance(embed.objective, Likelihood)
                nats, told = embed.objective.nats(view["x"], seen_by(embed.objective.backbone, view).get("pad"))
            total += torch.stack([nats.double().masked_fill(~told, 0.0).sum(), told.sum().double()]).cpu()
        if not total[1]:
            raise RequestError("the test part is empty: give the data one, e.g. data.test=0.1")
        bits = float(total[0] / total[1]) / math.log(2)
        if not math.isfinite(bits):
            raise RunError("the scores of the test part are NaN or infinite; the objective has diverged")
        return {"bits_per_id": bits}


def neighbours(view: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(N,) ids of a batch that have a neighbour behind them, and these neighbours; none is padding."""
    ids, pad = view["x"].long(), view.get("pad", torch.zeros_like(view["x"], dtype=torch.bool))
    there = ~pad[:, 1:] & ~pad[:, :-1]
    return ids[:, :-1][there], ids[:, 1:][there]


def pairs(data: Any) -> Tensor:
    """(V, V) float64: the share of each id behind each, by the undisturbed samples of what was learned from."""
    train = data.source.split("pretrain")
    most = max(int(view["x"].max()) for part in (train, data.source.pretext("test")) for view, _ in data.plain(part))
    counts = torch.ones(most + 1, most + 1, dtype=torch.float64, device=data.device)
    for view, _ in data.plain(train):
        before, after = neighbours(view)
        counts += torch.bincount(before * (most + 1) + after, minlength=(most + 1) ** 2).view_as(counts)
    return counts / counts.sum(1, keepdim=True)
