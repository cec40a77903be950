"""The embedded default: 1,797 grey 8x8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from ssl_runner.datasets.base import Arrays, Source, Split
from ssl_runner.datasets.splits import stratified


class Digits(Source):
    """Optical recognition of handwritten digits, UCI (Alpaydin & Kaynak, 1998), as scikit-learn ships it.

    There is no official split: a fixed stratified one is used, 60% train, 20% validation, 20% test.
    """

    def __init__(self, *, size: int = 8):
        from sklearn.datasets import load_digits

        digits = load_digits()
        # 0..16 in the file; rounded to the 0..255 that uint8 stands for everywhere
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target).to(torch.int64)
        train, val, test = stratified(labels, (0.6, 0.2, 0.2))
        self._parts = {"train": train, "val": val, "test": test}
        self._x, self._y = images, labels
        self.classes = tuple(str(n) for n in digits.target_names)
        pixels = images[train].float() / 255
        self.facts = {
            "shape": (1, size, size),
            "size": size,
            "mean": (round(pixels.mean().item(), 4),),
            "std": (round(pixels.std().item(), 4),),
            "num_classes": len(self.classes),
        }

    def split(self, name: Split) -> Arrays:
        part = self._parts["train" if name == "pretrain" else name]
        return Arrays(self._x[part], self._y[part])
