"""Pairs of two inputs, such as a picture and its caption: a user's own, in a table or in tar shards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from ssl_runner.datasets.base import Arrays, BrokenSample, Key, Ragged, Source, Split
from ssl_runner.datasets.columns import Column, Input, Item, Row, cell_of
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.published import home
from ssl_runner.datasets.reading import readable
from ssl_runner.datasets.splits import by_group
from ssl_runner.datasets.text_pairs import rows_of
from ssl_runner.errors import RequestError, nearest
from ssl_runner.pictures import draw
from ssl_runner.types import Samples, View

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".parquet")

Shares = Annotated[float, Ge(0)]


class Held(Arrays):
    """Pairs whose inputs are all in memory.

    inputs: the views of all items, (M1, ...) and (M2, ...). items: (N, 2) int64, which of each a pair is of.
    """

    def __init__(self, inputs: Sequence[View], items: Tensor, label: Tensor | None):
        super().__init__(torch.arange(len(items)), label)
        self.views, self.items = inputs, items

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        samples = super().__getitems__(keys)
        items = self.items[samples["inputs"][0]["x"]]
        samples["inputs"] = [
            {name: tensor[which] for name, tensor in view.items()}
            for view, which in zip(self.views, items.unbind(1), strict=True)
        ]
        return samples


class Read(Ragged):
    """Pairs of which an input is read from files. inputs: both. items: as in Held."""

    def __init__(self, inputs: Sequence[Input], items: Tensor, label: Tensor | None):
        self._inputs, self.items, self.label = inputs, items, label

    def __len__(self) -> int:
        return len(self.items)

    def inputs(self, index: int) -> list[View]:
        return [each.view(n) for each, n in zip(self._inputs, self.items[index].tolist(), strict=True)]

    def name(self, index: int) -> str:
        return " and ".join(each.name(n) for each, n in zip(self._inputs, self.items[index].tolist(), strict=True))

    def reading(self) -> AbstractContextManager:
        stack = ExitStack()
        for each in self._inputs:
            stack.enter_context(each.reading())
        return stack


class Paired(Source):
    """What every source of pairs shares.

    rows: one for each pair, in its part. first, second: what the two inputs are. label: of the column that holds
    classes, which are those of the first input; None: there are none.
    val, test: shares of the train part that are split off from it, where rows have no such part. Pairs that have an
    input in common, and others in common with these, are in one part. The division is the same on every machine.
    on_broken: leave out, with a warning, what can't be read or is empty, or stop.

    In every part a sample has two inputs, and its dataset says in `items`, (N, 2) int64, which item each of them is: a
    picture with five captions is five pairs with the same first item. ``prompts`` makes second inputs of other texts.
    facts: those of the first input, num_classes, and in `second` those of the second.
    """

    labelled: bool | None = None  # type: ignore[misc]  # set by what is found

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        root: str,
        first: Column,
        second: Column,
        label: str | None,
        val: float,
        test: float,
        on_broken: Literal["skip", "stop"],
    ):
        if val < 0 or test < 0 or val + test >= 1:
            raise RequestError(f"data.val={val}, data.test={test}: give shares from 0 that leave some for training")
        self.on_broken = on_broken
        columns = {"first.column": first.column, "second.column": second.column}
        for key, column in {**columns, **({} if label is None else {"label_column": label})}.items():
            if rows and all(cell_of(row, column) is None for row in rows):
                names = {name for row in rows for name in row.cells}
                raise RequestError(f"data.{key}={column!r}: nothing in {root!r} has it{nearest(column, names)}")
        if not rows:
            raise RequestError(f"data.root={root!r}: no pair in it")
        found = [paired(row, first, second) for row in rows]
        usable = readable(found, on_broken)
        kept = [row for row, use in zip(rows, usable.tolist(), strict=True) if use]
        pairs = [each for each in found if not isinstance(each, BrokenSample)]
        firsts, a = numbered([one for one, _ in pairs])
        seconds, b = numbered([other for _, other in pairs])
        self._items = torch.stack([a, b], 1)
        self._rows = parts_of(kept, linked(self._items), {"val": val, "test": test})
        train = self._items[self._rows["train"]]
        self._inputs = (
            first.open(firsts, train[:, 0].unique().tolist()),
            second.open(seconds, train[:, 1].unique().tolist()),
        )
        self.classes, self._label = classes_of(kept, label)
        self.labelled = bool(self.classes)
        self.facts = {
            **self._inputs[0].facts,
            "num_classes": len(self.classes),
            "second": {**self._inputs[1].facts, "num_classes": 0},
        }

    def split(self, name: Split) -> Held | Read:
        rows = self._rows["train" if name == "pretrain" else name]
        rows = rows[self._usable[rows]]
        label = None if self._label is None else self._label[rows]
        views = [each.whole for each in self._inputs if each.whole is not None]
        if len(views) == len(self._inputs):
            return Held(views, self._items[rows], label)
        return Read(self._inputs, self._items[rows], label)

    @cached_property
    def _usable(self) -> Tensor:
        """(N,) bool, which pairs can be used, as far as that is known once all that fits in memory is there."""
        first, second = (each.hold(self.on_broken) for each in self._inputs)
        return first[self._items[:, 0]] & second[self._items[:, 1]]

    def prompts(self, texts: Sequence[str]) -> View | None:
        """Texts as second inputs, (n, ...); None where these are no text."""
        return self._inputs[1].encode(texts)

    def raw(self, view: View) -> Tensor:
        return self._inputs[0].raw(view)

    def pinned(self) -> dict[str, Any]:
        return {name: each.pinned() for name, each in zip(("first", "second"), self._inputs, strict=True)}

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        """Pictures side by side, a row for each sample, and lines of text beside them in a file of the same name.
        columns: of the first input, then of the second."""
        pictures = [each for each in columns if each.ndim == 4 and each.is_floating_point()]
        picture = path.with_suffix(".png")
        drawn = bool(pictures) and draw(pictures, picture)
        ids = [(n, each) for n, each in enumerate(columns) if each.ndim == 2 and not each.is_floating_point()]
        told = [self._inputs[min(n, 1)].spelled(each) for n, each in ids]
        texts = [lines for lines in told if lines is not None]
        if not texts:
            return picture if drawn else None
        rows = ("\n".join([f"{n}.", *row]) for n, row in enumerate(zip(*texts, strict=True), 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".txt")
        file.write_text("\n\n".join(rows) + "\n", encoding="utf-8")
        return file


class Pairs(Paired):
    """A user's own pairs: rows of a .csv, .tsv, .jsonl or .parquet file.

    root: a file, or a folder with train.csv (.tsv, ...) and, if you like, val and test of the same kind. Files are
    named from the table's own folder on. first, second: how a row's two inputs are read (ssl_runner.datasets.columns):

        ssl-run pretrain +task=clip data=pairs data.root=photos.csv data.first.column=file data.second.column=caption

    label_column: holds classes. A .tsv has no quotation: a tab always divides. Text is UTF-8.
    The rest is told at Paired. Raises RequestError for a table that can't be read, with its line.
    """

    def __init__(
        self,
        *,
        root: str,
        first: Column,
        second: Column,
        label_column: str | None = None,
        val: Shares = 0.1,
        test: Shares = 0.1,
        on_broken: Literal["skip", "stop"] = "skip",
    ):
        rows = [
            Row(cells, where, os.path.dirname(path), part)
            for part, path in tables(home(root), root).items()
            for where, cells in rows_of(path)
        ]
        super().__init__(
            rows,
            root=root,
            first=first,
            second=second,
            label=label_column,
            val=val,
            test=test,
            on_broken=on_broken,
        )


def tables(root: str, given: str) -> dict[Literal["train", "val", "test"], str]:
    """part -> file. Raises RequestError where there is none to train on, or it can't be told which is meant."""
    if os.path.isfile(root):
        if os.path.splitext(root)[1].lower() not in EXTENSIONS:
            raise RequestError(f"data.root={given!r}: no {', '.join(EXTENSIONS)} file")
        return {"train": root}
    if not os.path.isdir(root):
        raise RequestError(f"data.root={given!r}: there is no such file or folder; give the table with the pairs")
    names = sorted(name for name in os.listdir(root) if os.path.splitext(name)[1].lower() in EXTENSIONS)
    found: dict[Literal["train", "val", "test"], str] = {}
    for part in PARTS:
        fitting = [name for name in names if os.path.splitext(name)[0] == part]
        if len(fitting) > 1:
            raise RequestError(f"data.root={given!r}: holds {fitting[0]!r} and {fitting[1]!r}; remove one")
        if fitting:
            found[part] = os.path.join(root, fitting[0])
    if "train" not in found:
        raise RequestError(
            f"data.root={given!r}: holds no train{', train'.join(EXTENSIONS)}; name one so, or give the file itself"
        )
    return found


def paired(row: Row, first: Column, second: Column) -> tuple[Item, Item] | BrokenSample:
    """What both columns have of a row, or what is wrong with it."""
    try:
        return first.item(row), second.item(row)
    except BrokenSample as fault:
        return fault


def numbered(items: Sequence[Item]) -> tuple[list[Item], Tensor]:
    """The distinct items in the order in which they come, and (N,) int64, which of these each is."""
    number: dict[Item, int] = {}
    which = [number.setdefault(item, len(number)) for item in items]
    return list(number), torch.tensor(which, dtype=torch.int64)


def linked(items: Tensor) -> np.ndarray:
    """(N, 2) items of pairs -> (N,) int64, the same number for pairs that have an item in common, or that a chain of
    such pairs joins."""
    parent = list(range(len(items)))

    def top(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for column in items.unbind(1):
        holder: dict[int, int] = {}
        for n, item in enumerate(column.tolist()):
            parent[top(n)] = top(holder.setdefault(item, n))
    return np.unique([top(n) for n in range(len(items))], return_inverse=True)[1]


def parts_of(rows: Sequence[Row], group: np.ndarray, shares: Mapping[str, float]) -> dict[str, Tensor]:
    """Which rows are in each part, in order. Where a part of `shares` has none of its own, it is split off from train
    in whole groups.

    Raises RequestError where no part of train can be spared.
    """
    part = np.array([row.part for row in rows])
    train = np.flatnonzero(part == "train")
    wanted = {name: share for name, share in shares.items() if share and not (part == name).any()}
    for (name, share), ids in zip(
        wanted.items(), by_group(group[train], (1 - sum(wanted.values()), *wanted.values()))[1:], strict=True
    ):
        if not len(ids):
            raise RequestError(
                f"data.{name}={share}: no pairs can be split off from the {len(train)} to train on without others that "
                f"have an input in common with them; give a {name} file of your own, or data.{name}=0"
            )
        part[train[ids]] = name
    return {name: torch.from_numpy(np.flatnonzero(part == name)) for name in PARTS}


def classes_of(rows: Sequence[Row], label: str | None) -> tuple[tuple[str, ...], Tensor | None]:
    """The classes, sorted, and (N,) int64, each row's. Raises RequestError for a row without one."""
    if label is None:
        return (), None
    cells = [cell_of(row, label) for row in rows]
    for row, cell in zip(rows, cells, strict=True):
        if cell is None or not str(cell).strip():
            raise RequestError(f"{row.where} has no {label!r}, unlike others; label all pairs or none")
    names = [str(cell).strip() for cell in cells]
    classes = sorted(set(names))
    number = {name: n for n, name in enumerate(classes)}
    return tuple(classes), torch.tensor([number[name] for name in names], dtype=torch.int64)
