"""What every data source is: named splits of samples, and the facts that views, backbones and heads need."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ssl_runner.pictures import draw
from ssl_runner.types import Samples, View

Split = Literal["pretrain", "train", "val", "test"]
Key = tuple[int, int]
"""(position in the dataset, random seed of this draw): what the sampler asks a dataset for."""

MIXED = 4  # blocks of a Ragged whose samples are shuffled together


class Arrays(Dataset):
    """Equal-sized samples held in memory and fetched a batch at a time.

    x: (N, ...), uint8 for intensities. label: (N,) int64, target: (N, ...), as in Samples; None where there are none.
    """

    def __init__(self, x: Tensor, label: Tensor | None = None, target: Tensor | None = None):
        self.x, self.label, self.target = x, label, target

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        index = torch.tensor([k for k, _ in keys], dtype=torch.int64)
        samples: Samples = {"inputs": [{"x": self.x[index]}], "index": index}
        return with_answers(samples, self, index)

    def part(self, keep: Tensor) -> Arrays:
        """The samples at these positions, (n,) int64, as what they are here: it may know more of them."""
        some = copy.copy(self)
        some.x = self.x[keep]
        some.label = None if self.label is None else self.label[keep]
        some.target = None if self.target is None else self.target[keep]
        return some


class Ragged(Dataset):
    """Samples that differ in size, read one by one in a data worker.

    block: (N,) int64, where samples are cheap to read only together with others, as rows of a row group are: the number
    of each one's block, in rising order. Training then mixes a few blocks at a time. None: any order is as good.
    packed_as: the choice of data that reads these samples' files out of tar shards; "" where none does.
    """

    packed_as: ClassVar[str] = ""
    label: Tensor | None
    target: Tensor | None = None
    block: Tensor | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> Tensor:
        """One sample, (C, ...). Raises BrokenSample when it can't be read. Random draws, such as where to begin in a
        long file, come from torch's CPU generator, which is seeded for each sample."""
        raise NotImplementedError

    def inputs(self, index: int) -> list[View]:
        """All inputs of one sample: one, but for pairs."""
        return [{"x": self.read(index)}]

    def reading(self) -> AbstractContextManager:
        """Entered around the reads of a batch: what they need set up, such as a library's warnings turned off."""
        return nullcontext()

    def name(self, index: int) -> str:
        """What to call this sample in an error message: its file."""
        raise NotImplementedError

    def part(self, keep: Tensor) -> Ragged:
        """The samples at these places, (n,) int64."""
        return _Part(self, keep)


class _Part(Ragged):
    """Some samples of a ragged dataset."""

    def __init__(self, dataset: Ragged, keep: Tensor):
        self.dataset, self.keep = dataset, keep
        self.label = None if dataset.label is None else dataset.label[keep]
        self.target = None if dataset.target is None else dataset.target[keep]
        self.block = None if dataset.block is None else dataset.block[keep]

    def __len__(self) -> int:
        return len(self.keep)

    def read(self, index: int) -> Tensor:
        return self.dataset.read(int(self.keep[index]))

    def inputs(self, index: int) -> list[View]:
        return self.dataset.inputs(int(self.keep[index]))

    def name(self, index: int) -> str:
        return self.dataset.name(int(self.keep[index]))

    def reading(self) -> AbstractContextManager:
        return self.dataset.reading()


def with_answers(samples: Samples, dataset: Arrays | Ragged, index: Tensor) -> Samples:
    """The samples at these places of a dataset, with the labels and targets that it has for them."""
    if dataset.label is not None:
        samples["label"] = dataset.label[index]
    if dataset.target is not None:
        samples["target"] = dataset.target[index]
    return samples


class BrokenSample(Exception):
    """A sample that can't be read; the message names it and says why."""


class Source:
    """Where samples come from. Constructing one finds its files, or raises RequestError with the command that
    would provide them; nothing large is read before ``split``.

    ``facts`` are what other parts may ask for by parameter name: a required argument of a view, backbone,
    objective or evaluator that the config leaves out is filled from here.
      shape        of one sample, brought to size, e.g. (3, 32, 32); what views make of it is what a backbone is told
      size         the last of shape: the side to which crops are brought
      mean, std    per channel, on the scale 0..1, of the training part
      num_classes  0 where there are no labels, and where these are values
      label_mean, label_std  of labels that are values, over the train part
      columns      of a table: for each its number of categories, 0 where it holds numbers
      words        of text: the tokenizer.json that says what its ids spell, where there is one
      frames       of a clip, the first of shape's sides
      rate         of a signal: values a second along the last axis
      horizon      of series: how many values behind a sample are its target
      alphabet     of transcripts: what each id of a target spells; the first, "", is CTC's blank
      second       of pairs: the facts of their second input, for what stands under a key of this name in the config
    and, of every source, `samples`: how many its pretrain part has.
    """

    labelled: ClassVar[bool | None] = True  # None: known only once opened
    on_broken: Literal["skip", "stop"] = "skip"
    classes: tuple[str, ...] = ()  # what labels mean, where they are classes
    valued: bool = False  # whether labels are values to be predicted
    paired: bool = False  # whether a sample has two inputs of one kind, and its label is of both
    tags: tuple[str, ...] = ()  # what the labels of single tokens mean, where samples have such
    facts: dict[str, Any]

    def split(self, name: Split) -> Arrays | Ragged:
        """`pretrain` is all that may be learned from without labels (`train`, unless a source has more)."""
        raise NotImplementedError

    def pretext(self, name: Literal["val", "test"]) -> Arrays | Ragged:
        """A part as an objective without labels is scored on it: where `pretrain` is cut otherwise than `train`, the
        same way."""
        return self.split(name)

    def past(self, split: Split) -> list[Tensor] | None:
        """Where a sample is a sequence of ids and its label the one that follows: all ids before that, for each sample
        of a part, also those that the sample has no room for. None elsewhere."""
        return None

    def pinned(self) -> dict[str, Any]:
        """Arguments as they are from now on, for a run to keep: what was made on opening and must not be made anew,
        such as a tokenizer."""
        return {}

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        """Writes what an objective shows of some samples to a file that a person can look at, and gives it; None where
        there is no such form. columns: (n, ...) each, undisturbed values. path: without its suffix.

        Here: a picture, for values in [0, 1] of images.
        """
        file = path.with_suffix(".png")
        return file if draw(columns, file) else None

    def raw(self, view: View) -> Tensor:
        """The raw-input baseline's features, (B, D): the values themselves, flattened.

        Planes of more than 32 x 32 values are first averaged down to that: nearest neighbours and linear probes gain
        nothing from 150,000 correlated values a sample, and would not fit in memory.
        """
        x = view["x"]
        if x.ndim == 4 and max(x.shape[2:]) > 32:
            x = F.adaptive_avg_pool2d(x, (min(x.shape[2], 32), min(x.shape[3], 32)))
        return x.flatten(1)
