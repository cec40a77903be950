"""Who sees whom: the one mask that attention gets, out of padding, order and parts."""

from __future__ import annotations

import torch
from torch import Tensor


def visible(tokens: Tensor, pad: Tensor | None, causal: bool, part: Tensor | None) -> Tensor | None:
    """(B or 1, 1, L, L) bool for (B, L, dim) tokens, True where a query (third axis) sees a key (fourth); None: all do.

    pad: (B, L), True at tokens that no other may see. causal: a token sees itself and those before it.
    part: (B, L) whole numbers; a token sees its own part alone, such as its document among several in one sample.
    Every token sees itself, padding too, so that a sample of nothing but padding stays finite.
    Raises ValueError for a pad or part of another shape than the tokens'.
    """
    for name, given in (("pad", pad), ("part", part)):
        if given is not None and given.shape != tokens.shape[:2]:
            raise ValueError(f"{name} of shape {tuple(given.shape)} for tokens of shape {tuple(tokens.shape)}")
    if pad is None and part is None and not causal:
        return None
    itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)[None, None]
    seen = torch.ones_like(itself)
    if part is not None:
        seen = part[:, None, :, None] == part[:, None, None, :]
    if pad is not None:
        seen = seen & ~pad[:, None, None, :] | itself
    return seen.tril() if causal else seen
