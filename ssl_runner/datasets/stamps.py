"""Tux Paint's stamps: pictures that children put into their drawings, each with a sentence about it, which many people
translated and some read aloud."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Gt

from ssl_runner.datasets.captioned import Captioned
from ssl_runner.datasets.columns import AudioColumn, ImageColumn, Row
from ssl_runner.datasets.pairs import Paired, Shares
from ssl_runner.datasets.published import debian, folder_of, home
from ssl_runner.datasets.recordings import Rate, Seconds
from ssl_runner.datasets.text import CACHE
from ssl_runner.datasets.tokenizer import Kind
from ssl_runner.errors import RequestError, nearest

PACKAGE = "tuxpaint-stamps-default"
INSIDE = os.path.join("usr", "share", "tuxpaint", "stamps")
PLACES = [os.path.join(PACKAGE, INSIDE), INSIDE, "stamps", "", f"/{INSIDE}"]  # below data.root, or installed
SOME = [os.path.join("food", "fruit", f"{name}.{kind}") for name in ("banana", "strawberry") for kind in ("png", "txt")]


class Stamps(Captioned):
    """785 pictures, brought to squares on white, each with a sentence; classes are the 16 top folders.

    root: holds tuxpaint-stamps-default/, as the Debian package of this name unpacks, or its usr/, or the stamps.
    language: of the sentences, as Tux Paint calls it: en, de, pt_BR; not every picture has one in every language.
    There is no official split: `val` and `test` are shares, and pictures with the same sentence are in one part.
    size: of the squares. length, tokenizer, vocab_size, cache: as in columns.TextColumn.
    Raises RequestError where files are missing, and for a language in which there is nothing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        language: str = "en",
        size: Annotated[int, Gt(0)] = 64,
        length: Annotated[int, Gt(1)] = 32,
        tokenizer: Kind | str = "wordpiece",
        vocab_size: Annotated[int, Gt(0)] | None = None,
        val: Shares = 0.1,
        test: Shares = 0.2,
        cache: str = CACHE,
    ):
        folder = stamps(root)
        told = {stem: sentences(os.path.join(folder, f"{stem}.txt")) for stem in stems(folder)}
        known = {name for each in told.values() for name in each}
        if language not in known:
            raise RequestError(f"data.language={language!r}: no stamp has it{nearest(language, known)}")
        rows = [row(folder, stem, text=each[language]) for stem, each in told.items() if language in each]
        super().__init__(
            rows,
            root=root,
            size=size,
            length=length,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            val=val,
            test=test,
            cache=cache,
        )


class SpokenStamps(Paired):
    """767 of the pictures with 6,257 recordings of their sentences, in 14 languages, most by one voice each.

    root, size, val, test: as in Stamps. languages: of the recordings, as Tux Paint calls them; None takes all there
    are. seconds, longest, rate: as in columns.AudioColumn. on_broken: leave out a recording that can't be read, with a
    warning, or stop.
    A picture and all that is said of it are in one part. Raises RequestError where files are missing, and for a
    language in which there is nothing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        languages: Sequence[str] | None = None,
        size: Annotated[int, Gt(0)] = 64,
        rate: Rate = 16000,
        seconds: Seconds = 2.0,
        longest: Seconds = 10.0,
        val: Shares = 0.1,
        test: Shares = 0.2,
        on_broken: Literal["skip", "stop"] = "skip",
    ):
        folder = stamps(root)
        found = [(stem, *each) for stem in stems(folder) for each in recordings(folder, stem)]
        known = {language for _, language, _ in found}
        for language in languages or ():
            if language not in known:
                raise RequestError(f"data.languages: no stamp is read aloud in {language!r}{nearest(language, known)}")
        super().__init__(
            [
                row(folder, stem, sound=file, language=language)
                for stem, language, file in found
                if languages is None or language in languages
            ],
            root=root,
            first=ImageColumn(column="image", size=size, whole=True),
            second=AudioColumn(column="sound", rate=rate, seconds=seconds, longest=longest),
            label="group",
            val=val,
            test=test,
            on_broken=on_broken,
        )

    def pinned(self) -> dict[str, Any]:
        return {}


def recordings(folder: str, stem: str) -> Iterator[tuple[str, str]]:
    """(language, file) of what is said of a stamp: `banana_desc_fr.ogg`; without a language it is English."""
    inside, name = os.path.split(os.path.join(folder, stem))
    for file in sorted(os.listdir(inside)):
        found = re.fullmatch(re.escape(name) + r"_desc(?:_(\w+))?\.(?:ogg|wav)", file)
        if found:
            yield found[1] or "en", os.path.relpath(os.path.join(inside, file), folder)


def stamps(root: str) -> str:
    """The folder of the stamps. Raises RequestError where they are not there."""
    where = home(root)
    command = debian([PACKAGE], os.path.join(where, PACKAGE))
    return folder_of("Tux Paint's stamps", where, PLACES, SOME, command)


def stems(folder: str) -> Iterator[str]:
    """The paths of all pictures with a sentence, without their suffix, in sorted order. What is mirrored has none."""
    for inside, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            if suffix == ".png" and f"{stem}.txt" in files:
                yield os.path.relpath(os.path.join(inside, stem), folder)


def row(folder: str, stem: str, **cells: str) -> Row:
    """A stamp with other columns beside its image and group."""
    return Row({"image": f"{stem}.png", "group": stem.split(os.sep)[0], **cells}, stem, folder)


def sentences(path: str) -> dict[str, str]:
    """language -> sentence. The first line is English; others begin as `pt_BR.utf8=` does."""
    with open(path, encoding="utf-8", errors="replace") as file:
        english, *others = file.read().splitlines() or [""]
    found = {"en": english.strip()}
    for line in others:
        language, mark, text = line.partition(".utf8=")
        if mark and text.strip():
            found[language] = text.strip()
    return found
