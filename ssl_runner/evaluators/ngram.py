"""N-gram models with modified Kneser-Ney smoothing: the plain baseline of every language model.

Chen, Goodman, An Empirical Study of Smoothing Techniques for Language Modeling, Computer Speech and Language 13, 1999.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

Order = Annotated[int, Gt(0)]


class _Level(NamedTuple):
    """The grams of one length k. A gram's number is its place in `keys`."""

    keys: np.ndarray  # (G,) int64, ascending: number of the gram's first k - 1 symbols, times V, plus its last symbol
    reduced: np.ndarray  # (G,) float64, its count less its discount
    total: np.ndarray  # (C,) float64, of each context, a gram of k - 1 symbols: the counts of what follows it
    left: np.ndarray  # (C,) float64, what discounting took from these


class NGram:
    """Interpolated modified Kneser-Ney, over symbols 0 .. symbols - 1, with the counts of some sequences.

    A symbol is predicted from the order - 1 before it. A context never reaches into another sequence: the first
    symbols of a sequence have a shorter one. Below the longest context nothing is told but the uniform distribution,
    so every symbol has a probability, and for every context these sum to 1.

    Counts of the longest grams are those of their occurrences; of shorter ones, how many different symbols precede
    them. Three discounts for each length, by how often a gram was counted: once, twice, more often.

    Memory: about 100 bytes for each symbol of the sequences while it counts.
    Raises ValueError where there are no symbols, or one is out of range.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], *, symbols: Annotated[int, Ge(1)], order: Order):
        self.symbols = symbols
        x, age = _joined(sequences, symbols)
        if not len(x):
            raise ValueError("no symbols to count")
        grams: list[tuple[np.ndarray, np.ndarray]] = []  # for each length: keys, and how often each is counted
        number = np.zeros(len(x) + 1, np.int64)  # of the gram that ends before each place: at first the empty one
        for k in range(1, order + 1):
            places = np.flatnonzero(age >= k - 1)
            keys, first, inverse, count = np.unique(
                number[places] * symbols + x[places], return_index=True, return_inverse=True, return_counts=True
            )
            if k > 1:  # of each gram's last k - 1 symbols this is one more predecessor
                shorter = grams[-1][0]
                grams[-1] = shorter, np.bincount(number[places[first] + 1], minlength=len(shorter))
            grams.append((keys, count))
            number[places + 1] = inverse
        self._levels: list[_Level] = []
        contexts = 1
        for keys, count in grams:
            self._levels.append(_level(keys, count, contexts, symbols))
            contexts = len(keys)

    def nats(self, sequences: Iterable[Sequence[int]]) -> np.ndarray:
        """-ln p of every symbol given those before it in its sequence, of one sequence after the other; float64."""
        x, age = _joined(sequences, self.symbols)
        p = np.full(len(x), 1 / self.symbols)
        number = np.zeros(len(x) + 1, np.int64)  # as above; -1 where training has no such gram
        for k, level in enumerate(self._levels, 1):
            context = number[:-1]
            places = np.flatnonzero((age >= k - 1) & (context >= 0))
            places = places[level.total[context[places]] > 0]
            context = context[places]
            key = context * self.symbols + x[places]
            at = np.searchsorted(level.keys, key).clip(max=len(level.keys) - 1)
            known = level.keys[at] == key
            p[places] = (np.where(known, level.reduced[at], 0) + level.left[context] * p[places]) / level.total[context]
            number = np.full(len(x) + 1, -1, np.int64)
            number[places + 1] = np.where(known, at, -1)
        return -np.log(p)


def discounts(count: np.ndarray) -> np.ndarray:
    """(4,): what is taken from a count of 0, 1, 2, and of 3 or more (Chen & Goodman: D_1, D_2, D_3+).

    From how many grams have a count of 1 to 4. An estimate that those don't allow is replaced by half the count, at
    most 1.5.
    """
    n = np.bincount(np.minimum(count, 5), minlength=6).astype(np.float64)
    found = np.array([0.0, 0.5, 1.0, 1.5])
    share = n[1] / max(1.0, n[1] + 2 * n[2])
    for j in (1, 2, 3):
        estimate = j - (j + 1) * share * n[j + 1] / n[j] if n[j] and n[1] else 0.0
        if 0 < estimate <= j:
            found[j] = estimate
    return found


def _level(keys: np.ndarray, count: np.ndarray, contexts: int, symbols: int) -> _Level:
    context = keys // symbols
    taken = discounts(count)[np.minimum(count, 3)]
    total = np.bincount(context, weights=count, minlength=contexts)
    return _Level(keys, count - taken, total, np.bincount(context, weights=taken, minlength=contexts))


def _joined(sequences: Iterable[Sequence[int]], symbols: int) -> tuple[np.ndarray, np.ndarray]:
    """All symbols in a row, and how many of its sequence each has before it; (n,) int64 both."""
    parts = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    x = np.concatenate([np.zeros(0, np.int64), *parts])
    if len(x) and (x.min() < 0 or x.max() >= symbols):
        raise ValueError(f"symbols are 0 .. {symbols - 1}, and there is {x.min() if x.min() < 0 else x.max()}")
    age = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(part)) for part in parts)])
    return x, age
