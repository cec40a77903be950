"""Which tokens are hidden: drawn per sample."""

from __future__ import annotations

import torch
from torch import Tensor


def random_mask(batch: int, length: int, ratio: float, device: torch.device) -> Tensor:
    """(B, L) bool, True where hidden: the same number in each row, round(ratio L), at least one shown and one
    hidden; another choice for each sample. Drawn from torch's global CPU generator."""
    hidden = min(max(round(ratio * length), 1), length - 1)
    order = torch.rand(batch, length).argsort(1)
    return (order < hidden).to(device)


def shown(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, L, D) tokens and a (B, L) mask that hides as many in each row -> (B, V, D), those not hidden, in order."""
    return tokens[~mask].view(len(tokens), -1, tokens.shape[2])


def restore(visible: Tensor, mask: Tensor, filler: Tensor) -> Tensor:
    """The inverse of `shown`: (B, V, D) back in their (B, L) places, `filler` (D,) at the hidden ones."""
    full = filler.to(visible.dtype).expand(*mask.shape, -1).clone()
    full[~mask] = visible.flatten(0, 1)
    return full
