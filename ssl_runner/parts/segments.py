"""What objectives on pairs of segments share: where a sample of ids may be cut in two, and what a pair is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_runner.parts.ids import parts_of


class Pairs(NamedTuple):
    """Samples that hold two segments each, one behind the other, and a question about them."""

    ids: Tensor  # (B, L)
    pad: Tensor  # (B, L) bool
    part: Tensor | None  # (B, L), as in parts_of
    inside: Tensor  # (B, L) bool, the ids of either segment; what surrounds them are other documents
    second: Tensor  # (B, L) bool, those of the second
    true: Tensor  # (B,) bool, the answer: the second segment is what follows the first
    told: Tensor  # (B,) bool, whether there is a pair at all


def cuts(ids: Tensor, pad: Tensor | None, separator: int | None, unit: Tensor | None) -> Tensor:
    """(B, L) bool: whether a sample may be cut in two before that id.

    The ids on both sides are of one document, and neither is padding nor the document's end. unit: (B, L), the number
    of the word that each belongs to, -1 for none: no word is cut. None: any place will do.
    """
    there = torch.ones_like(ids, dtype=torch.bool) if pad is None else ~pad
    part = parts_of(ids, separator)
    may = torch.zeros_like(there)
    may[:, 1:] = there[:, 1:] & there[:, :-1]
    if part is not None:
        may[:, 1:] &= (part[:, 1:] == part[:, :-1]) & (ids[:, 1:] != separator)
    if unit is not None:
        may[:, 1:] &= (unit[:, 1:] != unit[:, :-1]) | (unit[:, 1:] < 0)
    return may


def drawn(may: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) bool, where a sample may be cut -> (B, 1) one such place of each, and (B,) whether it has any.

    Drawn on the CPU.
    """
    score = torch.rand(may.shape).to(may.device)
    return score.masked_fill(~may, -1.0).argmax(1, keepdim=True), may.any(1)


def inside(part: Tensor | None, pad: Tensor, cut: Tensor) -> Tensor:
    """(B, L) bool: what belongs to the document that is cut at the (B, 1) places, padding left out."""
    return ~pad if part is None else (part == part.gather(1, cut)) & ~pad
