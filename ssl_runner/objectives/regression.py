"""Learning from values: the finetuning objective where labels are numbers, and its supervised baseline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.evaluators.regression import figures
from ssl_runner.types import Backbone, Batch, Loss, Predictor, View


class Regression(Predictor):
    """A linear head on the backbone, trained together by squared error.

    label_mean, label_std: of the training part's labels. The loss is in units of label_std, so that a learning rate
    serves targets of any size; predictions are in the labels' own units.
    freeze: train the head alone, on a backbone in evaluation mode with fixed BatchNorm statistics.
    """

    views = None
    valued = True
    monitor = "-val/loss"

    def __init__(
        self, backbone: Backbone, *, label_mean: float, label_std: Annotated[float, Gt(0)], freeze: bool = False
    ):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, 1)
        nn.init.zeros_(self.head.bias)
        self.label_mean, self.label_std, self.freeze = label_mean, label_std, freeze
        if freeze:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Regression:
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def predict(self, view: View) -> Tensor:
        """View -> (B,) values in the labels' units. In fp32."""
        return self.head(self.backbone(**view)).float()[:, 0] * self.label_std + self.label_mean

    def forward(self, batch: Batch) -> Loss:
        """The mean over the batch's views (usually one)."""
        errors = [(self.predict(view) - batch["label"]) / self.label_std for view in batch["views"]]
        return Loss(torch.stack([error.square().mean() for error in errors]).mean())

    def scores(self, part: Iterable[Batch]) -> dict[str, float]:
        """Those of ssl_runner.evaluators.regression.figures."""
        told = [(self.predict(view), batch["label"]) for batch in part for view in batch["views"]]
        predicted, value = (torch.cat(each) for each in zip(*told, strict=True))
        return figures(predicted, value)
