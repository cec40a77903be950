"""DINO: Emerging Properties in Self-Supervised Vision Transformers.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, ICCV 2021. https://arxiv.org/abs/2104.14294
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.parts.distillation import Head, cross_view, move_centre, prototypes_used, warm
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

    The log's `prototypes_used` is 1 / K in one kind of collapse, and near 1 where the loss stays at log K in the other.

    Views of one size pass the backbone together. Raises RequestError for fewer than two views, or fewer than
    `large`.
    """

    views = None
    indivisible = "its centre moves with each micro-batch"
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
        targets = self.targets(teacher)
        if self.training:
            move_centre(self.centre, torch.cat(teacher), self.centre_momentum)
        return Loss(
            cross_view(student, targets, self.temperature), {"prototypes_used": prototypes_used(torch.cat(targets))}
        )

    def targets(self, logits: list[Tensor]) -> list[Tensor]:
        """Section 3.1: the teacher's logits, centred and sharpened: (B, K) of each large crop."""
        temperature = warm(self.progress, self.teacher_warmup, self.teacher_start, self.teacher_end)
        return [((each - self.centre) / temperature).softmax(1) for each in logits]

    def after_step(self, progress: float) -> None:
        self.teacher_backbone.update(self.backbone, progress)
        self.teacher_head.update(self.head, progress)
        self.progress.fill_(progress)
