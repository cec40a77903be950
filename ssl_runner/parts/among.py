"""The contrast of many rows at once, each among candidates of its own, where some are padding."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_runner.parts.gather import world_size


def among(rows: Tensor, every: Tensor, seen: Tensor, *, positive: Tensor, counted: Tensor, whole: Tensor) -> Tensor:
    """Cross-entropy by dot products, in fp32.

    rows: (G, R, D). every: (G, S, D), the candidates of each of the G groups. seen: (G or 1, R or 1, S) bool, which of
    them a row is compared with; its positive is one always. positive: (R,) its place among the S. counted: (G, R) bool,
    rows that count. whole: (), how many do on all ranks: the mean over ranks of what this gives is the mean over those.
    """
    with torch.autocast(rows.device.type, enabled=False):
        logits = rows.float() @ every.float().transpose(1, 2)
    place = torch.arange(logits.shape[2], device=logits.device)
    logits = logits.masked_fill(~(seen | (place == positive[:, None])), -torch.inf)
    right = logits.gather(2, positive.expand(len(logits), -1)[..., None])[..., 0]
    loss = (logits.logsumexp(2) - right).masked_fill(~counted, 0.0)
    return loss.sum() * world_size() / whole.clamp(min=1)
