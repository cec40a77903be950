"""Triplet loss: FaceNet: A Unified Embedding for Face Recognition and Clustering.

Schroff, Kalenichenko, Philbin, CVPR 2015. https://arxiv.org/abs/1503.03832
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.parts.gather import gather, rank
from ssl_runner.types import Backbone, Batch, Loss, Objective


class Triplet(Objective):
    """Section 3.1 with a sample in the place of a person: its two views are anchor and positive, in both orders.

    dim: of the embedding, a linear layer on the backbone, of unit length. margin: alpha of Equation 1.

    Negatives are searched in the global batch, as Section 3.2 does.
    """

    views = 2
    contrasts = True

    def __init__(self, backbone: Backbone, *, dim: Annotated[int, Gt(0)] = 128, margin: Annotated[float, Gt(0)] = 0.2):
        super().__init__()
        self.backbone = backbone
        self.embedding = nn.Linear(backbone.dim, dim)
        self.margin = margin

    def forward(self, batch: Batch) -> Loss:
        a, b = (self.embedding(self.backbone(**view)) for view in batch["views"])
        return Loss(triplet(a, b, self.margin))


def triplet(a: Tensor, b: Tensor, margin: float) -> Tensor:
    """Equation 3 with semi-hard negatives, averaged over all 2N anchors. In fp32.

    a, b: (n, dim) embeddings of two views of the same n samples on this rank. An anchor's negative is the nearest
    view of another sample, on any rank, that is farther than its positive (Equation 4). Where none is farther, it
    is the farthest one. There must be two samples at least.
    """
    n = len(a)
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    every = torch.cat([gather(a), gather(b)])  # (2N, dim): all a rows, then all b rows
    mine = (torch.arange(n, device=a.device) + rank() * n).repeat(2)[:, None]
    with torch.autocast(a.device.type, enabled=False):
        distance = 2 - 2 * torch.cat([a, b]) @ every.T  # (2n, 2N), squared, of unit vectors
    positive = (2 - 2 * (a * b).sum(1)).repeat(2)[:, None]
    same = torch.cat([mine, mine + len(every) // 2], dim=1)  # both views of the anchor's own sample
    farther = (distance > positive).scatter(1, same, False)
    nearest = distance.where(farther, float("inf")).min(1, keepdim=True).values
    farthest = distance.scatter(1, same, float("-inf")).max(1, keepdim=True).values
    negative = nearest.where(farther.any(1, keepdim=True), farthest)
    return F.relu(positive - negative + margin).mean()
