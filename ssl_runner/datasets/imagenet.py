"""ImageNet-1k (Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015)."""

from __future__ import annotations

import os
import shlex
from functools import cached_property
from typing import Literal

import torch

from ssl_runner.datasets.base import Source, Split
from ssl_runner.datasets.folder import EXTENSIONS
from ssl_runner.datasets.images import Images, image_facts
from ssl_runner.datasets.layout import class_names, find_files, label_of
from ssl_runner.datasets.published import home
from ssl_runner.datasets.splits import stratified
from ssl_runner.datasets.torchvision import torchvision_datasets
from ssl_runner.errors import RequestError


class ImageNet(Source):
    """1,281,167 + 50,000 colour photos of many sizes in 1,000 classes, or some of these classes.

    The test part is the official validation part, for the official test part has no public labels; a fixed 1%
    of the training part, the same share of each class, is kept for validation.
    root: holds train/<wnid>/ and val/<wnid>/. With meta.bin beside them, as torchvision leaves it,
    torchvision lists the files and the classes get their English names.
    size: the side a backbone sees. on_broken: leave out a file that can't be read, or stop the run.
    Raises RequestError when the folders are missing or their classes differ.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, *, root: str = "data", size: int = 224, on_broken: Literal["skip", "stop"] = "skip"):
        self._root, self.on_broken = home(root), on_broken
        wnids = {part: self._class_folders(part) for part in ("train", "val")}
        odd = sorted(set(wnids["train"]) ^ set(wnids["val"]))
        if odd:
            raise RequestError(f"data.root={self._root!r}: the class folder {odd[0]!r} is in only one of train and val")
        self.classes = tuple(wnids["train"])
        self._described = os.path.isfile(os.path.join(self._root, "meta.bin"))
        if self._described:
            names = torchvision_datasets().imagenet.load_meta_file(self._root)[0]
            self.classes = tuple(", ".join(names[wnid]) for wnid in wnids["train"])
        self.facts = image_facts(channels=3, size=size, mean=self.mean, std=self.std, num_classes=len(self.classes))

    def _class_folders(self, part: Literal["train", "val"]) -> list[str]:
        folder = os.path.join(self._root, part)
        try:
            names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
        except OSError as error:
            raise self._missing(f"{folder!r} can't be read ({error.strerror})") from error
        if not names:
            raise self._missing(f"{folder!r} has no class folders")
        return names

    def _missing(self, what: str) -> RequestError:
        root = self._root
        unpack = f"from torchvision.datasets import ImageNet as I; I({root!r}, 'train'); I({root!r}, 'val')"
        return RequestError(
            f"data.root={root!r}: ImageNet is not there ({what}); set data.root to the folder with train and "
            "val, or put ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar "
            f"from https://image-net.org in it and run `python -c {shlex.quote(unpack)}`"
        )

    @cached_property
    def _parts(self) -> dict[str, Images]:
        whole = self._images("train")
        assert whole.label is not None
        train, val = (whole.part(i) for i in stratified(whole.label, (0.99, 0.01)))
        return {"train": train, "val": val, "test": self._images("val")}

    def _images(self, part: Literal["train", "val"]) -> Images:
        folder = os.path.join(self._root, part)
        if self._described:
            try:
                listed = torchvision_datasets().ImageNet(self._root, part)
            except FileNotFoundError as error:
                raise RequestError(f"data.root={self._root!r}: {error}") from error
            files = [os.path.relpath(path, folder) for path, _ in listed.samples]
            return Images(folder, files, torch.tensor(listed.targets, dtype=torch.int64))
        files = list(find_files(folder, EXTENSIONS))
        wnids = class_names(self._root, {"train": (part, files)})
        if len(wnids) != len(self.classes):
            raise RequestError(
                f"data.root: of {len(self.classes)} class folders in {folder!r}, {len(wnids)} hold images"
            )
        return Images(folder, files, label_of(files, wnids))

    def split(self, name: Split) -> Images:
        return self._parts["train" if name == "pretrain" else name]
