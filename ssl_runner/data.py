"""THE LightningDataModule: batches of samples for training, validation and evaluators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_runner.datasets.base import Arrays, Key, Ragged, Source, Split
from ssl_runner.datasets.reading import Reading, shuffled
from ssl_runner.errors import RequestError
from ssl_runner.seeds import derive, derive_each, of_step
from ssl_runner.types import Samples, View
from ssl_runner.views.base import Views


class TrainBatches(Sampler):
    """All batches of a whole run, one long sequence over its epochs.

    Every epoch is a new permutation, without its last incomplete batch. The global batch is cut into one slice
    per rank, so any number of ranks sees the same global batches in the same order, and a run goes on from any
    batch by setting `start`. block: as of a Ragged.
    """

    def __init__(
        self,
        samples: int,
        per_rank: int,
        *,
        batches: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        block: Tensor | None = None,
    ):
        self.samples, self.per_rank, self.batches = samples, per_rank, batches
        self.rank, self.ranks, self.seed, self.block = rank, ranks, seed, block
        self.start = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.per_rank * self.ranks
        per_epoch = self.samples // size
        order, ordered_epoch = torch.empty(0), -1
        for batch in range(self.start, self.batches):
            epoch, place = divmod(batch, per_epoch)
            if epoch != ordered_epoch:
                generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
                order, ordered_epoch = shuffled(self.samples, self.block, generator), epoch
            first = place * size + self.rank * self.per_rank
            chosen = order[first : first + self.per_rank].tolist()
            yield list(zip(chosen, derive_each(self.seed, "draw", epoch, last=chosen), strict=True))


class Numbered(Sampler):
    """The batches with their numbers in the run: (number, keys)."""

    def __init__(self, batches: TrainBatches):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, list[Key]]]:
        return enumerate(self.batches, self.batches.start)


class Viewed(Dataset):
    """Batches of a dataset with their random views, for a data worker to make while the training is at those before.

    What is drawn is what the training step would draw: it begins with the step's seed, and the state behind the views
    goes along, from which the objective draws on.
    """

    def __init__(self, dataset: Any, views: Views, seed: int, rank: int):
        self.dataset, self.views, self.seed, self.rank = dataset, views, seed, rank

    def __getitems__(self, numbered: tuple[int, list[Key]]) -> Samples:
        number, keys = numbered
        samples: Samples = self.dataset.__getitems__(keys)
        torch.default_generator.manual_seed(of_step(self.seed, self.rank, number))
        views = self.views(samples)
        return {**samples, "inputs": [], "views": views, "drawn": torch.get_rng_state()}


class EvalBatches(Sampler):
    """Every sample once, in order. Over several ranks the remainder that would make them uneven is left out."""

    def __init__(self, samples: int, per_rank: int, *, rank: int = 0, ranks: int = 1):
        self.ids = range(rank, samples - samples % ranks, ranks)
        self.per_rank = per_rank

    def __len__(self) -> int:
        return -(-len(self.ids) // self.per_rank)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self.ids), self.per_rank):
            yield [(i, derive(0, "val", i)) for i in self.ids[first : first + self.per_rank]]


class DataModule(pl.LightningDataModule):
    """Loaders over a source's splits, and frozen features of them.

    split: what to train on: `pretrain`, or `train` where the objective reads labels.
    plain_val: validate on plain views (finetuning), not on the random ones of a pretext.
    per_rank: samples of one micro-batch on one rank. batches: micro-batches of the whole run.
    ahead: training on a processor, how many batches with their views each data worker has ready; 0: views are made in
    the step, as they are on any other device.
    keep: positions of the train split to keep (few labels), None for all.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        *,
        split: Split,
        plain_val: bool,
        per_rank: int,
        batches: int,
        seed: int,
        workers: int = 0,
        ahead: int = 0,
        keep: Tensor | None = None,
    ):
        super().__init__()
        self.source, self.views = source, views
        self.train_split, self.plain_val = split, plain_val
        self.per_rank, self.batches = per_rank, batches
        self.seed, self.workers, self.keep = seed, workers, keep
        self.ahead = ahead
        self.start = 0  # the micro-batch with which training goes on
        self.device = torch.device("cpu")  # where features are computed
        self._features: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._embeds: list[Callable] = []  # keeps ids of cached embeds from being used again

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    def train_dataloader(self) -> DataLoader:
        dataset = self.source.split(self.train_split)
        if self.keep is not None:
            dataset = dataset.part(self.keep)
        ranks, rank = self._ranks()
        sampler = TrainBatches(
            len(dataset),
            self.per_rank,
            batches=self.batches,
            rank=rank,
            ranks=ranks,
            seed=self.seed,
            block=dataset.block if isinstance(dataset, Ragged) else None,
        )
        sampler.start = self.start
        on_processor = self.trainer is not None and self.trainer.strategy.root_device.type == "cpu"
        return self._loader(dataset, sampler, self.views.crops, replace=True, ahead=self.ahead if on_processor else 0)

    def val_dataloader(self) -> DataLoader:
        dataset = self.held_out()
        ranks, rank = self._ranks()
        batches = EvalBatches(len(dataset), self.per_rank, rank=rank, ranks=ranks)
        return self._loader(dataset, batches, self.views.fitted if self.plain_val else self.views.crops)

    def held_out(self) -> Arrays | Ragged:
        """What training is validated on."""
        return self.source.split("val") if self.train_split == "train" else self.source.pretext("val")

    def glimpse(self, count: int) -> Samples:
        """The first samples that training does not see, or does, where all are trained on."""
        held_out = self.held_out()
        return glimpse(
            self.source,
            self.views,
            held_out if len(held_out) else self.source.split(self.train_split),
            count,
            self.seed,
        )

    def plain(self, dataset: Arrays | Ragged) -> Iterator[tuple[View, Samples]]:
        """Every sample once, undisturbed, in order, on the device: its view, and what else is known of it."""
        batches = EvalBatches(len(dataset), max(self.per_rank, 256))
        for samples in self._loader(dataset, batches, self.views.fitted):
            samples["inputs"] = [{k: v.to(self.device) for k, v in view.items()} for view in samples["inputs"]]
            yield self.views.plain(samples), samples

    def state_dict(self) -> dict[str, Any]:
        """Where training stands. Called at the end of a batch, when it counts as done."""
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total  # type: ignore[union-attr]
        return {"batches": progress.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = state_dict["batches"]

    @torch.no_grad()
    def features(self, embed: Callable[[View], Tensor], split: Split) -> tuple[Tensor, Tensor]:
        """(N, dim) float32 features of a split's undisturbed samples and their (N,) labels; kept per embed."""
        key = (id(embed), split)
        if key not in self._features:
            self._embeds.append(embed)
            xs: list[Tensor] = []
            ys: list[Tensor] = []
            for view, samples in self.plain(self.source.split(split)):
                if "label" not in samples:
                    raise RequestError(f"the {split} part has no labels, which this evaluator needs; evaluators=none")
                xs.append(embed(view).float())
                ys.append(samples["label"].to(self.device))
            if not xs:
                raise RequestError(f"the {split} part is empty: give the data one, e.g. data.{split}=0.1")
            self._features[key] = torch.cat(xs), torch.cat(ys)
        return self._features[key]

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)

    def _loader(
        self,
        dataset: Arrays | Ragged,
        sampler: Sampler,
        crops: Callable[[list[View]], list[View]],
        replace: bool = False,
        ahead: int = 0,
    ) -> DataLoader:
        workers = 0  # arrays in memory are fetched a batch at a time: no worker is faster
        reading: Dataset = dataset
        if isinstance(dataset, Ragged):
            reading, workers = Reading(dataset, crops, self.source.on_broken, replace), self.workers
        if ahead:
            assert isinstance(sampler, TrainBatches)
            reading, workers = Viewed(reading, self.views, self.seed, sampler.rank), max(1, workers)
            sampler = Numbered(sampler)
        return DataLoader(
            reading,
            batch_sampler=sampler,
            collate_fn=_as_fetched,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=ahead or (4 if workers else None),
        )


LOOKED_AT = 8  # samples that a person looks at


def glimpse(source: Source, views: Views, dataset: Arrays | Ragged, count: int, seed: int) -> Samples:
    """The first samples of a dataset, read as training reads them in its first epoch."""
    keys = [(n, derive(seed, "draw", 0, n)) for n in range(min(count, len(dataset)))]
    reading: Any = Reading(dataset, views.crops, source.on_broken, True) if isinstance(dataset, Ragged) else dataset
    return reading.__getitems__(keys)


def _as_fetched(samples: Any) -> Any:
    """Datasets here give whole batches."""
    return samples
