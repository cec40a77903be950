"""Error rates of what was told, against what should have been: of characters and of words."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ssl_runner.errors import RunError

RESAMPLES = 1000


def edits(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Insertions, deletions and substitutions, the fewest that turn one into the other (Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for n, a in enumerate(one, start=1):
        before, row = row, [n]
        for m, b in enumerate(other, start=1):
            row.append(min(before[m] + 1, row[m - 1] + 1, before[m - 1] + (a != b)))
    return row[-1]


def error_rates(told: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Of N texts: edits over the length of what was wanted, of all texts together; above 1 where far too much is told.

      cer  of characters
      wer  of words, which spaces part; only where there are spaces
    each with _low and _high, a 95% interval over the texts (bootstrap with 1,000 resamples, always the same).

    Raises RunError where nothing was wanted.
    """
    if not any(wanted):
        raise RunError("the part that is scored has no text; give the data more, e.g. a larger data.test")
    kinds = {"cer": [(list(a), list(b)) for a, b in zip(told, wanted, strict=True)]}
    if any(" " in text for text in wanted):
        kinds["wer"] = [(a.split(), b.split()) for a, b in zip(told, wanted, strict=True)]
    found: dict[str, float] = {}
    for name, pairs in kinds.items():
        wrong = torch.tensor([edits(a, b) for a, b in pairs], dtype=torch.float64)
        length = torch.tensor([len(b) for _, b in pairs], dtype=torch.float64)
        low, high = interval(wrong, length)
        found |= {name: float(wrong.sum() / length.sum()), f"{name}_low": low, f"{name}_high": high}
    return found


def interval(part: Tensor, whole: Tensor) -> tuple[float, float]:
    """The middle 95% of sum(part) / sum(whole), (N,) each, over samples of N drawn with repetition (Efron, 1979)."""
    n = len(part)
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    ratios = part[drawn].sum(1) / whole[drawn].sum(1).clamp(min=1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    return low, high
