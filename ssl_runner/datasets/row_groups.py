"""Rows of Parquet files as samples, read by the row group: no file is ever in memory as a whole."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Len
from torch import Tensor

from ssl_runner.datasets import addresses
from ssl_runner.datasets.base import MIXED, BrokenSample
from ssl_runner.datasets.columns import Column, FileColumn, Input, Stored
from ssl_runner.datasets.inputs import Labels, Listing, held_out
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.pairs import Shares
from ssl_runner.datasets.parquet import arrow
from ssl_runner.errors import RequestError, RunError, nearest
from ssl_runner.types import View

LARGEST = 1 << 30  # bytes of a column in a row group
NAMES = re.compile(r"(train|val|validation|test)(-\d+-of-\d+)?\.parquet")  # as the Hugging Face Hub has them, too


class Cells(Stored):
    """All cells of a column, file after file. A row group's cells are kept while others of it are asked for, and with
    them those of the last few row groups."""

    def __init__(self, paths: Sequence[str], column: str):
        self.paths, self.column = list(paths), column
        begins: list[tuple[int, int]] = []
        rows: list[int] = []
        sizes: list[int] = []
        for number, path in enumerate(self.paths):
            with table(path) as file:
                place = _place(file, column, path)
                for group in range(file.num_row_groups):
                    about = file.metadata.row_group(group)
                    size = sum(about.column(n).total_uncompressed_size for n in place)
                    if size > LARGEST:
                        raise RequestError(
                            f"data.root: {path!r} has {size} bytes of {column!r} in one row group, which is read as a "
                            "whole; write it anew with smaller ones, as pyarrow.parquet.write_table(..., "
                            "row_group_size=1000) does"
                        )
                    begins.append((number, group))
                    rows.append(about.num_rows)
                    sizes.append(size)
        self._groups = np.array(begins, np.int64).reshape(-1, 2)
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._size = np.array(sizes, np.int64) // np.maximum(1, np.array(rows, np.int64))  # of a cell, about
        self._read: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def block(self) -> Tensor:
        """(N,) int64, each cell's row group."""
        return torch.from_numpy(np.repeat(np.arange(len(self._ends)), np.diff(self._ends, prepend=0)))

    def size(self, index: int) -> int:
        return int(self._size[self._group(index)])

    def name(self, index: int) -> str:
        number = int(self._groups[self._group(index), 0])
        first = (
            int(self._ends[self._groups[:, 0] < number][-1]) if number and (self._groups[:, 0] < number).any() else 0
        )
        return f"{self.paths[number]}, row {index - first + 1}"

    def value(self, index: int) -> Any:
        """Raises BrokenSample."""
        group = self._group(index)
        if group not in self._read:
            number, inside = self._groups[group].tolist()
            with table(self.paths[number]) as file:
                try:
                    found = file.read_row_group(inside, columns=[self.column], use_threads=False).column(0)
                except (OSError, ValueError) as error:  # pyarrow's own are such
                    if isinstance(error, OSError) and addresses.is_address(self.paths[number]):
                        told = f"{self.paths[number]!r} can't be read ({error})"
                        raise RunError(f"{told}; see whether it can be reached, and resume the run") from error
                    raise BrokenSample(f"{self.name(index)!r} can't be read: {error}") from error
            self._read[group] = found
            while len(self._read) > MIXED:
                self._read.popitem(last=False)
        self._read.move_to_end(group)
        begin = int(self._ends[group - 1]) if group else 0
        return self._read[group][index - begin].as_py()

    def content(self, index: int) -> bytes:
        """Of a cell that holds bytes, or bytes and a path, as the `datasets` package writes files."""
        cell = self.value(index)
        found = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(found, bytes):
            raise BrokenSample(
                f"{self.name(index)!r} can't be read: its {self.column!r} holds no file, but {cell!r:.40}"
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": OrderedDict()}

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, "right"))


class NumbersColumn(Column):
    """Lists of numbers, all of one length, such as embeddings or recordings of a sensor.

    shape: of a sample; its sizes multiply to the length of the lists. mean, std: one for each of the first of shape's
    sizes.
    """

    def __init__(
        self,
        *,
        column: str,
        shape: Annotated[tuple[Annotated[int, Gt(0)], ...], Len(1)],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__(column=column)
        self.shape = tuple(shape)
        for key, given in (("mean", mean), ("std", std)):
            if given is not None and len(given) != self.shape[0]:
                raise RequestError(f"data.input.{key}={list(given)}: give {self.shape[0]}, one for each channel")
        self.facts = {
            "shape": self.shape,
            "size": self.shape[-1],
            "mean": tuple(mean or (0.0,) * self.shape[0]),
            "std": tuple(std or (1.0,) * self.shape[0]),
        }

    def open(self, items: Any, train: Sequence[int]) -> Numbers:
        return Numbers(items, self.facts)


class Numbers(Input):
    def __init__(self, cells: Cells, facts: dict[str, Any]):
        self._cells, self.facts = cells, facts

    def view(self, index: int) -> View:
        found = self._cells.value(index)
        try:
            x = torch.tensor(found, dtype=torch.float32).reshape(self.facts["shape"])
        except (TypeError, ValueError, RuntimeError) as error:
            raise BrokenSample(f"{self.name(index)!r} can't be read: {error}") from error
        if not x.isfinite().all():
            raise BrokenSample(f"{self.name(index)!r} can't be read: it holds values that are no numbers")
        return {"x": x}

    def hold(self, on_broken: Literal["skip", "stop"]) -> Tensor:
        return torch.ones(len(self._cells), dtype=torch.bool)

    def name(self, index: int) -> str:
        return self._cells.name(index)


class Parquet(Listing):
    """Rows of .parquet files, of any number and size.

    root: a file; a folder of them; or one with train.parquet (train-00000-of-00002.parquet, ..., as the Hugging Face
    Hub has them) and, if you like, val (validation) and test, or folders of these names. Here, or at an address that
    fsspec knows, such as hf://datasets/ylecun/mnist/mnist.
    input: how a column is read (ssl_runner.datasets.columns): pictures and sounds as their files' bytes, and lists of
    numbers. label: the column of classes, which are text or whole numbers from 0 up; it need not be there where it has
    its default.
    val, test: shares of the train part that are split off from it, each class alike, where there is no such part.

    Row groups are read as a whole, when a sample of them is asked for, and the last few are kept; so training mixes the
    rows of a few row groups at a time, in an order of the row groups that is another in each epoch.
    Raises RequestError for what is no such file, and for row groups of more than 1 GiB.
    """

    def __init__(
        self,
        *,
        root: str,
        input: FileColumn | NumbersColumn,
        label: str = "label",
        val: Shares = 0.1,
        test: Shares = 0.1,
        on_broken: Literal["skip", "stop"] = "skip",
    ):
        given, root = root, addresses.home(root)
        files = tables(root, given)
        cells = Cells([path for _, path in files], input.column)
        labels = Labels()
        part: list[np.ndarray] = []
        for belongs, path in files:
            count = 0
            for name in _names(path, label):
                labels.add(name)
                count += 1
            part.append(np.full(count, PARTS.index(belongs), np.int8))
        classes, numbers = labels.told(given)
        if not classes and label != "label":
            raise RequestError(f"data.label={label!r}: no row of {given!r} has such a column with a class in it")
        shares = {"val": val, "test": test}
        parts = held_out(np.array(PARTS)[np.concatenate(part)], numbers, shares, [name for name, _ in files])
        super().__init__(
            input.open(cells, ()),
            parts,
            classes=classes,
            label=numbers,
            on_broken=on_broken,
            block=cells.block(),
        )


def tables(root: str, given: str) -> list[tuple[Literal["train", "val", "test"], str]]:
    """(part, file) of every file, in order. Raises RequestError where there is none to train on."""
    if addresses.is_file(root):
        return [("train", root)]
    names = [name for name in addresses.names_in(root) if name.endswith(".parquet")]
    parts = {name: match[1].replace("validation", "val") for name in names if (match := NAMES.fullmatch(name))}
    if "train" in parts.values():
        odd = [name for name in names if name not in parts]
        if odd:
            raise RequestError(
                f"data.root={given!r}: beside train there is {odd[0]!r}, which is no part of a data set"
                f"{nearest(odd[0], PARTS)}; rename it or move it away"
            )
        found = [(part, addresses.join(root, name)) for part in PARTS for name in names if parts[name] == part]
    elif names:
        found = [("train", addresses.join(root, name)) for name in names]
    else:
        inside = {part: addresses.join(root, part) for part in PARTS}
        found = [
            (part, addresses.join(folder, name))
            for part, folder in inside.items()
            for name in addresses.names_in(folder)
            if name.endswith(".parquet")
        ]
    if not any(part == "train" for part, _ in found):
        raise RequestError(f"data.root={given!r}: no .parquet in it to train on; give a .parquet, or a folder of them")
    return found


@contextmanager
def table(path: str) -> Iterator[Any]:
    """An open Parquet file. Raises RequestError for what is none."""
    pyarrow = arrow(path, "data.root")
    try:
        with addresses.opened(path) as opened:
            yield pyarrow.parquet.ParquetFile(opened)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RequestError(f"data.root: {path!r} is no Parquet file that can be read: {error}") from error


def _place(file: Any, column: str, path: str) -> list[int]:
    """The numbers of a column's parts in the file. Raises RequestError where there is no such column."""
    if column not in file.schema_arrow.names:
        raise RequestError(
            f"data.input.column={column!r}: {path!r} has no such column{nearest(column, file.schema_arrow.names)}"
        )
    paths = [file.metadata.schema.column(n).path for n in range(file.metadata.num_columns)]
    return [n for n, inside in enumerate(paths) if inside.split(".")[0] == column]


def _names(path: str, label: str) -> Iterator[str | None]:
    """Each row's class. Raises RequestError for what is none."""
    with table(path) as file:
        if label not in file.schema_arrow.names:
            yield from (None for _ in range(file.metadata.num_rows))
            return
        for batch in file.iter_batches(batch_size=1 << 14, columns=[label], use_threads=False):
            for value in batch.column(0).to_pylist():
                if isinstance(value, bool) or not isinstance(value, (int, str, type(None))):
                    raise RequestError(f"data.label={label!r}: {path!r} holds {value!r:.40}, which is no class")
                if isinstance(value, int) and value < 0:
                    raise RequestError(f"data.label={label!r}: {path!r} holds {value}; classes are numbers from 0 up")
                yield None if value is None else str(value).strip()
