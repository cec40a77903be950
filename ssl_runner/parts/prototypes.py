"""What objectives with prototypes share: scores, and how many prototypes are in use."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_runner.parts.gather import all_reduce


def similarity(z: Tensor, prototypes: Tensor) -> Tensor:
    """z C of Equation 2 of SwAV (Caron et al., 2020): (..., dim), (K, dim) -> (..., K). In fp32."""
    with torch.autocast(z.device.type, enabled=False):
        return z.float() @ prototypes.float().T


@torch.no_grad()
def share_used(scores: Tensor) -> Tensor:
    """(n, K) scores -> (): the share of the K prototypes that score best for any row of any rank.

    At most n / K, where there are fewer rows than prototypes.
    """
    used = scores.new_zeros(scores.shape[1]).index_fill_(0, scores.argmax(1), 1.0)
    return (all_reduce(used) > 0).float().mean()
