"""Weighted k-nearest neighbours: Unsupervised Feature Learning via Non-Parametric Instance Discrimination.

Wu, Xiong, Yu, Lin, CVPR 2018, Section 3.4. https://arxiv.org/abs/1805.01978
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.evaluators.scores import classification, features
from ssl_runner.types import Embed, Evaluator

SIMILARITIES = 2**24  # held at a time: 64 MiB in float32


class KNN(Evaluator):
    """Scores of the test part, each sample classed by its neighbours in the train part. Nothing is fitted.

    k: neighbours that vote; the paper takes 200, DINO (Caron et al., 2021) 20. At most the whole train part.
    temperature: tau, the scale of similarity in a vote's weight.

    Features are undisturbed samples' (evaluation transform, evaluation mode), in the bank and in the queries.
    Gives ``classification``'s figures.
    """

    def __init__(self, *, k: Annotated[int, Ge(1)] = 20, temperature: Annotated[float, Gt(0)] = 0.07):
        self.k, self.temperature = k, temperature

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        bank, bank_label = features(embed, data, "train")
        query, label = features(embed, data, "test")
        found = votes(query, bank, bank_label, data.num_classes, self.k, self.temperature)
        return classification(found, label, data.num_classes)


def votes(query: Tensor, bank: Tensor, label: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    """Each class's share of the votes, (N, num_classes), rows summing to 1.

    query: (N, D). bank: (M, D) with its (M,) labels. The k bank rows of highest cosine similarity s vote for
    their class with weight exp(s / temperature). A zero vector has similarity 0 to all. Among equals at the
    k-th place, any may be taken.
    """
    query, bank = F.normalize(query.float(), dim=1), F.normalize(bank.float(), dim=1)
    rows = max(1, SIMILARITIES // len(bank))
    parts = []
    for chunk in query.split(rows):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        # dividing by their sum changes no order, and keeps exp from overflowing at a small temperature
        weight = (similarity / temperature).softmax(1)
        parts.append(weight.new_zeros(len(chunk), num_classes).scatter_add_(1, label[nearest], weight))
    return torch.cat(parts)
