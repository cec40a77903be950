"""Semantic textual similarity: does the cosine of two embeddings go with how alike people found the sentences?

Agirre, Cer, Diab, Gonzalez-Agirre, SemEval-2012 Task 6: A Pilot on Semantic Textual Similarity. The protocol, as
Gao, Yao, Chen state it (SimCSE, EMNLP 2021, https://arxiv.org/abs/2104.08821): no layer is fitted on top, the figure
is Spearman's correlation, and a test part is scored as one whole and not as a mean over its sources.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_runner.errors import RunError
from ssl_runner.types import Embed, Evaluator


class Similarity(Evaluator):
    """Correlation of the cosine of a pair's embeddings with its score, over the whole test part. Nothing is fitted.

    Gives "spearman", of ranks, where equals share the mean of their ranks, and "pearson", of the values; both in
    [-1, 1], and 0 where all cosines or all scores are the same. For the raw input the embeddings are bags of words.
    Raises RunError where a cosine is NaN or infinite.
    """

    labelled = False

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        cosines: list[Tensor] = []
        scores: list[Tensor] = []
        for view, samples in data.plain(data.source.split("test")):
            other = data.views.plain({**samples, "inputs": samples["inputs"][1:]})
            cosines.append(F.cosine_similarity(embed(view).double(), embed(other).double(), dim=1).cpu())
            scores.append(samples["label"])
        found, gold = torch.cat(cosines), torch.cat(scores)
        broken = int((~found.isfinite()).sum())
        if broken:
            raise RunError(f"{broken} of {len(found)} pairs have a cosine that is NaN or infinite; it has diverged")
        return {"spearman": correlation(ranks(found), ranks(gold)), "pearson": correlation(found, gold)}

    def refusal(self, source: Any) -> str | None:
        if not source.paired or not source.valued:
            return "needs pairs with a score each, and this data has none; use data=text_pairs"
        return None


def ranks(x: Tensor) -> Tensor:
    """(N,) -> (N,) float64: the place of each in ascending order, from 1; equals share the mean of their places."""
    _, which, count = x.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[which]


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's, of (N,) and (N,); 0 where either is constant."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = x.norm() * y.norm()
    return 0.0 if scale == 0 else float((x @ y) / scale)
