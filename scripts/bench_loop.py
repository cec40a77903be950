"""How much of the bare training loop's speed the whole runner keeps.

    python scripts/bench_loop.py [+task=simclr data=fashion_mnist data.size=32 backbone=resnet18 ...]

One process trains the composed config through the runner (data, views, Lightning, logging, checkpoints) and, in
turn with it, a plain loop of forward, backward and optimiser step on a batch of views already in memory: the same
objective, precision and memory format. Prints the ratio of their times, block by block.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module

from ssl_runner import build, cli, devices, stages
from ssl_runner.callbacks import Checkpoints, Display, TableLogger
from ssl_runner.config import check, plain
from ssl_runner.data import DataModule
from ssl_runner.durations import Clock
from ssl_runner.learner import Learner
from ssl_runner.loggers import Table

DEFAULT = [
    "+task=simclr",
    "data=fashion_mnist",
    "data.size=32",
    "backbone=resnet18",
    "backbone.small_stem=true",
]
DEFAULT += ["batch_size=128"]
BLOCK, ROUNDS = 4, 8  # steps, blocks of each


class Interleaved(pl.Callback):
    """After every block of real steps, a block of bare ones."""

    def __init__(self, precision: str):
        self.mixed = precision == "bf16-mixed"
        self.real: list[float] = []
        self.bare: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, learner: Any) -> None:
        samples = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
        self.batch = learner.batch(samples, learner.views(samples))
        self.objective = copy.deepcopy(learner.objective)
        self.optimizer = learner.optim(self.objective, learner.clock.global_batch)
        self.block()
        self.started = time.perf_counter()

    def block(self) -> float:
        started = time.perf_counter()
        for _ in range(BLOCK):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
                loss = self.objective(self.batch).value
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - started

    def on_train_batch_end(self, trainer: pl.Trainer, learner: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % BLOCK == 0:
            self.real.append(time.perf_counter() - self.started)
            self.bare.append(self.block())
            self.started = time.perf_counter()


def main(overrides: list[str]) -> None:
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        args = cli._rewritten("pretrain", [*(overrides or DEFAULT), f"duration={BLOCK * (ROUNDS + 1)} steps"])
        config = plain(compose("pretrain", [*args, "++name=bench"]))
    check(config)
    source, config = build.source(config)
    parts = build.assemble(source, config)
    clock = Clock(len(source.split("pretrain")), config["batch_size"], config["duration"])
    precision, _ = devices.precision(config["precision"]["mode"], "cpu")
    devices.tune_allocator()
    timing = Interleaved(precision)
    with tempfile.TemporaryDirectory() as folder:
        every = clock.total + 1  # checkpoints and validation are no part of a step
        trainer = stages.trainer_for(
            config,
            Path(folder),
            accelerator="cpu",
            precision=precision,
            validate_every=clock.total,
            loggers=[TableLogger(Table(Path(folder) / "metrics.csv"))],
            callbacks=[
                timing,
                Display("bench"),
                Checkpoints(Path(folder), every=every, monitor="-val/loss", config=config),
            ],
        )
        learner = Learner(
            parts.objective,
            parts.views,
            optim=build.make(config["optim"]),
            schedule=build.make(config["schedule"]),
            clock=clock,
            seed=config["seed"],
        )
        data = DataModule(
            source,
            parts.views,
            split="pretrain",
            plain_val=False,
            per_rank=config["batch_size"],
            batches=clock.total,
            seed=0,
        )
        trainer.limit_val_batches = 0
        trainer.fit(learner, data)
    ratios = [bare / real for bare, real in zip(timing.bare[1:], timing.real[1:], strict=True)]
    step = config["batch_size"] * BLOCK
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}, {overrides or DEFAULT}")
    real, bare = (step / statistics.median(times[1:]) for times in (timing.real, timing.bare))
    print(f"runner {real:.0f} samples/s, bare loop {bare:.0f} samples/s")
    print(f"runner / bare speed: median {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")


if __name__ == "__main__":
    main(sys.argv[1:])
