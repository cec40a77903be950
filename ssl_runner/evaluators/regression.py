"""Linear regression on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from ssl_runner.errors import RunError
from ssl_runner.evaluators.linear import standardiser
from ssl_runner.evaluators.scores import features
from ssl_runner.types import Embed, Evaluator


class Regression(Evaluator):
    """Scores of the test part by ridge regression fitted to the train part.

    l2: penalties to choose from, on the scale of ``ridge``.

    The features are undisturbed samples', in evaluation mode, each standardised by its mean and deviation over the
    train part. The penalty with the smallest squared error on the validation part is kept, the stronger of equals, and
    scored once on the test part. Gives ``figures``, in the labels' own units. Deterministic.
    """

    parts = ("val", "test")

    def __init__(
        self, *, l2: Annotated[Sequence[Annotated[float, Ge(0)]], MinLen(1)] = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    ):
        self.l2 = l2

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        x, value = features(embed, data, "train")
        centre, scale = standardiser(x)
        fitted = ridge((x - centre) / scale, value, self.l2)
        val, val_value = features(embed, data, "val")
        val = (val - centre) / scale
        # strongest penalty first, and min keeps the first of equals
        weight, bias = min(fitted, key=lambda fit: float((val @ fit[0] + fit[1] - val_value).square().mean()))
        test, wanted = features(embed, data, "test")
        return figures((test - centre) / scale @ weight + bias, wanted)

    def refusal(self, source: Any) -> str | None:
        if not source.valued:
            return "needs labels that are values, and this data has none; use evaluators=none"
        return None


def ridge(x: Tensor, value: Tensor, l2: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Fits ridge regression for each penalty: [((D,) weight, () bias), ...], the strongest first.

    x: (N, D), centred and of about unit scale. value: (N,). Minimises 1/N sum_i (x_i w + b - value_i)^2 + l2 ||w||^2;
    the bias goes unpunished. Without a penalty, of all solutions the shortest.
    """
    z, bias = x.double(), value.double().mean()
    variance, axes = torch.linalg.eigh(z.T @ z / len(z))
    along = axes.T @ (z.T @ (value.double() - bias)) / len(z)
    known = variance > variance[-1] * len(z) * torch.finfo(x.dtype).eps  # the rest is rounding
    fitted = []
    for strength in sorted(set(l2), reverse=True):
        weight = axes @ torch.where(known, along / (variance + strength), 0.0)
        fitted.append((weight.to(x.dtype), bias.to(x.dtype)))
    return fitted


def figures(predicted: Tensor, value: Tensor) -> dict[str, float]:
    """Figures of (N,) predictions of (N,) values.

      r2    the share of the values' variance that is explained: 1 is all of it, 0 what their own mean explains
      rmse  the root of the mean squared error, in the values' units
      mae   the mean absolute error, in the values' units

    Raises RunError when a prediction is NaN or infinite, and where all values are the same: r2 means nothing then.
    """
    if not predicted.isfinite().all():
        raise RunError("the predicted values are NaN or infinite; the model has diverged")
    error, spread = (predicted - value).double(), value.double() - value.double().mean()
    if not spread.any():
        raise RunError("all values of the part that is scored are the same; the data needs a larger data.test")
    return {
        "r2": 1 - (error.square().sum() / spread.square().sum()).item(),
        "rmse": error.square().mean().sqrt().item(),
        "mae": error.abs().mean().item(),
    }
