"""Next-patch prediction: Scalable Pre-training of Large Autoregressive Image Models (AIM).

El-Nouby et al., ICML 2024. https://arxiv.org/abs/2401.08541
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from ssl_runner.parts.heads import mlp
from ssl_runner.parts.patches import denormalised, masked_mean, normalised, patch_sizes
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone


class NextPatch(Objective):
    """In row-major order, each patch is predicted from those before it, by causal attention.

    shape: of a sample. hidden: width of the head, an MLP on each token. normalise: predict each patch relative to its
    own mean and deviation, as MAE does.

    Attention is causal throughout; the paper's prefix, within which it is not, is left out, and so is its deep head.
    """

    views = 1

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        shape: tuple[int, ...],
        hidden: Annotated[int, Gt(0)] = 2048,
        normalise: bool = True,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.normalise = normalise
        _, out = patch_sizes(backbone, shape)
        self.head = mlp([backbone.dim, hidden, out], norm=False)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        patches, pad = self.backbone.patchify(view["x"]), view.get("pad")
        return Loss(shifted(self.predict(patches, pad), self._target(patches), pad))

    def _target(self, patches: Tensor) -> Tensor:
        return normalised(patches) if self.normalise else patches

    def predict(self, patches: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L, P) -> (B, L - 1, P): at place k what is expected of patch k + 1, from patches 0 .. k."""
        tokens = self.backbone.encode(self.backbone.embed(patches), pad, causal=True)
        return self.head(tokens[:, :-1])

    def complete(self, patches: Tensor, known: int, deviation: float | Tensor = 0.0) -> Tensor:
        """(B, L, P), the first `known` >= 1 of them given -> (B, L, P), in fp32: the others made one by one.

        The squared error is the likelihood of a Gaussian with one deviation for all values, and the model predicts
        its mean. A patch is drawn from that Gaussian, on the CPU, and the next one is predicted from it and those
        before it. deviation: in units of the predictions; 0 takes the mean itself, without chance.

        A model of normalised patches does not tell their means and deviations: each made patch gets those of the
        given one at its place. Otherwise nothing is read of the patches after the first `known`.
        """
        made = patches.float().clone()
        made[:, known:] = 0
        noise = deviation * torch.randn(made.shape).to(made)
        for k in range(known, made.shape[1]):
            value = self.predict(made.to(patches.dtype))[:, k - 1].float() + noise[:, k]
            made[:, k] = denormalised(value[:, None], patches[:, k : k + 1])[:, 0] if self.normalise else value
        return made

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, its first half, the rest of it by the model's means, and the rest drawn. Where patches are not
        normalised also samples of which the first patch alone was given, for that one the model does not predict.

        Draws have the likeliest deviation, the root of the mean squared error on this batch.
        """
        x = batch["views"][0]["x"]
        patches = self.backbone.patchify(x)
        deviation = shifted(self.predict(patches), self._target(patches)).sqrt()
        half = patches.shape[1] // 2
        given = patches.clone()
        given[:, half:] = 0
        completed = [given, self.complete(patches, half), self.complete(patches, half, deviation)]
        shown = {"completion": [x, *map(self.backbone.unpatchify, completed)]}
        if not self.normalise:
            shown["samples"] = [self.backbone.unpatchify(self.complete(patches, 1, deviation)) for _ in range(4)]
        return shown


def shifted(prediction: Tensor, target: Tensor, pad: Tensor | None = None) -> Tensor:
    """The squared error between (B, L - 1, P) predictions and the (B, L, P) patches from the second on, averaged over
    the values of those that are not padding."""
    error = (prediction.float() - target[:, 1:].float()).square().mean(2)
    return error.mean() if pad is None else masked_mean(error, ~pad[:, 1:])
