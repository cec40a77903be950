"""LibriSpeech (Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", 2015)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Len

from ssl_runner.datasets.layout import find_files
from ssl_runner.datasets.published import fetch_and_unpack, home
from ssl_runner.datasets.recordings import Audio, Cache, OnBroken, Rate, Seconds
from ssl_runner.errors import RequestError

URL = "https://www.openslr.org/resources/12"
Subset = Literal[
    "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other"
]
Subsets = Annotated[tuple[Subset, ...], Len(1)]


class LibriSpeech(Audio):
    """Up to 960 hours of English audio books, 16 kHz, of 2,338 speakers, with transcripts.

    train, val, test: the subsets that make each part; pretrain: those that may be learned from without labels, None
    for train's. No speaker is in two of the published subsets' groups train, dev and test.
    labels: "text" gives what is said as "target"; "speaker" the speaker as class, for verification, since those of val
    and test are not in train; "none" gives neither.
    root: holds the subsets, or LibriSpeech with them, each with <speaker>/<chapter>/*.flac and .trans.txt as published.
    The rest is told at Audio.
    Raises RequestError where a subset or a transcript is missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        train: Subsets = ("train-clean-100",),
        val: Subsets = ("dev-clean",),
        test: Subsets = ("test-clean",),
        pretrain: Subsets | None = None,
        labels: Literal["text", "speaker", "none"] = "text",
        letters: str | None = None,
        seconds: Seconds = 16.0,
        longest: Seconds = 36.0,
        rate: Rate = 16000,
        on_broken: OnBroken = "skip",
        cache: Cache = "auto",
    ):
        root = home(root)
        inner = os.path.join(root, "LibriSpeech")
        folder = inner if os.path.isdir(inner) else root
        parts = {"train": train, "val": val, "test": test, "pretrain": pretrain or train}
        subsets = sorted({subset for each in parts.values() for subset in each})
        files: list[str] = []
        said: list[str | None] = []
        places: dict[str, range] = {}
        for subset in subsets:
            if not os.path.isdir(os.path.join(folder, subset)):
                raise RequestError(
                    f"data.root={root!r}: LibriSpeech's {subset!r} is not there; run "
                    f"`{fetch_and_unpack(f'{URL}/{subset}.tar.gz', root)}`, or choose other subsets"
                )
            found = [os.path.join(subset, name) for name in find_files(os.path.join(folder, subset), [".flac"])]
            places[subset] = range(len(files), len(files) + len(found))
            files += found
            wanted = labels == "text" and subset in (*train, *val, *test)
            said += texts(folder, found) if wanted else [None] * len(found)
        speakers = [name.split(os.sep)[1] for name in files]
        classes = tuple(sorted(set(speakers), key=int)) if labels == "speaker" else ()
        number = {name: n for n, name in enumerate(classes)}
        index = {
            part: torch.tensor([n for s in each for n in places[s]], dtype=torch.int64) for part, each in parts.items()
        }
        super().__init__(
            folder,
            files,
            {part: index[part] for part in ("train", "val", "test")},
            classes=classes,
            label=torch.tensor([number[name] for name in speakers]) if classes else None,
            texts=said if labels == "text" else None,
            pretrain=index["pretrain"],
            rate=rate,
            seconds=seconds,
            longest=longest,
            on_broken=on_broken,
            cache=cache,
            letters=letters,
        )


def texts(folder: str, files: Sequence[str]) -> Iterator[str]:
    """What is said in each file, by the .trans.txt of its chapter: lines of a name and its words. Raises RequestError
    where there is no such file, or no such line."""
    chapter, said = "", {}
    for name in files:
        inside, own = os.path.split(name)
        if inside != chapter:
            chapter = inside
            speaker, number = inside.split(os.sep)[-2:]
            path = os.path.join(folder, inside, f"{speaker}-{number}.trans.txt")
            try:
                with open(path, encoding="utf-8") as file:
                    said = dict(line.rstrip("\n").split(" ", 1) for line in file if " " in line)
            except (OSError, ValueError) as error:
                raise RequestError(f"{path!r} can't be read ({error}); unpack its subset again") from error
        if own.removesuffix(".flac") not in said:
            raise RequestError(f"{path!r} has no line for {own!r}; unpack its subset again")
        yield said[own.removesuffix(".flac")]
