"""SigLIP: Sigmoid Loss for Language Image Pre-Training.

Zhai, Mustafa, Kolesnikov, Beyer, ICCV 2023. https://arxiv.org/abs/2303.15343
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.backbones.towers import Towers
from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.space import Space
from ssl_runner.types import Batch, Loss


class SigLIP(Space):
    """Two encoders, a linear map of each into one space, and for each first and second input of a batch the question
    whether they are a pair (Algorithm 1).

    dim: of the space. scale, bias: t and b at the start, both learned, the first as its logarithm t'. The bias is so
    low since nearly all answers are no.

    All pairs of the global batch are asked about. Accumulating gradients adds none.
    """

    def __init__(
        self,
        backbone: Towers,
        *,
        dim: Annotated[int, Gt(0)] = 768,
        scale: Annotated[float, Gt(0)] = 10.0,
        bias: float = -10.0,
    ):
        super().__init__(backbone, dim)
        # of one element each, for scalars can't be cut over ranks
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.bias = nn.Parameter(torch.tensor([bias]))

    def forward(self, batch: Batch) -> Loss:
        a, b = batch["views"]
        scale, bias = self.log_scale.float().exp().squeeze(), self.bias.float().squeeze()
        loss = sigmoid(self.first(a), self.second(b), scale, bias)
        return Loss(loss, {"scale": scale.detach(), "bias": bias.detach()})


def sigmoid(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """-log sigmoid of z (scale a.b + bias), where z is 1 for a pair and -1 for others: the sum over all second inputs,
    averaged over the first.

    a, b: (n, dim) unit rows of the same n pairs on this rank, each asked about with the second inputs of all ranks. In
    fp32.
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * a @ gather(b).T + bias  # (n, N)
    mine = torch.arange(len(a), device=a.device)
    sign = torch.full_like(logits, -1.0)
    sign[mine, mine + rank() * len(a)] = 1.0
    return -F.logsigmoid(sign * logits).sum() / len(a)
