"""Next-patch prediction: Scalable Pre-training of Large Autoregressive Image Models (AIM).

El-Nouby et al., ICML 2024. https://arxiv.org/abs/2401.08541
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from ssl_runner.parts.heads import mlp
from ssl_runner.parts.patches import masked_mean, normalised, patch_sizes
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone


class NextPatch(Objective):
    """Section 3.1: in row-major order, each patch is predicted from those before it, by causal attention.

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
        prediction = self.predict(patches, pad)
        target = normalised(patches) if self.normalise else patches
        return Loss(shifted(prediction, target, pad))

    def predict(self, patches: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L, P) -> (B, L - 1, P): at place k what is expected of patch k + 1, from patches 0 .. k."""
        tokens = self.backbone.encode(self.backbone.embed(patches), pad, causal=True)
        return self.head(tokens[:, :-1])


def shifted(prediction: Tensor, target: Tensor, pad: Tensor | None = None) -> Tensor:
    """The squared error between (B, L - 1, P) predictions and the (B, L, P) patches from the second on, averaged over
    the values of those that are not padding."""
    error = (prediction.float() - target[:, 1:].float()).square().mean(2)
    return error.mean() if pad is None else masked_mean(error, ~pad[:, 1:])
