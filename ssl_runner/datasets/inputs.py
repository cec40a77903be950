"""Samples of one input that is a column of something: what sources that are read from archives and tables share."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ssl_runner.datasets.base import Arrays, Ragged, Source, Split
from ssl_runner.datasets.columns import Input
from ssl_runner.datasets.reading import NAMED
from ssl_runner.datasets.splits import stratified
from ssl_runner.errors import RequestError, RunError
from ssl_runner.types import View


class Listed(Ragged):
    """Some items of a column. input: the column's. index: (N,) int64, which of its items each sample is."""

    def __init__(self, input: Input, index: Tensor, label: Tensor | None, block: Tensor | None):
        self.input, self.index, self.label, self.block = input, index, label, block

    def __len__(self) -> int:
        return len(self.index)

    def inputs(self, index: int) -> list[View]:
        return [self.input.view(int(self.index[index]))]

    def name(self, index: int) -> str:
        return self.input.name(int(self.index[index]))

    def reading(self) -> AbstractContextManager:
        return self.input.reading()


class Listing(Source):
    """input: all items. parts: (n,) int64 positions of each part. label: (N,) int64, or None. block: as of a Ragged, of
    all items, or None. on_broken: leave out what can't be read, with a warning, or stop."""

    labelled: bool | None = None  # type: ignore[misc]  # set by what is found

    def __init__(
        self,
        input: Input,
        parts: Mapping[str, Tensor],
        *,
        classes: Sequence[str],
        label: Tensor | None,
        on_broken: Literal["skip", "stop"],
        block: Tensor | None = None,
    ):
        self.on_broken, self.classes, self.labelled = on_broken, tuple(classes), bool(classes)
        self._input, self._parts, self._label, self._block = input, dict(parts), label, block
        self.facts: dict[str, Any] = {**input.facts, "num_classes": len(classes)}

    def split(self, name: Split) -> Arrays | Listed:
        index = self._parts["train" if name == "pretrain" else name]
        index = index[self._usable[index]]
        label = None if self._label is None else self._label[index]
        if self._input.whole is not None:
            return Arrays(self._input.whole["x"][index], label)
        return Listed(self._input, index, label, None if self._block is None else self._block[index])

    @cached_property
    def _usable(self) -> Tensor:
        """(N,) bool, as far as that is known once all that fits in memory is there."""
        return self._input.hold(self.on_broken)

    def raw(self, view: View) -> Tensor:
        return self._input.raw(view)

    def pinned(self) -> dict[str, Any]:
        found = self._input.pinned()
        return {"input": found} if found else {}


def held_out(
    part: np.ndarray, label: Tensor | None, shares: Mapping[str, float], given: Sequence[str]
) -> dict[str, Tensor]:
    """(N,) names of parts -> the positions of each. given: parts that are there, though they may be empty; of the
    others so large a share is split off from train, each class alike.

    Raises RequestError for shares that leave nothing, and where there is nothing to train on.
    """
    val, test = shares["val"], shares["test"]
    if val + test >= 1:
        raise RequestError(f"data.val={val}, data.test={test}: give shares that leave some for training")
    parts = {name: torch.from_numpy(np.flatnonzero(part == name)) for name in ("train", "val", "test")}
    wanted = {name: share for name, share in shares.items() if name not in given}
    train = parts["train"]
    if not len(train):
        raise RequestError("data.root: there is nothing to train on")
    of = torch.zeros(len(train), dtype=torch.int64) if label is None else label[train]
    ids = stratified(of, (1 - sum(wanted.values()), *wanted.values()))
    return {**parts, **{name: train[i] for name, i in zip(("train", *wanted), ids, strict=True)}}


class Labels:
    """The classes of samples as they come, in little memory."""

    def __init__(self) -> None:
        self._known: dict[str | None, int] = {}
        self._numbers = array("i")

    def add(self, name: str | None) -> None:
        """None: the sample has none."""
        self._numbers.append(self._known.setdefault(name or None, len(self._known)))

    def told(self, root: str, classes: Sequence[str] | None = None) -> tuple[tuple[str, ...], Tensor | None]:
        """The classes, in order, and (N,) int64, each sample's; no classes and None, where no sample has one. Numbers
        are ordered as such. classes: where names are the places of these.

        Raises RequestError where some samples have none, and for what is no such place.
        """
        if set(self._known) <= {None}:
            return (), None
        if None in self._known:
            raise RequestError(f"data.root={root!r}: some samples have no label; label all or none")
        known = [str(name) for name in self._known]
        if classes is None:
            digits = all(name.isdecimal() for name in known)
            classes = sorted(known, key=lambda name: (int(name) if digits else 0, name))
            place = {name: n for n, name in enumerate(classes)}
        else:
            place = {str(n): n for n in range(len(classes))}
        odd = [name for name in known if name not in place]
        if odd:
            raise RequestError(
                f"data.root={root!r}: a sample is of the class {odd[0]!r}, which is none of those packed"
            )
        order = torch.tensor([place[name] for name in known], dtype=torch.int64)
        return tuple(classes), order[torch.from_numpy(np.array(self._numbers, np.int64))]


def leave_out(broken: Sequence[str], on_broken: Literal["skip", "stop"]) -> None:
    """Tells what was left out. Raises RunError with on_broken="stop"."""
    if broken and on_broken == "stop":
        raise RunError(f"{broken[0]}; mend or remove it, or set data.on_broken=skip")
    if broken:
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        print(f"warning: left out {len(broken)} broken samples: {'; '.join(broken[:NAMED])}{more}", file=sys.stderr)
