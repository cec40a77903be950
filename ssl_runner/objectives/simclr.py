"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations.

Chen, Kornblith, Norouzi, Hinton, ICML 2020. https://arxiv.org/abs/2002.05709
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective


class SimCLR(Objective):
    """Section 2.1: an encoder f, a projection head g, and a contrastive loss on g(f(x)).

    hidden, dim: widths of the head's hidden layer and output (Sections 2.3 and 4.2).
    temperature: tau of Equation 1 (0.1 for ImageNet; 0.5 was best on CIFAR-10, Appendix B.9).

    The batch that contrasts is the global one: rows of all ranks are negatives. Accumulating gradients adds none.
    """

    views = 2
    contrasts = True

    def __init__(self, backbone: Backbone, *, hidden: int = 2048, dim: int = 128, temperature: float = 0.1):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, dim])
        self.temperature = temperature

    def forward(self, batch: Batch) -> Loss:
        a, b = (self.projector(self.backbone(**view)) for view in batch["views"])
        return Loss(nt_xent(a, b, self.temperature))


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent, Equation 1 and Algorithm 1, averaged over all 2N rows.

    a, b: (n, dim) projections of two views of the same n samples on this rank. Each local row is compared with
    the rows of both views on all ranks, but itself; its positive is the same sample's other view. In fp32.
    """
    n = len(a)
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    every = torch.cat([gather(a), gather(b)])  # (2N, dim): all a rows, then all b rows
    total = len(every) // 2
    mine = torch.arange(n, device=a.device) + rank() * n  # where this rank's a rows stand among all
    with torch.autocast(a.device.type, enabled=False):
        logits = torch.cat([a, b]) @ every.T / temperature  # (2n, 2N)
    itself = torch.cat([mine, mine + total])
    positive = torch.cat([mine + total, mine])
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits, positive)
