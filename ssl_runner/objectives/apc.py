"""APC: An Unsupervised Autoregressive Model for Speech Representation Learning.

Chung, Hsu, Tang, Glass, Interspeech 2019. https://arxiv.org/abs/1904.03240
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.patches import masked_mean, patch_sizes
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone


class APC(Objective):
    """From the patches up to one, predict the values of the one that lies `steps` further on.

    shape: of a sample. steps: n; the next patch is too easy where neighbours are alike, so the paper tries up to 20.

    A patch is what the stem cuts out, row by row: for the order of time give it blocks as high as the sample, such as
    [mels, 1], a spectrogram's columns. The log's `as_it_is` is the loss of saying that nothing changes.
    Raises RequestError for a backbone whose patches are no values of the input, and for samples of no more patches than
    steps.
    """

    views = 1

    def __init__(self, backbone: TokenBackbone, *, shape: tuple[int, ...], steps: Annotated[int, Gt(0)] = 3):
        super().__init__()
        length, size = patch_sizes(backbone, shape)
        if length <= steps:
            raise RequestError(f"objective.steps={steps}: a sample has {length} patches; give fewer steps")
        self.backbone: TokenBackbone = backbone
        self.head = nn.Linear(backbone.dim, size)
        self.steps = steps

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        pad = view.get("pad")
        patches = self.backbone.patchify(view["x"])
        tokens = self.backbone.encode(self.backbone.embed(patches), pad, causal=True)
        real = torch.ones_like(patches[..., 0], dtype=torch.bool) if pad is None else ~pad
        predicted, ahead, told = self.head(tokens[:, : -self.steps]), patches[:, self.steps :], real[:, self.steps :]
        still = masked_mean((patches[:, : -self.steps].float() - ahead.float()).abs().mean(2), told)
        return Loss(absolute_error(predicted, ahead, told), {"as_it_is": still.detach()})


def absolute_error(predicted: Tensor, ahead: Tensor, told: Tensor) -> Tensor:
    """The L1 loss, averaged over values and over the (B, L) patches that are told, of all ranks. In fp32."""
    return masked_mean((predicted.float() - ahead.float()).abs().mean(2), told)
