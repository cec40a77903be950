"""Fixed divisions of labelled samples: the same ids on every machine, whatever the run's seed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_runner.errors import RequestError


def _by_class(label: Tensor, draw: int) -> list[np.ndarray]:
    """Each class's positions in a fixed random order. RandomState's stream is frozen by NumPy's policy."""
    rng = np.random.RandomState(20260101 + draw)
    values = label.numpy()
    return [rng.permutation(np.flatnonzero(values == c)) for c in np.unique(values)]


def stratified(label: Tensor, shares: Sequence[float], draw: int = 0) -> list[Tensor]:
    """Divides (N,) labels into parts of the given shares, each class alike; every part gets its ids sorted.

    A class too small to be in every part goes to the first ones.
    """
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    bounds = np.cumsum(shares) / np.sum(shares)
    for ids in _by_class(label, draw):
        cuts = np.round(bounds * len(ids)).astype(int)
        cuts[0] = max(cuts[0], 1)
        for part, chunk in zip(parts, np.split(ids, cuts[:-1]), strict=True):
            part.append(chunk)
    return [torch.from_numpy(np.sort(np.concatenate(p))) for p in parts]


def few_labels(label: Tensor, amount: str, draw: int = 0) -> Tensor:
    """The positions of a few labelled samples: "1%", "10%" (of each class, at least one) or "10 per class".

    The lists are fixed: they depend on the labels and on `draw`, never on the run's seed.
    Raises RequestError for anything else.
    """
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", amount)
    per_class = re.fullmatch(r"\s*(\d+)\s*per[ _]class\s*", amount)
    if percent and 0 < float(percent[1]) <= 100:
        share = float(percent[1]) / 100
        chosen = [ids[: max(1, round(share * len(ids)))] for ids in _by_class(label, draw)]
    elif per_class and int(per_class[1]) > 0:
        chosen = [ids[: int(per_class[1])] for ids in _by_class(label, draw)]
    else:
        raise RequestError(
            f"labels={amount!r}: give a share such as '10%' or a number such as '10 per class'"
        )
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
