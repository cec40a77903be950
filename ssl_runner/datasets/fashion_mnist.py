"""Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017, https://arxiv.org/abs/1708.07747) from its IDX files."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ssl_runner.datasets.base import Arrays, Source, Split
from ssl_runner.datasets.images import image_facts
from ssl_runner.datasets.published import home
from ssl_runner.datasets.torchvision import hold_out, torchvision_datasets
from ssl_runner.errors import RequestError

DEBIAN = "/usr/share/datasets/fashion-mnist"  # where the package dataset-fashion-mnist puts them
PARTS = ("train", "t10k")
FILES = [f"{part}-{kind}-ubyte.gz" for part in PARTS for kind in ("images-idx3", "labels-idx1")]
LARGEST = 1 << 30  # bytes; a damaged header may claim any number


class FashionMNIST(Source):
    """60,000 + 10,000 grey images of clothing, 28x28, in 10 classes.

    A fixed tenth of the training part, the same share of each class, is kept for validation: 54,000 train,
    6,000 val, 10,000 test.
    root: holds the four .gz files, or FashionMNIST/raw as torchvision writes it; the Debian package is used
    where root has none. download: fetch them, 31 MB, with torchvision if they are nowhere.
    size: the side a backbone sees. Raises RequestError when files are missing, or corrupt once opened.
    """

    mean, std = (0.2860,), (0.3530,)
    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )

    def __init__(self, *, root: str = "data", download: bool = False, size: int = 28):
        self.facts = image_facts(channels=1, size=size, mean=self.mean, std=self.std, num_classes=10)
        root = home(root)
        folder = _find(root)
        if folder is None and download:
            try:
                torchvision_datasets().FashionMNIST(root, download=True)
            except (OSError, RuntimeError, EOFError, zlib.error) as error:
                raise RequestError(
                    f"data.download=true: Fashion-MNIST could not be fetched ({error}); "
                    "run `apt-get install dataset-fashion-mnist`"
                ) from error
            folder = _find(root)
        if folder is None:
            raise RequestError(
                f"data.root={root!r}: Fashion-MNIST is not there, nor in {DEBIAN} ({FILES[0]!r} or another "
                "is missing); run `apt-get install dataset-fashion-mnist`, add data.download=true, or set "
                "data.root to the folder that holds its four .gz files"
            )
        self._folder = folder

    @cached_property
    def _parts(self) -> dict[Split, Arrays]:
        train, test = (_arrays(self._folder, part) for part in PARTS)
        return {**hold_out(train), "test": test}

    def split(self, name: Split) -> Arrays:
        return self._parts[name]


def _find(root: str) -> str | None:
    """The first folder that holds all four files."""
    for folder in (root, os.path.join(root, "FashionMNIST", "raw"), DEBIAN):
        if all(os.path.isfile(os.path.join(folder, f)) for f in FILES):
            return folder
    return None


def _arrays(folder: str, part: str) -> Arrays:
    images, labels = (os.path.join(folder, f) for f in FILES if f.startswith(part))
    x, label = read_idx(images, dims=3), read_idx(labels, dims=1)
    if x.shape[1:] != (28, 28):
        raise RequestError(f"{images!r} is corrupt: its images are {x.shape[1]} x {x.shape[2]}, not 28 x 28")
    if len(label) != len(x) or label.max() > 9:
        raise RequestError(f"{labels!r} is corrupt: it does not hold a label from 0 to 9 for each of {len(x)} images")
    return Arrays(x[:, None], label.to(torch.int64))


def read_idx(file: str, *, dims: int) -> Tensor:
    """A gzipped IDX file of unsigned bytes -> uint8 tensor with `dims` dimensions, none of them 0.

    The format (http://yann.lecun.com/exdb/mnist/): two zero bytes, the type of the values (8: unsigned
    byte), the number of dimensions, each dimension as a big-endian 32-bit number, then the values, the last
    dimension fastest.
    Raises RequestError, naming the file, for anything else.
    """
    try:
        with gzip.open(file) as f:
            magic, header = f.read(4), f.read(4 * dims)
            if magic != bytes((0, 0, 8, dims)):
                raise RequestError(f"{file!r} is corrupt: it is no IDX file of bytes with {dims} dimensions")
            if len(header) != 4 * dims:
                raise RequestError(f"{file!r} is corrupt: its header is cut short")
            shape = struct.unpack(f">{dims}I", header)
            count = math.prod(shape)
            if not 0 < count <= LARGEST:
                raise RequestError(f"{file!r} is corrupt: its header claims a size of {shape}")
            values = f.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{file!r} can't be read: {error}; fetch it again") from error
    if len(values) != count:
        raise RequestError(f"{file!r} is corrupt: it does not hold the {count} values that its header claims")
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(shape).copy())
