"""Rows of numbers in memory-mapped files, of which only what is fetched is read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_runner.datasets.base import Arrays, Key
from ssl_runner.errors import RequestError
from ssl_runner.types import Samples

KEPT = 32 << 20  # bytes of a file that may count as this process's memory before they are let go
AROUND = 2 << 20  # bytes that the system may map around each place that is touched: its largest page


class Rows:
    """(N, ...) numbers of a file, indexed like a tensor by a tensor of positions, of any shape.

    What is mapped counts as memory of this process, though the system can take it back. So the file is mapped anew
    whenever KEPT bytes may have been touched: what a process holds does not grow with the file. A copy that goes to
    another process opens the file there.

    file: of raw numbers. kind: of which type. shape: (N, ...). start: bytes before the first. Raises RequestError where
    the file is shorter.
    """

    def __init__(self, file: Path, kind: np.dtype, shape: tuple[int, ...], start: int = 0):
        self.file, self.kind, self.shape, self.start = file, kind, shape, start
        self._bytes = int(np.prod(shape[1:], dtype=np.int64)) * kind.itemsize  # of a row
        self._which: Tensor | None = None
        self._map: Tensor | None = None
        self._touched = 0
        self._size = file.stat().st_size
        if self._size < start + shape[0] * self._bytes:
            raise RequestError(f"{str(file)!r}: is cut short, {self._size} bytes of {start + shape[0] * self._bytes}")

    def __len__(self) -> int:
        return self.shape[0] if self._which is None else len(self._which)

    def __getitem__(self, index: Tensor) -> Tensor:
        """(..., ) int64 positions -> their rows, in memory."""
        if not index.numel():
            return torch.from_numpy(np.empty((*index.shape, *self.shape[1:]), self.kind))
        places = index if self._which is None else self._which[index]
        each = places[0].numel() * self._bytes + AROUND
        return torch.cat([self._read(some, len(some) * each) for some in places.split(max(1, KEPT // each))])

    def _read(self, places: Tensor, touched: int) -> Tensor:
        if self._map is None or min(self._touched + touched, self._size) > KEPT:
            # "c": torch wants to be able to write, and a write would stay in memory
            self._map = torch.from_numpy(np.memmap(self.file, self.kind, "c", self.start, self.shape))
            self._touched = 0
        self._touched += touched
        return self._map[places]

    def whole(self) -> Tensor:
        """All rows, in memory."""
        read = np.fromfile(self.file, self.kind, int(np.prod(self.shape)), offset=self.start).reshape(self.shape)
        return torch.from_numpy(read)[slice(None) if self._which is None else self._which]

    def part(self, index: Tensor) -> Rows:
        """The rows at these positions, (n,) int64, still in the file."""
        some = copy.copy(self)
        some._which = index if self._which is None else self._which[index]
        return some

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None, "_touched": 0}


def numbers(file: Path, kind: type[np.number]) -> Rows:
    """(n,) raw numbers, as many as are in the file."""
    known = np.dtype(kind)
    return Rows(file, known, (file.stat().st_size // known.itemsize,))


def npy(file: Path) -> Rows:
    """The rows of a .npy file. Raises RequestError for what is none, or holds what can't be mapped."""
    try:
        with open(file, "rb") as opened:
            version = np.lib.format.read_magic(opened)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of the format")
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, kind = header(opened)
            start = opened.tell()
    except OSError as error:
        raise RequestError(f"{str(file)!r}: can't be read ({error.strerror or error})") from error
    except (ValueError, TypeError, SyntaxError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise RequestError(f"{str(file)!r}: is no .npy file that can be read ({error})") from error
    if kind.hasobject or kind.kind not in "biuf" or not kind.isnative or by_columns or not shape or min(shape) < 0:
        raise RequestError(
            f"{str(file)!r}: holds {kind} of shape {shape}{', by columns' if by_columns else ''}; write it anew with "
            "np.save(file, np.ascontiguousarray(x)) as numbers of this machine, with the samples along the first axis"
        )
    return Rows(file, kind, shape, start)


class Mapped(Arrays):
    """Samples of which x, and target where there is one, stay in their files. The rest as at Arrays."""

    x: Rows  # type: ignore[assignment]
    target: Rows | None  # type: ignore[assignment]

    def __init__(self, x: Rows, label: Tensor | None = None, target: Rows | None = None):
        self.x, self.label, self.target = x, label, target

    def part(self, keep: Tensor) -> Mapped:
        some = copy.copy(self)
        some.x = self.x.part(keep)
        some.label = None if self.label is None else self.label[keep]
        some.target = None if self.target is None else self.target.part(keep)
        return some

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        samples = super().__getitems__(keys)
        (view,) = samples["inputs"]
        if view["x"].is_floating_point():
            view["x"] = view["x"].float()
        return samples
