"""Text from the Hugging Face Hub, by name, or from a folder that its `datasets` package can load."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from annotated_types import Ge, Gt

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.documents import LABEL, TEXT, Corpus, Document, LeftOut
from ssl_runner.datasets.text import CACHE, Documents, Pretrain
from ssl_runner.datasets.tokenizer import Kind
from ssl_runner.errors import RequestError, nearest


class Hub(Documents):
    """Any text data set of the Hub, streamed document by document; what is kept on disk are ids.

    name: of the data set, such as stanfordnlp/imdb, or a folder of CSV, JSON, Parquet or text files. config: which of
    its configurations, where it has several. revision: a commit, tag or branch; None takes what is newest.
    train_split, val_split, test_split: its splits' names; where there is no val_split or test_split, `val` and `test`
    are shares of the train part, each class alike. text_column, label_column: the default label need not be there; a
    negative label of numbered classes means none, as the Hub has it in test parts whose labels are secret.

    A data set is read anew for each pass: one to divide it, one or two to train a tokenizer and one to write ids.
    It is known again by the commit of its files, or the times of a folder's files.
    The rest is told at Documents. Raises RequestError for what is not there or can't be reached.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        text_column: str = TEXT,
        label_column: str = LABEL,
        length: Annotated[int, Gt(1)] = 128,
        tokenizer: Kind | str = "bpe",
        vocab_size: Annotated[int, Gt(0)] | None = None,
        val: Annotated[float, Ge(0)] = 0.1,
        test: Annotated[float, Ge(0)] = 0.1,
        pretrain: Pretrain = "packed",
        cache: str = CACHE,
    ):
        splits = {"train": train_split, "val": val_split, "test": test_split}
        corpus = Streamed(
            name,
            config,
            revision,
            {part: split for part, split in splits.items() if split is not None},
            text_column,
            label_column,
        )
        super().__init__(
            corpus,
            length=length,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            val=val,
            test=test,
            pretrain=pretrain,
            cache=cache,
        )
        if label_column != LABEL and not self.classes:
            raise RequestError(f"data.label_column={label_column!r}: no document of {name!r} has such a column")


class Streamed(Corpus):
    """The documents of a data set. splits: part -> the data set's name of it."""

    def __init__(
        self,
        name: str,
        config: str | None,
        revision: str | None,
        splits: dict[str, str],
        text_column: str,
        label_column: str,
    ):
        how = json.dumps(["hub", config, splits, text_column, label_column])
        super().__init__(name, {part: [split] for part, split in splits.items()}, self._rows, how, "stop")
        self.text_column, self.label_column = text_column, label_column
        self._library = _library()
        self._given = {"path": os.path.expanduser(name), "name": config, "revision": revision}
        with self._reached():
            self._hash = self._library.load_dataset_builder(**self._given).hash

    def fingerprint(self) -> str:
        """Of the files' commit, or of their times in a folder, and of how they are read."""
        return hashlib.blake2b(f"{self.how} {self._hash}".encode(), digest_size=16).hexdigest()

    def documents(self, part: str, left_out: LeftOut | None = None) -> Iterator[Document]:
        """All documents of a part that are not empty, in the data set's order."""
        left_out = left_out or LeftOut()
        (split,) = self.parts[part]
        for found in self._rows(split):
            if isinstance(found, BrokenSample):
                raise RequestError(f"{found}; mend it, or choose another data.text_column or data.label_column")
            if found.text.strip():
                yield found
            else:
                left_out.add("empty", found.where)

    def _rows(self, split: str) -> Iterator[Document | BrokenSample]:
        with self._reached():
            rows = self._library.load_dataset(**self._given, split=split, streaming=True)
            names = getattr((rows.features or {}).get(self.label_column), "names", None)
            for number, row in enumerate(rows):
                if self.text_column not in row:
                    raise RequestError(
                        f"data.text_column={self.text_column!r}: {self.root!r} has no such column"
                        f"{nearest(self.text_column, row)}"
                    )
                where = f"{self.root}, {split}, row {number}"
                yield _document(row[self.text_column], row.get(self.label_column), names, where)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Every fault of the data set as a whole becomes RequestError."""
        try:
            yield
        except ConnectionError as error:
            raise RequestError(
                f"data.name={self.root!r}: the Hub can't be reached ({error}), and no folder here has this name; fetch "
                f"it elsewhere with `hf download --repo-type dataset {self.root} --local-dir FOLDER` and set "
                "data.name=FOLDER"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise RequestError(
                f"data.name={self.root!r}: can't be read ({str(error) or type(error).__name__}); see to data.name, "
                "data.config, data.revision and the names of its splits"
            ) from error


def _document(text: Any, label: Any, names: list[str] | None, where: str) -> Document | BrokenSample:
    """names: of numbered classes."""
    if not isinstance(text, str):
        return BrokenSample(f"{where} can't be read: its text is {text!r:.40}")
    if not isinstance(label, str | int | float | None):
        return BrokenSample(f"{where} can't be read: its label is {label!r:.40}")
    if names is not None and isinstance(label, int):
        label = names[label] if label >= 0 else None
    return Document(text.encode("utf-8", "replace").decode(), None if label is None else str(label), where)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RequestError("data: needs the package datasets; run `pip install 'ssl-runner[hub]'`") from error
    return datasets
