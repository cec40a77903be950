"""Forecasting: the values that follow a sample, by a linear head on its tokens.

The head on all tokens laid in a row, and the use of masked pretraining before it, are those of PatchTST: Nie, Nguyen,
Sinthong, Kalagnanam, A Time Series is Worth 64 Words, ICLR 2023. https://arxiv.org/abs/2211.14730
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.patches import masked_mean, patch_sizes
from ssl_runner.types import COUNTS, Batch, Loss, Predictor, TokenBackbone, View


class Forecast(Predictor):
    """Squared error of the (C, horizon) values behind a sample of (C, n).

    shape: of a sample. horizon: how many values follow. mean, std: of each channel, as the views normalise: loss and
    scores are in units of std, as papers state them.
    season: after how many values the series repeats itself, for the baseline that says so; None: no such baseline.
    relative: predict the difference to the sample's last value, so that a series may drift from where it was in
    training. freeze: train the head alone, on a backbone in evaluation mode.

    Targets that are missing (NaN) count for nothing.
    """

    monitor = "-val/loss"
    indivisible = COUNTS

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        shape: tuple[int, ...],
        horizon: Annotated[int, Gt(0)],
        mean: tuple[float, ...],
        std: tuple[Annotated[float, Gt(0)], ...],
        season: Annotated[int, Gt(0)] | None = None,
        relative: bool = True,
        freeze: bool = False,
    ):
        super().__init__()
        if season is not None and season > shape[-1]:
            raise RequestError(f"objective.season={season}: samples have {shape[-1]} values; give data.window as many")
        self.backbone: TokenBackbone = backbone
        self.channels, self.horizon, self.season, self.relative = shape[0], horizon, season, relative
        length, _ = patch_sizes(backbone, shape)
        self.head = nn.Linear(length * backbone.dim, shape[0] * horizon)
        # constants of the config, and so no part of a checkpoint
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None], persistent=False)
        self.freeze = freeze
        if freeze:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Forecast:
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def predict(self, view: View) -> Tensor:
        """View of (B, C, n) -> (B, C, horizon) in units of std. In fp32."""
        tokens = self.backbone.tokens(**view)
        told = self.head(tokens.flatten(1)).float().view(-1, self.channels, self.horizon)
        return told + naive(view["x"], self.horizon, 1) if self.relative else told

    def target(self, batch: Batch) -> Tensor:
        """(B, C, horizon) in units of std, NaN where missing."""
        return (batch["target"].float() - self.mean) / self.std

    def forward(self, batch: Batch) -> Loss:
        """The mean over the batch's views (usually one)."""
        target = self.target(batch)
        known = ~target.isnan()
        errors = [(self.predict(view) - target.nan_to_num(0.0)).square() for view in batch["views"]]
        return Loss(masked_mean(torch.stack(errors).mean(0), known))

    def scores(self, part: Iterable[Batch]) -> dict[str, float]:
        """mse and mae in units of std, and those of two baselines: the last value again ("_naive"), and the values of
        the last season again ("_seasonal")."""
        sums: dict[str, Tensor] = {}
        for batch in part:
            (view,), target = batch["views"], self.target(batch)
            told = {"": self.predict(view), "_naive": naive(view["x"], self.horizon, 1)}
            if self.season is not None:
                told["_seasonal"] = naive(view["x"], self.horizon, self.season)
            known = ~target.isnan()
            for name, predicted in told.items():
                off = (predicted - target)[known].double()
                found = torch.stack([off.square().sum(), off.abs().sum(), known.sum().double()])
                sums[name] = sums[name] + found if name in sums else found
        figures: dict[str, float] = {}
        for name, (squared, absolute, count) in sums.items():
            if not count:
                raise RequestError("the part that is scored has no value behind a sample that is not missing")
            figures |= {f"mse{name}": (squared / count).item(), f"mae{name}": (absolute / count).item()}
        return figures


def naive(x: Tensor, horizon: int, season: int) -> Tensor:
    """(B, C, n) -> (B, C, horizon): the last `season` values over and over."""
    last = x[..., -season:].float()
    return last.repeat(1, 1, -(-horizon // season))[..., :horizon]
