"""Text as ids: a user's own files, tokenised once and kept in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.datasets import tokenizer as tokenizers
from ssl_runner.datasets.base import Arrays, Key, Source, Split
from ssl_runner.datasets.documents import LABEL, TEXT, Corpus, Extension, LeftOut, folder, warn
from ssl_runner.datasets.published import home
from ssl_runner.datasets.splits import stratified
from ssl_runner.datasets.tokenizer import Bytes, Kind, Tokenizer, pieces
from ssl_runner.errors import RequestError
from ssl_runner.types import Samples, View

FORMAT = 1  # of the cache; raise it when what is written changes
CACHE = "~/.cache/ssl-runner"
SPLITS = ("train", "val", "test")
AT_ONCE = 1 << 20  # characters that are encoded together


class Ids(Arrays):
    """Samples of ids in a memory-mapped file: only what is fetched is read.

    file: (N, length) int32, as raw numbers. label: (N,) int64, or None. padding: the id that fills short samples;
    None where all are full.
    """

    def __init__(self, file: Path, length: int, label: Tensor | None, padding: int | None):
        samples = file.stat().st_size // (4 * length)
        # "c": torch wants to be able to write, and a write would stay in memory
        ids = np.memmap(file, np.int32, "c", shape=(samples, length)) if samples else np.zeros((0, length), np.int32)
        super().__init__(torch.from_numpy(ids), label)
        self.padding = padding

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        """B keys -> (B, length) ids and, where samples may be short, "pad": (B, length) bool, True at padding."""
        samples = super().__getitems__(keys)
        if self.padding is not None:
            (view,) = samples["inputs"]
            view["pad"] = view["x"] == self.padding
        return samples


class Documents(Source):
    """Documents as ids: what every source of text shares.

    Documents are divided, not samples. In `pretrain` those of the train part stand one after the other, each ended by
    the separator, cut into samples of `length` ids with no padding; an incomplete last one is left out. In `train`,
    `val` and `test` a sample is one document, ended by the separator, cut off at `length` ids or padded to it.

    corpus: where documents come from. tokenizer: a kind, which is trained on the train part alone, or a tokenizer.json.
    vocab_size: of a tokenizer that is trained; None takes 8192. val, test: shares of the documents, each class alike,
    used where the layout has no such part. cache: a folder for tokenizers and ids; whatever decides them is in their
    names, so nothing in it goes stale, and what is not in use may be removed.
    Opening reads the files to see whether they are known, and tokenises what is not.
    Raises RequestError for what can't be read, and for a part that gives no sample.

    facts: shape (length,), size, vocab, length, mask, special, separator, num_classes.
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
    ):
        if val < 0 or test < 0 or val + test >= 1:
            raise RequestError(f"data.val={val}, data.test={test}: give shares from 0 that leave some for training")
        size = tokenizers.size_of(tokenizer, vocab_size)
        self._length = length
        store = Path(home(cache))
        try:
            store.mkdir(parents=True, exist_ok=True)
            found = _open_or_make(corpus, store, tokenizer, size, length, {"val": val, "test": test})
        except OSError as error:
            raise RequestError(
                f"data.cache={cache!r}: can't be written ({error.strerror or error}); set it to a folder that can"
            ) from error
        self._folder, self.tokenizer, self._trained = found
        about = json.loads((self._folder / "about.json").read_text(encoding="utf-8"))
        warn(about["warning"])
        self.classes = tuple(about["classes"])
        self.labelled = bool(self.classes)
        self.facts = {
            "shape": (length,),
            "size": length,
            "vocab": self.tokenizer.vocab,
            "length": length,
            "mask": self.tokenizer.mask,
            "special": self.tokenizer.special,
            "separator": self.tokenizer.separator,
            "num_classes": len(self.classes),
        }

    def split(self, name: Split) -> Ids:
        label = None
        if name != "pretrain" and self.labelled:
            label = torch.from_numpy(np.load(self._folder / f"{name}_label.npy"))
        return Ids(
            self._folder / f"{name}.ids", self._length, label, None if name == "pretrain" else self.tokenizer.pad
        )

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
        """(B, vocab): how often each id is in a sample, as log(1 + n), of unit length. Padding doesn't count."""
        ids = view["x"].long()
        counts = torch.zeros(len(ids), self.tokenizer.vocab, device=ids.device)
        there = torch.ones_like(ids, dtype=counts.dtype)
        if "pad" in view:
            there = (~view["pad"]).to(counts.dtype)
        return F.normalize(counts.scatter_add_(1, ids, there).log1p_(), dim=1)


class Text(Documents):
    """A user's own text: .txt, .jsonl, .csv or .parquet files in a folder.

      <root>/<class>/*.txt                       one document a file; split here, each class alike
      <root>/{train,val,test}/<class>/*.txt      where there is no val or test folder, it is split off from train
      <root>/*.txt                               no labels; the same for parts without class folders
      <root>/{train,val,test}.{jsonl,csv,parquet}   one document a line or row; folders of these names will do as well
      <root>/*.{jsonl,csv,parquet}               split here

    extension: which files are meant, where a folder has several kinds. text_column, label_column: names of columns, or
    of keys of JSON objects; the default label need not be there. encoding: of all files but Parquet.
    on_broken: stop at a document that can't be read, or leave it out with a warning. Empty ones are always left out.
    The rest is told at Documents.
    """

    def __init__(
        self,
        *,
        root: str,
        length: Annotated[int, Gt(1)] = 128,
        tokenizer: Kind | str = "bpe",
        vocab_size: Annotated[int, Gt(0)] | None = None,
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
            corpus, length=length, tokenizer=tokenizer, vocab_size=vocab_size, val=val, test=test, cache=cache
        )
        if label_column != LABEL and not self.classes:
            raise RequestError(f"data.label_column={label_column!r}: no document in {root!r} has such a column")


# --- from documents to ids ------------------------------------------------------------------------------------


def _open_or_make(
    corpus: Corpus, store: Path, kind: str, vocab_size: int, length: int, shares: dict[str, float]
) -> tuple[Path, Tokenizer, Path | None]:
    """The folder with the ids and their tokenizer, made where they are not there already."""
    read = _key(corpus.fingerprint(), shares)
    division: _Division | None = None
    trained = store / f"tokenizer-{kind}-{vocab_size}-{read}.json"
    if kind == "bytes":
        tokenizer: Tokenizer = Bytes()
        name = "bytes"
    else:
        path = trained if kind in tokenizers.KINDS else Path(kind).expanduser()
        if path == trained and not path.is_file():
            division = _Division(corpus, shares)
            tokenizers.train(kind, vocab_size, division.train_texts, path)
        tokenizer, name = tokenizers.read(path), hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    folder = store / f"ids-{_key(read, name, length)}"
    if not (folder / "about.json").is_file():
        division = division or _Division(corpus, shares)
        with tempfile.TemporaryDirectory(dir=store) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            division.write(made, tokenizer, length)
            try:
                made.rename(folder)
            except OSError:  # another process was first
                if not (folder / "about.json").is_file():
                    raise
    return folder, tokenizer, trained if kind in tokenizers.KINDS and kind != "bytes" else None


def _key(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps([FORMAT, *parts]).encode(), digest_size=16).hexdigest()


class _Division:
    """Which document is in which part, and of which class: found by reading all of them once.

    Raises RequestError where there are none, some have labels and some have not, or a class is not in train.
    """

    def __init__(self, corpus: Corpus, shares: dict[str, float]):
        self.corpus = corpus
        left_out = LeftOut()
        names: dict[str, int] = {}
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
        self.warning = left_out.warning()
        if not labels["train"]:
            raise RequestError(f"data.root={corpus.root!r}: no document to train on in it; {self.warning or 'no text'}")
        numbers = all(name.isdecimal() for name in names)
        self.classes = sorted(names, key=lambda name: (int(name) if numbers else 0, name))
        place = {names[name]: n for n, name in enumerate(self.classes)}
        self.label = {part: np.array([place.get(n, -1) for n in each], np.int64) for part, each in labels.items()}
        self.where = {part: np.full(len(each), SPLITS.index(part)) for part, each in self.label.items()}
        self._hold_out(shares)

    def _hold_out(self, shares: dict[str, float]) -> None:
        wanted = {part: share for part, share in shares.items() if part not in self.corpus.parts}
        ids = stratified(torch.from_numpy(self.label["train"]), (1 - sum(wanted.values()), *wanted.values()))
        for part, each in zip(("train", *wanted), ids, strict=True):
            self.where["train"][each.numpy()] = SPLITS.index(part)

    def texts(self) -> Iterator[tuple[str, int, str]]:
        """(split, class or -1, text) of every document."""
        for part, where in self.where.items():
            found = self.corpus.documents(part)
            for split, label, document in zip(where, self.label[part], found, strict=True):
                yield SPLITS[split], int(label), document.text

    def train_texts(self) -> Iterator[str]:
        """What is trained on, long documents in pieces."""
        return (piece for split, _, text in self.texts() if split == "train" for piece in pieces(text))

    def write(self, folder: Path, tokenizer: Tokenizer, length: int) -> None:
        """Tokenises everything: a file of ids for each split, labels, and about.json."""
        labels: dict[str, list[int]] = {name: [] for name in SPLITS}
        with ExitStack() as stack:
            files = {n: stack.enter_context(open(folder / f"{n}.ids", "wb")) for n in ("pretrain", *SPLITS)}
            row: list[np.ndarray] = []
            for split, label, ids, ended in _encoded(self.texts(), tokenizer):
                if split == "train":
                    files["pretrain"].write(ids.tobytes())
                if sum(map(len, row)) < length:
                    row.append(ids)
                if ended:
                    sample = np.concatenate(row)[:length]
                    full = np.pad(sample, (0, length - len(sample)), constant_values=tokenizer.pad)
                    files[split].write(full.tobytes())
                    labels[split].append(label)
                    row = []
            whole = files["pretrain"].tell() // (4 * length)
            if not whole:
                raise RequestError(
                    f"data.length={length}: the train part has {files['pretrain'].tell() // 4} ids in all, which "
                    "gives no sample; use a smaller length, or more text"
                )
            files["pretrain"].truncate(whole * 4 * length)
        for name, each in labels.items():
            np.save(folder / f"{name}_label.npy", np.array(each, np.int64))
        about = {"classes": self.classes, "warning": self.warning}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _encoded(
    texts: Iterable[tuple[str, int, str]], tokenizer: Tokenizer
) -> Iterator[tuple[str, int, np.ndarray, bool]]:
    """(split, class, text) -> (split, class, ids, whether they end their document), long documents in several."""
    waiting: list[tuple[str, int, str, bool]] = []
    size = 0
    for split, label, text in texts:
        for piece in pieces(text):
            waiting.append((split, label, piece, False))
            size += len(piece)
            if size > AT_ONCE:
                yield from _flush(waiting, tokenizer)
                waiting, size = [], 0
        waiting.append((split, label, "", True))
    yield from _flush(waiting, tokenizer)


def _flush(
    waiting: Sequence[tuple[str, int, str, bool]], tokenizer: Tokenizer
) -> Iterator[tuple[str, int, np.ndarray, bool]]:
    ended = np.array([tokenizer.separator], np.int32)
    found = tokenizer.encode([piece for _, _, piece, _ in waiting])
    for (split, label, _, end), ids in zip(waiting, found, strict=True):
        yield split, label, ended if end else ids, end
