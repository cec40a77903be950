"""SupCon: Supervised Contrastive Learning.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan, NeurIPS 2020. https://arxiv.org/abs/2004.11362
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


class SupCon(Objective):
    """Section 3: SimCLR with every view of every sample of the same class as a positive.

    hidden, dim: widths of the head's hidden layer and output; the head has no BatchNorm (Section 3.1).
    temperature: tau of Equation 2.

    The batch that contrasts is the global one.
    """

    views = 2
    labelled = True
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
        self.projector = mlp([backbone.dim, hidden, dim], norm=False)
        self.temperature = temperature

    def forward(self, batch: Batch) -> Loss:
        a, b = (self.projector(self.backbone(**view)) for view in batch["views"])
        return Loss(supervised_contrast(a, b, batch["label"], self.temperature))


def supervised_contrast(a: Tensor, b: Tensor, label: Tensor, temperature: float) -> Tensor:
    """L_out, Equation 2, averaged over all 2N rows. In fp32.

    a, b: (n, dim) projections of two views of the same n samples on this rank. label: (n,) their classes. A row is
    compared with the rows of both views on all ranks, but itself; its positives are those of its class.
    """
    n = len(a)
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    every, classes = torch.cat([gather(a), gather(b)]), gather(label).repeat(2)  # all a rows, then all b rows
    total = len(every) // 2
    mine = torch.arange(n, device=a.device) + rank() * n
    itself = torch.cat([mine, mine + total])[:, None]
    with torch.autocast(a.device.type, enabled=False):
        logits = torch.cat([a, b]) @ every.T / temperature  # (2n, 2N)
    below = torch.logsumexp(logits.scatter(1, itself, float("-inf")), dim=1, keepdim=True)
    positive = (label.repeat(2)[:, None] == classes).scatter(1, itself, False)
    per_row = (below - logits).where(positive, 0).sum(1) / positive.sum(1)  # the other view is always a positive
    return per_row.mean()
