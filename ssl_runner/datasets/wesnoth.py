"""Drawn actions: the animated figures of The Battle for Wesnoth, a free game."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.datasets.base import Arrays, Source, Split
from ssl_runner.datasets.clips import animate, clip_facts, look_and_motion
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.published import folder_of, home
from ssl_runner.datasets.splits import by_group
from ssl_runner.types import View

PACKAGE = "wesnoth-1.16-data"
UNITS = os.path.join("data", "core", "images", "units")
GAME = os.path.join("usr", "share", "games", "wesnoth", "1.16")
PLACES = [os.path.join(*place, UNITS) for place in ((PACKAGE, GAME), (GAME,), (), (PACKAGE,))]  # below data.root
KNOWN = os.path.join("human-loyalists", "spearman-attack-s-1.png")  # a frame that tells the folder

WORDS = {
    "attack": "attack melee ranged bow sword magic fire blade throw slash bite axe spear staff pierce pincer kick",
    "die": "die death dying",
    "idle": "idle bob stand standing",
    "move": "run fly flying move walk swim",
}
"""class -> the words of a file's name that tell it."""

CLASS = {word: name for name, words in WORDS.items() for word in words.split()}
FEWEST = 3  # frames of a clip
CANVAS = 72  # pixels along a side of a field of the board, and of most figures
GREY = 127  # behind the figures, which are cut out
SHARES = (0.6, 0.15, 0.25)


class Wesnoth(Source):
    """About 600 clips of figures that attack, die, move or stand idle, drawn in 3 to 23 frames each.

    A clip is the frames that differ in the number at the end of their name, such as orcs/grunt-ne-die-1.png to
    orcs/grunt-ne-die-10.png; three at least. Its class is what the last known word of the name says (see WORDS); clips
    without such a word are left out. Figures stand in the middle of a grey square of 72 pixels, or of their largest
    frame's, in proportion.

    A sample is (3, T, size, size): the clip drawn out, or thinned, evenly to T = stretch * frames; views cut `frames`
    of them. There is no official split: a fixed one by figure, 60% train, 15% validation, 25% test; clips of one figure
    (its folder and the first word of its name) are in one part. Figures that look alike have other names, such as the
    ranks of a soldier, and may be in two.
    root: has the folder data/core/images/units, or the package as it unpacks. Raises RequestError where that is
    missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        size: Annotated[int, Gt(0)] = 32,
        frames: Annotated[int, Gt(0)] = 8,
        stretch: Annotated[float, Ge(1)] = 1.0,
    ):
        root = home(root)
        where = shlex.quote(os.path.join(root, PACKAGE))
        command = f"apt-get download {PACKAGE} && dpkg -x {PACKAGE}_*.deb {where}"
        folder = folder_of("Wesnoth's figures", root, PLACES, [KNOWN], command)
        found = clips(folder)
        self.classes = tuple(WORDS)
        number = {name: n for n, name in enumerate(self.classes)}
        label = torch.tensor([number[kind] for _, kind, _ in found], dtype=torch.int64)
        length = math.ceil(frames * stretch)
        x = torch.stack([drawn([os.path.join(folder, f) for f in files], length, size) for _, _, files in found])
        parts = by_group([figure for figure, _, _ in found], SHARES)
        self._parts = {name: Arrays(x[ids], label[ids]) for name, ids in zip(PARTS, parts, strict=True)}
        values = self._parts["train"].x.transpose(0, 1).flatten(1).double() / 255
        mean, std = ([round(v, 4) for v in each.tolist()] for each in (values.mean(1), values.std(1)))
        self.facts = clip_facts(frames=frames, size=size, mean=mean, std=std, classes=len(self.classes))

    def split(self, name: Split) -> Arrays:
        return self._parts["train" if name == "pretrain" else name]

    def raw(self, view: View) -> Tensor:
        return look_and_motion(view)

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        return animate(columns, path) or super().write(columns, path)


def clips(folder: str) -> list[tuple[str, str, list[str]]]:
    """(figure, class, frames) of each clip below the folder, in the order of their names."""
    frames: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for here, _, files in os.walk(folder):
        for file in files:
            numbered = re.fullmatch(r"(.*?)(\d+)\.png", file)
            if numbered:
                path = os.path.relpath(os.path.join(here, file), folder)
                frames[os.path.join(os.path.dirname(path), numbered[1])].append((int(numbered[2]), path))
    found = []
    for name, numbered_files in sorted(frames.items()):
        words = re.split(r"[-_+\d]+", os.path.basename(name))
        kinds = [CLASS[word] for word in words if word in CLASS]
        if kinds and len(numbered_files) >= FEWEST:
            figure = os.path.join(os.path.dirname(name), words[0])
            found.append((figure, kinds[-1], [file for _, file in sorted(numbered_files)]))
    return found


def drawn(files: Sequence[str], length: int, size: int) -> Tensor:
    """(3, length, size, size) uint8: the frames, evenly over time, each in the middle of a grey square."""
    from PIL import Image

    pictures = []
    for file in files:
        with Image.open(file, formats=["PNG"]) as opened:
            pictures.append(opened.convert("RGBA"))
    side = max(CANVAS, *(max(picture.size) for picture in pictures))
    seen = []
    for picture in pictures:
        board = Image.new("RGBA", (side, side), (GREY, GREY, GREY, 255))
        board.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        seen.append(np.asarray(board.convert("RGB").resize((size, size), Image.Resampling.BOX)))
    place = np.linspace(0, len(seen) - 1, length).round().astype(int)
    return torch.from_numpy(np.stack([seen[n] for n in place])).permute(3, 0, 1, 2).contiguous()
