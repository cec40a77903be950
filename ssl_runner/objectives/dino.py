"""DINO: Emerging Properties in Self-Supervised Vision Transformers.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, ICCV 2021. https://arxiv.org/abs/2104.14294
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.gather import all_reduce, world_size
from ssl_runner.parts.multicrop import embed_together
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Backbone, Batch, Loss, Objective

Share = Annotated[float, Ge(0), Le(1)]
Width = Annotated[int, Gt(0)]
Temperature = Annotated[float, Gt(0)]


class DINO(Objective):
    """Section 3.1: a student, from any crop, predicts a slow teacher's distribution over another, large crop.

    large: the first so many views are the large crops, which the teacher sees too.
    hidden, dim, prototypes: widths of the head's hidden layers, of its bottleneck, and of its output, K.
    temperature: the student's. teacher_start, teacher_end: the teacher's, which grows linearly over the share
    `teacher_warmup` of training (30 of 300 epochs). momentum: the teacher's at the start; it grows
    to 1 along half a cosine. centre_momentum: m of Equation 4.
    frozen: share of training in which the head's last layer stays as it is (the first of 300 epochs).

    Views of one size pass the backbone together. Raises RequestError for fewer than two views, or fewer than
    `large`.
    """

    views = None
    centre: Tensor
    progress: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        large: Annotated[int, Gt(0)] = 2,
        hidden: Width = 2048,
        dim: Width = 256,
        prototypes: Width = 65536,
        temperature: Temperature = 0.1,
        teacher_start: Temperature = 0.04,
        teacher_end: Temperature = 0.07,
        teacher_warmup: Share = 0.1,
        momentum: Share = 0.996,
        centre_momentum: Share = 0.9,
        frozen: Share = 0.0033,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = Head(backbone.dim, hidden, dim, prototypes)
        self.teacher_backbone = Teacher(backbone, momentum)
        self.teacher_head = Teacher(self.head, momentum)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("progress", torch.zeros(()))
        self.large, self.temperature, self.frozen = large, temperature, frozen
        self.teacher_start, self.teacher_end, self.teacher_warmup = teacher_start, teacher_end, teacher_warmup
        self.centre_momentum = centre_momentum

    def forward(self, batch: Batch) -> Loss:
        """Algorithm 1. The centre moves after it was used, in training only."""
        views = batch["views"]
        if len(views) < max(2, self.large):
            wanted = max(2, self.large)
            raise RequestError(f"views: DINO needs {wanted} or more, large ones first, got {len(views)}")
        learns = self.progress >= self.frozen
        student = [self.head(z, learns) for z in embed_together(self.backbone, views)]
        teacher = [self.teacher_head(z) for z in embed_together(self.teacher_backbone, views[: self.large])]
        loss = cross_view(student, self.targets(teacher), self.temperature)
        if self.training:
            move_centre(self.centre, torch.cat(teacher), self.centre_momentum)
        return Loss(loss)

    def targets(self, logits: list[Tensor]) -> list[Tensor]:
        """Section 3.1: the teacher's logits, centred and sharpened: (B, K) of each large crop."""
        temperature = warm(self.progress, self.teacher_warmup, self.teacher_start, self.teacher_end)
        return [((each - self.centre) / temperature).softmax(1) for each in logits]

    def after_step(self, progress: float) -> None:
        self.teacher_backbone.update(self.backbone, progress)
        self.teacher_head.update(self.head, progress)
        self.progress.fill_(progress)


class Head(nn.Module):
    """Section 3.1 and Appendix C: a three-layer MLP with GELU and no BatchNorm, rows of unit length, and a
    linear layer whose K weight vectors have unit length (weight normalisation with the gain fixed at 1)."""

    def __init__(self, inputs: int, hidden: int, dim: int, prototypes: int):
        super().__init__()
        widths = [inputs, hidden, hidden, dim]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.last = nn.Linear(dim, prototypes, bias=False)

    def forward(self, x: Tensor, learns: Tensor | None = None) -> Tensor:
        """(..., inputs) -> (..., K) cosines in fp32. learns: () bool; if false the last layer gets zeros.

        Momentum and Adam do not move a weight whose gradient has always been 0, and weight decay changes
        lengths, which are normalised away: so the layer is frozen in effect, and DDP finds every gradient.
        """
        z = F.normalize(self.mlp(x).float(), dim=-1)
        weight = self.last.weight.float()
        if learns is not None:
            still = weight.detach()
            weight = still + (weight - still) * learns
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(z, F.normalize(weight, dim=1))


def warm(progress: Tensor, warmup: float, start: float, end: float) -> Tensor:
    """(): from `start` to `end` in a straight line over the share `warmup` of training. In fp32."""
    return start + (end - start) * (progress.float() / max(warmup, 1e-8)).clamp(max=1)


def cross_view(student: list[Tensor], targets: list[Tensor], temperature: float) -> Tensor:
    """Equation 3: the cross-entropy of every target with every student view but its own, averaged.

    student: (B, K) logits of each view. targets: (B, K) probabilities of the first views. In fp32.
    """
    logs = [(each.float() / temperature).log_softmax(1) for each in student]
    losses = [
        -(target.detach().float() * log).sum(1).mean()
        for n, target in enumerate(targets)
        for m, log in enumerate(logs)
        if n != m
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def move_centre(centre: Tensor, logits: Tensor, momentum: float) -> None:
    """Equation 4, in place: the moving average of the teacher's logits over the rows of all ranks.

    centre: (K,). logits: (n, K), as many rows on each rank.
    """
    mean = all_reduce(logits.float().mean(0)) / world_size()
    centre.copy_(torch.lerp(mean, centre.float(), momentum))
