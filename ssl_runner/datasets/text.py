"""Text as ids: a user's own files, tokenised once and kept in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.datasets import tokenizer as tokenizers
from ssl_runner.datasets.base import Arrays, Key, Source, Split
from ssl_runner.datasets.documents import LABEL, TEXT, Corpus, Extension, LeftOut, folder, warn
from ssl_runner.datasets.mapped import Rows, numbers
from ssl_runner.datasets.published import home
from ssl_runner.datasets.splits import stratified
from ssl_runner.datasets.tokenizer import Bytes, Encoded, Kind, Tokenizer, bag, pieces
from ssl_runner.errors import RequestError
from ssl_runner.types import Samples, View

FORMAT = 2  # of the cache; raise it when what is written changes
CACHE = "~/.cache/ssl-runner"
Part = Literal["train", "val", "test"]
SPLITS: tuple[Part, ...] = get_args(Part)
Pretrain = Literal["packed", "documents", "lines"]
Row = Literal["documents", "lines"]  # what stands in it, one behind the other
ABOUT = "about.json"
END_OF_DOCUMENT, END_OF_WORD, END_OF_LINE, FIRST_WORD = range(256, 260)  # symbols; those below are bytes
AT_ONCE = 1 << 20  # characters that are encoded together


class Ids(Arrays):
    """Samples of one long row of ids in a memory-mapped file: only what is fetched is read.

    row: (n,) int32, id after id; ~id where it goes on with the word before. bounds: (N, 2) int64, where in the row
    each sample begins and ends; it is kept as `x`. length: L, to which samples are cut off or padded. label: (N,)
    int64, or None. tag: (n,) int16, the class of each id of the row, -100 for none; or None. padded: whether samples
    may be short.
    """

    def __init__(
        self,
        row: Tensor | Rows,
        bounds: Tensor,
        length: int,
        tokenizer: Tokenizer,
        *,
        label: Tensor | None,
        tag: Tensor | Rows | None,
        padded: bool,
    ):
        super().__init__(bounds, label)
        self.row, self.length, self.tag, self.padded = row, length, tag, padded
        self.padding = tokenizer.pad
        self.in_words = torch.ones(tokenizer.vocab, dtype=torch.bool)
        self.in_words[[*tokenizer.special, tokenizer.separator, tokenizer.pad]] = False

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        """B keys -> (B, L) ids and, where samples may be short, "pad": (B, L) bool, True at padding."""
        index = torch.tensor([k for k, _ in keys], dtype=torch.int64)
        start, stop = self.x[index].split(1, dim=1)
        place = start + torch.arange(self.length)
        there = place < stop
        place = place.clamp(max=len(self.row) - 1)
        marked = self.row[place]
        ids = torch.where(marked < 0, ~marked, marked).masked_fill(~there, self.padding)
        view = {"x": ids, "pad": ~there} if self.padded else {"x": ids}
        samples: Samples = {"inputs": [view], "index": index, "unit": units(self.in_words[ids] & there, marked < 0)}
        if self.label is not None:
            samples["label"] = self.label[index]
        if self.tag is not None:
            samples["tag"] = self.tag[place].long().masked_fill(~there, -100)
        return samples


def units(inside: Tensor, goes_on: Tensor) -> Tensor:
    """(B, L) int64, the number of each id's word in its sample, from 0 up; -1 where it is in none.

    inside: (B, L) bool, whether an id is of a word. goes_on: (B, L) bool, whether it is of the same as the one before,
    as one may be behind an unknown letter, which has no number of its own.
    """
    begins = ~goes_on
    begins[:, 0] = True  # what it went on with is in another sample
    return torch.where(inside, begins.cumsum(1) - 1, -1)


class Documents(Source):
    """Documents as ids: what every source of text shares.

    Documents are divided, not samples. In `train`, `val` and `test` a sample is one document, ended by the separator,
    cut off at `length` ids or padded to it. In `pretrain`, and in the other parts as a pretext, it is what `pretrain`
    says:
      packed     documents stand one after the other, each ended by the separator, cut into samples of `length` ids
                 with no padding; an incomplete last one is left out
      documents  as in `train`
      lines      each line that is not empty, of each document, ended by the separator, cut off or padded
    Samples tell which ids are of one word ("unit": see Tokenizer) and, where documents have tags, each word's class at
    its first id ("tag"; not in `pretrain`).

    corpus: where documents come from. tokenizer: a kind, which is trained on the train part alone, or a tokenizer.json.
    vocab_size: of a tokenizer that is trained; None takes 8192. val, test: shares of the documents, each class alike,
    used where the layout has no such part. cache: a folder for tokenizers and ids; whatever decides them is in their
    names, so nothing in it goes stale, and what is not in use may be removed. The length is none of it.
    Opening reads the files to see whether they are known, and tokenises what is not.
    Raises RequestError for what can't be read, and for a part that gives no sample.

    facts: shape (length,), size, vocab, length, mask, special, separator, words, num_classes.
    """

    labelled: bool | None = None  # type: ignore[misc]  # set by what is found

    def __init__(
        self,
        corpus: Corpus,
        *,
        length: int,
        tokenizer: str,
        vocab_size: int | None,
        val: float,
        test: float,
        cache: str,
        pretrain: Pretrain = "packed",
    ):
        if val < 0 or test < 0 or val + test >= 1:
            raise RequestError(f"data.val={val}, data.test={test}: give shares from 0 that leave some for training")
        size = tokenizers.size_of(tokenizer, vocab_size)
        self._corpus, self._shares = corpus, {"val": val, "test": test}
        self._length, self._packed = length, pretrain == "packed"
        store = Path(home(cache))
        try:
            store.mkdir(parents=True, exist_ok=True)
            rows: tuple[Row, ...] = ("documents", "lines") if pretrain == "lines" else ("documents",)
            found = _open_or_make(corpus, store, tokenizer, size, rows, self._shares)
        except OSError as error:
            raise RequestError(
                f"data.cache={cache!r}: can't be written ({error.strerror or error}); set it to a folder that can"
            ) from error
        folders, self.tokenizer, self._trained = found
        self._documents, self._pretext = folders[0], folders[-1]
        about = _about(self._documents)
        warn(about["warning"])
        self.classes, self.tags = tuple(about["classes"]), tuple(about["tags"])
        self.labelled = bool(self.classes)
        self.facts = {**self.tokenizer.facts(length), "num_classes": len(self.classes)}
        if not len(self.split("pretrain")):
            raise RequestError(
                f"data.length={length}: the train part has {self.measure('train')['ids']} ids in all, which gives no "
                "sample; use a smaller length, or more text"
            )

    def split(self, name: Split) -> Ids:
        if name == "pretrain":
            return self._unlabelled("train")
        label = torch.from_numpy(np.load(self._documents / f"{name}_label.npy")) if self.labelled else None
        tag = numbers(self._documents / f"{name}.tags", np.int16) if self.tags else None
        return self._items(self._documents, name, label, tag)

    def pretext(self, name: Literal["val", "test"]) -> Ids:
        return self._unlabelled(name)

    def _unlabelled(self, name: Part) -> Ids:
        if not self._packed:
            return self._items(self._pretext, name, None, None)
        row = numbers(self._pretext / f"{name}.ids", np.int32)
        ends = torch.arange(len(row) // self._length + 1) * self._length
        bounds = torch.stack([ends[:-1], ends[1:]], 1)
        return Ids(row, bounds, self._length, self.tokenizer, label=None, tag=None, padded=False)

    def _items(self, folder: Path, name: str, label: Tensor | None, tag: Rows | None) -> Ids:
        ends = torch.from_numpy(np.fromfile(folder / f"{name}.ends", np.int64))
        bounds = torch.stack([F.pad(ends[:-1], (1, 0)) if len(ends) else ends, ends], 1)
        row = numbers(folder / f"{name}.ids", np.int32)
        return Ids(row, bounds, self._length, self.tokenizer, label=label, tag=tag, padded=True)

    def measure(self, name: Part) -> dict[str, int]:
        """Of the whole row that a part's pretext is cut out of: its `ids`, separators among them, and its `bytes`,
        those of its text in UTF-8 and one for each end of a document (of a line, where `pretrain` is lines)."""
        ids = (self._pretext / f"{name}.ids").stat().st_size // np.dtype(np.int32).itemsize
        return {"ids": ids, "bytes": _about(self._pretext)["bytes"][name]}

    @property
    def symbols(self) -> dict[str, int]:
        """How many symbols each kind of `sequences` has."""
        return {"bytes": END_OF_DOCUMENT + 1, "words": FIRST_WORD + len(self._words)}

    def sequences(self, name: Part) -> dict[str, Iterator[Sequence[int]]]:
        """The documents of a part, read anew from their files, as sequences of symbols that no tokenizer made: what
        plain models of text are trained and scored on. The text can be had back from each kind.

        bytes: its bytes in UTF-8, and END_OF_DOCUMENT.
        words: each word that is at least twice in the train part is a symbol of its own, from FIRST_WORD on; another is
        its bytes and END_OF_WORD. Words are what single spaces part in a line, so there may be empty ones. A line ends
        with END_OF_LINE, the last one with END_OF_DOCUMENT.
        """
        return {
            "bytes": ([*text.encode(), END_OF_DOCUMENT] for text in self._texts(name)),
            "words": (in_words(text, self._words) for text in self._texts(name)),
        }

    def _texts(self, name: Part) -> Iterator[str]:
        return (item.text for item in self._division.items() if item.split == name)

    @cached_property
    def _division(self) -> Division:
        return Division(self._corpus, self._shares)

    @cached_property
    def _words(self) -> dict[str, int]:
        """The words that are symbols of their own, in sorted order."""
        counts = Counter(word for text in self._texts("train") for line in text.split("\n") for word in words_of(line))
        return {word: n for n, word in enumerate(sorted(w for w in counts if counts[w] > 1), FIRST_WORD)}

    def pinned(self) -> dict[str, Any]:
        """The tokenizer that was trained here: on other text, or another part of it, another would be, whose ids mean
        other things."""
        return {} if self._trained is None else {"tokenizer": str(self._trained), "vocab_size": None}

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        """As text, column by column. columns: (n, L) ids each."""
        if any(column.ndim != 2 or column.is_floating_point() for column in columns):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        told = ["\n".join(f"{n}. {self.tokenizer.spelled(ids)}" for n, ids in enumerate(row, 1)) for row in rows]
        file = path.with_suffix(".txt")
        file.write_text("\n\n".join(told) + "\n", encoding="utf-8")
        return file

    def raw(self, view: View) -> Tensor:
        return bag(view, self.tokenizer.vocab)


class Text(Documents):
    """A user's own text: .txt, .jsonl, .csv or .parquet files in a folder.

      <root>/<class>/*.txt                       one document a file; split here, each class alike
      <root>/{train,val,test}/<class>/*.txt      where there is no val or test folder, it is split off from train
      <root>/*.txt                               no labels; the same for parts without class folders
      <root>/{train,val,test}.{jsonl,csv,parquet}   one document a line or row; folders of these names will do as well
      <root>/*.{jsonl,csv,parquet}               split here

    extension: which files are meant, where a folder has several kinds. text_column, label_column: names of columns, or
    of keys of JSON objects; the default label need not be there. encoding: of all files but Parquet.
    on_broken: stop at a document that can't be read, or leave it out with a warning, or what is left of a file that is
    broken as a whole. Empty ones are always left out.
    The rest is told at Documents.
    """

    def __init__(
        self,
        *,
        root: str,
        length: Annotated[int, Gt(1)] = 128,
        tokenizer: Kind | str = "bpe",
        vocab_size: Annotated[int, Gt(0)] | None = None,
        pretrain: Pretrain = "packed",
        extension: Extension = "auto",
        text_column: str = TEXT,
        label_column: str = LABEL,
        encoding: str = "utf-8",
        val: Annotated[float, Ge(0)] = 0.1,
        test: Annotated[float, Ge(0)] = 0.1,
        on_broken: Literal["skip", "stop"] = "stop",
        cache: str = CACHE,
    ):
        corpus = folder(
            root,
            extension=extension,
            text_column=text_column,
            label_column=label_column,
            encoding=encoding,
            on_broken=on_broken,
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
            raise RequestError(f"data.label_column={label_column!r}: no document in {root!r} has such a column")


# --- symbols that no tokenizer made ---------------------------------------------------------------------------


def words_of(line: str) -> list[str]:
    """What single spaces part; nothing of an empty line."""
    return line.split(" ") if line else []


def in_words(text: str, known: Mapping[str, int]) -> list[int]:
    """As Documents.sequences tells. known: words that have symbols."""
    found: list[int] = []
    for line in text.split("\n"):
        for word in words_of(line):
            found.extend([known[word]] if word in known else [*word.encode(), END_OF_WORD])
        found.append(END_OF_LINE)
    found[-1] = END_OF_DOCUMENT
    return found


# --- from documents to ids ------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A document, or a line of one. label: -1 for none. tags: numbers, of each of its words; or nothing."""

    split: Part
    label: int
    text: str
    tags: Sequence[int] = ()


class Piece(NamedTuple):
    """Of an item's text; at its end one of nothing. places: of the words with a tag, within the piece."""

    item: Item
    text: str
    places: Sequence[int]
    tags: Sequence[int]
    ended: bool


def _open_or_make(
    corpus: Corpus, store: Path, kind: str, vocab_size: int, rows: Sequence[Row], shares: dict[str, float]
) -> tuple[list[Path], Tokenizer, Path | None]:
    """A folder with the ids for each kind of row, and their tokenizer, made where they are not there already."""
    read = _key(corpus.fingerprint(), shares)
    division: Division | None = None
    trained = store / f"tokenizer-{kind}-{vocab_size}-{read}.json"
    if kind == "bytes":
        tokenizer: Tokenizer = Bytes()
        name = "bytes"
    else:
        path = trained if kind in tokenizers.KINDS else Path(kind).expanduser()
        if path == trained and not path.is_file():
            division = Division(corpus, shares)
            tokenizers.train(kind, vocab_size, division.train_texts, path)
        tokenizer, name = tokenizers.read(path), hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    folders = [store / f"ids-{_key(read, name, each)}" for each in rows]
    for row, place in zip(rows, folders, strict=True):
        if (place / ABOUT).is_file():
            continue
        division = division or Division(corpus, shares)
        with tempfile.TemporaryDirectory(dir=store) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            division.write(made, tokenizer, row)
            try:
                made.rename(place)
            except OSError:  # another process was first
                if not (place / ABOUT).is_file():
                    raise
    return folders, tokenizer, trained if kind in tokenizers.KINDS and kind != "bytes" else None


def _key(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps([FORMAT, *parts]).encode(), digest_size=16).hexdigest()


def _about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ABOUT).read_text(encoding="utf-8"))


class Division:
    """Which document is in which part, and of which class: found by reading all of them once.

    Raises RequestError where there are none, some have labels and some have not, or a class is not in train.
    """

    def __init__(self, corpus: Corpus, shares: dict[str, float]):
        self.corpus = corpus
        left_out = LeftOut()
        names: dict[str, int] = {}
        tags: set[str] = set()
        labels: dict[str, list[int]] = {}
        for part in corpus.parts:
            labels[part] = []
            for document in corpus.documents(part, left_out):
                if document.label is not None and part != "train" and document.label not in names:
                    raise RequestError(f"{document.where!r} has the class {document.label!r}, which train has not")
                number = -1 if document.label is None else names.setdefault(document.label, len(names))
                first = labels["train"][0] if labels["train"] else number
                if (number < 0) != (first < 0):
                    has = "no label" if number < 0 else "a label"
                    raise RequestError(f"{document.where!r} has {has}, unlike others; label all documents or none")
                labels[part].append(number)
                tags.update(document.tags)
        self.warning = left_out.warning()
        if not labels["train"]:
            raise RequestError(f"data.root={corpus.root!r}: no document to train on in it; {self.warning or 'no text'}")
        numbers = all(name.isdecimal() for name in names)
        self.classes = sorted(names, key=lambda name: (int(name) if numbers else 0, name))
        self.tags = {name: n for n, name in enumerate(sorted(tags))}
        place = {names[name]: n for n, name in enumerate(self.classes)}
        self.label = {part: np.array([place.get(n, -1) for n in each], np.int64) for part, each in labels.items()}
        self.where = {part: np.full(len(each), SPLITS.index(part)) for part, each in self.label.items()}
        self._hold_out(shares)

    def _hold_out(self, shares: dict[str, float]) -> None:
        wanted = {part: share for part, share in shares.items() if part not in self.corpus.parts}
        ids = stratified(torch.from_numpy(self.label["train"]), (1 - sum(wanted.values()), *wanted.values()))
        for part, each in zip(("train", *wanted), ids, strict=True):
            self.where["train"][each.numpy()] = SPLITS.index(part)

    def items(self) -> Iterator[Item]:
        """Every document."""
        for part, where in self.where.items():
            found = self.corpus.documents(part)
            for split, label, document in zip(where, self.label[part], found, strict=True):
                yield Item(SPLITS[split], int(label), document.text, [self.tags[name] for name in document.tags])

    def lines(self) -> Iterator[Item]:
        """Every line of every document that is not empty. Lines have no tags."""
        for item in self.items():
            for line in item.text.splitlines():
                if line.strip():
                    yield Item(item.split, item.label, line)

    def train_texts(self) -> Iterator[str]:
        """What is trained on, long documents in pieces."""
        return (piece for item in self.items() if item.split == "train" for piece in pieces(item.text))

    def write(self, folder: Path, tokenizer: Tokenizer, row: Row) -> None:
        """Tokenises everything: for each split a row of ids, where documents or lines end in it, tags and labels; and
        about.json."""
        items = self.items() if row == "documents" else self.lines()
        labels: dict[str, list[int]] = {name: [] for name in SPLITS}
        size = dict.fromkeys(SPLITS, 0)
        with ExitStack() as stack:

            def files(kind: str) -> dict[Part, Any]:
                return {name: stack.enter_context(open(folder / f"{name}.{kind}", "wb")) for name in SPLITS}

            rows, ends = files("ids"), files("ends")
            tags = files("tags") if self.tags and row == "documents" else {}
            for piece, encoded in _encoded(items, tokenizer):
                split = piece.item.split
                size[split] += len(piece.text.encode()) + piece.ended
                rows[split].write(np.where(encoded.goes_on, ~encoded.ids, encoded.ids).tobytes())
                if tags:
                    tag = np.full(len(encoded.ids), -100, np.int16)
                    known = encoded.first >= 0
                    tag[encoded.first[known]] = np.array(piece.tags, np.int16)[known]
                    tags[split].write(tag.tobytes())
                if piece.ended:
                    ends[split].write(np.int64(rows[split].tell() // encoded.ids.itemsize).tobytes())
                    labels[split].append(piece.item.label)
        for name, each in labels.items():
            np.save(folder / f"{name}_label.npy", np.array(each, np.int64))
        about = {"classes": self.classes, "tags": list(self.tags), "bytes": size, "warning": self.warning}
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _encoded(items: Iterable[Item], tokenizer: Tokenizer) -> Iterator[tuple[Piece, Encoded]]:
    """Items -> their pieces, and the ids of these: many pieces at once, and long items in several."""
    waiting: list[Piece] = []
    size = 0
    for item in items:
        for piece in _cut(item):
            waiting.append(piece)
            size += len(piece.text)
            if size > AT_ONCE:
                yield from _flush(waiting, tokenizer)
                waiting, size = [], 0
    yield from _flush(waiting, tokenizer)


def _cut(item: Item) -> Iterator[Piece]:
    words = [found.start() for found in re.finditer(r"\S+", item.text)] if item.tags else []
    tags, begin = dict(zip(words, item.tags, strict=True)), 0
    for text in pieces(item.text):
        inside = words[bisect_left(words, begin) : bisect_left(words, begin + len(text))]
        yield Piece(item, text, [place - begin for place in inside], [tags[place] for place in inside], False)
        begin += len(text)
    yield Piece(item, "", (), (), True)


def _flush(waiting: Sequence[Piece], tokenizer: Tokenizer) -> Iterator[tuple[Piece, Encoded]]:
    end = Encoded(np.array([tokenizer.separator], np.int32), np.zeros(1, bool), np.zeros(0, np.int64))
    found = tokenizer.mark([piece.text for piece in waiting], [piece.places for piece in waiting])
    for piece, encoded in zip(waiting, found, strict=True):
        yield piece, end if piece.ended else encoded
