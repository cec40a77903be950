"""Recordings of any length as samples, with or without what is said in them: what every source of audio shares."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssl_runner.datasets.audio import header, library, ratio, read_audio
from ssl_runner.datasets.base import BrokenSample, Ragged, Source, Split
from ssl_runner.datasets.reading import read_all, readable
from ssl_runner.errors import RequestError
from ssl_runner.pictures import draw
from ssl_runner.types import View
from ssl_runner.views.audio import LogMel

CACHE = 1 << 30  # bytes of decoded audio that are held in memory
PAUSE = 0.3  # seconds of silence between the sounds of a file to listen to
Seconds = Annotated[float, Gt(0)]
Rate = Annotated[int, Ge(1000)]
Part = Annotated[float, Ge(0)]
OnBroken = Literal["skip", "stop"]
Cache = Literal["auto", "no"]


class SoundFiles:
    """Audio files, read as they are asked for or, once ``hold`` has decoded them all, from memory.

    root: the folder the names are relative to. names: N. rate: values a second, whatever the files hold.
    """

    def __init__(self, root: str, names: Sequence[str], rate: int):
        self.root, self.rate = root, rate
        # One block of bytes: each worker would copy a list of strings, by counting references to them.
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        self._values: Tensor | None = None  # of all, one behind the other
        self._ends = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self._names[index])))

    def size(self, index: int) -> int:
        """Bytes of a file. Raises OSError."""
        return os.path.getsize(self.name(index))

    def content(self, index: int) -> bytes | None:
        """What is in a file, where it is none of its own. Raises BrokenSample."""
        return None

    def read(self, index: int, longest: int) -> Tensor:
        """(1, n) float32, n at most `longest`: of what is longer a stretch from a random place. Raises BrokenSample."""
        if self._values is None:
            return read_audio(self.name(index), self.rate, longest, _somewhere, self.content(index))
        end, length = int(self._ends[index]), self.length(index)
        spare = max(0, length - longest)
        first = end - length + _somewhere(spare)
        return self._values[None, first : first + length - spare]

    def length(self, index: int) -> int:
        """Values of a whole file. Raises BrokenSample."""
        if self._values is not None:
            return int(self._ends[index] - (self._ends[index - 1] if index else 0))
        heard = header(self.name(index), self.content(index))
        up, down = ratio(heard.rate, self.rate)
        return -(-heard.frames * up // down)

    def hold(self, on_broken: OnBroken) -> Tensor:
        """Decodes all files, where they take no more memory than CACHE -> (N,) bool, which are of use.

        The others are told in one warning; where nothing is held, what is broken is met later. Raises RunError as
        ``readable`` does.
        """
        usable = torch.ones(len(self), dtype=torch.bool)
        if not self._fits():
            return usable

        decoded = read_all(
            lambda index: read_audio(self.name(index), self.rate, content=self.content(index))[0], len(self)
        )
        usable = readable(decoded, on_broken)
        kept = [each if isinstance(each, Tensor) else torch.zeros(0) for each in decoded]
        self._ends = torch.tensor([len(each) for each in kept], dtype=torch.int64).cumsum(0)
        self._values = torch.cat(kept)
        return usable

    def _fits(self) -> bool:
        try:
            if sum(self.size(n) for n in range(len(self))) > CACHE:
                return False
        except OSError:  # a link to nothing: a broken sample
            pass
        total = 0
        for n in range(len(self)):
            try:
                total += 4 * self.length(n)
            except BrokenSample:
                continue  # met again, and reported, when it is decoded
            if total > CACHE:
                return False
        return True


def _somewhere(spare: int) -> int:
    return int(torch.randint(spare + 1, ())) if spare else 0


class Recordings(Ragged):
    """Some files as samples.

    index: (N,) int64, their places in `files`. longest: values that are read of one. label: (N,) int64, or None.
    target: (N, U) int64, what is said in each, as in Samples; or None. whole: values of the longest that has room in a
    sample; a longer one is a broken sample, since only a part of its target would be heard.
    """

    packed_as = "tar_audio"

    def __init__(
        self, files: SoundFiles, index: Tensor, longest: int, label: Tensor | None, target: Tensor | None, whole: int
    ):
        self.files, self.index, self.longest = files, index, longest
        self.label, self.target, self.whole = label, target, whole

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        return self.files.name(int(self.index[index]))

    def read(self, index: int) -> Tensor:
        place = int(self.index[index])
        if self.target is not None and (length := self.files.length(place)) > self.whole:
            raise BrokenSample(
                f"{self.name(index)!r} is of no use: it lasts {length / self.files.rate:.1f} seconds, and samples "
                "hold less, so that not all of its text would be heard; raise data.seconds"
            )
        return self.files.read(place, self.longest)


class Audio(Source):
    """What every source of recordings shares.

    root, files: N names relative to root. parts: name -> (n,) positions of train, val and test. classes, label: their
    names, and (N,) int64. texts: N, what is said in each, None where it is not known; or None, where that is not asked
    for. pretrain: (n,) positions; None takes all of train.

    rate: values a second, to which all files are brought. seconds: length of a sample as a backbone sees it. longest:
    seconds that are read of a file; of a longer one a stretch of so many, from a random place: the same for all views
    of a sample, and in evaluation always the same. on_broken: leave out a file that can't be read, with a warning, or
    stop the run. cache: "auto" decodes all files once where they take 1 GiB at most as float32; "no" reads each every
    time. letters: the alphabet of texts, in order; None takes all that occur.

    Where texts are asked for, files without one are in `pretrain` alone, and "target" holds each text as ids:
    lower-case, with single spaces. The fact `alphabet` says what ids spell; 0 is the blank, "".
    Raises RequestError where nothing is left to train on, and for a text with other letters.
    """

    labelled: bool | None = None  # type: ignore[misc]  # set by what is found

    def __init__(
        self,
        root: str,
        files: Sequence[str],
        parts: Mapping[str, Tensor],
        *,
        classes: Sequence[str] = (),
        label: Tensor | None = None,
        texts: Sequence[str | None] | None = None,
        pretrain: Tensor | None = None,
        rate: int,
        seconds: float,
        longest: float,
        on_broken: OnBroken,
        cache: Cache,
        letters: str | None = None,
    ):
        library()
        size = round(seconds * rate)
        if size < 1 or longest < seconds:
            raise RequestError(
                f"data.seconds={seconds}, data.longest={longest}: a sample needs one value or more, and what is read "
                "of a file must be as long"
            )
        self.on_broken, self.classes = on_broken, tuple(classes)
        self.labelled = bool(classes) or texts is not None
        self._cache, self._label, self._letters = cache, label, letters
        self._files, self._size, self._longest = SoundFiles(root, files, rate), size, round(longest * rate)
        self._parts = {**parts, "pretrain": parts["train"] if pretrain is None else pretrain}
        self._texts: list[str | None] = []
        self.facts = {"shape": (1, size), "size": size, "rate": rate, "num_classes": len(self.classes)}
        if texts is not None:
            self._spell([None if text is None else spoken(text) for text in texts])
        if not len(self._parts["train"]):
            raise RequestError(f"data.root={root!r}: there is nothing to train on")
        self._mel = LogMel(rate=rate, window=0.064, mels=40)
        self._opened: dict[str, Recordings] | None = None

    def _spell(self, texts: list[str | None]) -> None:
        told = torch.tensor([bool(text) for text in texts])
        for part in ("train", "val", "test"):
            self._parts[part] = self._parts[part][told[self._parts[part]]]
        if self._letters is None:
            self._letters = "".join(sorted({letter for text in texts if text for letter in text}))
        for n, text in enumerate(texts):
            odd = sorted(set(text or "") - set(self._letters))
            if odd:
                raise RequestError(
                    f"data.letters={self._letters!r}: the text of {self._files.name(n)!r} has {odd[0]!r} too; add it, "
                    "or leave data.letters out"
                )
        self._texts = texts
        self.facts["alphabet"] = ("", *self._letters)

    def _target(self, index: Tensor) -> Tensor:
        """(n,) positions -> (n, U) int64, the ids of their texts, -1 behind the last."""
        number = {letter: n for n, letter in enumerate(self._letters or "", start=1)}
        ids = [torch.tensor([number[letter] for letter in self._texts[n] or ""]) for n in index.tolist()]
        return pad_sequence(ids, batch_first=True, padding_value=-1) if ids else torch.zeros(0, 0, dtype=torch.int64)

    def pinned(self) -> dict[str, object]:
        return {} if self._letters is None else {"letters": self._letters}

    def split(self, name: Split) -> Recordings:
        if self._opened is None:
            usable = None if self._cache == "no" else self._files.hold(self.on_broken)
            self._opened = {part: self._part(part, index, usable) for part, index in self._parts.items()}
        return self._opened[name]

    def _part(self, name: str, index: Tensor, usable: Tensor | None) -> Recordings:
        index = index if usable is None else index[usable[index]]
        label = None if self._label is None else self._label[index]
        target = self._target(index) if self._texts and name != "pretrain" else None
        return Recordings(self._files, index, self._longest, label, target, self._size)

    def raw(self, view: View) -> Tensor:
        """Mean and deviation over time of each band of a log-mel spectrogram, padding left out: (B, 2 mels).

        Of a waveform too short for a spectrogram the values themselves.
        """
        if view["x"].ndim == 3:
            if view["x"].shape[2] <= self._mel.size // 2:
                return view["x"].flatten(1)
            view = self._mel(view)
        x = view["x"].flatten(1, 2)
        there = ~view["pad"][:, None] if "pad" in view else torch.ones_like(x[:, :1], dtype=torch.bool)
        count = there.sum(2).clamp(min=1)
        mean = (x * there).sum(2) / count
        spread = (((x - mean[..., None]) * there).square().sum(2) / count).sqrt()
        return torch.cat([mean, spread], 1)

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        """Of waveforms, (n, 1, length): a file to listen to, sample by sample and column by column with pauses, each
        as loud as can be. Of spectrograms, (n, 1, mels, frames): a picture, low frequencies at the bottom."""
        first = columns[0]
        if any(column.ndim != first.ndim or column.shape[1] != 1 for column in columns):
            return None
        if first.ndim == 4:
            low, high = (each.view(-1, 1, 1, 1) for each in (first.flatten(1).amin(1), first.flatten(1).amax(1)))
            file = path.with_suffix(".png")
            return file if draw([((c - low) / (high - low + 1e-6)).flip(2) for c in columns], file) else None
        if first.ndim != 3:
            return None
        rate, file = self._files.rate, path.with_suffix(".wav")
        pause = torch.zeros(round(PAUSE * rate))
        sounds = [row[0].float() for rows in zip(*columns, strict=True) for row in rows]
        peaked = [sound * (0.9 / sound.abs().max().clamp(min=1e-6)) for sound in sounds]
        file.parent.mkdir(parents=True, exist_ok=True)
        library().write(file, torch.cat([each for sound in peaked for each in (sound, pause)]).numpy(), rate)
        return file


def spoken(text: str) -> str:
    """As it is told letter by letter: composed Unicode, lower-case, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())
