"""Who sees whom: the one mask that attention gets, out of padding, order and parts; and attention itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 512  # keys, beyond which all scores at once take more memory than they save time


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


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al., 2017, equation 1): (B, H, L, D), twice (B, H, S, D) -> (B, H, L, D).

    seen: (B or 1, H or 1, L, S), bool, True where a query sees a key; or values, which are added to the scores.
    causal: where there is no `seen`, a token sees itself and those before it.

    torch has this as one function, which in bf16 on a processor, with its gradient, takes 1.2 to 8 times as long as the
    formula written out: short sequences get that there.
    """
    if seen is not None and seen.is_floating_point():
        seen = seen.to(q.dtype)
    slow = q.device.type == "cpu" and q.dtype is torch.bfloat16 and q.requires_grad and torch.is_grad_enabled()
    if not slow or k.shape[2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    if causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if seen is not None and seen.dtype is torch.bool:
        seen = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, float("-inf"))
    scores = (q * q.shape[3] ** -0.5) @ k.mT
    return (scores if seen is None else scores + seen).softmax(3) @ v
