"""Asterisk's core sounds: the prompts of a telephone exchange, in five languages."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from typing import Annotated, Literal

import torch
from annotated_types import Len

from ssl_runner.datasets.audio_folder import hold_out
from ssl_runner.datasets.layout import find_files
from ssl_runner.datasets.published import debian, folder_of, home
from ssl_runner.datasets.recordings import Audio, Cache, OnBroken, Rate, Seconds
from ssl_runner.errors import RequestError

TITLE, FOLDER = "Asterisk's prompts", "asterisk"
PLACES = [
    *(os.path.join(inside, "usr/share/asterisk/sounds") for inside in (FOLDER, "")),
    *(FOLDER, "", "/usr/share/asterisk/sounds"),
]
Language = Literal["en", "es", "fr", "it", "ru"]
VOICES: dict[Language, str] = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
KNOWN = "agent-alreadyon.wav"  # a prompt of every voice
SILENT = "silence" + os.sep
EMPTY = os.path.join(VOICES["ru"], "is.wav")  # a header without sound
TEXT = "core-sounds-en.txt.gz"
TEXT_PACKAGE = "asterisk-core-sounds-en"
LARGEST = 16 << 20  # bytes of it, unpacked
SHARES = {"val": 0.1, "test": 0.2}


class Asterisk(Audio):
    """2,780 prompts, 8 kHz, two hours; the class is the language. Those of silence are left out.

    Each language is read by one voice, so that telling languages here is telling voices: these can't be kept apart.
    The prompts are: all languages of one prompt are in the same part. val and test hold a fixed tenth and fifth.
    languages: those to read. transcripts: give what is said as "target": known for English, but for prompts of tones,
    or with digits or signs in their text; other recordings are then in `pretrain` alone.
    root: the folder into which the packages asterisk-core-sounds-*-wav (for transcripts also asterisk-core-sounds-en)
    were unpacked, or that of their sounds; installed packages are used where root has none. The rest is told at Audio.
    Raises RequestError where files are missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        languages: Annotated[tuple[Language, ...], Len(1)] = ("en", "es", "fr", "it", "ru"),
        transcripts: bool = False,
        letters: str | None = None,
        seconds: Seconds = 1.0,
        longest: Seconds = 30.0,
        rate: Rate = 8000,
        on_broken: OnBroken = "skip",
        cache: Cache = "auto",
    ):
        root = home(root)
        wanted = [language for language in VOICES if language in languages]
        packages = [f"asterisk-core-sounds-{language}-wav" for language in wanted]
        command = debian([*packages, *([TEXT_PACKAGE] if transcripts else [])], os.path.join(root, FOLDER))
        folder = folder_of(TITLE, root, PLACES, [f"{VOICES[each]}/{KNOWN}" for each in wanted], command)
        prompts = [
            (language, prompt)
            for language in wanted
            for prompt in find_files(os.path.join(folder, VOICES[language]), [".wav"])
            if not prompt.startswith(SILENT) and os.path.join(VOICES[language], prompt) != EMPTY
        ]
        text = None
        if transcripts:
            known = texts(folder, command)
            text = [known.get(prompt.removesuffix(".wav")) if each == "en" else None for each, prompt in prompts]
        every = torch.arange(len(prompts))
        super().__init__(
            folder,
            [os.path.join(VOICES[language], prompt) for language, prompt in prompts],
            hold_out(every, SHARES, None, [prompt for _, prompt in prompts]),
            classes=wanted,
            label=torch.tensor([wanted.index(language) for language, _ in prompts]),
            texts=text,
            rate=rate,
            seconds=seconds,
            longest=longest,
            on_broken=on_broken,
            cache=cache,
            letters=letters,
        )


def texts(folder: str, command: str) -> dict[str, str]:
    """What is said in each English prompt, by its name, where it can be told letter by letter. Raises RequestError."""
    shared = os.path.normpath(os.path.join(folder, "../../doc", TEXT_PACKAGE))
    path = next((p for p in (os.path.join(place, TEXT) for place in (shared, folder)) if os.path.isfile(p)), None)
    if path is None:
        raise RequestError(
            f"data.transcripts=true: {TEXT!r} is neither in {shared!r} nor in {folder!r}; run `{command}`"
        )
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST).decode("utf-8", "replace")
        lines = [line.strip().partition(":") for line in content.splitlines() if not line.startswith(";")]
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{path!r} can't be read ({error}); unpack {TEXT_PACKAGE} again") from error
    said = {name: letters_of(text) for name, _, text in lines}
    return {name: text for name, text in said.items() if text}


def letters_of(text: str) -> str:
    """Letters, apostrophes and spaces of a prompt's text; "" where it has digits or other signs, or is a note."""
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", text)
    plain = re.sub(r"[-.,;:!?\"]", " ", text)
    return " ".join(plain.split()) if re.fullmatch(r"[A-Za-z' ]*", plain) else ""
