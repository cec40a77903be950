"""What data sets of files share: their names, and the parts held out."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ssl_runner.datasets.base import Ragged
from ssl_runner.datasets.splits import stratified

F = TypeVar("F", bound="Files")


class Files(Ragged):
    """N files below a folder, one sample each.

    root: the folder that the names are relative to. files: their names. label: (N,) int64, or None.
    """

    def __init__(self, root: str, files: Sequence[str], label: Tensor | None):
        self.root, self.label = root, label
        # One block of bytes: each worker would copy a list of strings, by counting references to them.
        self._files = np.array([os.fsencode(f) for f in files], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self._files[index])))

    def part(self: F, index: Tensor) -> F:
        """The samples at these positions, (n,) int64."""
        some = copy.copy(self)
        some._files = self._files[index.numpy()]
        some.label = None if self.label is None else self.label[index]
        return some


def hold_out(parts: Mapping[str, F], shares: Mapping[str, float]) -> dict[str, F]:
    """The parts, and those of `shares` that are missing, split off from train, each class alike."""
    whole = parts["train"]
    wanted = {name: share for name, share in shares.items() if name not in parts}
    by = whole.label if whole.label is not None else torch.zeros(len(whole), dtype=torch.int64)
    ids = stratified(by, (1 - sum(wanted.values()), *wanted.values()))
    return {**parts, **{name: whole.part(i) for name, i in zip(("train", *wanted), ids, strict=True)}}
