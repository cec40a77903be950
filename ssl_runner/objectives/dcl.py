"""DCL: Decoupled Contrastive Learning.

Yeh, Hong, Hsu, Liu, Chen, LeCun, ECCV 2022. https://arxiv.org/abs/2110.06848
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective


class DCL(Objective):
    """Section 3: SimCLR's loss without the positive in the sum below the fraction, so that small batches do.

    hidden, dim: widths of the head's hidden layer and output, as in SimCLR. temperature: tau.

    The batch that contrasts is the global one.
    """

    views = 2
    contrasts = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Annotated[int, Gt(0)] = 2048,
        dim: Annotated[int, Gt(0)] = 128,
        temperature: Annotated[float, Gt(0)] = 0.1,
    ):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, dim])
        self.temperature = temperature

    def forward(self, batch: Batch) -> Loss:
        a, b = (self.projector(self.backbone(**view)) for view in batch["views"])
        return Loss(decoupled(a, b, self.temperature))


def decoupled(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """L_DC, averaged over all 2N rows. In fp32.

    a, b: (n, dim) projections of two views of the same n samples on this rank. A row's negatives are both views of
    every other sample on all ranks, so there must be two samples at least.
    """
    n = len(a)
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    every = torch.cat([gather(a), gather(b)])  # (2N, dim): all a rows, then all b rows
    total = len(every) // 2
    mine = (torch.arange(n, device=a.device) + rank() * n).repeat(2)[:, None]
    with torch.autocast(a.device.type, enabled=False):
        logits = torch.cat([a, b]) @ every.T / temperature  # (2n, 2N)
    positive = (a * b).sum(1).repeat(2) / temperature
    negatives = logits.scatter(1, torch.cat([mine, mine + total], dim=1), float("-inf"))
    return (torch.logsumexp(negatives, dim=1) - positive).mean()
