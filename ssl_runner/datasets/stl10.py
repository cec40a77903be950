"""STL-10 (Coates, Lee, Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", 2011)."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch

from ssl_runner.datasets.base import Arrays, Source, Split
from ssl_runner.datasets.images import image_facts
from ssl_runner.datasets.published import fetch_and_unpack, home
from ssl_runner.datasets.torchvision import Published, hold_out, torchvision_datasets


class STL10(Source):
    """Colour photos of 96x96 in 10 classes: 5,000 to train on, 8,000 to test on, and 100,000 without labels.

    A fixed tenth of the training part is kept for validation. `pretrain` is the rest of it and the unlabelled
    part, 104,500 images (2.9 GB in memory) without labels; it is loaded only when asked for.
    root: holds stl10_binary. download: fetch it, 2.6 GB, if it is not there.
    size: the side a backbone sees. Raises RequestError when files are missing, or corrupt once opened.
    """

    mean, std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

    def __init__(self, *, root: str = "data", download: bool = False, size: int = 96):
        self.facts = image_facts(channels=3, size=size, mean=self.mean, std=self.std, num_classes=10)
        kind = torchvision_datasets().STL10
        self._kind, self._root = kind, home(root)
        self._published = Published(
            title="STL-10",
            root=self._root,
            files={f"{kind.base_folder}/{name}": md5 for name, md5 in [*kind.train_list, *kind.test_list]},
            command=fetch_and_unpack(kind.url, self._root),
        )
        self._published.provide((lambda: kind(self._root, split="test", download=True)) if download else None)

    @cached_property
    def _labelled(self) -> dict[Split, Arrays]:
        parts = {}
        for part in ("train", "test"):
            raw = self._raw(part)
            x = torch.from_numpy(raw.data).contiguous()  # the file holds columns, so this turns each image
            parts[part] = Arrays(x, torch.from_numpy(raw.labels).to(torch.int64))
        return {**hold_out(parts["train"]), "test": parts["test"]}

    @cached_property
    def _pretrain(self) -> Arrays:
        unlabelled, train = torch.from_numpy(self._raw("unlabeled").data), self._labelled["train"].x
        x = torch.empty(len(unlabelled) + len(train), *train.shape[1:], dtype=torch.uint8)
        x[: len(unlabelled)] = unlabelled  # in place: turned and joined without a third copy of 2.8 GB
        x[len(unlabelled) :] = train
        return Arrays(x)

    def _raw(self, part: Literal["train", "test", "unlabeled"]):
        return self._published.load(lambda: self._kind(self._root, split=part))

    def split(self, name: Split) -> Arrays:
        return self._pretrain if name == "pretrain" else self._labelled[name]
