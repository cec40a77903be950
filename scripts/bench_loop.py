"""How much of the bare training loop's speed the whole runner keeps, and what each part of its step costs.

    python scripts/bench_loop.py [+task=mae_speech [key=value ...]] [+task=cvrl ...]

Each +task= begins a recipe, to which the overrides behind it belong, and gives a row of the table; without one it is
SimCLR with a ResNet-18 on Fashion-MNIST. One process trains the composed config through the runner (data, views,
Lightning, logging) and, in turn with it, a plain loop on one batch of views that is in memory already: forward,
backward, clipping, optimiser step and what the objective does after it (a teacher that follows), with the same
objective, precision and memory format. Validation and checkpoints are no part of a step.

    real, bare   milliseconds a step, the medians over the blocks
    bare/real    the share of the bare loop's speed that is kept: median, least and largest over the blocks
    load, views, forward, backward, optimiser, rest   milliseconds of a real step, the medians over its steps: waiting
                 for samples, views of them, the objective, its gradient, clipping and the step of the weights with what
                 follows it; and all else

With OMP_NUM_THREADS=1, of recipes without data workers, all is told in CPU time, so that other work on the machine
disturbs it little; else in time that passes.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module
from torch.utils.data import DataLoader

from ssl_runner import build, cli, devices, stages
from ssl_runner.callbacks import Checkpoints, Display, TableLogger
from ssl_runner.config import check, plain
from ssl_runner.data import DataModule
from ssl_runner.datasets.base import Ragged
from ssl_runner.durations import Clock
from ssl_runner.learner import Learner
from ssl_runner.loggers import Table

DEFAULT = [
    "+task=simclr",
    "data=fashion_mnist",
    "data.size=32",
    "backbone=resnet18",
    "backbone.small_stem=true",
    "batch_size=128",
]
BLOCKS = 10  # of each loop
SECONDS = 0.4  # of a block, about
STEPS = 1_000_000  # more than are run: the blocks end training
PARTS = ("load", "views", "forward", "backward", "optimiser")


class Timed(DataLoader):
    """Tells how long each batch was waited for."""

    clock: Callable[[], float]
    waited: list[float]

    def __iter__(self) -> Any:
        batches = super().__iter__()
        while True:
            started = self.clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited.append(self.clock() - started)
            yield batch


class Waiting(DataModule):
    """A data module of which one can tell how long its batches were waited for."""

    clock: Callable[[], float]

    def setup(self, stage: str) -> None:
        self.waited: list[float] = []

    def train_dataloader(self) -> DataLoader:
        loader: Any = super().train_dataloader()
        loader.__class__ = Timed
        loader.clock, loader.waited = self.clock, self.waited
        return loader


class Interleaved(pl.Callback):
    """After every block of real steps, a block of bare ones.

    ready: batches that may have been made during a bare block; the steps of so many real ones are not counted.
    """

    def __init__(self, clock: Callable[[], float], precision: str, clip: float | None, ready: int):
        self.clock, self.mixed, self.clip, self.ready = clock, precision == "bf16-mixed", clip, ready
        self.real: list[float] = []  # seconds a step, block by block
        self.bare: list[float] = []
        self.spent: dict[str, list[float]] = {name: [] for name in PARTS}  # seconds, step by step
        self.marks: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, learner: Any) -> None:
        samples = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
        self.batch = learner.batch(samples, learner.drawn(samples))
        self.objective = copy.deepcopy(learner.objective)
        self.optimizer = learner.optim(self.objective, learner.clock.global_batch)
        self.steps = 2
        self.block()
        self.steps = max(2, round(SECONDS / self.block()))
        for name, module in (("views", learner.views), ("forward", learner.objective)):
            module.register_forward_pre_hook(partial(self.begin, name))
            module.register_forward_hook(partial(self.end, name))
        trainer.optimizers[0].register_step_post_hook(partial(self.end, "optimiser"))
        self.done, self.started = -self.ready, self.clock()

    def block(self) -> float:
        started = self.clock()
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
                loss = self.objective(self.batch).value
            loss.backward()
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.clip)
            self.optimizer.step()
            self.objective.after_step(0.5)
        return (self.clock() - started) / self.steps

    def begin(self, name: str, *_: Any) -> None:
        self.marks[name] = self.clock()

    def end(self, name: str, *_: Any) -> None:
        self.spent[name].append(self.clock() - self.marks[name])

    def on_before_backward(self, *_: Any) -> None:
        self.begin("backward")

    def on_after_backward(self, *_: Any) -> None:
        self.end("backward")
        self.begin("optimiser")

    def on_train_batch_end(self, trainer: pl.Trainer, learner: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.done += 1
        if self.done == 0:
            self.started = self.clock()
        if self.done == self.steps:
            self.real.append((self.clock() - self.started) / self.steps)
            self.bare.append(self.block())
            trainer.should_stop = len(self.real) > BLOCKS
            self.done, self.started = -self.ready, self.clock()


def measure(overrides: Sequence[str]) -> None:
    """Prints a row of the table."""
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        args = cli._rewritten("pretrain", [*overrides, f"duration={STEPS} steps"])
        config = plain(compose("pretrain", [*args, "++name=bench"]))
    check(config)
    source, config = build.source(config)
    parts = build.assemble(source, config)
    split: Any = "train" if parts.objective.labelled else "pretrain"
    clock = Clock(len(source.split(split)), config["batch_size"], config["duration"])
    precision, _ = devices.precision(config["precision"]["mode"], "cpu")
    devices.tune_allocator()
    workers = 0
    if config["ahead"] or isinstance(source.split(split), Ragged):
        workers = max(config["workers"], min(config["ahead"], 1))
    alone = torch.get_num_threads() == 1 and not workers
    ticks = time.process_time if alone else time.perf_counter
    timing = Interleaved(ticks, precision, config["clip"], workers * (config["ahead"] or 4))
    data = Waiting(
        source,
        parts.views,
        split=split,
        plain_val=False,
        per_rank=config["batch_size"],
        batches=clock.total,
        seed=0,
        workers=config["workers"],
        ahead=config["ahead"],
    )
    data.clock = ticks
    learner = Learner(
        parts.objective,
        parts.views,
        optim=build.make(config["optim"]),
        schedule=build.make(config["schedule"]),
        clock=clock,
        seed=config["seed"],
        log_every=config["log_every"],
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = stages.trainer_for(
            config,
            Path(folder),
            accelerator="cpu",
            precision=precision,
            validate_every=clock.total,
            loggers=[TableLogger(Table(Path(folder) / "metrics.csv"))],
            callbacks=[
                timing,
                Display("bench", seconds=float("inf")),
                Checkpoints(Path(folder), every=clock.total + 1, monitor="-val/loss", config=config),
            ],
        )
        trainer.limit_val_batches = 0
        trainer.fit(learner, data)
    first = timing.steps + 1  # the first block warms up, and the loader had been asked for a batch before it
    timing.spent["load"] = data.waited
    ratios = [bare / real for bare, real in zip(timing.bare[1:], timing.real[1:], strict=True)]
    real, bare = median(timing.real[1:]), median(timing.bare[1:])
    spent = [median(timing.spent[name][first:] or [0.0]) for name in PARTS]
    kept = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    columns = "".join(f"{1000 * each:10.2f}" for each in (*spent, real - sum(spent)))
    print(
        f"{overrides[0].removeprefix('+task='):16s}{1000 * real:9.2f}{1000 * bare:9.2f}  {kept:24s}{columns}",
        flush=True,
    )


def recipes(overrides: Sequence[str]) -> list[list[str]]:
    """The arguments of each recipe. Raises SystemExit where the first is no +task=."""
    found: list[list[str]] = []
    for each in overrides:
        if each.startswith("+task="):
            found.append([each])
        elif found:
            found[-1].append(each)
        else:
            raise SystemExit(f"{each}: begin with +task=...")
    return found or [DEFAULT]


def main(overrides: Sequence[str]) -> None:
    asked = recipes(overrides)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {BLOCKS} blocks; milliseconds a step")
    names = "".join(f"{name:>10s}" for name in (*PARTS, "rest"))
    print(f"{'recipe':16s}{'real':>9s}{'bare':>9s}  {'bare/real':24s}{names}")
    for each in asked:
        measure(each)


if __name__ == "__main__":
    main(sys.argv[1:])
