"""NNCLR: With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman, ICCV 2021. https://arxiv.org/abs/2104.14548
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.heads import mlp
from ssl_runner.parts.queue import Queue
from ssl_runner.types import Backbone, Batch, Loss, Objective


class NNCLR(Objective):
    """Section 3.2 and Algorithm 1: a view's positive is the nearest neighbour, among older embeddings, of the other.

    hidden, dim: widths of the three-layer projector's hidden layers and output.
    predictor_hidden: width of the predictor's hidden layer.
    queue: size of the support set Q. temperature: tau of Equation 3.

    The batch that contrasts is the global one. Q gets the first view's embeddings after it was read.
    """

    views = 2
    contrasts = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Annotated[int, Gt(0)] = 2048,
        dim: Annotated[int, Gt(0)] = 256,
        predictor_hidden: Annotated[int, Gt(0)] = 4096,
        queue: Annotated[int, Gt(0)] = 98304,
        temperature: Annotated[float, Gt(0)] = 0.1,
    ):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, hidden, dim], last_norm=True)
        self.predictor = mlp([dim, predictor_hidden, dim])
        self.queue = Queue(queue, dim)
        self.temperature = temperature

    def forward(self, batch: Batch) -> Loss:
        z1, z2 = (self.projector(self.backbone(**view)) for view in batch["views"])
        p1, p2 = self.predictor(z1), self.predictor(z2)
        near1, near2 = nearest(z1, self.queue.rows), nearest(z2, self.queue.rows)
        one, two = contrast(near1, p2, self.temperature), contrast(near2, p1, self.temperature)
        self.queue.put(F.normalize(z1.detach().float(), dim=1))
        return Loss((one + two) / 2)


@torch.no_grad()
def nearest(z: Tensor, queue: Tensor) -> Tensor:
    """The operator NN: each row's nearest in the queue, by cosine. (n, dim), (Q, dim) -> (n, dim) in fp32."""
    rows = queue.float()
    with torch.autocast(z.device.type, enabled=False):
        similarity = F.normalize(z.float(), dim=1) @ rows.T
    return rows[similarity.argmax(1)]


def contrast(near: Tensor, predicted: Tensor, temperature: float) -> Tensor:
    """L of Algorithm 1 (Equation 3 with the predictor), averaged over the n neighbours. In fp32.

    near: (n, dim) unit rows without gradients. predicted: (n, dim) of the same n samples on this rank; a
    neighbour is compared with those of all ranks.
    """
    every = gather(F.normalize(predicted.float(), dim=1))
    with torch.autocast(near.device.type, enabled=False):
        logits = near @ every.T / temperature
    positive = torch.arange(len(near), device=near.device) + rank() * len(near)
    return F.cross_entropy(logits, positive)
