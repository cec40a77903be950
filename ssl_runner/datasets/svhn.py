"""SVHN (Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011)."""

from __future__ import annotations

import shlex
from functools import cached_property
from typing import Literal

import torch

from ssl_runner.datasets.base import Arrays, Source, Split
from ssl_runner.datasets.images import image_facts
from ssl_runner.datasets.published import home
from ssl_runner.datasets.torchvision import Published, hold_out, torchvision_datasets


class SVHN(Source):
    """House numbers from street photos, cropped to a digit each: 73,257 + 26,032 colour images of 32x32 in 10
    classes. A fixed tenth of the training part is kept for validation. The "extra" part is not used.

    root: holds train_32x32.mat and test_32x32.mat. download: fetch them, 246 MB, if they are not there.
    size: the side a backbone sees. Raises RequestError when files are missing, or corrupt once opened.
    """

    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    classes = tuple("0123456789")

    def __init__(self, *, root: str = "data", download: bool = False, size: int = 32):
        self.facts = image_facts(channels=3, size=size, mean=self.mean, std=self.std, num_classes=10)
        self._kind, self._root = torchvision_datasets().SVHN, home(root)
        listed = [self._kind.split_list[part] for part in ("train", "test")]
        folder = shlex.quote(self._root)
        self._published = Published(
            title="SVHN",
            root=self._root,
            files={name: md5 for _, name, md5 in listed},
            command="curl -L --create-dirs " + " ".join(f"-o {folder}/{name} {url}" for url, name, _ in listed),
        )
        self._published.provide(self._download if download else None)

    def _download(self) -> None:
        for part in ("train", "test"):
            self._kind(self._root, split=part, download=True)

    @cached_property
    def _parts(self) -> dict[Split, Arrays]:
        return {**hold_out(self._arrays("train")), "test": self._arrays("test")}

    def _arrays(self, part: Literal["train", "test"]) -> Arrays:
        raw = self._published.load(lambda: self._kind(self._root, split=part))
        return Arrays(torch.from_numpy(raw.data).contiguous(), torch.from_numpy(raw.labels))

    def split(self, name: Split) -> Arrays:
        return self._parts[name]
