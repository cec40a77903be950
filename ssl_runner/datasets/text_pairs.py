"""Pairs of sentences and how alike people found them, to score embeddings by."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from ssl_runner.datasets import tokenizer as tokenizers
from ssl_runner.datasets.base import Arrays, Key, Source, Split
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.parquet import whole
from ssl_runner.datasets.published import home
from ssl_runner.datasets.tokenizer import Bytes, Tokenizer, bag
from ssl_runner.errors import RequestError, nearest
from ssl_runner.types import Samples, View

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".parquet")


class Pairs(Arrays):
    """x: (N, 2, L) int32 ids, both sentences of a pair. label: (N,) float32 scores. padding: the id that fills."""

    def __init__(self, x: Tensor, label: Tensor, padding: int):
        super().__init__(x, label)
        self.padding = padding

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        """Two inputs, the first and the second sentence: each (B, L) ids and "pad", True at padding."""
        samples = super().__getitems__(keys)
        samples["inputs"] = [_view(x, self.padding) for x in samples["inputs"][0]["x"].unbind(1)]
        return samples


class Sentences(Arrays):
    """x: (N, L) int32 ids, a sentence each. padding: the id that fills."""

    def __init__(self, x: Tensor, padding: int):
        super().__init__(x)
        self.padding = padding

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        samples = super().__getitems__(keys)
        samples["inputs"] = [_view(view["x"], self.padding) for view in samples["inputs"]]
        return samples


class TextPairs(Source):
    """A user's own pairs with their scores: rows of a .csv, .tsv, .jsonl or .parquet file.

    root: a file, which is the test part, or a folder with test.csv (.tsv, ...) and, if you like, train and val of the
    same kind. first, second, score: names of columns, or of keys of JSON objects. A .tsv has no quotation: a tab
    always divides. Text is UTF-8.
    tokenizer: "bytes", or a tokenizer.json; none is trained here. To score a run that was pretrained on other text,
    give the run's own, which its config.yaml has as data.tokenizer, and its data.length:

        ssl-run evaluate from=RUN data=text_pairs data.root=sts.csv data.tokenizer=... data.length=... \\
            evaluators=similarity

    Another tokenizer of the same size would be taken without a word, and its ids mean other things.

    In `train`, `val` and `test` a sample is a pair, with two inputs, and its label the score. In `pretrain` it is one
    sentence of the train part, without a label. A sentence is ended by the separator, and cut off at `length` ids or
    padded. All of it is held in memory: 8 bytes for each of a pair's `length` ids.

    facts: shape (length,), size, vocab, length, mask, special, separator, words, num_classes 0.
    Raises RequestError for what can't be read, with its line; an incomplete row is never left out in silence.
    """

    labelled = False  # the labels are no classes
    valued = True
    paired = True

    def __init__(
        self,
        *,
        root: str,
        tokenizer: str,
        length: Annotated[int, Gt(1)] = 128,
        first: str = "sentence1",
        second: str = "sentence2",
        score: str = "score",
    ):
        if tokenizer in tokenizers.KINDS and tokenizer != "bytes":
            raise RequestError(
                f"data.tokenizer={tokenizer}: none is trained on pairs; give the tokenizer.json of the run to be "
                "scored (data.tokenizer in its config.yaml), or bytes"
            )
        tokenizers.size_of(tokenizer, None)
        self.tokenizer: Tokenizer = Bytes()
        if tokenizer != "bytes":
            self.tokenizer = tokenizers.read(Path(tokenizer).expanduser())
        self._length = length
        self._parts = {
            part: self._read(path, (first, second, score)) for part, path in _files(home(root), root).items()
        }
        self.facts = {**self.tokenizer.facts(length), "num_classes": 0}

    def split(self, name: Split) -> Pairs | Sentences:
        none = Pairs(torch.zeros(0, 2, self._length, dtype=torch.int32), torch.zeros(0), self.tokenizer.pad)
        if name == "pretrain":
            return Sentences(self._parts.get("train", none).x.flatten(0, 1), self.tokenizer.pad)
        return self._parts.get(name, none)

    def raw(self, view: View) -> Tensor:
        return bag(view, self.tokenizer.vocab)

    def _read(self, path: str, columns: tuple[str, str, str]) -> Pairs:
        """Raises RequestError where there is no pair, or all have the same score."""
        found = [_pair(row, columns, where) for where, row in rows_of(path)]
        if not found:
            raise RequestError(f"data.root: {path!r} has no pair in it")
        score = torch.tensor([each for _, _, each in found], dtype=torch.float32)
        texts = [text for first, second, _ in found for text in (first, second)]
        return Pairs(self._ids(texts).unflatten(0, (-1, 2)), score, self.tokenizer.pad)

    def _ids(self, texts: Sequence[str]) -> Tensor:
        """(N, length) int32."""
        ids = torch.full((len(texts), self._length), self.tokenizer.pad, dtype=torch.int32)
        for row, found in zip(ids, self.tokenizer.encode(texts), strict=True):
            ended = np.append(found, np.int32(self.tokenizer.separator))[: self._length]
            row[: len(ended)] = torch.from_numpy(ended)
        return ids


def _view(x: Tensor, padding: int) -> View:
    return {"x": x, "pad": x == padding}


def _files(root: str, given: str) -> dict[str, str]:
    """part -> file. Raises RequestError where there is no test part, or it can't be told which file is meant."""
    if os.path.isfile(root):
        if os.path.splitext(root)[1].lower() not in EXTENSIONS:
            raise RequestError(f"data.root={given!r}: no {', '.join(EXTENSIONS)} file")
        return {"test": root}
    if not os.path.isdir(root):
        raise RequestError(f"data.root={given!r}: there is no such file or folder; give the one with the pairs")
    files: dict[str, str] = {}
    for name in sorted(os.listdir(root)):
        part, extension = os.path.splitext(name)
        if part in PARTS and extension.lower() in EXTENSIONS:
            if part in files:
                raise RequestError(f"data.root={given!r}: holds {files[part]!r} and {name!r}; remove one")
            files[part] = name
    if "test" not in files:
        raise RequestError(
            f"data.root={given!r}: holds no test part to score (test{', test'.join(EXTENSIONS)}); name it so, or give "
            "the file itself"
        )
    return {part: os.path.join(root, name) for part, name in files.items()}


def _pair(row: Mapping[str, Any], columns: tuple[str, str, str], where: str) -> tuple[str, str, float]:
    for key, column in zip(("first", "second", "score"), columns, strict=True):
        if column not in row:
            raise RequestError(f"data.{key}={column!r}: {where} has no such column{nearest(column, row)}")
    first, second, score = (row[column] for column in columns)
    if not isinstance(first, str) or not isinstance(second, str):
        raise RequestError(f"{where} can't be read: a sentence is {first if isinstance(second, str) else second!r:.40}")
    try:
        value = float(score)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(f"{where} can't be read: its {columns[2]} is {score!r:.40}, which is no number")
    # JSON may spell half a character, which no encoding has
    return first.encode("utf-8", "replace").decode(), second.encode("utf-8", "replace").decode(), value


def rows_of(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where it stands, and a row by its columns' names. Raises RequestError for what is no such file."""
    extension = os.path.splitext(path)[1].lower()
    try:
        if extension == ".parquet":
            yield from _parquet(path)
            return
        with open(path, encoding="utf-8-sig", newline="") as file:
            if extension == ".jsonl":
                yield from _json_lines(file, path)
            else:
                tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if extension == ".tsv" else {}
                rows = csv.DictReader(file, strict=True, **tabs)
                yield from ((f"{path}:{rows.line_num}", row) for row in rows)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise RequestError(f"data.root: {path!r} can't be read: {error}") from error


def _json_lines(file: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} can't be read: {error}") from error
        if not isinstance(row, dict):
            raise RequestError(f"{where} can't be read: it is no object")
        yield where, row


def _parquet(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = whole(path, "data.root").to_pylist()
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
