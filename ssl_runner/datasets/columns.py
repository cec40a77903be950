"""The two inputs of pairs: what stands in a column, be it text, a picture or a sound, and how it becomes a sample."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.datasets import addresses
from ssl_runner.datasets import tokenizer as tokenizers
from ssl_runner.datasets.audio import library
from ssl_runner.datasets.base import BrokenSample, Source
from ssl_runner.datasets.folder import per_channel
from ssl_runner.datasets.images import image_facts, quiet_pillow, read_image
from ssl_runner.datasets.published import home
from ssl_runner.datasets.reading import read_all, readable
from ssl_runner.datasets.recordings import Rate, Seconds, SoundFiles
from ssl_runner.datasets.text import CACHE
from ssl_runner.datasets.tokenizer import Bytes, Kind, Tokenizer, bag
from ssl_runner.errors import RequestError
from ssl_runner.types import View

HELD = 1 << 30  # bytes of decoded pictures that are held in memory
T = TypeVar("T")


class File(NamedTuple):
    """A file of its own, or, where `size` is not -1, so many bytes of one from `start` on. name: what to call it."""

    path: str
    start: int = 0
    size: int = -1
    name: str = ""


class Row(NamedTuple):
    """cells: name -> text, or a File. where: what to call it. folder: to which files that are told by name belong."""

    cells: Mapping[str, Any]
    where: str
    folder: str
    part: Literal["train", "val", "test"] = "train"


Item = str | File
"""What a cell holds. Equal ones are the same."""


class Input:
    """All items of a column, each once, as samples.

    facts: as of a Source. whole: once ``hold`` was called, all items in memory, (M, ...) each, where they fit in there
    and are of one size; what can't be used of them means nothing.
    """

    facts: dict[str, Any]
    whole: View | None = None

    def hold(self, on_broken: Literal["skip", "stop"]) -> Tensor:
        """Decodes all items where there is room for them -> (M,) bool, which can be used.

        Others are told in one warning; where nothing is held, what is broken is met later. Raises RunError as
        ``readable`` does.
        """
        raise NotImplementedError

    def view(self, index: int) -> View:
        """One item, without a batch axis. Raises BrokenSample."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What to call an item in a message."""
        raise NotImplementedError

    def reading(self) -> AbstractContextManager:
        """Entered around reads."""
        return nullcontext()

    def raw(self, view: View) -> Tensor:
        """(B, D), features of what comes in as it is."""
        return Source().raw(view)

    def spelled(self, x: Tensor) -> list[str] | None:
        """(n, ...), values of views -> a line for each; None where there is no such form."""
        return None

    def pinned(self) -> dict[str, Any]:
        """Arguments of the column as they are from now on (see Source.pinned)."""
        return {}

    def encode(self, texts: Sequence[str]) -> View | None:
        """(n, ...), texts that need not be in the column; None where items are no text."""
        return None


class Column:
    """What one input of pairs is made of.

    column: its name in a table, or its extension in a shard (several, the first that is there: "jpg;png").
    """

    def __init__(self, *, column: str):
        self.column = column

    def item(self, row: Row) -> Item:
        """What the row holds. Raises BrokenSample where that can't be told or is nothing."""
        cell = cell_of(row, self.column)
        if cell is None:
            raise BrokenSample(f"{row.where} has no {self.column!r}")
        return self.understood(cell, row)

    def understood(self, cell: Any, row: Row) -> Item:
        raise NotImplementedError

    def open(self, items: Sequence[Any], train: Sequence[int]) -> Input:
        """items: each once. train: which of them may be learned from."""
        raise NotImplementedError


def cell_of(row: Row, column: str) -> Any:
    """The first cell of these names that is there; None where there is none."""
    return next((row.cells[name] for name in (column, *column.split(";")) if row.cells.get(name) is not None), None)


# --- text -------------------------------------------------------------------------------------------------------


class TextColumn(Column):
    """Text as ids, ended by the separator, cut off at `length` ids or padded to it.

    tokenizer: a kind, which is trained on the train part's texts alone, or a tokenizer.json. vocab_size: of one that is
    trained; None takes 8192 at most. cache: a folder for trained ones; what decides them is in their names.
    All ids are held in memory: 5 bytes for each of a text's `length`.
    """

    def __init__(
        self,
        *,
        column: str,
        length: Annotated[int, Gt(1)] = 32,
        tokenizer: Kind | str = "wordpiece",
        vocab_size: Annotated[int, Gt(0)] | None = None,
        cache: str = CACHE,
    ):
        super().__init__(column=column)
        self.length, self.tokenizer, self.cache = length, tokenizer, cache
        self.size = tokenizers.size_of(tokenizer, vocab_size)

    def understood(self, cell: Any, row: Row) -> Item:
        if isinstance(cell, File):
            try:
                cell = content_of(cell).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise BrokenSample(f"{row.where}: its {self.column!r} is no text ({error})") from error
        text = cell.strip() if isinstance(cell, str) else ""
        if not text:
            raise BrokenSample(f"{row.where}: its {self.column!r} holds no text")
        return text.encode("utf-8", "replace").decode()  # JSON may spell half a character, which no encoding has

    def open(self, items: Sequence[str], train: Sequence[int]) -> Texts:
        if self.tokenizer == "bytes":
            return Texts(items, Bytes(), self.length, {})
        if self.tokenizer not in tokenizers.KINDS:
            return Texts(items, tokenizers.read(Path(self.tokenizer).expanduser()), self.length, {})
        texts = [items[n] for n in train]
        key = hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
        path = Path(home(self.cache)) / f"tokenizer-{self.tokenizer}-{self.size}-{key}.json"
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                tokenizers.train(self.tokenizer, self.size, lambda: iter(texts), path)
            except OSError as error:
                raise RequestError(f"{self.cache!r} can't be written ({error}); set another cache") from error
        return Texts(items, tokenizers.read(path), self.length, {"tokenizer": str(path), "vocab_size": None})


class Texts(Input):
    """length: in ids. trained: the arguments that give the tokenizer that was trained here; nothing for another."""

    whole: View

    def __init__(self, items: Sequence[str], tokenizer: Tokenizer, length: int, trained: dict[str, Any]):
        self.tokenizer, self._length, self._trained = tokenizer, length, trained
        self.facts = tokenizer.facts(length)
        self.whole = self.encode(items)

    def encode(self, texts: Sequence[str]) -> View:
        ids = torch.full((len(texts), self._length), self.tokenizer.pad, dtype=torch.int32)
        for row, found in zip(ids, self.tokenizer.encode(texts), strict=True):
            ended = np.append(found, np.int32(self.tokenizer.separator))[: self._length]
            row[: len(ended)] = torch.from_numpy(ended)
        return {"x": ids, "pad": ids == self.tokenizer.pad}

    def view(self, index: int) -> View:
        return {name: tensor[index] for name, tensor in self.whole.items()}

    def hold(self, on_broken: Literal["skip", "stop"]) -> Tensor:
        return torch.ones(len(self.whole["x"]), dtype=torch.bool)

    def name(self, index: int) -> str:
        return self.spelled(self.whole["x"][index : index + 1])[0]

    def raw(self, view: View) -> Tensor:
        return bag(view, self.tokenizer.vocab)

    def spelled(self, x: Tensor) -> list[str]:
        return [self.tokenizer.spelled([n for n in ids if n != self.tokenizer.separator]) for ids in x.tolist()]

    def pinned(self) -> dict[str, Any]:
        return self._trained


# --- files ------------------------------------------------------------------------------------------------------


def content_of(file: File) -> bytes:
    """Its bytes. Raises BrokenSample."""
    return addresses.content(file.path, file.start, file.size, told(file))


def told(file: File) -> str:
    """What to call it in a message."""
    return f"{file.path}:{file.name}" if file.name else file.path


class FileColumn(Column):
    """A column of files, told by their names, from the table's own folder on."""

    def chosen(self, cells: Mapping[str, T]) -> T | None:
        """The first cell of these names that is there."""
        return next((cells[name] for name in (self.column, *self.column.split(";")) if name in cells), None)

    def open(self, items: Sequence[File] | Stored, train: Sequence[int]) -> Input:
        """items: each once, or where they are stored."""
        raise NotImplementedError

    def understood(self, cell: Any, row: Row) -> Item:
        if isinstance(cell, str):
            cell = File(os.path.join(row.folder, cell)) if cell.strip() else None
        if not isinstance(cell, File):
            raise BrokenSample(f"{row.where}: its {self.column!r} names no file")
        if cell.size < 0 and not os.path.isfile(cell.path):
            raise BrokenSample(f"{row.where}: there is no file {cell.path!r}")
        return cell


class Stored:
    """N items that are read one by one from where they are stored."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What to call one in a message, or its path where it is a file of its own."""
        raise NotImplementedError

    def size(self, index: int) -> int:
        """Bytes of one; about so many, where that is not known before it is read. Raises OSError."""
        raise NotImplementedError

    def content(self, index: int) -> bytes | None:
        """Its bytes; None where it is a file of its own. Raises BrokenSample."""
        raise NotImplementedError


class FileList(Stored):
    """Files in as little memory as can be: each worker would copy a list of tuples, by counting references to them."""

    def __init__(self, files: Sequence[File]):
        self._paths, which = np.unique(np.array([os.fsencode(f.path) for f in files], np.bytes_), return_inverse=True)
        self._which = which.astype(np.int32)
        self._names = np.array([f.name.encode("utf-8", "surrogateescape") for f in files], np.bytes_)
        self._place = np.array([(f.start, f.size) for f in files], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, index: int) -> File:
        path = os.fsdecode(bytes(self._paths[self._which[index]]))
        start, size = self._place[index].tolist()
        return File(path, start, size, bytes(self._names[index]).decode("utf-8", "surrogateescape"))

    def name(self, index: int) -> str:
        return told(self[index])

    def size(self, index: int) -> int:
        file = self[index]
        return os.path.getsize(file.path) if file.size < 0 else file.size

    def content(self, index: int) -> bytes | None:
        file = self[index]
        return None if file.size < 0 else content_of(file)

    @staticmethod
    def joined(lists: Sequence[FileList]) -> FileList:
        """One behind the other."""
        whole = FileList([])
        before = np.cumsum([0, *(len(each._paths) for each in lists)])
        whole._paths = np.concatenate([each._paths for each in lists])
        whole._which = np.concatenate([n + each._which for n, each in zip(before, lists, strict=False)])
        whole._names = np.concatenate([each._names for each in lists])
        whole._place = np.concatenate([each._place for each in lists])
        return whole


def stored(items: Sequence[File] | Stored) -> Stored:
    return items if isinstance(items, Stored) else FileList(items)


class ImageColumn(FileColumn):
    """Pictures.

    size: the side a backbone sees. channels: 3 for colour, 1 for grey.
    whole: true brings each picture as a whole to a square of `size`, with white at two sides where it is none, and
    holds all of them in memory where they fit into 1 GiB; false reads the files each time, at any size, and leaves it
    to the views to crop.
    mean, std: one for each channel, on the scale 0..1; None takes ImageNet's.
    """

    def __init__(
        self,
        *,
        column: str,
        size: Annotated[int, Gt(0)] = 224,
        channels: Literal[1, 3] = 3,
        whole: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__(column=column)
        self.channels, self.size, self.whole = channels, size, whole
        self.facts = image_facts(
            channels=channels,
            size=size,
            mean=per_channel("mean", mean, channels, (0.485, 0.456, 0.406)),
            std=per_channel("std", std, channels, (0.229, 0.224, 0.225)),
            num_classes=0,
        )

    def open(self, items: Sequence[File] | Stored, train: Sequence[int]) -> Pictures:
        return Pictures(stored(items), self.facts, self.channels, self.size if self.whole else None)


class Pictures(Input):
    """side: of the square to which each is brought as a whole; None leaves them as they are."""

    def __init__(self, items: Stored, facts: dict[str, Any], channels: Literal[1, 3], side: int | None):
        self._files, self.facts, self._channels, self._side = items, facts, channels, side

    def view(self, index: int) -> View:
        return {"x": self._read(index) if self.whole is None else self.whole["x"][index]}

    def _read(self, index: int) -> Tensor:
        content = self._files.content(index)
        x = read_image(self._files.name(index), self._channels, None if content is None else io.BytesIO(content))
        return x if self._side is None else boxed(x, self._side)

    def hold(self, on_broken: Literal["skip", "stop"]) -> Tensor:
        count, side = len(self._files), self._side
        if side is None or count * self._channels * side**2 > HELD:
            return torch.ones(count, dtype=torch.bool)
        x = torch.zeros(count, self._channels, side, side, dtype=torch.uint8)

        def read(index: int) -> None:
            x[index] = self._read(index)

        with quiet_pillow():
            faults = read_all(read, count)
        self.whole = {"x": x}
        return readable(faults, on_broken)

    def name(self, index: int) -> str:
        return self._files.name(index)

    def reading(self) -> AbstractContextManager:
        return quiet_pillow()


class AudioColumn(FileColumn):
    """Sounds.

    rate: values a second, to which all are brought. seconds: length of a sample as a backbone sees it. longest: seconds
    that are read of a file; of a longer one a stretch of so many, from a random place. All are decoded once and held in
    memory where they take 1 GiB at most as float32.
    Raises RequestError where soundfile is missing.
    """

    def __init__(self, *, column: str, rate: Rate = 16000, seconds: Seconds = 4.0, longest: Seconds = 30.0):
        super().__init__(column=column)
        library()
        if longest < seconds:
            raise RequestError(f"longest={longest}: what is read of a file must be as long as a sample, {seconds}")
        self.rate, self.seconds, self.longest = rate, seconds, longest

    def open(self, items: Sequence[File] | Stored, train: Sequence[int]) -> Sounds:
        files = ListedSounds(stored(items), self.rate)
        return Sounds(files, round(self.seconds * self.rate), round(self.longest * self.rate))


class ListedSounds(SoundFiles):
    """Sounds that may lie in archives."""

    def __init__(self, files: Stored, rate: int):
        super().__init__("", [], rate)
        self._listed = files

    def __len__(self) -> int:
        return len(self._listed)

    def name(self, index: int) -> str:
        return self._listed.name(index)

    def size(self, index: int) -> int:
        return self._listed.size(index)

    def content(self, index: int) -> bytes | None:
        return self._listed.content(index)


class Sounds(Input):
    """size: values of a sample as a backbone sees it. longest: values that are read."""

    def __init__(self, files: SoundFiles, size: int, longest: int):
        self._files, self._longest = files, longest
        self.facts = {"shape": (1, size), "size": size, "rate": files.rate}

    def view(self, index: int) -> View:
        return {"x": self._files.read(index, self._longest)}

    def hold(self, on_broken: Literal["skip", "stop"]) -> Tensor:
        return self._files.hold(on_broken)

    def name(self, index: int) -> str:
        return self._files.name(index)


def boxed(x: Tensor, side: int) -> Tensor:
    """(C, h, w) uint8 -> (C, side, side): the longer side brought to `side`, and white at both sides of the shorter."""
    height, width = x.shape[1:]
    if (height, width) == (side, side):
        return x
    scale = side / max(height, width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    small = F.interpolate(x[None].float(), size=inner, mode="bilinear", antialias=True)[0]
    whole = torch.full((len(x), side, side), 255, dtype=torch.uint8)
    top, left = (side - inner[0]) // 2, (side - inner[1]) // 2
    whole[:, top : top + inner[0], left : left + inner[1]] = small.round().clamp(0, 255).to(torch.uint8)
    return whole
