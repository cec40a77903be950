"""A user's own time series: recordings with classes, or one long table to be cut into samples."""

from __future__ import annotations

import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Len

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.layout import PARTS, class_names, find_files, lay_out, top
from ssl_runner.datasets.published import home
from ssl_runner.datasets.reading import readable
from ssl_runner.datasets.stretches import Track, Tracks
from ssl_runner.datasets.table import Frame, read_frame
from ssl_runner.datasets.ts_format import parse
from ssl_runner.errors import RequestError, nearest

EXTENSIONS = (".csv", ".parquet", ".npy", ".npz", ".ts")
TABLES = (".csv", ".parquet")
LARGEST = 8 << 30  # bytes to which an .npz file may unpack
DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, EOFError, RuntimeError, SyntaxError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What numpy was seen to raise, or may, on damaged files."""
Names = Annotated[tuple[str, ...], Len(1)]


class Series(Tracks):
    """A user's own time series: .csv, .parquet, .npy, .npz and .ts files.

      <root>                                   one file
      <root>/{train,val,test}.<ext>            a file for each part; also <name>_TRAIN.<ext>, as in the UCR archive
      <root>/<class>/<any name>.<ext>          files of a class
      <root>/{train,val,test}/<class>/<any name>.<ext>   the same, for each part
      <root>/<any name>.<ext>                  files without a class, or with one inside

    A table (.csv, .parquet) has a row for each moment, oldest first, and names its columns in its first line. Values
    are its `channels`; if unset, all columns that none of the next keys name:
      group    tells recordings apart; without it a file is one recording
      label    the class of a recording, the same in all of its rows
      subject  whose recording it is: all of one go to the same part
      time     by which rows are put in order: numbers, or text that sorts, such as 2021-05-01 00:30
      anomaly  0 or 1: a sample is an anomaly if a row of it is
    missing: cells that mean that there is no value. An .npy file holds (n,) or (C, n) values of one recording, or
    (N, C, n) of several, NaN where one is missing; an .npz file such as `x`, and may hold their (N,) classes as `y`.
    .ts is the format of the UCR and UEA archives.

    window, stride, horizon, val, test: see Tracks. on_broken: files that can't be read are left out, or end the run.
    Raises RequestError for choices and files that can't be used, and RunError where no file can be read.
    """

    def __init__(
        self,
        *,
        root: str,
        window: Annotated[int, Gt(0)] | None = None,
        stride: Annotated[int, Gt(0)] | None = None,
        horizon: Annotated[int, Gt(0)] | None = None,
        channels: Names | None = None,
        group: str | None = None,
        label: str | None = None,
        subject: str | None = None,
        time: str | None = None,
        anomaly: str | None = None,
        missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"),
        delimiter: Annotated[str, Len(1, 1)] = ",",
        encoding: str = "utf-8",
        val: Annotated[float, Ge(0)] = 0.2,
        test: Annotated[float, Ge(0)] = 0.2,
        on_broken: Literal["skip", "stop"] = "skip",
    ):
        if label is not None and anomaly is not None:
            raise RequestError("data.anomaly: tells classes, and so does data.label; leave one out")
        named = {"group": group, "label": label, "subject": subject, "time": time, "anomaly": anomaly}
        columns = {key: name for key, name in named.items() if name is not None}
        self.on_broken = on_broken
        self._names: list[str] | None = list(channels) if channels is not None else None

        def read(path: str, folder: str | None) -> list[Track]:
            kind = os.path.splitext(path)[1].lower()
            if kind not in TABLES:
                return _arrays(path, folder) if kind != ".ts" else _ts(path, folder)
            try:
                frame = read_frame(path, set(missing), delimiter, encoding)
            except RequestError as error:
                raise BrokenSample(str(error)) from error
            if self._names is None:
                self._names = [name for name in frame if name and name not in columns.values()]
            return list(_from_table(frame, path, folder, columns, self._names))

        files = found(home(root))
        kinds = {os.path.splitext(path)[1].lower() for part in files.values() for path, _ in part}
        key = next(iter(columns), "channels" if channels is not None else None)
        if key is not None and not kinds & set(TABLES):
            raise RequestError(f"data.{key}: names a column, and {root!r} holds no table; leave it out")
        given = {part: _read_all(some, read, on_broken) for part, some in files.items()}
        super().__init__(
            given, where=root, channels=self._names, window=window, stride=stride, horizon=horizon, val=val, test=test
        )

    def pinned(self) -> dict[str, Any]:
        return {**super().pinned(), **({} if self._names is None else {"channels": self._names})}


def found(root: str) -> dict[str, list[tuple[str, str | None]]]:
    """Part -> (file, class folder). Raises RequestError where there are none, or it can't be told which are meant."""
    if os.path.isfile(root):
        if os.path.splitext(root)[1].lower() not in EXTENSIONS:
            raise RequestError(f"data.root={root!r}: is none of {', '.join(EXTENSIONS)}")
        return {"train": [(root, None)]}
    if not os.path.isdir(root):
        raise RequestError(f"data.root={root!r}: there is no such file or folder; give the one that holds the series")
    files = list(find_files(root, EXTENSIONS, "series"))
    parts = _parts_by_file(root, files)
    if parts is not None:
        return {part: [(os.path.join(root, file), None)] for part, file in parts.items()}
    laid = lay_out(root, files, EXTENSIONS, "series")
    class_names(root, laid, "series")  # refuses what it can't tell
    return {
        part: [(os.path.join(root, folder, file), top(file)) for file in inside]
        for part, (folder, inside) in laid.items()
    }


def _parts_by_file(root: str, files: Sequence[str]) -> dict[str, str] | None:
    """The part of each file, where names say so: train.csv, or GunPoint_TRAIN.ts; None where none is for training."""
    parts: dict[str, str] = {}
    for file in files:
        match = re.fullmatch(rf"(?:.*_)?({'|'.join(PARTS)})\.\w+", file, re.IGNORECASE)
        part = match[1].lower() if match and os.sep not in file else None
        if part in parts:
            raise RequestError(
                f"data.root={root!r}: {parts[part]!r} and {file!r} both say {part}; give one file a part"
            )
        if part is not None:
            parts[part] = file
    if "train" not in parts:
        return None
    if len(parts) < len(files):
        odd = next(file for file in files if file not in parts.values())
        raise RequestError(f"data.root={root!r}: beside {parts['train']!r} there is {odd!r}; move it away")
    return parts


def _read_all(files: Sequence[tuple[str, str | None]], read: Any, on_broken: Literal["skip", "stop"]) -> list[Track]:
    told: list[list[Track]] = []
    faults: list[BrokenSample | None] = []
    for path, folder in files:
        try:
            told.append(read(path, folder))
            faults.append(None)
        except BrokenSample as error:
            if len(files) == 1:
                raise RequestError(f"data.root: {error}") from error
            faults.append(error)
    readable(faults, on_broken)
    return [recording for recordings in told for recording in recordings]


# --- one file ---------------------------------------------------------------------------------------------------


def _arrays(path: str, folder: str | None) -> list[Track]:
    try:
        x, y = _loaded(path)
    except DAMAGE as error:
        raise BrokenSample(f"{path}: is no array that can be read ({error})") from error
    if x is None or x.ndim not in (1, 2, 3) or x.dtype.kind not in "fiu" or 0 in x.shape:
        raise BrokenSample(f"{path}: holds no numbers of shape (n,), (C, n) or (N, C, n)" + " as `x`" * (x is None))
    several = x.ndim == 3
    if y is not None and (not several or y.shape != x.shape[:1] or y.dtype.kind not in "iuU"):
        raise BrokenSample(f"{path}: `y` is no class for each of the (N, C, n) recordings")
    x = x.astype(np.float32) if several else x.astype(np.float32).reshape(1, -1, x.shape[-1])
    if np.isinf(x).any():
        raise BrokenSample(f"{path}: holds infinite values")
    return [
        Track(values, f"recording {n} of {path}" if several else path, folder if y is None else str(y[n - 1]))
        for n, values in enumerate(x, 1)
    ]


def _loaded(path: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`x` and `y` of an .npz file, or what an .npy file holds. Raises what DAMAGE names."""
    if not path.lower().endswith(".npz"):
        return np.load(path, mmap_mode="r", allow_pickle=False), None  # a map can't be larger than its file
    with zipfile.ZipFile(path) as archive:
        size = sum(each.file_size for each in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"it unpacks to {size / 1e9:.0f} GB; give it as .npy files")
    with np.load(path, allow_pickle=False) as held:
        found = [held[name] if name in held.files else None for name in ("x", "y")]
    if any(each is not None and not isinstance(each, np.ndarray) for each in found):
        raise ValueError("it holds something else")
    return found[0], found[1]


def _ts(path: str, folder: str | None) -> list[Track]:
    try:
        with open(path, encoding="utf-8") as file:
            entries = parse(file, path)
    except UnicodeDecodeError as error:
        raise BrokenSample(f"{path}: is no UTF-8 at byte {error.start}") from error
    return [
        Track(values, f"recording {n} of {path}", folder if label is None else label)
        for n, (values, label) in enumerate(entries, 1)
    ]


def _from_table(
    frame: Frame, path: str, folder: str | None, columns: Mapping[str, str], channels: Sequence[str]
) -> list[Track]:
    for key, name in [*columns.items(), *(("channels", name) for name in channels)]:
        if name not in frame:
            raise BrokenSample(f"{path}: has no column {name!r}, which data.{key} names{nearest(name, frame)}")
    values = np.stack([_numbers(frame[name], name, path) for name in channels]).astype(np.float32)
    rows = np.arange(values.shape[1])
    if "time" in columns:
        rows = _in_order(frame[columns["time"]], columns["time"], path)
    told = {key: frame[name] for key, name in columns.items()}
    odd = _odd(told["anomaly"], columns["anomaly"], path) if "anomaly" in told else None
    groups: dict[str, list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(_given(told["group"][row], columns["group"], path) if "group" in told else "", []).append(row)
    return [
        Track(
            values[:, chosen],
            f"{columns['group']}={name} of {path}" if "group" in told else path,
            _same(told["label"], chosen, columns["label"], path) if "label" in told else folder,
            _same(told["subject"], chosen, columns["subject"], path) if "subject" in told else None,
            None if odd is None else odd[chosen],
        )
        for name, chosen in groups.items()
    ]


def _numbers(cells: Sequence[str | None], name: str, path: str) -> np.ndarray:
    """(n,) float64, NaN where missing."""
    try:
        values = np.array([np.nan if cell is None else float(cell) for cell in cells])
    except ValueError as error:
        raise BrokenSample(
            f"{path}: the column {name!r} holds what is no number ({error}); name the columns to use in data.channels, "
            "or such cells in data.missing"
        ) from None
    if np.isinf(values).any():
        raise BrokenSample(f"{path}: the column {name!r} holds an infinite value")
    return values


def _in_order(cells: Sequence[str | None], name: str, path: str) -> np.ndarray:
    """The rows, oldest first."""
    told = [_given(cell, name, path) for cell in cells]
    try:
        return np.argsort(np.array([float(cell) for cell in told]), kind="stable")
    except ValueError:
        return np.argsort(np.array(told), kind="stable")


def _odd(cells: Sequence[str | None], name: str, path: str) -> np.ndarray:
    values = _numbers([cell or "0" for cell in cells], name, path)
    if not np.isin(values, (0, 1)).all():
        raise BrokenSample(f"{path}: the column {name!r} (data.anomaly) holds other values than 0 and 1")
    return values == 1


def _same(cells: Sequence[str | None], rows: Sequence[int], name: str, path: str) -> str | None:
    distinct = {cells[row] for row in rows}
    if len(distinct) > 1:
        raise BrokenSample(
            f"{path}: one recording has several values in {name!r}, {cells[rows[0]]!r} and others; tell recordings "
            "apart by data.group"
        )
    return distinct.pop()


def _given(cell: str | None, name: str, path: str) -> str:
    if cell is None:
        raise BrokenSample(f"{path}: a cell of {name!r} is empty; every row needs one")
    return cell
