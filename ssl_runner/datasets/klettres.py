"""KLettres: letters and syllables, spoken in 20 languages, from a program that teaches children to read (KDE)."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from typing import Literal

import torch

from ssl_runner.datasets.published import debian, folder_of, home
from ssl_runner.datasets.recordings import Audio, Cache, OnBroken, Rate, Seconds
from ssl_runner.datasets.splits import stratified
from ssl_runner.errors import RequestError

TITLE, PACKAGE, FOLDER = "KLettres", "klettres-data", "klettres"
PLACES = [*(os.path.join(inside, "usr/share/klettres") for inside in (FOLDER, "")), FOLDER, "", "/usr/share/klettres"]
LANGUAGES = (
    *("ar", "cs", "da", "de", "en", "en_GB", "es", "fr", "he", "hu"),
    *("it", "lt", "ml", "nb", "nds", "nl", "pt_BR", "ru", "tn", "uk"),
)
VAL, TEST = ("cs", "pt_BR"), ("da", "en_GB", "it", "nds")  # of letters: chosen before anything was trained
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class KLettres(Audio):
    """1,829 recordings, 51 minutes, of single letters and syllables; a language is read by one voice, or by few.

    labels:
      language  a fixed 60% of each language to train on, 20% to validate and 20% to test with. The voices can't be
                kept apart: telling languages here is telling voices, and how they were recorded.
      letter    the 26 letters of the Latin alphabet, in the 15 languages that spell them out. Whole languages are kept
                for validation (Czech, Brazilian) and test (Danish, British, Italian, Low German), so that no voice is
                in two parts. Other letters and syllables of the training languages are in `pretrain` alone.
    root: the folder into which the package klettres-data was unpacked, or that of its sounds; the installed package is
    used where root has none. The rest is told at Audio.
    Raises RequestError where files are missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        labels: Literal["language", "letter"] = "language",
        seconds: Seconds = 1.0,
        longest: Seconds = 30.0,
        rate: Rate = 16000,
        on_broken: OnBroken = "skip",
        cache: Cache = "auto",
    ):
        root = home(root)
        lists = [f"{language}/sounds.xml" for language in LANGUAGES]
        folder = folder_of(TITLE, root, PLACES, lists, debian([PACKAGE], os.path.join(root, FOLDER)))
        found = [(sound, name, language) for language in LANGUAGES for sound, name in sounds(folder, language)]
        spoken_in = torch.tensor([LANGUAGES.index(language) for _, _, language in found])
        pretrain = None
        if labels == "language":
            classes: tuple[str, ...] = LANGUAGES
            label = spoken_in
            parts = dict(zip(("train", "val", "test"), stratified(label, (0.6, 0.2, 0.2)), strict=True))
        else:
            classes = tuple(LETTERS)
            label = torch.tensor([LETTERS.find(name) if len(name) == 1 else -1 for _, name, _ in found])
            held = {"val": VAL, "test": TEST, "train": tuple(set(LANGUAGES) - {*VAL, *TEST})}
            of = {
                part: torch.tensor([language in languages for _, _, language in found])
                for part, languages in held.items()
            }
            parts = {part: (mask & (label >= 0)).nonzero()[:, 0] for part, mask in of.items()}
            pretrain = of["train"].nonzero()[:, 0]
        super().__init__(
            folder,
            [sound for sound, _, _ in found],
            parts,
            classes=classes,
            label=label,
            pretrain=pretrain,
            rate=rate,
            seconds=seconds,
            longest=longest,
            on_broken=on_broken,
            cache=cache,
        )


def sounds(folder: str, language: str) -> list[tuple[str, str]]:
    """(file, what is said) of a language's sounds.xml, in its order, as far as there are files: the package lacks some.
    Letters are upper-case. Raises RequestError."""
    path = os.path.join(folder, language, "sounds.xml")
    try:
        listed = [(each.get("file"), each.get("name")) for each in ElementTree.parse(path).iter("sound")]
    except (OSError, ElementTree.ParseError) as error:
        raise RequestError(f"{path!r} is damaged ({error}); unpack {PACKAGE} again") from error
    return [
        (file, name.upper()) for file, name in listed if file and name and os.path.isfile(os.path.join(folder, file))
    ]
