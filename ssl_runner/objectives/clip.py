"""CLIP: Learning Transferable Visual Models From Natural Language Supervision.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever, ICML 2021.
https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ssl_runner.backbones.towers import Towers
from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.space import Space
from ssl_runner.types import Batch, Loss

MOST = math.log(100)  # of the scale's logarithm


class CLIP(Space):
    """Two encoders, a linear map of each into one space, and a symmetric cross-entropy that tells the pairs of a batch
    from all others (the pseudo-code "Numpy-like pseudocode for the core of an implementation of CLIP").

    dim: of the space. temperature: at the start; the logits' scale is 1 over it, is learned as its logarithm, and never
    exceeds 100.

    The batch that contrasts is the global one: rows of all ranks are negatives. Accumulating gradients adds none.
    """

    def __init__(
        self,
        backbone: Towers,
        *,
        dim: Annotated[int, Gt(0)] = 512,
        temperature: Annotated[float, Ge(0.01)] = 0.07,
    ):
        super().__init__(backbone, dim)
        # of one element, for scalars can't be cut over ranks
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def forward(self, batch: Batch) -> Loss:
        a, b = batch["views"]
        scale = self.log_scale.float().exp().squeeze()
        return Loss(symmetric(self.first(a), self.second(b), scale), {"scale": scale.detach()})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.log_scale.clamp_(max=MOST)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Each first input, the second input of the batch that matches it best, and its own."""
        a, b = batch["views"]
        best = (self.first(a) @ self.second(b).T).argmax(1)
        return {"matches": [a["x"], b["x"][best], b["x"]]}


def symmetric(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """The mean of two cross-entropies: each local first input among all second inputs, and the reverse.

    a, b: (n, dim) unit rows of the same n pairs on this rank. scale: what their dot products are multiplied by. In
    fp32.
    """
    mine = torch.arange(len(a), device=a.device) + rank() * len(a)  # where this rank's rows stand among all
    with torch.autocast(a.device.type, enabled=False):
        forth, back = scale * a @ gather(b).T, scale * b @ gather(a).T  # (n, N)
    return (F.cross_entropy(forth, mine) + F.cross_entropy(back, mine)) / 2
