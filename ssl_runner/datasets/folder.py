"""A user's own images, in folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Literal

import torch

from ssl_runner.datasets.base import Arrays, BrokenSample, Source, Split
from ssl_runner.datasets.files import hold_out
from ssl_runner.datasets.images import Images, image_facts, image_size, quiet_pillow
from ssl_runner.datasets.layout import class_names, find_files, label_of, lay_out
from ssl_runner.datasets.published import home
from ssl_runner.datasets.reading import read_all, readable
from ssl_runner.errors import RequestError

Extension = Literal[".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
EXTENSIONS: tuple[Extension, ...] = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".ppm", ".tif", ".tiff", ".webp"),
)
KIND = "images"
CACHE = 1 << 30  # bytes of decoded images that are held in memory


class Folder(Source):
    """Images of any size, in one of three layouts:

      <root>/<class>/...                    split here, each class alike
      <root>/{train,val,test}/<class>/...   where there is no val or test folder, it is split off from train
      <root>/*.jpg                          no labels; the same for parts without class folders

    Files deeper down belong to the class of their top folder. Names are taken in sorted order, so the splits
    are the same on every machine; hidden files, other files and empty folders are passed over.

    size: the side a backbone sees. val, test: shares, used where the layout has no such part.
    channels: 3 for colour, 1 for grey. extensions: of the files to read, in lower case; any case is found.
    on_broken: leave out a file that can't be read, with a warning, or stop the run.
    cache: "auto" decodes everything once where all images have the same size and take 1 GiB at most; training
    then runs at the speed of arrays. "no" reads each file every time.
    mean, std: one for each channel, on the scale 0..1; None takes ImageNet's.
    Raises RequestError where no image is found or the layout can't be told, and RunError, from `split`, where
    a whole part is broken.
    """

    labelled: bool | None = None  # type: ignore[misc]  # set by what is found

    def __init__(
        self,
        *,
        root: str,
        size: int = 224,
        val: float = 0.1,
        test: float = 0.1,
        channels: Literal[1, 3] = 3,
        on_broken: Literal["skip", "stop"] = "skip",
        extensions: tuple[Extension, ...] = EXTENSIONS,
        cache: Literal["auto", "no"] = "auto",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        if val < 0 or test < 0 or val + test >= 1:
            raise RequestError(f"data.val={val}, data.test={test}: give shares from 0 that leave some for training")
        self.on_broken, self._cache, self._channels = on_broken, cache, channels
        self._root = home(root)
        found = lay_out(self._root, list(find_files(self._root, extensions, KIND)), extensions, KIND)
        self.classes = class_names(self._root, found, KIND)
        self.labelled = bool(self.classes)
        images = {
            part: Images(os.path.join(self._root, folder), files, label_of(files, self.classes), channels)
            for part, (folder, files) in found.items()
        }
        self._parts = hold_out(images, {"val": val, "test": test})
        self.facts = image_facts(
            channels=channels,
            size=size,
            mean=per_channel("mean", mean, channels, (0.485, 0.456, 0.406)),
            std=per_channel("std", std, channels, (0.229, 0.224, 0.225)),
            num_classes=len(self.classes),
        )
        self._opened: dict[str, Arrays | Images] = {}

    def split(self, name: Split) -> Arrays | Images:
        part = "train" if name == "pretrain" else name
        if part not in self._opened:
            images = self._parts[part]
            cached = decode_all(images, self._size, self.on_broken) if self._size and len(images) else None
            self._opened[part] = images if cached is None else cached
        return self._opened[part]

    @cached_property
    def _size(self) -> tuple[int, int] | None:
        """(width, height) by the headers if all images have the same and fit in the cache; otherwise None."""
        if self._cache == "no":
            return None
        count, common = sum(len(p) for p in self._parts.values()), None
        with quiet_pillow():
            for file in chain.from_iterable(map(p.name, range(len(p))) for p in self._parts.values()):
                try:
                    size = image_size(file)
                except BrokenSample:
                    continue  # met again, and reported, when it is decoded
                if size != (common or size) or count * self._channels * size[0] * size[1] > CACHE:
                    return None
                common = size
        return common


def per_channel(
    key: str, given: Sequence[float] | None, channels: int, usual: tuple[float, float, float]
) -> tuple[float, ...]:
    if given is None:
        return usual if channels == 3 else (round(sum(usual) / 3, 4),)
    if len(given) != channels or (key == "std" and min(given) <= 0):
        kind = "positive numbers" if key == "std" else "numbers"
        raise RequestError(
            f"data.{key}={list(given)}: give {channels} {kind}, one for each of data.channels={channels}"
        )
    return tuple(given)


# --- the cache ------------------------------------------------------------------------------------------


class _OtherSize(Exception):
    """An image came out in another size than its header said: EXIF turns it."""


def decode_all(images: Images, size: tuple[int, int], on_broken: Literal["skip", "stop"]) -> Arrays | None:
    """All images of one (width, height), decoded; None where one comes out in another size.

    Broken files are left out, with one warning for all of them. Raises RunError at the first with
    on_broken="stop", and where no file is left.
    """
    width, height = size
    x = torch.empty(len(images), images.channels, height, width, dtype=torch.uint8)

    def decode(index: int) -> None:
        sample = images.read(index)
        if sample.shape != x.shape[1:]:
            raise _OtherSize
        x[index] = sample

    try:
        with quiet_pillow():
            found = read_all(decode, len(images))
    except _OtherSize:
        return None
    kept = readable(found, on_broken)
    if kept.all():
        return Arrays(x, images.label)
    return Arrays(x[kept], None if images.label is None else images.label[kept])
