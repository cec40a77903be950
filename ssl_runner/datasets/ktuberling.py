"""KTuberling: words spoken in 23 languages, from a program in which children name what they put together (KDE)."""

from __future__ import annotations

import os

import torch

from ssl_runner.datasets.layout import find_files
from ssl_runner.datasets.published import debian, folder_of, home
from ssl_runner.datasets.recordings import Audio, Cache, OnBroken, Rate, Seconds

TITLE, PACKAGE, FOLDER = "KTuberling", "ktuberling-data", "ktuberling"
INSIDE = os.path.join("ktuberling", "sounds")
PLACES = [
    *(os.path.join(inside, "usr/share", INSIDE) for inside in (FOLDER, "")),
    *(os.path.join(FOLDER, "sounds"), INSIDE, "sounds", "", f"/usr/share/{INSIDE}"),
]
VAL, TEST = ("es", "ga", "gl", "nl", "sl"), ("ca", "en", "it", "lt", "ro", "sr", "uk", "wa")
TRAIN = ("da", "de", "el", "fi", "fr", "nds", "nn", "pt", "ru", "sv")
LANGUAGES = tuple(sorted((*TRAIN, *VAL, *TEST)))  # other Serbian folders hold the recordings of "sr" once more
KINDS = (".ogg", ".opus", ".wav")


class KTuberling(Audio):
    """1,847 recordings, 31 minutes, of the same words in 23 languages; a language is read by one voice, or by few.

    The class is the language, and stands for the voice. Whole languages are kept for validation (5, 180 recordings) and
    test (8, 738 recordings), drawn before anything was trained, so that no voice is in two parts: it is for evaluators
    that fit nothing, such as verification. Nine languages have 15 recordings at most.
    root: the folder into which the package ktuberling-data was unpacked, or that of its sounds; the installed package
    is used where root has none. The rest is told at Audio.
    Raises RequestError where files are missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        seconds: Seconds = 1.0,
        longest: Seconds = 30.0,
        rate: Rate = 8000,
        on_broken: OnBroken = "skip",
        cache: Cache = "auto",
    ):
        root = home(root)
        lists = [f"{language}.soundtheme" for language in LANGUAGES]
        folder = folder_of(TITLE, root, PLACES, lists, debian([PACKAGE], os.path.join(root, FOLDER)))
        found = [
            (os.path.join(language, name), number)
            for number, language in enumerate(LANGUAGES)
            for name in find_files(os.path.join(folder, language), KINDS)
        ]
        label = torch.tensor([number for _, number in found])
        held = {"train": TRAIN, "val": VAL, "test": TEST}
        numbers = {part: torch.tensor([LANGUAGES.index(each) for each in of]) for part, of in held.items()}
        super().__init__(
            folder,
            [name for name, _ in found],
            {part: torch.isin(label, of).nonzero()[:, 0] for part, of in numbers.items()},
            classes=LANGUAGES,
            label=label,
            rate=rate,
            seconds=seconds,
            longest=longest,
            on_broken=on_broken,
            cache=cache,
        )
