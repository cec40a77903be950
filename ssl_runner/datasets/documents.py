"""Documents in files: plain text, JSON lines, CSV and Parquet, read one by one."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.layout import PARTS, find_files, lay_out, top
from ssl_runner.datasets.parquet import arrow
from ssl_runner.datasets.published import home
from ssl_runner.errors import RequestError, nearest

Extension = Literal["auto", ".txt", ".jsonl", ".csv", ".parquet"]
EXTENSIONS = (".txt", ".jsonl", ".csv", ".parquet")
TEXT, LABEL = "text", "label"  # columns; the second need not be there
NAMED = 5  # left-out documents named in one warning


class Document(NamedTuple):
    text: str
    label: str | None
    where: str  # its file, and its line or row in it
    tags: Sequence[str] = ()  # the class of each word, words being what white space parts; or nothing


Read = Callable[[str], Iterator[Document | BrokenSample]]


class Corpus:
    """Documents in the files of a layout, each read anew whenever it is asked for.

    root: a folder. parts: `train`, and `val` and `test` where the layout has them -> their files, within root.
    read: a file's path -> its documents; BrokenSample in place of one, or of the rest of a file, that can't be read.
    how: what else decides what is read, for the cache's key.
    on_broken: leave out what can't be read, or raise RequestError at it.
    """

    def __init__(
        self, root: str, parts: dict[str, list[str]], read: Read, how: str, on_broken: Literal["skip", "stop"]
    ):
        self.root, self.parts, self.read, self.how, self.on_broken = root, parts, read, how, on_broken

    def documents(self, part: str, left_out: LeftOut | None = None) -> Iterator[Document]:
        """All documents of a part that can be read and are not empty, always in the same order."""
        left_out = left_out or LeftOut()
        for path in (os.path.join(self.root, file) for file in self.parts[part]):
            with _opened(path):
                for found in self.read(path):
                    if isinstance(found, BrokenSample):
                        if self.on_broken == "stop":
                            raise RequestError(f"{found}; mend or remove it, or set data.on_broken=skip") from found
                        left_out.add("broken", str(found))
                    elif not found.text or found.text.isspace():
                        left_out.add("empty", repr(found.where))
                    else:
                        yield found

    def fingerprint(self) -> str:
        """Of all that is read: names, contents, and how."""
        known = hashlib.blake2b(f"{self.how} {self.on_broken}".encode(), digest_size=16)
        for part, files in self.parts.items():
            for file in files:
                path = os.path.join(self.root, file)
                with _opened(path), open(path, "rb") as opened:
                    known.update(os.fsencode(f"\n{part}\n{file}\n{os.path.getsize(path)}\n"))
                    while block := opened.read(1 << 20):
                        known.update(block)
        return known.hexdigest()


class LeftOut:
    """What was left out, and why: counts, and the first few by name."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.named: dict[str, list[str]] = {}

    def add(self, why: str, where: str) -> None:
        self.counts[why] = self.counts.get(why, 0) + 1
        named = self.named.setdefault(why, [])
        if len(named) < NAMED:
            named.append(where)

    def warning(self) -> str:
        """One line for all of them; nothing where there are none."""
        told = [f"{count} {why} documents ({'; '.join(self.named[why])}...)" for why, count in self.counts.items()]
        return f"warning: left out {' and '.join(told)}" if told else ""


# --- where they are -------------------------------------------------------------------------------------------


def folder(
    root: str,
    *,
    extension: Extension,
    text_column: str,
    label_column: str,
    encoding: str,
    on_broken: Literal["skip", "stop"],
) -> Corpus:
    """The documents of a folder. Raises RequestError where there are none, or it can't be told which are meant."""
    root = home(root)
    if not os.path.isdir(root):
        raise RequestError(f"data.root={root!r}: there is no such folder; give the one that holds the text files")
    try:
        codec = codecs.lookup(encoding).name
    except LookupError:
        raise RequestError(
            f"data.encoding={encoding!r}: no such encoding; utf-8, utf-16 and latin-1 are common"
        ) from None
    codec = "utf-8-sig" if codec == "utf-8" else codec  # that drops the mark with which some editors begin a file
    kind, files = _of_one_kind(root, extension)
    if kind == ".txt" and (text_column, label_column) != (TEXT, LABEL):
        raise RequestError(
            f"data.text_column={text_column!r}, data.label_column={label_column!r}: .txt files have no columns"
        )
    parts = lay_out(root, files, [kind]) if kind == ".txt" else _tables(root, files)
    labels = {os.path.join(root, part, f): top(f) for part, names in parts.values() for f in names}

    def read(path: str) -> Iterator[Document | BrokenSample]:
        if kind == ".txt":
            yield _plain(path, labels[path], codec)
        elif kind == ".jsonl":
            yield from _json_lines(path, text_column, label_column, codec)
        elif kind == ".csv":
            yield from _csv(path, text_column, label_column, codec)
        else:
            yield from _parquet(path, text_column, label_column)

    found = {part: [os.path.join(inside, f) for f in names] for part, (inside, names) in parts.items()}
    how = json.dumps([kind, text_column, label_column, codec])
    return Corpus(root, found, read, how, on_broken)


def _of_one_kind(root: str, extension: Extension) -> tuple[str, list[str]]:
    wanted = EXTENSIONS if extension == "auto" else (extension,)
    files: dict[str, list[str]] = {}
    for file in find_files(root, wanted):
        files.setdefault(os.path.splitext(file)[1].lower(), []).append(file)
    if not files:
        others = sorted({os.path.splitext(f)[1] or f for _, _, names in os.walk(root) for f in names})
        there = f"only {', '.join(others[:8])}" if others else "it is empty"
        raise RequestError(f"data.root={root!r}: no {', '.join(wanted)} files in it ({there}); put the documents there")
    if len(files) > 1:
        raise RequestError(
            f"data.root={root!r}: holds {' and '.join(sorted(files))} files; say which are meant with data.extension"
        )
    return next(iter(files.items()))


def _tables(root: str, files: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """train.csv, val.csv and test.csv are parts as well as folders of these names."""
    stems = {f: top(f) or os.path.splitext(f)[0] for f in files}
    others = sorted(set(stems.values()) - set(PARTS))
    if "train" not in stems.values():
        if len(others) < len(set(stems.values())):
            odd = next(f for f in files if stems[f] in PARTS)
            raise RequestError(f"data.root={root!r}: there is {odd!r} but nothing named train")
        return {"train": ("", list(files))}
    if others:
        raise RequestError(
            f"data.root={root!r}: beside train there is {others[0]!r}, which is no part of a data set"
            f"{nearest(others[0], PARTS)}; rename it or move it away"
        )
    return {part: ("", [f for f in files if stems[f] == part]) for part in PARTS if part in stems.values()}


# --- how they are read ----------------------------------------------------------------------------------------


@contextmanager
def _opened(path: str) -> Iterator[None]:
    """Every fault of a file as a whole becomes RequestError."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"data.root: {path!r} can't be read ({error.strerror or error})") from error


def _plain(path: str, label: str | None, codec: str) -> Document | BrokenSample:
    with open(path, "rb") as file:
        content = file.read()
    try:
        return Document(content.decode(codec), label, path)
    except UnicodeDecodeError as error:
        return _undecoded(path, codec, f"byte {error.start}")


def _undecoded(where: str, codec: str, what: str) -> BrokenSample:
    name = codec.removesuffix("-sig")
    return BrokenSample(f"{where!r} can't be read: {what} is no {name} (another encoding is set by data.encoding)")


def _lines(path: str, codec: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; what can't be decoded is left in them as surrogates, which `_sound` finds."""
    with open(path, encoding=codec, errors="surrogateescape", newline="\n") as file:
        yield from enumerate(file, 1)


def _sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_lines(path: str, text_column: str, label_column: str, codec: str) -> Iterator[Document | BrokenSample]:
    where = path
    try:
        for number, line in _lines(path, codec):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            if not _sound(line):
                yield _undecoded(where, codec, "the line")
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BrokenSample(f"{where!r} can't be read: {error}")
                continue
            if not isinstance(row, dict):
                yield BrokenSample(f"{where!r} can't be read: it is no object with a {text_column!r}")
                continue
            _needs(text_column, row, where)
            yield _document(row[text_column], row.get(label_column), where)
    except UnicodeError:  # of a codec that can't leave anything in a line
        yield _undecoded(path, codec, f"what follows {where!r}")


def _csv(path: str, text_column: str, label_column: str, codec: str) -> Iterator[Document | BrokenSample]:
    with open(path, encoding=codec, errors="surrogateescape", newline="") as file, _long_fields():
        rows = csv.DictReader(file)
        try:
            _needs(text_column, rows.fieldnames or (), path)
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if _sound(row[text_column] or "") and _sound(row.get(label_column) or ""):
                    yield _document(row[text_column], row.get(label_column) or None, where)
                else:
                    yield _undecoded(where, codec, "the row")
        except (csv.Error, UnicodeError) as error:
            yield BrokenSample(f"{path}:{rows.line_num}: is no CSV that can be read: {error}")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Without the csv module's limit of 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: str, text_column: str, label_column: str) -> Iterator[Document | BrokenSample]:
    pyarrow = arrow(path, "data.root")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _needs(text_column, names, path)
            columns = [text_column, *([label_column] if label_column in names else [])]
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(row[text_column], row.get(label_column), f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield BrokenSample(f"{path!r} is no Parquet file that can be read: {error}")


def _needs(column: str, names: Any, where: str) -> None:
    if column not in names:
        raise RequestError(f"data.text_column={column!r}: {where!r} has no such column{nearest(column, names)}")


def _document(text: Any, label: Any, where: str) -> Document | BrokenSample:
    if not isinstance(text, str):
        return BrokenSample(f"{where!r} can't be read: its text is {text!r:.40}")
    if not isinstance(label, str | int | float | None):
        return BrokenSample(f"{where!r} can't be read: its label is {label!r:.40}")
    # JSON may spell half a character, which no encoding has
    text = text if _sound(text) else text.encode("utf-8", "replace").decode()
    return Document(text, None if label is None else str(label), where)


def warn(text: str) -> None:
    if text:
        print(text, file=sys.stderr)
