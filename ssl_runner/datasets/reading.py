"""Samples of many sizes, read and cropped in data workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssl_runner.datasets.base import MIXED, BrokenSample, Key, Ragged, with_answers
from ssl_runner.errors import RequestError, RunError
from ssl_runner.types import Samples, View

NAMED = 10  # broken files named in one warning
T = TypeVar("T")


class Reading(Dataset):
    """Serves a Ragged to a DataLoader whose batch sampler yields lists of keys (position, seed).

    crops: the inputs of one sample -> its crops, the n-th of the same size for all samples. Random draws come
    from torch's CPU generator, set from the key's seed: what a key gives does not depend on which worker
    serves it, or with which other keys.
    on_broken: "stop" raises RunError at a file that can't be read; "skip" names it once on stderr and goes
    on. replace: whether the next readable sample then takes its place (training: the batch size must hold),
    or the batch gets smaller, down to none (evaluation: no sample may count twice).
    """

    def __init__(
        self,
        dataset: Ragged,
        crops: Callable[[list[View]], list[View]],
        on_broken: Literal["skip", "stop"],
        replace: bool,
    ):
        self.dataset, self.crops, self.on_broken, self.replace = dataset, crops, on_broken, replace
        # What has been warned of: shared by all workers, so that there is one line for each file.
        self._named = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        """Samples of B keys, with (B, C, ...) for each crop.

        Raises RunError when nothing in the dataset can be read, and RequestError when the crops of two
        samples differ in size.
        """
        with torch.random.fork_rng(devices=[]), self.dataset.reading():
            drawn = [self._draw(key, self.replace) for key in keys]
            rows = [row for row in drawn if row is not None]
            if rows:
                return self._collate(rows)
            # Nothing left: an empty batch still has the shape of the others.
            spare = self._draw(keys[0], replace=True)
            assert spare is not None
            empty = self._collate([spare])
        inputs = [{name: tensor[:0] for name, tensor in view.items()} for view in empty["inputs"]]
        none = empty["index"][:0]
        return with_answers({"inputs": inputs, "index": none, "cropped": True}, self.dataset, none)

    def _draw(self, key: Key, replace: bool) -> tuple[int, list[View]] | None:
        """The position that was read, which is another than asked for if that is broken, and its crops."""
        index, seed = key
        for place in range(index, index + (len(self) if replace else 1)):
            place %= len(self)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerator too
            try:
                inputs = self.dataset.inputs(place)
            except BrokenSample as error:
                self._report(place, error)
                continue
            return place, self.crops(inputs)
        if replace:
            raise RunError(f"none of the {len(self)} samples can be read; the last one tried: {self._name(place)}")
        return None

    def _report(self, index: int, error: BrokenSample) -> None:
        if self.on_broken == "stop":
            raise RunError(f"{error}; mend or remove it, or set data.on_broken=skip") from error
        if not self._named[index]:
            self._named[index] = True
            print(f"warning: skipped a broken sample: {error}", file=sys.stderr)

    def _name(self, index: int) -> str:
        return repr(self.dataset.name(index))

    def _collate(self, rows: list[tuple[int, list[View]]]) -> Samples:
        index = torch.tensor([place for place, _ in rows], dtype=torch.int64)
        inputs = []
        for crops in zip(*(crops for _, crops in rows), strict=True):
            shapes = [tuple(crop["x"].shape) for crop in crops]
            odd = next((n for n, shape in enumerate(shapes) if shape != shapes[0]), None)
            if odd is not None:
                raise RequestError(
                    "views: the samples differ in size and the views leave them so "
                    f"({self._name(rows[0][0])} gives {shapes[0]}, {self._name(rows[odd][0])} {shapes[odd]}): "
                    "begin every branch with a random crop or a resize, or set views.fit"
                )
            inputs.append({name: torch.stack([crop[name] for crop in crops]) for name in crops[0]})
        return with_answers({"inputs": inputs, "index": index, "cropped": True}, self.dataset, index)


def shuffled(samples: int, block: Tensor | None, generator: torch.Generator) -> Tensor:
    """(N,) int64, a permutation. With blocks, (N,) int64 in rising order: of the blocks, and of the samples of every
    MIXED blocks that come together in it."""
    if block is None:
        return torch.randperm(samples, generator=generator)
    numbers, of = torch.unique_consecutive(block, return_inverse=True)
    window = torch.randperm(len(numbers), generator=generator) // MIXED
    order = torch.randperm(samples, generator=generator)
    return order[window[of[order]].argsort(stable=True)]


def read_all(read: Callable[[int], T], count: int) -> list[T | BrokenSample]:
    """What `read` gives of 0 to count - 1, by several threads; where one can't be read, what is wrong with it."""

    def one(index: int) -> T | BrokenSample:
        try:
            return read(index)
        except BrokenSample as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, range(count)))


def readable(found: Sequence[object], on_broken: Literal["skip", "stop"]) -> Tensor:
    """What was found of N samples, all read at once -> (N,) bool, which can be used: those that are no BrokenSample.

    The others are told in one warning. Raises RunError at the first with on_broken="stop", and where none is left.
    """
    broken = [str(each) for each in found if isinstance(each, BrokenSample)]
    if broken and on_broken == "stop":
        raise RunError(f"{broken[0]}; mend or remove it, or set data.on_broken=skip")
    if broken and len(broken) == len(found):
        raise RunError(f"none of the {len(found)} samples can be read; the first: {broken[0]}")
    if broken:
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        print(f"warning: left out {len(broken)} broken samples: {'; '.join(broken[:NAMED])}{more}", file=sys.stderr)
    return torch.tensor([not isinstance(each, BrokenSample) for each in found], dtype=torch.bool)
