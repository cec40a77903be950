"""Speech Commands (Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", 2018)."""

from __future__ import annotations

import os

import torch

from ssl_runner.datasets.layout import find_files, label_of, top
from ssl_runner.datasets.published import fetch_and_unpack, folder_of, home
from ssl_runner.datasets.recordings import Audio, Cache, OnBroken, Rate, Seconds
from ssl_runner.errors import RequestError

TITLE, FOLDER = "Speech Commands", "speech_commands"
URL = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"


class SpeechCommands(Audio):
    """105,829 words of a second, 16 kHz, 35 classes (version 2): the official parts, in which no speaker is in two.

    root: holds the class folders, validation_list.txt and testing_list.txt, or speech_commands/ with them, as the
    archive unpacks; the recordings of noise are left out. The rest is told at Audio.
    Raises RequestError where a list, or a file that it names, is missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        seconds: Seconds = 1.0,
        longest: Seconds = 30.0,
        rate: Rate = 16000,
        on_broken: OnBroken = "skip",
        cache: Cache = "auto",
    ):
        root = home(root)
        command = fetch_and_unpack(URL, os.path.join(root, FOLDER))
        folder = folder_of(TITLE, root, [FOLDER, ""], list(LISTS.values()), command)
        files = [name for name in find_files(folder, [".wav"]) if top(name) not in (None, NOISE)]
        place = {name: n for n, name in enumerate(files)}
        parts = {}
        for part, name in LISTS.items():
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                listed = [os.path.normpath(line.strip()) for line in file if line.strip()]
            missing = [each for each in listed if each not in place]
            if missing:
                raise RequestError(
                    f"data.root={root!r}: {TITLE} is not whole ({missing[0]!r}, of {name}, is missing); run `{command}`"
                )
            parts[part] = torch.tensor([place[each] for each in listed], dtype=torch.int64)
        held = torch.zeros(len(files), dtype=torch.bool)
        for index in parts.values():
            held[index] = True
        classes = tuple(sorted({str(top(name)) for name in files}))
        super().__init__(
            folder,
            files,
            {"train": (~held).nonzero()[:, 0], **parts},
            classes=classes,
            label=label_of(files, classes),
            rate=rate,
            seconds=seconds,
            longest=longest,
            on_broken=on_broken,
            cache=cache,
        )
