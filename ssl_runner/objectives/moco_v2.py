"""MoCo v2: Improved Baselines with Momentum Contrastive Learning.

Chen, Fan, Girshick, He, 2020. https://arxiv.org/abs/2003.04297
It is MoCo (He et al., CVPR 2020, https://arxiv.org/abs/1911.05722) with an MLP head and stronger views.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.parts.heads import mlp
from ssl_runner.parts.queue import Queue
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Backbone, Batch, Loss, Objective, View


class MoCoV2(Objective):
    """Algorithm 1 of MoCo: a query of one view, its key of the other, and a queue of older keys as negatives.

    hidden, dim: widths of the head's hidden layer and output; the head has no BatchNorm (MoCo v2, Section 3).
    queue: K, how many older keys are negatives. Keep it smaller than the data, or samples meet themselves.
    temperature: tau of Equation 1 (0.2 in MoCo v2, Section 3, "MLP head").
    momentum, end_momentum: m of Equation 2 at the beginning and the end of training; constant in the paper.
    symmetric: also the second view's query with the first one's key, averaged (the authors' CIFAR example).

    The key encoder moves after the optimiser step, as in Algorithm 1. Section 3.3 of MoCo shuffles samples over
    devices so that BatchNorm differs for query and key; here statistics are those of the global batch.
    """

    views = 2
    indivisible = "its queue takes in each micro-batch, which the next one meets there"

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Annotated[int, Gt(0)] = 2048,
        dim: Annotated[int, Gt(0)] = 128,
        queue: Annotated[int, Gt(0)] = 65536,
        temperature: Annotated[float, Gt(0)] = 0.2,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.999,
        end_momentum: Annotated[float, Ge(0), Le(1)] = 0.999,
        symmetric: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, dim], norm=False)
        self.key_backbone = Teacher(backbone, momentum, end_momentum)
        self.key_projector = Teacher(self.projector, momentum, end_momentum)
        self.queue = Queue(queue, dim)
        self.temperature, self.symmetric = temperature, symmetric

    def query(self, view: View) -> Tensor:
        """View -> (n, dim) unit rows."""
        return F.normalize(self.projector(self.backbone(**view)).float(), dim=1)

    def key(self, view: View) -> Tensor:
        """View -> (n, dim) unit rows without gradients."""
        return F.normalize(self.key_projector(self.key_backbone(**view)).float(), dim=1)

    def forward(self, batch: Batch) -> Loss:
        """All of it is read from the queue before any of its keys are put in."""
        first, second = batch["views"]
        pairs = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        older = self.queue.rows.float().clone()  # backward still needs what `put` overwrites
        keys, losses = [], []
        for seen, other in pairs:
            keys.append(self.key(other))
            losses.append(info_nce(self.query(seen), keys[-1], older, self.temperature))
        for each in keys:
            self.queue.put(each)
        return Loss(torch.stack(losses).mean())

    def after_step(self, progress: float) -> None:
        """MoCo, Equation 2."""
        self.key_backbone.update(self.backbone, progress)
        self.key_projector.update(self.projector, progress)


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo, Equation 1, averaged over the n queries. In fp32.

    query, key: (n, dim) unit rows, a query's positive in the same row of key. queue: (K, dim) unit rows, the
    negatives of all. The sum below the fraction has K + 1 terms.
    """
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))
