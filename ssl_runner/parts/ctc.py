"""Connectionist temporal classification: what a path of symbols spells, and the likeliest of what it may spell.

Graves, Fernandez, Gomez, Schmidhuber, Connectionist Temporal Classification, ICML 2006. Id 0 is the blank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

BLANK = 0
NEVER = float("-inf")
Prefixes = dict[tuple[int, ...], tuple[float, float]]
"""The logarithms of a prefix's chances: of all its paths that end in a blank, and of all others."""


def collapsed(path: Sequence[int]) -> tuple[int, ...]:
    """What a path spells: neighbours that are the same are one, then blanks are left out."""
    return tuple(s for s, before in zip(path, [BLANK, *path], strict=False) if s not in (before, BLANK))


def greedy(log_chances: Tensor) -> tuple[int, ...]:
    """(T, V) -> what the likeliest path spells."""
    return collapsed(log_chances.argmax(1).tolist())


def beam(log_chances: Tensor, width: int) -> tuple[int, ...]:
    """(T, V) -> the likeliest spelling, by prefix beam search (Hannun et al., First-Pass Large Vocabulary Continuous
    Speech Recognition using Bi-Directional Recurrent DNNs, 2014; here without a language model).

    All paths of a spelling count. width: prefixes kept after each frame, and symbols by which one is made longer; with
    as many as there are spellings, the answer is exact.
    """
    found: Prefixes = {(): (0.0, NEVER)}
    symbols = log_chances.topk(min(width, log_chances.shape[1]), dim=1).indices.tolist()
    for scores, likeliest in zip(log_chances.tolist(), symbols, strict=True):
        after: Prefixes = {}
        for prefix, (blank, other) in found.items():
            either = _add(blank, other)
            last = prefix[-1] if prefix else BLANK
            stays = other + scores[last] if prefix else NEVER
            _put(after, prefix, either + scores[BLANK], stays)
            for symbol in likeliest:
                if symbol != BLANK:
                    # the same symbol again is another one only behind a blank
                    _put(after, (*prefix, symbol), NEVER, (blank if symbol == last else either) + scores[symbol])
        best = sorted(after.items(), key=lambda item: -_add(*item[1]))
        found = dict(best[:width])
    return next(iter(found))


def _put(after: Prefixes, prefix: tuple[int, ...], blank: float, other: float) -> None:
    held = after.get(prefix, (NEVER, NEVER))
    after[prefix] = (_add(held[0], blank), _add(held[1], other))


def _add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    high, low = max(a, b), min(a, b)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))
