"""Fixed divisions of labelled samples: the same ids on every machine, whatever the run's seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator
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


def by_group(groups: Sequence[str] | np.ndarray, shares: Sequence[float]) -> list[Tensor]:
    """Divides N samples into parts of about the given shares, the samples of one group all into one part: nobody is
    tested on a speaker, a subject or a picture that was learned from. Every part gets its (n,) positions sorted.

    The last part chooses first, and the first one gets what is left, one group at least. A part takes groups, in a
    fixed random order, that bring it nearer to its share; where none does, the smallest there is. Where there are
    fewer groups than parts with a share, those in the middle stay empty.
    """
    names, owner = np.unique(np.asarray(groups), return_inverse=True)
    size = np.bincount(owner, minlength=len(names))
    free = np.random.RandomState(20260101).permutation(len(names)).tolist()
    part = np.zeros(len(names), int)
    for number in range(len(shares) - 1, 0, -1):
        left = shares[number] / sum(shares) * len(owner)
        chosen: list[int] = []
        others = 1 + sum(share > 0 for share in shares[1:number])  # that need a group each
        for n in free:
            if abs(left - size[n]) < left and len(chosen) < len(free) - others:
                chosen.append(n)
                left -= size[n]
        if shares[number] and not chosen and len(free) > 1:
            chosen = [min(free, key=lambda n: size[n])]
        part[chosen] = number
        free = [n for n in free if part[n] == 0]
    return [torch.from_numpy(np.flatnonzero(part[owner] == number)) for number in range(len(shares))]


def parse_amount(text: str) -> tuple[float, str]:
    """ "10%" -> (10, "%"); "10 per class" -> (10, "per class"). Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|per[ _]class)\s*", text)
    number = float(match[1]) if match else 0.0
    if match and match[2] == "%" and 0 < number <= 100:
        return number, "%"
    if match and match[2] != "%" and number >= 1 and number.is_integer():
        return number, "per class"
    raise ValueError(f"{text!r}: give a share such as '10%' or a number such as '10 per class'")


def _is_amount(text: str) -> str:
    parse_amount(text)
    return text


Amount = Annotated[str, AfterValidator(_is_amount)]
"""The annotation that makes the config check refuse a string that is no amount of labels."""


def few_labels(label: Tensor, amount: str, draw: int = 0) -> Tensor:
    """The positions of a few labelled samples: "1%", "10%" (of each class, at least one) or "10 per class".

    The lists are fixed: they depend on the labels and on `draw`, never on the run's seed.
    Raises RequestError for anything else.
    """
    try:
        number, unit = parse_amount(amount)
    except ValueError as error:
        raise RequestError(f"labels={error}") from None
    chosen = [
        ids[: max(1, round(number / 100 * len(ids))) if unit == "%" else int(number)] for ids in _by_class(label, draw)
    ]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
