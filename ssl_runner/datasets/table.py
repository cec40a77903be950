"""A user's own table: CSV or Parquet, as numbers and codes of categories."""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Len
from torch import Tensor

from ssl_runner.datasets.base import Arrays, Source, Split
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.parquet import whole
from ssl_runner.datasets.published import home
from ssl_runner.datasets.splits import stratified
from ssl_runner.errors import RequestError, nearest
from ssl_runner.parts.columns import spread, useful, width
from ssl_runner.types import View

Frame = dict[str, list[str | None]]
"""A table by columns, in order: each cell's text, None where it is missing."""

Known = list[tuple[str, list[float] | list[str]]]
"""Columns as they were learned from a training part: (name, [mean, deviation]) or (name, categories in order)."""

EXTENSIONS = (".csv", ".parquet")
FEW = 20  # a target of so many whole numbers or fewer is taken for classes
Names = tuple[str, ...]


class Tabular(Source):
    """Rows of a table: what every source of them shares.

    A sample is (C,) float32: a number minus its column's mean, over its standard deviation; a category's code 0 ..
    K - 1; NaN where a value is missing. Means, deviations and categories are those of the rows in `pretrain`; a
    category that is in val or test alone counts as missing there.

    frames: `train`, and `val` and `test` where they are given, else shares are split off: of each class alike, at
    random for values. where: what to call the table in a message. The rest is told at Table.

    Labels are int64 classes, or float32 values in the target's own units. A row without a target is in `pretrain`
    alone.
    facts: shape (C,), size, columns (0 for numbers, K for a column of K categories), num_classes; for values
    label_mean and label_std of the train part.
    Raises RequestError for tables and choices that can't be used.
    """

    labelled: bool | None = None  # type: ignore[misc]  # set by whether there is a target

    def __init__(
        self,
        frames: Mapping[str, Frame],
        *,
        where: str,
        target: str | None,
        kind: Literal["auto", "classification", "regression"],
        numeric: Names = (),
        categorical: Names = (),
        ignore: Names = (),
        known: Known | None = None,
        val: float,
        test: float,
    ):
        if val < 0 or test < 0 or val + test >= 1:
            raise RequestError(f"data.val={val}, data.test={test}: give shares from 0 that leave some for training")
        self._where = where
        names = _same_names(frames, where)
        _are_columns({"numeric": numeric, "categorical": categorical, "ignore": ignore}, names, target, where)
        cells = {name: [cell for frame in frames.values() for cell in frame[name]] for name in names}
        given = np.repeat(list(frames), [len(frame[names[0]]) for frame in frames.values()])
        label, has = self._read_target(cells[target] if target is not None else None, kind, given)
        self._rows = _divide(given, label, has, {"val": val, "test": test}, where)
        self._label = None if target is None else torch.from_numpy(label)
        features = [name for name in names if name != target and name not in ignore]
        if known is None:
            known = self._learn({name: cells[name] for name in features}, numeric, categorical)
        elif absent := [name for name, _ in known if name not in features]:
            raise RequestError(f"{where!r} has no column {absent[0]!r}, which the run was trained on")
        self._known: Known = known
        columns = tuple(0 if _is_number(values) else len(values) for _, values in known)
        self._columns = torch.tensor(columns)
        self._x = torch.from_numpy(np.stack([self._encoded(cells[n], n, values) for n, values in known], 1)).float()
        self._flagged = self._x[self._rows["pretrain"]].isnan().any(0)
        self.facts = {
            "shape": (len(columns),),
            "size": len(columns),
            "columns": columns,
            "num_classes": len(self.classes),
        }
        if target is not None:
            self._check_labels(target)

    def split(self, name: Split) -> Arrays:
        rows = self._rows[name]
        return Arrays(self._x[rows], None if self._label is None or name == "pretrain" else self._label[rows])

    def raw(self, view: View) -> Tensor:
        """(B, D): numbers, each category as 0 or 1, and for columns with missing values whether this one is; 0 where
        it is."""
        x, columns = view["x"], tuple(self._columns.tolist())
        kept = useful(columns, self._flagged).to(x.device)
        return spread(x, self._columns.to(x.device), width(columns)).flatten(1)[:, kept]

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        """As CSV, in the table's own units: a line for each of a sample's rows, with the sample's number and the
        row's. columns: (n, C) each."""
        if any(column.shape[1:] != self._columns.shape for column in columns):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".csv")
        with open(file, "w", encoding="utf-8", newline="") as opened:
            lines = csv.writer(opened)
            lines.writerow(["sample", "view", *(name for name, _ in self._known)])
            for n, rows in enumerate(zip(*(column.tolist() for column in columns), strict=True), 1):
                lines.writerows([n, view, *self._spelled(row)] for view, row in enumerate(rows, 1))
        return file

    def _spelled(self, row: Sequence[float]) -> list[str]:
        told = []
        for value, (_, values) in zip(row, self._known, strict=True):
            if value != value:
                told.append("")
            elif _is_number(values):
                mean, std = (float(v) for v in values)
                places = 5 - math.floor(math.log10(max(abs(mean), std)))  # what float32 leaves
                told.append(f"{round(value * std + mean, places) + 0.0:.6g}")
            else:
                told.append(str(values[round(value)]))
        return told

    # -- the target --------------------------------------------------------------------------------------------

    def _read_target(
        self, cells: list[str | None] | None, kind: str, given: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N,) labels, of any value where there is none, and (N,) bool, where there is one. Sets what they mean."""
        self.labelled = cells is not None
        if cells is None:
            return np.zeros(len(given), np.int64), np.zeros(len(given), bool)
        has = np.array([cell is not None for cell in cells])
        if not has[given == "train"].any():
            raise RequestError(f"data.target: no row of {self._where!r} has a value in that column")
        if lacking := int((~has & (given != "train")).sum()):
            raise RequestError(f"data.target: {lacking} rows of the val and test files of {self._where!r} have none")
        told = [cell for cell in cells if cell is not None]
        values = [_number(cell) for cell in told]
        odd = next((cell for cell, value in zip(told, values, strict=True) if value is None), None)
        whole = odd is None and all(float(v).is_integer() for v in values if v is not None)
        few = len(set(values)) <= FEW
        self.valued = kind == "regression" or (kind == "auto" and odd is None and not (whole and few))
        if self.valued:
            if odd is not None:
                raise RequestError(f"data.kind=regression: the target of {self._where!r} holds {odd!r}, no number")
            numbers = np.zeros(len(cells), np.float32)
            numbers[has] = np.array(values, np.float64)
            return numbers, has
        distinct = set(told)
        self.classes = tuple(sorted(distinct, key=_number if whole else None))  # type: ignore[arg-type]
        if len(self.classes) < 2:
            raise RequestError(f"data.target: all rows of {self._where!r} are of one class, {self.classes[0]!r}")
        place = {name: n for n, name in enumerate(self.classes)}
        return np.array([place[cell] if cell is not None else -1 for cell in cells], np.int64), has

    def _check_labels(self, target: str) -> None:
        """What only the train part tells. Raises RequestError where nothing could be learned from it."""
        train, label = self.split("train").label, self._label
        assert train is not None
        assert label is not None
        if self.valued:
            std, mean = torch.std_mean(train.double(), correction=0)
            if not std:
                raise RequestError(f"data.target={target!r}: all values of the train part are the same")
            self.facts |= {"label_mean": float(mean), "label_std": float(std)}
            return
        count = torch.bincount(train, minlength=len(self.classes)).tolist()
        if 0 in count:
            raise RequestError(f"data.target={target!r}: no row of the train part is {self.classes[count.index(0)]!r}")
        whole = label[label >= 0]
        single = [self.classes[n] for n, each in enumerate(torch.bincount(whole).tolist()) if each == 1]
        if single:
            _say(f"warning: {_listed(single)} of data.target={target!r} have a single row, which is trained on")

    # -- the columns -------------------------------------------------------------------------------------------

    def _learn(self, cells: Frame, numeric: Names, categorical: Names) -> Known:
        """The columns to use, and what the pretrain part tells of them. Warns of those left out."""
        learned: Known = []
        constant, ids, doubtful = [], [], []
        rows = self._rows["pretrain"].tolist()
        for name, column in cells.items():
            mine = [cell for cell in (column[n] for n in rows) if cell is not None]
            if not mine:
                raise RequestError(
                    f"{self._where!r}: the column {name!r} has no value in the train part; add it to data.ignore"
                )
            named = name in numeric or name in categorical
            if not named and len(mine) == len(rows) and len(set(mine)) == 1:
                constant.append(name)
                continue
            numbers = name not in categorical and (name in numeric or _all_numbers(column))
            if numbers:
                read = self._numbers(column, name)
                if not named and _counts_rows(read):
                    ids.append(name)
                    continue
                if not named and len(rows) > FEW and _another_each(read):
                    doubtful.append(name)
                known = read[rows][~np.isnan(read[rows])]
                learned.append((name, [float(known.mean()), float(known.std()) or 1.0]))
            elif not named and 2 * len(set(mine)) > len(mine) and len(mine) > FEW:
                ids.append(name)
            else:
                learned.append((name, sorted(set(mine))))
        if constant:
            _say(f"warning: left out {_listed(constant)}, the same in all rows")
        if ids:
            _say(f"warning: left out {_listed(ids)}, which number or name rows; data.numeric or categorical keep them")
        if doubtful:
            _say(f"note: {_listed(doubtful)} hold another whole number in every row; data.ignore leaves ids out")
        if not learned:
            raise RequestError(f"{self._where!r}: no column is left to learn from")
        return learned

    def _encoded(self, column: list[str | None], name: str, values: Sequence[float] | Sequence[str]) -> np.ndarray:
        """(N,) float64: standardised numbers or codes, NaN where missing or not known."""
        if _is_number(values):
            mean, std = (float(v) for v in values)
            return (self._numbers(column, name) - mean) / std
        code = {category: float(n) for n, category in enumerate(values)}
        return np.array([code.get(cell, np.nan) if cell is not None else np.nan for cell in column])

    def _numbers(self, column: list[str | None], name: str) -> np.ndarray:
        """(N,) float64, NaN where missing."""
        read = np.full(len(column), np.nan)
        for n, cell in enumerate(column):
            if cell is None:
                continue
            value = _number(cell)
            if value is None or np.isinf(value):
                raise RequestError(
                    f"{self._where!r}: the column {name!r} holds {cell!r}, no finite number; mend it, name such cells "
                    "in data.missing, or add the column to data.categorical"
                )
            read[n] = value
        return read


class Table(Tabular):
    """A user's own table: one file, which is divided here, or a folder with train, val and test files.

      <root>                               a .csv or .parquet file
      <root>/<any name>.{csv,parquet}      the same, where it is the only one
      <root>/{train,val,test}.{csv,parquet}   where there is no val or test, it is split off from train

    The first line of a CSV names its columns. target: the column of labels; without one there are none. kind: what
    labels are; auto takes numbers for values unless they are whole and 20 or fewer.
    A column is of numbers where all its cells are; numeric and categorical name those that are otherwise, and keep
    columns that would be left out: those with the same value in all rows, row numbers, and text that is another in
    most rows. ignore: columns that are not used. missing: cells that mean that there is no value.
    val, test: shares, used where there is no such file.
    known: columns, means, deviations and categories of the table that a run was trained on; the run keeps them, so
    that another table means the same to it.
    The rest is told at Tabular.
    """

    def __init__(
        self,
        *,
        root: str,
        target: str | None = None,
        kind: Literal["auto", "classification", "regression"] = "auto",
        numeric: Names = (),
        categorical: Names = (),
        ignore: Names = (),
        missing: Names = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"),
        delimiter: Annotated[str, Len(1, 1)] = ",",
        encoding: str = "utf-8",
        val: Annotated[float, Ge(0)] = 0.2,
        test: Annotated[float, Ge(0)] = 0.2,
        known: Known | None = None,
    ):
        if known is not None and (numeric or categorical or ignore):
            raise RequestError("data.known: says what every column is; leave out numeric, categorical and ignore")
        frames = {
            part: read_frame(path, set(missing), delimiter, encoding) for part, path in _files(home(root)).items()
        }
        super().__init__(
            frames,
            where=root,
            target=target,
            kind=kind,
            numeric=tuple(numeric),
            categorical=tuple(categorical),
            ignore=tuple(ignore),
            known=known,
            val=val,
            test=test,
        )

    def pinned(self) -> dict[str, Any]:
        """The columns as they were learned: of other rows they would be others, and the same value mean another."""
        known = [[name, list(values)] for name, values in self._known]
        return {"known": known, "numeric": [], "categorical": [], "ignore": []}


# --- what is where --------------------------------------------------------------------------------------------


def _files(root: str) -> dict[str, str]:
    """Part -> file. Raises RequestError where there are none, or it can't be told which are meant."""
    if os.path.isfile(root):
        if os.path.splitext(root)[1].lower() not in EXTENSIONS:
            raise RequestError(f"data.root={root!r}: is neither .csv nor .parquet")
        return {"train": root}
    if not os.path.isdir(root):
        raise RequestError(f"data.root={root!r}: there is no such file or folder; give the one that holds the table")
    files = sorted(f for f in os.listdir(root) if os.path.splitext(f)[1].lower() in EXTENSIONS and f[0] != ".")
    if len(files) == 1 and os.path.splitext(files[0])[0] not in ("val", "test"):
        return {"train": os.path.join(root, files[0])}
    found: dict[str, str] = {}
    for file in files:
        part = os.path.splitext(file)[0]
        if part not in PARTS or part in found:
            raise RequestError(
                f"data.root={root!r}: {file!r} is one of {len(files)} tables and is not the only train, val or test; "
                "give one file as data.root"
            )
        found[part] = os.path.join(root, file)
    if "train" not in found:
        raise RequestError(f"data.root={root!r}: there is no train.csv or train.parquet in it")
    return {part: found[part] for part in PARTS if part in found}


def read_frame(path: str, missing: set[str], delimiter: str, encoding: str) -> Frame:
    """Raises RequestError for a file that can't be read, or holds no table."""
    try:
        if path.lower().endswith(".parquet"):
            frame = _parquet(path, missing)
        else:
            frame = _csv(path, missing, delimiter, "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise RequestError(f"data.encoding={encoding!r}: no such encoding; utf-8 and latin-1 are common") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{path!r}: is no {encoding} at byte {error.start}; set data.encoding") from None
    except OSError as error:
        raise RequestError(f"{path!r} can't be read ({error.strerror or error})") from error
    if not frame or not next(iter(frame.values())):
        raise RequestError(f"{path!r}: holds no rows")
    return frame


def _csv(path: str, missing: set[str], delimiter: str, codec: str) -> Frame:
    with open(path, encoding=codec, newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(rows, [])]
            _unique(names, path)
            cells: list[list[str | None]] = [[] for _ in names]
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    raise RequestError(
                        f"{path}:{rows.line_num}: has {len(row)} cells, and the first line names {len(names)} columns; "
                        "mend it, or set data.delimiter"
                    )
                for column, cell in zip(cells, row, strict=True):
                    text = cell.strip()
                    column.append(None if text in missing else text)
        except csv.Error as error:
            raise RequestError(f"{path}:{rows.line_num}: is no CSV that can be read: {error}") from error
    return dict(zip(names, cells, strict=True))


def _parquet(path: str, missing: set[str]) -> Frame:
    table = whole(path, "data.root")
    _unique(table.column_names, path)
    frame: Frame = {}
    for name in table.column_names:
        column: list[str | None] = []
        for value in table[name].to_pylist():
            if isinstance(value, (list, dict)):
                raise RequestError(f"{path!r}: the column {name!r} holds lists or structures; give one value a cell")
            text = None if value is None else str(value).strip()
            column.append(None if text is None or text in missing else text)
        frame[name] = column
    return frame


def _unique(names: Sequence[str], path: str) -> None:
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise RequestError(f"{path!r}: two columns are called {twice!r}; the first line of a CSV must name each")


def _same_names(frames: Mapping[str, Frame], where: str) -> list[str]:
    names = list(frames["train"])
    for part, frame in frames.items():
        if odd := set(names) ^ set(frame):
            name = min(odd)
            has, not_has = ("train", part) if name in names else (part, "train")
            raise RequestError(f"{where!r}: {has} has a column {name!r}, and {not_has} has none")
    return names


def _are_columns(lists: Mapping[str, Names], names: Sequence[str], target: str | None, where: str) -> None:
    """Raises RequestError for a column that is not there, or is said to be two things."""
    if target is not None and target not in names:
        raise RequestError(f"data.target={target!r}: {where!r} has no such column{nearest(target, names)}")
    said: dict[str, str] = {} if target is None else {target: "target"}
    for key, listed in lists.items():
        for name in listed:
            if name not in names:
                raise RequestError(f"data.{key}: {where!r} has no column {name!r}{nearest(name, names)}")
            if name in said:
                raise RequestError(f"data.{key}: {name!r} is in data.{said[name]} too")
            said[name] = key


def _divide(
    given: np.ndarray, label: np.ndarray, has: np.ndarray, shares: Mapping[str, float], where: str
) -> dict[str, Tensor]:
    """The rows of each part. Without any target, all rows are alike."""
    rows: dict[str, np.ndarray] = {part: np.flatnonzero(given == part) for part in PARTS}
    labelled = rows["train"][has[rows["train"]]] if has.any() else rows["train"]
    classes = label[labelled] if label.dtype == np.int64 else np.zeros(len(labelled), np.int64)
    wanted = {part: share for part, share in shares.items() if not (given == part).any()}
    ids = stratified(torch.from_numpy(classes), (1 - sum(wanted.values()), *wanted.values()))
    divided = {part: torch.from_numpy(rows[part]) for part in shares if part not in wanted}
    for part, each in zip(("train", *wanted), ids, strict=True):
        divided[part] = torch.from_numpy(labelled)[each]
    unlabelled = np.setdiff1d(rows["train"], labelled)
    divided["pretrain"] = torch.cat([divided["train"], torch.from_numpy(unlabelled)]).sort().values
    if len(divided["train"]) < 2:
        raise RequestError(f"{where!r}: has {len(divided['train'])} rows to train on; two are the least")
    return divided


# --- cells ----------------------------------------------------------------------------------------------------


def _number(text: str) -> float | None:
    """None for what is no number: Python's own grouping of digits, as in 1_000, is none."""
    if "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _all_numbers(column: Sequence[str | None]) -> bool:
    return all(cell is None or _number(cell) is not None for cell in column)


def _is_number(values: Sequence[float] | Sequence[str]) -> bool:
    return not isinstance(values[0], str)


def _another_each(numbers: np.ndarray) -> bool:
    """Whether all are whole and no two are the same."""
    return bool(not np.isnan(numbers).any() and (numbers % 1 == 0).all() and len(np.unique(numbers)) == len(numbers))


def _counts_rows(numbers: np.ndarray) -> bool:
    """Whether they are 0 .. N - 1 or 1 .. N in order, or such with another start."""
    return len(numbers) > FEW and bool((np.diff(numbers) == 1).all())


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(repr(name) for name in names[:5])
    return f"{told} and {len(names) - 5} more" if len(names) > 5 else told


def _say(text: str) -> None:
    print(text, file=sys.stderr)
