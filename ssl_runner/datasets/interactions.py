"""Who chose what, and when: logs of users and items, as sequences of item ids."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.datasets.base import Arrays, Key, Source, Split
from ssl_runner.datasets.parquet import arrow, whole
from ssl_runner.datasets.published import home
from ssl_runner.errors import RequestError, nearest
from ssl_runner.types import Samples

PAD, MASK, FIRST = 0, 1, 2  # ids; items have those from FIRST
FEWEST = 3  # interactions of a user: one to learn from, one to validate on, one to test on
DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".data": "\t"}
LEFT_OUT = {"pretrain": 2, "train": 3, "val": 2, "test": 1}  # of a user's sequence, at its end


class Log(NamedTuple):
    """Interactions in the order of their file."""

    users: Sequence[str]
    items: Sequence[str]
    times: np.ndarray  # (N,) float64 or int64


class Histories(Arrays):
    """Sequences of item ids, cut off on the left at `length` or padded there.

    x: (N, length) int32. label: (N,) int64, the item that follows each, or None.
    last: share of the samples, drawn anew each time, of which all items but the last are one unit.
    """

    def __init__(self, x: Tensor, label: Tensor | None = None, last: float = 0.0):
        super().__init__(x, label)
        self.last = last

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        """B keys -> (B, length) ids and "pad": (B, length) bool, True at padding. With `last`, also "unit"."""
        samples = super().__getitems__(keys)
        (view,) = samples["inputs"]
        view["pad"] = view["x"] == PAD
        if self.last:
            draws = torch.tensor([draw / 2**63 for _, draw in keys])  # uniform in [0, 1), see ssl_runner.seeds
            unit = torch.where(draws[:, None] < self.last, 0, -1).repeat(1, view["x"].shape[1])
            unit[:, -1] = 1
            samples["unit"] = unit.masked_fill(view["pad"], -1)
        return samples


class Sequences(Source):
    """A log of interactions as sequences of item ids: what every source of them shares.

    log: what is in `file`. min_count: users and items with fewer interactions are left out, again and again until there
    are none; users with fewer than three always. Items of equal time keep the file's order.
    length: the most items in a sample, the latest ones. step: None learns from the latest `length` items of each user
    alone; a number also from those so many earlier, and so on, back to the user's first.
    last: share of the samples to learn from in which the last item alone may be hidden, as it is when the next item is
    asked for (BERT4Rec, Sun et al., 2019): all others are one unit, which an objective that hides whole units
    (objective.whole=true) finds too long. The rest are units of one item each.

    The parts are of one user's sequence each (leave-one-out): its last item is the target of `test`, the one before
    that of `val`. `pretrain` has neither; a sample of `train`, `val` or `test` is all before the target, which is its
    label. Classes there are none. An objective is validated on sequences that end with the target of `val`.

    Samples are padded on the left, as in SASRec (Kang and McAuley, 2018), so that a position always means the same
    distance to the next item. Ids are 0 for padding, 1 for the mask, and items from 2.

    facts: shape (length,), size, vocab, length, mask, special, separator None, num_classes 0.
    Raises RequestError where nothing is left, and for a step that leaves items out.
    """

    labelled = False

    def __init__(self, log: Log, file: str, *, min_count: int, length: int, step: int | None, last: float):
        if step is not None and step > length:
            raise RequestError(f"data.step={step}: leaves out items between samples of data.length={length}; lower it")
        users, items = numbered(log.users)[1], numbered(log.items)[1]
        fewest = max(min_count, FEWEST)
        kept = core(users, items, fewest, min_count)
        if not kept.any():
            raise RequestError(
                f"data.min_count={min_count}: of {len(users)} interactions in {file!r} none are left, for every user "
                f"needs {fewest} and every item {min_count}; use a smaller one, or a larger log"
            )
        at = np.flatnonzero(kept)
        at = at[np.lexsort((log.times[at], users[at]))]  # stable: equals keep the file's order
        self.items, ids = numbered([log.items[n] for n in at.tolist()])
        cuts = np.flatnonzero(np.diff(users[at])) + 1
        self.sequences = [torch.from_numpy(each) for each in np.split((ids + FIRST).astype(np.int32), cuts)]
        self._length, self._step, self._last = length, step, last
        self.facts = {
            "shape": (length,),
            "size": length,
            "vocab": FIRST + len(self.items),
            "length": length,
            "mask": MASK,
            "special": (PAD, MASK),
            "separator": None,
            "num_classes": 0,
        }

    def past(self, split: Split) -> list[Tensor]:
        """Each user's whole sequence before the target of a part, at least one item, but for `train`."""
        return [each[: len(each) - LEFT_OUT[split]] for each in self.sequences]

    def split(self, name: Split) -> Histories:
        if name == "pretrain":
            return Histories(self._windows(self.past(name)), last=self._last)
        target = torch.stack([each[len(each) - LEFT_OUT[name]] for each in self.sequences])
        return Histories(padded(self.past(name), self._length), target.long())

    def pretext(self, name: Literal["val", "test"]) -> Histories:
        """Sequences that end with a part's target. With `last`, it alone may be hidden; without, an objective tells
        mostly items that it learned from."""
        ended = [each[: len(each) - LEFT_OUT[name] + 1] for each in self.sequences]
        return Histories(padded(ended, self._length), last=1.0 if self._last else 0.0)

    def _windows(self, sequences: Iterable[Tensor]) -> Tensor:
        cut = []
        for each in sequences:
            ends = [len(each)]
            while self._step is not None and ends[-1] > self._length:
                ends.append(ends[-1] - self._step)
            cut += [each[:end] for end in ends]
        return padded(cut, self._length)

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        """As the items' names in the log. columns: (n, L) ids each."""
        names = ["", "[MASK]", *self.items]
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        told = ["\n".join(f"{n}. {' '.join(names[i] for i in ids if i)}" for n, ids in enumerate(r, 1)) for r in rows]
        file = path.with_suffix(".txt")
        file.write_text("\n\n".join(told) + "\n", encoding="utf-8")
        return file


class Interactions(Sequences):
    """A user's own log: a .csv, .tsv or .parquet file with a row for each interaction, in any order.

    file: its path. user, item, time: names of its columns; others are not read. Users and items are any text or
    numbers; times are numbers, or a Parquet file's timestamps. The rest is told at Sequences.
    Raises RequestError for a file that can't be read.
    """

    def __init__(
        self,
        *,
        file: str,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        min_count: Annotated[int, Gt(0)] = 5,
        length: Annotated[int, Gt(1)] = 50,
        step: Annotated[int, Gt(0)] | None = None,
        last: Annotated[float, Ge(0), Le(1)] = 0.0,
    ):
        log = read(home(file), user, item, time)
        super().__init__(log, file, min_count=min_count, length=length, step=step, last=last)


def padded(sequences: Sequence[Tensor], length: int) -> Tensor:
    """N sequences of any length -> (N, length) int32: the last `length` ids of each, padded on the left."""
    x = torch.full((len(sequences), length), PAD, dtype=torch.int32)
    for row, each in zip(x, sequences, strict=True):
        if len(each):
            row[-len(each) :] = each[-length:]
    return x


def numbered(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different names, in an order that does not depend on theirs (by number, where all are whole numbers), and
    the (N,) int64 place of each in it."""
    known = set(names)
    order = sorted(known, key=(lambda n: (int(n), n)) if all(n.isdecimal() for n in known) else None)
    place = {name: n for n, name in enumerate(order)}
    return order, np.array([place[name] for name in names], np.int64)


def core(users: np.ndarray, items: np.ndarray, of_user: int, of_item: int) -> np.ndarray:
    """(N,) numbers -> (N,) bool: the largest part of the interactions in which every user has `of_user` or more and
    every item `of_item`."""
    kept = np.ones(len(users), bool)
    while True:
        by_user = np.bincount(users[kept], minlength=users.max(initial=-1) + 1)
        by_item = np.bincount(items[kept], minlength=items.max(initial=-1) + 1)
        still = kept & (by_user[users] >= of_user) & (by_item[items] >= of_item)
        if (still == kept).all():
            return kept
        kept = still


# --- how it is read -------------------------------------------------------------------------------------------


def read(path: str, user: str, item: str, time: str, names: Sequence[str] | None = None) -> Log:
    """names: of the columns, for a file whose first line does not tell them. Raises RequestError."""
    extension = os.path.splitext(path)[1].lower()
    if not os.path.isfile(path):
        raise RequestError(f"data.file={path!r}: there is no such file; give the one that holds the interactions")
    wanted = {"user": user, "item": item, "time": time}
    if extension == ".parquet":
        return _parquet(path, wanted)
    if extension not in DELIMITERS:
        raise RequestError(f"data.file={path!r}: can't be read; .csv, .tsv and .parquet files can")
    return _table(path, wanted, DELIMITERS[extension], names)


def _table(path: str, wanted: dict[str, str], delimiter: str, names: Sequence[str] | None) -> Log:
    columns: tuple[list[str], list[str], list[float]] = [], [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter)
            header = list(names or next(rows, []))
            places = [_place(path, key, name, header) for key, name in wanted.items()]
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if not row:
                    continue
                if len(row) <= max(places):
                    raise RequestError(f"{where}: has {len(row)} columns, fewer than needed; mend or remove it")
                who, what, when = (row[place] for place in places)
                columns[0].append(_named(who, "user", where))
                columns[1].append(_named(what, "item", where))
                columns[2].append(_number(when, wanted["time"], where))
    except OSError as error:
        raise RequestError(f"data.file={path!r}: can't be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"data.file={path!r}: is no UTF-8 table that can be read: {error}") from error
    return Log(columns[0], columns[1], np.array(columns[2]))


def _place(path: str, key: str, name: str, header: Sequence[str]) -> int:
    if name not in header:
        raise RequestError(
            f"data.{key}={name!r}: {path!r} has no such column{nearest(name, header)}; set data.{key} to the one meant"
        )
    return header.index(name)


def _named(name: str, kind: str, where: str) -> str:
    if not name:
        raise RequestError(f"{where}: names no {kind}; mend or remove it")
    return name


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(
            f"{where}: {column} is {text!r}, which is no number; give times as numbers, such as seconds since 1970"
        )
    return value


def _parquet(path: str, wanted: dict[str, str]) -> Log:
    pyarrow = arrow(path, "data.file")
    parquet, types = pyarrow.parquet, pyarrow.types
    try:
        header = parquet.read_schema(path).names
        for key, name in wanted.items():
            _place(path, key, name, header)
        table = whole(path, "data.file", list(dict.fromkeys(wanted.values())))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RequestError(f"data.file={path!r}: is no Parquet file that can be read: {error}") from error
    for name in wanted.values():
        if table[name].null_count:
            raise RequestError(f"data.file={path!r}: {table[name].null_count} rows have no {name}; remove them")
    times: Any = table[wanted["time"]]
    if types.is_temporal(times.type):
        times = times.cast(pyarrow.timestamp("us")).cast(pyarrow.int64())
    if not (types.is_integer(times.type) or types.is_floating(times.type)):
        raise RequestError(
            f"data.time={wanted['time']!r}: holds {times.type} values in {path!r}; give times as numbers or timestamps"
        )
    numbers = times.to_numpy()
    if not np.isfinite(numbers).all():
        raise RequestError(f"data.time={wanted['time']!r}: {path!r} has times that are no numbers; remove those rows")
    users, items = (list(map(str, table[wanted[key]].to_pylist())) for key in ("user", "item"))
    return Log(users, items, numbers)
