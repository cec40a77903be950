"""What sums up tokens."""

from __future__ import annotations

from torch import Tensor


def mean_token(tokens: Tensor, pad: Tensor | None) -> Tensor:
    """(B, L, dim) -> (B, dim), the mean over the tokens that are not padding; of a sample of nothing else, zeros.

    pad: (B, L), True at padding.
    """
    if pad is None:
        return tokens.mean(1)
    return tokens.masked_fill(pad[..., None], 0.0).sum(1) / (~pad).sum(1, keepdim=True).clamp(min=1)
