"""Views of several sizes through one backbone: multi-crop (Caron et al., SwAV, 2020, Section 3.2)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ssl_runner.types import View


def embed_together(backbone: nn.Module, views: list[View]) -> list[Tensor]:
    """Each view's (B, dim). Neighbours of equal shapes pass as one batch, as in the authors' code: one call,
    and one set of BatchNorm statistics, for each resolution."""
    embedded: list[Tensor] = []
    for _, group in itertools.groupby(views, key=lambda view: {name: t.shape for name, t in view.items()}):
        alike = list(group)
        joined = {name: torch.cat([view[name] for view in alike]) for name in alike[0]}
        embedded += backbone(**joined).chunk(len(alike))
    return embedded
