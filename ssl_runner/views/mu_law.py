"""Signals as ids: their values on a logarithmic scale, in steps.

ITU-T Recommendation G.711, as van den Oord et al. take it for models of raw audio (WaveNet, 2016,
https://arxiv.org/abs/1609.03499, "Softmax distributions").
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.types import Transform


class MuLaw(Transform):
    """(B, 1, n) values in [-1, 1] -> (B, n) int64 ids, 0 .. levels - 1; the middle one is silence. To be the last of a
    view. What lies outside is cut off.

    Raises RequestError for signals of several channels.
    """

    def __init__(self, *, levels: Annotated[int, Gt(1)] = 256):
        super().__init__()
        self.levels = levels

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 2 or shape[0] != 1:
            raise RequestError(f"views: MuLaw makes ids of one channel, (1, n), and samples are {tuple(shape)}")
        return shape[1:]

    def transform(self, x: Tensor) -> Tensor:
        mu = self.levels - 1
        x = x[:, 0].float().clamp(-1, 1)
        loud = torch.log1p(mu * x.abs()) / math.log1p(mu)
        return ((x.sign() * loud + 1) / 2 * mu + 0.5).long()

    def inverse(self, ids: Tensor) -> Tensor:
        """(B, n) ids -> (B, 1, n), the middle of each step."""
        mu = self.levels - 1
        loud = 2 * ids[:, None].float() / mu - 1
        return loud.sign() * torch.expm1(loud.abs() * math.log1p(mu)) / mu
