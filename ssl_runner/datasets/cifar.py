"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from ssl_runner.datasets.base import Arrays, Source, Split
from ssl_runner.datasets.images import image_facts
from ssl_runner.datasets.published import fetch_and_unpack, home
from ssl_runner.datasets.torchvision import Published, hold_out, torchvision_datasets

# The 100 fine classes, in the order of their labels.
FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class CIFAR10(Source):
    """50,000 + 10,000 colour photos of 32x32 in 10 classes.

    A fixed tenth of the training part, the same share of each class, is kept for validation: 45,000 train,
    5,000 val, 10,000 test.

    root: holds cifar-10-batches-py. download: fetch it, 170 MB, if it is not there.
    size: the side a backbone sees. Raises RequestError when files are missing, or corrupt once opened.
    """

    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(self, *, root: str = "data", download: bool = False, size: int = 32):
        self.facts = image_facts(channels=3, size=size, mean=self.mean, std=self.std, num_classes=10)
        self._kind, self._root = torchvision_datasets().CIFAR10, home(root)
        self._published = _find("CIFAR-10", self._kind, self._root, download)

    @cached_property
    def _parts(self) -> dict[Split, Arrays]:
        return _load(self._kind, self._root, self._published)

    def split(self, name: Split) -> Arrays:
        return self._parts[name]


class CIFAR100(Source):
    """50,000 + 10,000 colour photos of 32x32 in 100 classes, divided like CIFAR-10.

    root: holds cifar-100-python. download: fetch it, 169 MB, if it is not there.
    size: the side a backbone sees. Raises RequestError when files are missing, or corrupt once opened.
    """

    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    classes = tuple(FINE.split())

    def __init__(self, *, root: str = "data", download: bool = False, size: int = 32):
        self.facts = image_facts(channels=3, size=size, mean=self.mean, std=self.std, num_classes=100)
        self._kind, self._root = torchvision_datasets().CIFAR100, home(root)
        self._published = _find("CIFAR-100", self._kind, self._root, download)

    @cached_property
    def _parts(self) -> dict[Split, Arrays]:
        return _load(self._kind, self._root, self._published)

    def split(self, name: Split) -> Arrays:
        return self._parts[name]


def _find(title: str, kind: Any, root: str, download: bool) -> Published:
    """kind: torchvision's class. Raises RequestError."""
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    published = Published(
        title=title,
        root=root,
        files={f"{kind.base_folder}/{name}": md5 for name, md5 in files},
        command=fetch_and_unpack(kind.url, root),
    )
    published.provide((lambda: kind(root, download=True)) if download else None)
    return published


def _load(kind: Any, root: str, published: Published) -> dict[Split, Arrays]:
    def arrays(train: bool) -> Arrays:
        raw = published.load(lambda: kind(root, train=train))
        x = torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous()
        return Arrays(x, torch.tensor(raw.targets, dtype=torch.int64))

    return {**hold_out(arrays(train=True)), "test": arrays(train=False)}
