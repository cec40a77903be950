"""SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, NeurIPS 2020. https://arxiv.org/abs/2006.09882
"""

from __future__ import annotations

from typing import Annotated, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.gather import rank, world_size
from ssl_runner.parts.heads import mlp
from ssl_runner.parts.multicrop import embed_together
from ssl_runner.parts.prototypes import share_used, similarity
from ssl_runner.parts.queue import Queue
from ssl_runner.parts.sinkhorn import sinkhorn
from ssl_runner.types import Backbone, Batch, Loss, Objective, View

Share = Annotated[float, Ge(0), Le(1)]
Width = Annotated[int, Gt(0)]


class SwAV(Objective):
    """Section 3: from each view, predict the balanced assignment to prototypes ("code") of another, large view.

    large: the first so many views are the large crops, which get codes; the others only predict (Section 3.2).
    hidden, dim, prototypes: widths of the head's hidden layer and output (Appendix A.1), and number of prototypes.
    temperature: tau of Equation 2. epsilon, iterations: of the Sinkhorn-Knopp algorithm (Section 3.1).
    queue: past embeddings of each large crop that join the batch when codes are made, for small batches
    (Section 4.3 takes 3,840); 0 is none. It is used once it is full and progress reached `queue_start`.
    frozen: share of training in which the prototypes stay as they are (1 of 400 epochs).

    Prototypes have unit length, from the start and after each step. Codes balance over the batches of all
    ranks. Raises RequestError for fewer than two views, or fewer than `large`.
    """

    prototypes: nn.Parameter
    progress: Tensor
    stored: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        large: Width = 2,
        hidden: Width = 2048,
        dim: Width = 128,
        prototypes: Width = 3000,
        temperature: Annotated[float, Gt(0)] = 0.1,
        epsilon: Annotated[float, Gt(0)] = 0.05,
        iterations: Width = 3,
        queue: Annotated[int, Ge(0)] = 0,
        queue_start: Share = 0.075,
        frozen: Share = 0.0025,
    ):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, dim])
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))
        self.queues = nn.ModuleList(Queue(queue, dim) for _ in range(large) if queue)
        self.register_buffer("stored", torch.zeros((), dtype=torch.int64))  # rows put into each queue so far
        self.register_buffer("progress", torch.zeros(()))
        self.large, self.temperature, self.epsilon, self.iterations = large, temperature, epsilon, iterations
        self.queue_start, self.frozen = queue_start, frozen

    def forward(self, batch: Batch) -> Loss:
        """The pseudo-code of Appendix A.1. Queues are read before they are put to."""
        views = batch["views"]
        if len(views) < max(2, self.large):
            wanted = max(2, self.large)
            raise RequestError(f"views: SwAV needs {wanted} or more, the large ones first, and got {len(views)}")
        embedded = self.project(views)
        still = self.prototypes.detach()
        # Frozen means that the gradient is 0 and not None, so that DDP finds every gradient.
        weight = still + (self.prototypes - still) * (self.progress >= self.frozen)
        scores = [similarity(z, weight) for z in embedded]
        codes = self.codes(scores[: self.large])
        self.put(embedded)
        used = share_used(torch.cat(scores[: self.large]))
        return Loss(swapped(scores, codes, self.temperature), {"prototypes_used": used})

    def project(self, views: list[View]) -> list[Tensor]:
        """(B, dim) of unit length for each view, fp32. One pass of the backbone per size, one of the head for all."""
        z = self.projector(torch.cat(embed_together(self.backbone, views)))
        return list(F.normalize(z.float(), dim=1).chunk(len(views)))

    @torch.no_grad()
    def codes(self, scores: list[Tensor]) -> list[Tensor]:
        """Section 3.1: (B, K) scores of each large crop -> (B, K) codes, without gradients."""
        alone = [self.balanced(each.detach()) for each in scores]
        if not self.queues:
            return alone
        # Both are made and one is chosen, since to ask whether the queue is ready would make a device wait.
        ready = (self.stored >= len(self.rings()[0].rows)) & (self.progress >= self.queue_start)
        codes = []
        for each, code, ring in zip(scores, alone, self.rings(), strict=True):
            past = ring.rows[rank() :: world_size()]  # this rank's share, since codes are made over all ranks
            joined = self.balanced(torch.cat([each.detach(), similarity(past, self.prototypes)]))
            codes.append(torch.where(ready, joined[: len(each)], code))
        return codes

    def balanced(self, scores: Tensor) -> Tensor:
        return sinkhorn(scores, epsilon=self.epsilon, iterations=self.iterations)

    def rings(self) -> list[Queue]:
        return cast(list[Queue], list(self.queues))

    def put(self, embedded: list[Tensor]) -> None:
        if not self.training or not self.queues:
            return
        for ring, z in zip(self.rings(), embedded, strict=False):
            ring.put(z)
        self.stored.add_(len(embedded[0]) * world_size())

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes.float(), dim=1))
        self.progress.fill_(progress)


def swapped(scores: list[Tensor], codes: list[Tensor], temperature: float) -> Tensor:
    """Equations 1 and 2: the cross-entropy of every code with every view but its own, averaged over the pairs.

    scores: (B, K) of each view. codes: (B, K) of the first views. In fp32.
    """
    logs = [(each.float() / temperature).log_softmax(1) for each in scores]
    losses = [
        -(code.detach() * log).sum(1).mean() for n, code in enumerate(codes) for m, log in enumerate(logs) if n != m
    ]
    return torch.stack(losses).mean()
