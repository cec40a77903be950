"""Learning from labels: the finetuning objective, and the supervised baseline."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.evaluators.scores import classification
from ssl_runner.types import Backbone, Batch, Loss, Predictor, View


class Supervised(Predictor):
    """A linear classifier on the backbone, trained together by cross-entropy.

    num_classes: of the data. label_smoothing: Szegedy et al., 2016, Section 7.
    freeze: train the classifier alone, on a backbone in evaluation mode with fixed BatchNorm statistics.
    """

    views = None
    monitor = "val/accuracy"

    def __init__(self, backbone: Backbone, *, num_classes: int, label_smoothing: float = 0.0, freeze: bool = False):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, num_classes)
        self.label_smoothing, self.freeze = label_smoothing, freeze
        if freeze:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Supervised:
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def predict(self, view: View) -> Tensor:
        """View -> (B, num_classes) logits."""
        return self.head(self.backbone(**view))

    def forward(self, batch: Batch) -> Loss:
        """The mean over the batch's views (usually one)."""
        label = batch["label"]
        logits = [self.predict(view).float() for view in batch["views"]]
        losses = [F.cross_entropy(each, label, label_smoothing=self.label_smoothing) for each in logits]
        accuracy = (logits[0].detach().argmax(1) == label).float().mean()
        return Loss(sum(losses[1:], losses[0]) / len(losses), {"accuracy": accuracy})

    def scores(self, part: Iterable[Batch]) -> dict[str, float]:
        """Those of ssl_runner.evaluators.scores.classification."""
        told = [(self.predict(view).float(), batch["label"]) for batch in part for view in batch["views"]]
        logits, label = (torch.cat(each) for each in zip(*told, strict=True))
        return classification(logits, label, logits.shape[1])
