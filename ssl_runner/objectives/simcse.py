"""SimCSE: Simple Contrastive Learning of Sentence Embeddings.

Gao, Yao, Chen, EMNLP 2021. https://arxiv.org/abs/2104.08821
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.parts.gather import gather, rank
from ssl_runner.types import Backbone, Batch, Loss, Objective


class SimCSE(Objective):
    """Unsupervised SimCSE: a sentence is told from others after two passes, each with a dropout mask of its own.

    The disturbance is the backbone's dropout, so the two views may be the same ids (views=two_ids); without dropout
    they are the same embeddings, and there is nothing to be learned.

    The head is a layer with tanh, as wide as the backbone, which is there in training alone. temperature: tau.

    The batch that contrasts is the global one: sentences of all ranks are negatives. Accumulating gradients adds none.
    """

    views = 2
    contrasts = True

    def __init__(self, backbone: Backbone, *, temperature: Annotated[float, Gt(0)] = 0.05):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Linear(backbone.dim, backbone.dim), nn.Tanh())
        self.temperature = temperature

    def forward(self, batch: Batch) -> Loss:
        h, other = (self.head(self.backbone(**view)) for view in batch["views"])
        return Loss(across(h, other, self.temperature))


def across(h: Tensor, other: Tensor, temperature: float) -> Tensor:
    """The unsupervised objective: -log exp(sim(h_i, h'_i) / tau) / sum_j exp(sim(h_i, h'_j) / tau), averaged over i.

    h, other: (n, dim) embeddings of the same n sentences on this rank, by two passes. sim is the cosine. j runs over
    the other pass of all ranks' sentences: those of the own pass are no negatives. One way, from h. In fp32.
    """
    h, other = F.normalize(h.float(), dim=1), F.normalize(other.float(), dim=1)
    every = gather(other)  # (N, dim)
    with torch.autocast(h.device.type, enabled=False):
        logits = h @ every.T / temperature  # (n, N)
    return F.cross_entropy(logits, torch.arange(len(h), device=h.device) + rank() * len(h))
