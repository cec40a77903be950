"""Made-up images, for tests and benchmarks."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F

from ssl_runner.datasets.base import Arrays, Source, Split
from ssl_runner.datasets.images import image_facts
from ssl_runner.datasets.splits import stratified
from ssl_runner.errors import RequestError


class Fake(Source):
    """Noise over a faint coarse pattern that is its class's own; the same on every machine.

    samples: in all; 80% train, 10% validation, 10% test. shape: (C, H, W).
    Raises RequestError for numbers that leave a class or an image empty.
    """

    def __init__(self, *, samples: int = 512, shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10):
        if min(shape) < 1:
            raise RequestError(f"data.shape={list(shape)}: give channels, height and width, each 1 or more")
        if not 1 <= num_classes <= samples:
            raise RequestError(
                f"data.num_classes={num_classes}: give 1 or more, and no more than data.samples={samples}"
            )
        self._samples, self._shape = samples, tuple(shape)
        self.classes = tuple(str(n) for n in range(num_classes))
        # 3/4 uniform noise and 1/4 pattern, in whole numbers up to 252: mean 126, standard deviation about 58
        mean, std = (0.494,) * shape[0], (0.229,) * shape[0]
        facts = image_facts(channels=shape[0], size=shape[-1], mean=mean, std=std, num_classes=num_classes)
        self.facts = {**facts, "shape": self._shape}

    @cached_property
    def _parts(self) -> dict[str, Arrays]:
        generator = torch.Generator().manual_seed(0)
        label = torch.arange(self._samples) % len(self.classes)
        x = torch.randint(0, 64, (self._samples, *self._shape), dtype=torch.uint8, generator=generator) * 3
        coarse = torch.rand(len(self.classes), self._shape[0], 4, 4, generator=generator)
        pattern = F.interpolate(coarse, size=self._shape[1:], mode="nearest").mul(64).to(torch.uint8)
        x += pattern[label]
        ids = stratified(label, (0.8, 0.1, 0.1))
        return {name: Arrays(x[i], label[i]) for name, i in zip(("train", "val", "test"), ids, strict=True)}

    def split(self, name: Split) -> Arrays:
        return self._parts["train" if name == "pretrain" else name]
