"""Rows of a table, partly filled with other rows' values.

Bahri, Jiang, Tay, Metzler, SCARF: Self-Supervised Contrastive Learning using Random Feature Corruption, ICLR 2022.
https://arxiv.org/abs/2106.15147
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_runner.parts.columns import of_others
from ssl_runner.types import Transform
from ssl_runner.views.draws import Share


class CorruptColumns(Transform):
    """SCARF's view: some values of each row become draws from their columns' empirical marginals.

    rate: the share of a row's columns that is replaced, rounded down, at least one where it is not 0; others in each
    row. Each new value is that of another row of the batch, drawn for it alone; the paper draws from the training
    part. Missing values are values like others here: they are replaced, and come in.
    """

    def __init__(self, *, rate: Share = 0.6):
        super().__init__()
        self.rate = rate

    def transform(self, x: Tensor) -> Tensor:
        """(B, C) rows -> (B, C)."""
        count = max(1, int(self.rate * x.shape[1])) if self.rate else 0
        place = torch.rand(x.shape).argsort(1).argsort(1)
        return torch.where(place.to(x.device) < count, of_others(x, x), x)
