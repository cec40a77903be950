"""UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild (Soomro, Zamir, Shah, 2012).

https://arxiv.org/abs/1212.0402
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.datasets.published import folder_of
from ssl_runner.datasets.video import VideoFolder
from ssl_runner.errors import RequestError

VIDEOS, LISTS = "UCF-101", "ucfTrainTestlist"
URL = "https://www.crcv.ucf.edu/data/UCF101"
HELD = (22, 23, 24, 25)  # groups of the training list that are held out to choose by


class UCF101(VideoFolder):
    """13,320 clips of 101 actions, with one of the three official lists of what is trained and tested on.

    root: has UCF-101/<class>/v_<class>_g01_c01.avi and ucfTrainTestlist/trainlist01.txt, as the archives unpack.
    fold: which list. There is no official validation part: it is the last four groups of the training list (a group is
    clips of one origin, and never in two parts). The rest is told at VideoFolder.
    Raises RequestError where files are missing, or a list names what is not there.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        fold: Literal[1, 2, 3] = 1,
        size: Annotated[int, Gt(0)] = 112,
        frames: Annotated[int, Gt(0)] = 16,
        fps: Annotated[float, Gt(0)] = 8.0,
        stretch: Annotated[float, Ge(1)] = 1.0,
        on_broken: Literal["skip", "stop"] = "skip",
        cache: Literal["auto", "no"] = "auto",
    ):
        self.fold = fold
        super().__init__(
            root=root, size=size, frames=frames, fps=fps, stretch=stretch, on_broken=on_broken, cache=cache
        )

    def find(self, root: str) -> tuple[dict[str, tuple[str, list[str], Tensor | None]], tuple[str, ...]]:
        names = [os.path.join(LISTS, f"{kind}list{self.fold:02}.txt") for kind in ("train", "test")]
        there = shlex.quote(root)
        command = (
            f"mkdir -p {there} && cd {there} && curl -LO {URL}/UCF101.rar -LO "
            f"{URL}/UCF101TrainTestSplits-RecognitionTask.zip && unrar x UCF101.rar && unzip UCF101Train*.zip"
        )
        folder = folder_of("UCF101", root, ["", "UCF101", "ucf101"], names, command)
        train, test = (listed(os.path.join(folder, name)) for name in names)
        classes = tuple(sorted({os.path.dirname(file) for file in train}))
        number = {name: n for n, name in enumerate(classes)}
        parts = {
            "train": [file for file in train if group(file) not in HELD],
            "val": [file for file in train if group(file) in HELD],
            "test": test,
        }
        videos = os.path.join(folder, VIDEOS)
        for file in (*train, *test):
            if os.path.dirname(file) not in number or not os.path.isfile(os.path.join(videos, file)):
                raise RequestError(f"data.root={root!r}: the lists name {file!r}, and {videos!r} has no such video")
        label = {name: torch.tensor([number[os.path.dirname(f)] for f in files]) for name, files in parts.items()}
        return {name: (videos, files, label[name]) for name, files in parts.items()}, classes


def listed(file: str) -> list[str]:
    """The names in a list: "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1" a line, in training with the class."""
    with open(file, encoding="utf-8") as lines:
        return [line.split()[0] for line in lines if line.strip()]


def group(file: str) -> int:
    """25 of "v_ApplyEyeMakeup_g25_c01.avi". Raises RequestError for another name."""
    found = re.search(r"_g(\d+)_c\d+\.avi$", file)
    if found is None:
        raise RequestError(f"data.root: the lists name {file!r}, which tells no group")
    return int(found[1])
