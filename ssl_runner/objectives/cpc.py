"""CPC: Representation Learning with Contrastive Predictive Coding.

van den Oord, Li, Vinyals, 2018. https://arxiv.org/abs/1807.03748
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.patches import masked_mean
from ssl_runner.types import Batch, FrameBackbone, Loss, Objective


class CPC(Objective):
    """Section 2: what is known up to a frame tells each of the next frames from others.

    steps: how many frames ahead; each has a linear map of its own (Equation 3).

    The context sees nothing that follows: of a recurrent network by itself, of a transformer by its causal mask. Frames
    must not either: a stem that normalises over time ("group") would tell. The others are all other frames of the same
    sample, one of the choices that the paper's ablation of negatives compares.
    Raises RequestError for samples of no more frames than steps.
    """

    views = 1
    indivisible = "its negatives come from its micro-batch"

    def __init__(self, backbone: FrameBackbone, *, steps: Annotated[int, Gt(0)] = 12):
        super().__init__()
        if backbone.grid is not None and backbone.grid[0] <= steps:
            raise RequestError(
                f"objective.steps={steps}: a sample has {backbone.grid[0]} frames; give fewer steps or longer samples"
            )
        self.backbone: FrameBackbone = backbone
        self.ahead = nn.ModuleList(nn.Linear(backbone.dim, backbone.dim, bias=False) for _ in range(steps))

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        pad = view.get("pad")
        frames = self.backbone.embed(self.backbone.patchify(view["x"]))
        context = self.backbone.encode(frames, pad, causal=True)
        real = torch.ones_like(frames[..., 0], dtype=torch.bool) if pad is None else ~pad
        losses, hits = [], []
        for k, step in enumerate(self.ahead, start=1):
            loss, right = info_nce(step(context[:, :-k]), frames, k, real)
            losses.append(masked_mean(loss, real[:, k:]))
            hits.append(masked_mean(right.float(), real[:, k:]))
        logs = {"accuracy": torch.stack(hits).mean(), "accuracy_next": hits[0], "accuracy_last": hits[-1]}
        return Loss(torch.stack(losses).mean(), {name: value.detach() for name, value in logs.items()})


def info_nce(predicted: Tensor, frames: Tensor, k: int, real: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 4, k frames ahead: -log of the true frame's share among all frames of its sample. In fp32.

    predicted: (B, L - k, dim), at each place of what lies k ahead. frames: (B, L, dim). real: (B, L) bool, which are no
    padding. Gives (B, L - k) losses, of no meaning where the true frame is padding, and whether it has the best score.
    """
    with torch.autocast(frames.device.type, enabled=False):
        logits = predicted.float() @ frames.float().mT
    own = torch.arange(k, frames.shape[1], device=frames.device)
    counted = real[:, None] | (own[:, None] == torch.arange(frames.shape[1], device=frames.device))
    logits = logits.masked_fill(~counted, float("-inf"))
    positive = logits.diagonal(offset=k, dim1=1, dim2=2)
    return logits.logsumexp(2) - positive, positive >= logits.amax(2)
