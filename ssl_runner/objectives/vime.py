"""VIME: Extending the Success of Self- and Semi-supervised Learning to Tabular Domain.

Yoon, Zhang, Jordon, van der Schaar, NeurIPS 2020.
https://papers.nips.cc/paper/2020/hash/7d97667a3e056acab9aaf653807b4a03-Abstract.html
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from ssl_runner.backbones.columns import Counts
from ssl_runner.parts.columns import of_others
from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.patches import masked_mean
from ssl_runner.types import Backbone, Batch, Loss, Objective


class VIME(Objective):
    """The self-supervised part: tell which values of a row were exchanged, and what they were.

    columns: of a row, 0 for numbers and K for K categories. rate: p_m, the probability with which a value is
    exchanged. alpha: weight of the reconstruction beside the mask's estimation. Both defaults are the authors' code's.

    A value is exchanged for another row's of the same column, drawn for it alone from the batch of all ranks; the
    authors shuffle each column. As in their code the mask to be estimated is where the row differs: an exchange for an
    equal value is none. Numbers are rebuilt by squared error (with no sigmoid, for they are standardised) and
    categories by cross-entropy; missing values have no target. Both heads are linear.
    """

    views = 1
    indivisible = "what it puts in place of a value comes from the same micro-batch"
    counts: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        columns: Counts,
        rate: Annotated[float, Gt(0), Lt(1)] = 0.3,
        alpha: Annotated[float, Ge(0)] = 2.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.rate, self.alpha, self.wide = rate, alpha, max(1, *columns)
        self.register_buffer("counts", torch.tensor(columns), persistent=False)  # a constant of the config
        self.mask_head = nn.Linear(backbone.dim, len(columns))
        self.value_head = nn.Linear(backbone.dim, len(columns) * self.wide)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        x = view["x"]
        exchanged = torch.rand(x.shape).lt(self.rate).to(x.device)
        corrupted = torch.where(exchanged, of_others(x, gather(x), rank() * len(x)), x)
        z = self.backbone(corrupted)
        guess = self.value_head(z).view(*x.shape, self.wide)
        changed = differs(corrupted, x)
        mask = mask_estimation(self.mask_head(z), changed)
        values = reconstruction(guess, x, self.counts)
        return Loss(mask + self.alpha * values, {"mask": mask.detach(), "values": values.detach()})


def differs(a: Tensor, b: Tensor) -> Tensor:
    """(B, C) bool. Two missing values are the same."""
    return (a != b) & ~(a.isnan() & b.isnan())


def mask_estimation(logits: Tensor, changed: Tensor) -> Tensor:
    """l_m: binary cross-entropy of (B, C) logits, averaged over rows and columns. In fp32."""
    return F.binary_cross_entropy_with_logits(logits.float(), changed.float())


def reconstruction(guess: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """l_r: the squared error of numbers and the cross-entropy of categories, averaged over the values that are there,
    of all ranks. In fp32.

    guess: (B, C, W), of a number in the first place, or a logit for each category. x: (B, C) rows. counts: (C,).
    """
    guess, there, category = guess.float(), ~x.isnan(), counts > 0
    number = x.masked_fill(~there | category, 0.0)
    code = x.masked_fill(~there | ~category, 0.0).long()
    squared = (guess[..., 0] - number).square()
    exists = torch.arange(guess.shape[2], device=x.device) < counts.clamp(min=1)[:, None]
    log_p = guess.masked_fill(~exists, float("-inf")).log_softmax(2)
    crossed = -log_p.gather(2, code[..., None])[..., 0]
    return masked_mean(torch.where(category, crossed, squared), there)
