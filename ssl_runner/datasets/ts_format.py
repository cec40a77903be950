"""The .ts format of the UEA and UCR archives (https://www.timeseriesclassification.com), as aeon and sktime read it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ssl_runner.datasets.base import BrokenSample

UNEVEN = 1000  # times as large as the values in it, a recording with its short channels filled up may be
Entry = tuple[np.ndarray, str | None]
"""(C, n) float32 values, NaN where one is missing or a channel is shorter than the longest; and the class."""


def parse(lines: Iterable[str], path: str) -> list[Entry]:
    """The recordings of a file, one a line: channels are divided by `:`, values by `,`, a missing one is `?`, and the
    class stands behind the last `:`. Values with a time, as (time,value), keep their order and lose the time.

    Raises BrokenSample, which names the line, for what is none of this.
    """
    header: dict[str, list[str]] = {}
    entries: list[Entry] = []
    data = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        where = f"{path}:{number}"
        if not text or text[0] in "#%":
            continue
        if data:
            entries.append(_entry(text, header, where))
        elif text[0] != "@":
            raise BrokenSample(f"{where}: neither a comment nor a line of the header, which ends with @data")
        else:
            key, *values = text[1:].split() or [""]
            data = key.lower() == "data"
            header[key.lower()] = values
    if _says(header, "targetlabel"):
        raise BrokenSample(f"{path}: its labels are values (@targetLabel true); only classes are read")
    if not entries:
        raise BrokenSample(f"{path}: holds no recording behind @data")
    return entries


def _entry(text: str, header: dict[str, list[str]], where: str) -> Entry:
    *channels, last = text.split(":") if not _says(header, "timestamps") else _timed(text)
    label: str | None = None
    if _says(header, "classlabel"):
        label = last.strip()
        known = header["classlabel"][1:]
        if known and label not in known:
            raise BrokenSample(f"{where}: the class {label!r} is none of those that @classLabel names")
    else:
        channels.append(last)
    if not channels or not all(channel.strip() for channel in channels):
        raise BrokenSample(f"{where}: has a channel without values")
    rows = [[_number(value, where) for value in channel.split(",")] for channel in channels]
    longest, there = max(map(len, rows)), sum(map(len, rows))
    if len(rows) * longest > UNEVEN * there:
        raise BrokenSample(f"{where}: its {len(rows)} channels differ too much in length; the longest has {longest}")
    values = np.full((len(rows), longest), np.nan, np.float32)
    for into, row in zip(values, rows, strict=True):
        into[: len(row)] = row
    return values, label


def _timed(text: str) -> list[str]:
    """ "(t,1),(t,2):(t,3):class", where t may hold colons -> ["1,2", "3", "class"]."""
    parts: list[list[str]] = [[]]
    rest = text.strip()
    while rest.startswith("("):
        inner, _, rest = rest[1:].partition(")")
        parts[-1].append(inner.rpartition(",")[2])
        rest = rest.lstrip(", ")
        if rest.startswith(":"):
            parts.append([])
            rest = rest[1:].lstrip()
    told = [",".join(values) for values in parts]
    return [*told[:-1], rest] if not told[-1] else [*told, rest] if rest else told


def _number(text: str, where: str) -> float:
    if text.strip() in ("?", "NaN", "nan"):
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        raise BrokenSample(f"{where}: {text.strip()!r} is no number, and ? for a missing one neither") from None
    if np.isinf(value):
        raise BrokenSample(f"{where}: holds an infinite value")
    return value


def _says(header: dict[str, list[str]], key: str) -> bool:
    return [value.lower() for value in header.get(key, [])[:1]] == ["true"]
