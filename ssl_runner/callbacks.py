"""What goes along with Lightning's training: checkpoints, signals, the table of metrics and the progress display."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import CheckpointIO, XLACheckpointIO
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning.loggers.logger import Logger
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_runner import runs
from ssl_runner.checkpoint import load_checkpoint, save_checkpoint
from ssl_runner.errors import Stopped
from ssl_runner.learner import Learner
from ssl_runner.loggers import Table


class AtomicIO(CheckpointIO):
    """Lightning's checkpoints through ssl_runner.checkpoint: atomic, and never unpickled as code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save_checkpoint(move_data_to_device(checkpoint, "cpu"), Path(path))

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class AtomicXlaIO(AtomicIO, XLACheckpointIO):
    """The same, under the type that Lightning asks for on TPUs."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""By which a run is asked to stop: by a person, by a system that shuts down, and by SLURM ahead of a time limit."""


class Checkpoints(pl.Callback):
    """Saves last.ckpt every so many steps, before a validation, at the end and on a signal; best.ckpt when validation
    improved.

    every: optimiser steps. monitor: "-val/loss" (lower is better) or "val/accuracy".
    On a signal the optimiser step in hand is finished, last.ckpt saved, and Stopped raised; a validation in hand is
    broken off, for last.ckpt is of its step. A run that goes on from there begins with that validation.
    """

    def __init__(self, folder: Path, *, every: int, monitor: str, config: Mapping[str, Any]):
        self.folder, self.every, self.monitor = folder, every, monitor
        self.config = json.dumps(config)
        self.best = float("-inf")
        self.unvalidated = False  # whether a validation of the step that was saved is still to come
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._remember) for s in SIGNALS}
        if self.unvalidated:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting, trainer.validating = False, True
            loop.run()
            trainer.training = True

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # When a data worker dies, torch raises an error from this signal, wherever the process is: inside autograd that
        # aborts it. Without the signal it raises the same when it next waits for that worker.
        if self._handlers and signal.getsignal(signal.SIGCHLD) != signal.SIG_DFL:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _remember(self, signum: int, frame: Any) -> None:
        if self._signal is None and sys.stderr.isatty():
            print(f"\n{signal.Signals(signum).name}: saving a checkpoint after this step ...", file=sys.stderr)
        self._signal = signum

    def _stopping(self, trainer: pl.Trainer) -> bool:
        stop = self._signal is not None
        return trainer.strategy.reduce_boolean_decision(stop, all=False) if trainer.world_size > 1 else stop

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients of a part of a step are in no checkpoint
        stop = self._stopping(trainer)
        self.unvalidated = (batch_idx + 1) % trainer.val_check_batch == 0  # type: ignore[operator]
        last = batch_idx + 1 == trainer.num_training_batches
        if stop or last or self.unvalidated or trainer.global_step % self.every == 0:
            pl_module.log_step(batch_idx)
            self._save(trainer, pl_module, runs.LAST)
        if stop:
            raise Stopped(self._signal or signal.SIGTERM)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._stopping(trainer):
            raise Stopped(self._signal or signal.SIGTERM)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.unvalidated = False
        sign, name = (-1, self.monitor[1:]) if self.monitor.startswith("-") else (1, self.monitor)
        value = sign * pl_module.val_metrics.get(name, float("nan"))
        if value > self.best:
            self.best = value
            self._save(trainer, pl_module, runs.BEST)

    def _save(self, trainer: pl.Trainer, learner: Learner, name: str) -> None:
        learner.check_finite()
        trainer.save_checkpoint(self.folder / name)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"], checkpoint["ranks"] = self.config, trainer.world_size
        checkpoint["rows"] = sum(len(each.table.rows) for each in trainer.loggers if isinstance(each, TableLogger))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "unvalidated": self.unvalidated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.unvalidated = state_dict["best"], state_dict["unvalidated"]


class TableLogger(Logger):
    """metrics.csv as a Lightning logger."""

    def __init__(self, table: Table):
        super().__init__()
        self.table = table

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if runs.is_main():
            self.table.add(metrics, step or 0)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config is in config.yaml."""


class Outside(Logger):
    """A logger beside metrics.csv, whose failure ends no run: it is told once, and the logger left alone from then on.

    A server may be down, refuse a key, or be full; the run has its figures in metrics.csv whatever becomes of it.
    """

    def __init__(self, inner: Logger):
        super().__init__()
        self.inner: Logger | None = inner

    @property
    def name(self) -> str | None:
        return self.inner.name if self.inner is not None else ""

    @property
    def version(self) -> int | str | None:
        return self.inner.version if self.inner is not None else ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try("log_metrics", dict(metrics), step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config is in config.yaml, and handed to what wants it when that is made."""

    def save(self) -> None:
        self._try("save")

    def finalize(self, status: str) -> None:
        self._try("finalize", status)

    def _try(self, what: str, *args: Any) -> None:
        if self.inner is None:
            return
        try:
            getattr(self.inner, what)(*args)
        except Exception as error:  # whatever it is: no logger is worth a run
            print(
                f"warning: {type(self.inner).__name__} fails ({type(error).__name__}: {error}); the run goes on "
                "without it, and metrics.csv has every figure",
                flush=True,
            )
            self.inner = None


class Display(pl.Callback):
    """A progress bar with loss, samples/s and time left on a terminal; plain lines elsewhere."""

    def __init__(self, title: str, *, seconds: float = 10.0):
        self.title, self.seconds = title, seconds
        self._bar: Progress | None = None
        self._task: Any = None
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._last = time.monotonic()
        if not runs.is_main() or not sys.stdout.isatty():
            return
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(self.title, total=pl_module.clock.total, completed=trainer.global_step, text="")
        self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = batch_idx + 1 == trainer.num_training_batches
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, text=self._text(pl_module))
        elif runs.is_main() and (time.monotonic() - self._last > self.seconds or last) and pl_module.train_metrics:
            self._last = time.monotonic()
            done, total = trainer.global_step, pl_module.clock.total
            print(f"{self.title} step {done}/{total} {self._text(pl_module)}", flush=True)

    @staticmethod
    def _text(learner: Learner) -> str:
        shown = {**learner.train_metrics, **learner.val_metrics}
        names = {"train/loss": "loss", "val/loss": "val loss", "val/accuracy": "val accuracy"}
        parts = [f"{label} {shown[name]:.4g}" for name, label in names.items() if name in shown]
        if "speed/samples_per_s" in shown:
            parts.append(f"{shown['speed/samples_per_s']:.0f} samples/s")
        return "  ".join(parts)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
