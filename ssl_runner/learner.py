"""THE LightningModule: views, objective, optimiser and schedule in one training step, for every stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ssl_runner.checkpoint import AVERAGED
from ssl_runner.durations import Clock
from ssl_runner.errors import RunError
from ssl_runner.optim.recipe import Optim
from ssl_runner.optim.schedules import Schedule
from ssl_runner.parallel import shard
from ssl_runner.seeds import derive, of_step
from ssl_runner.types import Batch, Loss, Objective, Samples, View, as_batch
from ssl_runner.views.base import Views

NAMED = 8  # samples of a bad batch


class Learner(pl.LightningModule):
    """Owns no state but the averaged weights: schedules and random draws are functions of the step.

    decay: of an average of the weights (see Average), None for none.
    plain_val: validate on plain views, as finetuning does, and not on a pretext's random ones.
    log_every: optimiser steps between two lines of training metrics.
    """

    def __init__(
        self,
        objective: Objective,
        views: Views,
        *,
        optim: Optim,
        schedule: Schedule,
        clock: Clock,
        seed: int,
        decay: float | None = None,
        plain_val: bool = False,
        log_every: int = 10,
    ):
        super().__init__()
        self.objective, self.views = objective, views
        self.optim, self.schedule, self.clock = optim, schedule, clock
        self.seed, self.plain_val, self.log_every = seed, plain_val, log_every
        self.warmup = clock.share(schedule.warmup)
        self.train_metrics: dict[str, float] = {}  # what was logged last
        self.val_metrics: dict[str, float] = {}
        self._train_mean, self._val_mean = Means(), Means()
        self._logged = -1  # the last batch that `log_step` was asked about
        self._terms: tuple[str, ...] = ()
        self._bad: Tensor | None = None  # which terms, which batch, which samples; all 0 terms: none yet
        self._clock_started = 0.0
        optim.freeze(objective)
        if has_convolution(objective):
            objective.to(memory_format=torch.channels_last)
        self.decay = decay
        self.average: Average | None = None

    def configure_model(self) -> None:
        """Called by Lightning when the ranks know each other: before that nothing can be cut over them."""
        if self.device_mesh is not None and not isinstance(self.objective, FSDPModule):
            shard(self.objective, self.device_mesh["data_parallel"])
        if self.decay is not None and self.average is None:
            self.average = Average(self.objective, self.decay)

    # -- training ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optim(self.objective, self.clock.global_batch)
        # The hook runs only when the optimiser really stepped: not on micro-batches, not on a skipped overflow.
        optimizer.register_step_post_hook(lambda *_: self.after_step())
        return optimizer

    def after_step(self) -> None:
        self.objective.after_step(self.progress(self.global_step + 1))
        if self.average is not None:
            self.average.update(self.objective, self.global_step)

    def progress(self, steps: int) -> float:
        return min(1.0, steps / self.clock.total)

    def on_train_start(self) -> None:
        self._clock_started = time.perf_counter()

    def on_train_batch_start(self, batch: Samples, batch_idx: int) -> None:
        self._seed_draws(of_step(self.seed, self.global_rank, batch_idx))
        progress = self.progress(self.global_step)
        factor = self.schedule(progress, self.warmup)
        self.optim.pace(self.trainer.optimizers[0], factor, progress)

    def training_step(self, samples: Samples, batch_idx: int) -> Tensor:
        loss = self.objective(self.batch(samples, self.drawn(samples)))
        self._watch(loss, samples, batch_idx)
        self._train_mean.add({"loss": loss.value, **loss.log}, weight=1)
        return loss.value

    def drawn(self, samples: Samples) -> list[View]:
        """The random views, and the generator as it is behind them, whoever makes them."""
        if "views" not in samples:
            return self.views(samples)
        torch.set_rng_state(samples["drawn"])
        return samples["views"]

    def batch(self, samples: Samples, views: list[View]) -> Batch:
        return as_batch(samples, [_channels_last(view) for view in views], self.objective.backbone)

    def on_train_batch_end(self, outputs: Any, batch: Samples, batch_idx: int) -> None:
        self.log_step(batch_idx)

    def log_step(self, batch_idx: int) -> None:
        """Logs what is due at the end of a batch: once, whoever asks first. A checkpoint asks before it is written."""
        if batch_idx == self._logged:
            return
        self._logged = batch_idx
        accumulate = self.trainer.accumulate_grad_batches
        if (batch_idx + 1) % (self.log_every * accumulate) == 0 or batch_idx + 1 == self.trainer.num_training_batches:
            self.check_finite()
            now = time.perf_counter()
            micro_batches = self._train_mean.count
            seconds, self._clock_started = now - self._clock_started, now
            metrics = {f"train/{k}": v for k, v in self._train_mean.take().items()}
            metrics["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            metrics["speed/samples_per_s"] = micro_batches * self.clock.global_batch / accumulate / seconds
            self.record(metrics)
            self.train_metrics = metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a resumed run would else have to log otherwise: the figures so far, and the sums of those to come."""
        mean = self._train_mean
        checkpoint["metrics"] = {"train": self.train_metrics, "val": self.val_metrics}
        checkpoint["unlogged"] = {"sums": {name: value.cpu() for name, value in mean.sums.items()}, "count": mean.count}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_metrics, self.val_metrics = checkpoint["metrics"]["train"], checkpoint["metrics"]["val"]
        unlogged = checkpoint["unlogged"]
        self._train_mean.sums = {name: value.to(self.device) for name, value in unlogged["sums"].items()}
        self._train_mean.count = unlogged["count"]

    # -- validation -------------------------------------------------------------------------------------------

    def validation_step(self, samples: Samples, batch_idx: int) -> None:
        self._seed_draws(derive(self.seed, "val", self.global_rank, batch_idx))  # the same views every time
        views = [self.views.plain(samples)] if self.plain_val else self.views(samples)
        with self.averaged():
            loss = self.objective(self.batch(samples, views))
        self._val_mean.add({"loss": loss.value, **loss.log}, weight=len(samples["index"]))

    def on_validation_epoch_end(self) -> None:
        self.val_metrics = {f"val/{k}": v for k, v in self._val_mean.take(over_ranks=True).items()}
        self.record(self.val_metrics)
        self._clock_started = time.perf_counter()  # validation is no part of the training speed

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the objective has the averaged weights, where they are kept, and is whole, where it is cut."""
        last = None if self.average is None else self.average.put_into(self.objective)
        cut = self.objective if isinstance(self.objective, FSDPModule) else None
        try:
            if cut is not None:
                cut.unshard()
            yield
        finally:
            if cut is not None:
                cut.reshard()
            if last is not None:
                _fill(self.objective, last)

    # -- both -------------------------------------------------------------------------------------------------

    def _seed_draws(self, seed: int) -> None:
        # torch.manual_seed leaves each kind of accelerator a note with the whole stack in it, at a millisecond a step
        (torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed)(seed)
        if self.device.type == "xla":  # of which torch.manual_seed knows nothing
            import torch_xla.core.xla_model as xm

            xm.set_rng_state(seed, str(self.device))

    def record(self, metrics: Mapping[str, float]) -> None:
        row = {**metrics, "epoch": self.global_step / self.clock.steps_per_epoch}
        for logger in self.loggers:
            logger.log_metrics(row, step=self.global_step)

    def _watch(self, loss: Loss, samples: Samples, batch_idx: int) -> None:
        """Remembers what was not finite in the first bad batch, without making the device wait."""
        terms = {"loss": loss.value, **loss.log}
        bad = ~torch.stack([value.detach().float() for value in terms.values()]).isfinite()
        if bad.device.type == "cpu" and not bad.any():
            return
        rows = samples["index"][:NAMED].to(bad.device)
        note = torch.cat([bad.long(), torch.full_like(rows[:1], batch_idx), rows])
        self._terms = tuple(terms)
        self._bad = note if self._bad is None else torch.where(self._bad[: len(bad)].any(), self._bad, note)
        if bad.device.type == "cpu":
            self.check_finite()

    def check_finite(self) -> None:
        """Raises RunError if a loss or one of its terms was not finite. Always called before a checkpoint."""
        if self._bad is None:
            return
        noted, count = self._bad.tolist(), len(self._terms)
        which = [name for name, bad in zip(self._terms, noted, strict=False) if bad]
        if which:
            raise RunError(
                f"non-finite {' and '.join(which)} in batch {noted[count]}, samples {noted[count + 1 :]}...: the run "
                "stops, and the last good checkpoint stays. Try a smaller optim.lr, a longer schedule.warmup, clip=1.0 "
                "or precision=32"
            )


class Average(nn.Module):
    """An exponential moving average of the weights that learn, in fp32 (Polyak & Juditsky, 1992, whose average was a
    plain one). An objective's buffers, and its own teachers, are taken as they are.

    decay: after a start in which it is (1 + n) / (10 + n) behind n steps, so that the first weights are soon forgotten.
    """

    def __init__(self, objective: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        for name, parameter in _learning(objective):
            self.register_buffer(name.replace(".", AVERAGED), parameter.detach().float().clone())

    @torch.no_grad()
    def update(self, objective: nn.Module, steps: int) -> None:
        """steps: of the optimiser, before the one just made."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for mine, (_, theirs) in zip(self.buffers(), _learning(objective), strict=True):
            mine.lerp_(theirs.float(), 1 - decay)

    @torch.no_grad()
    def put_into(self, objective: nn.Module) -> list[Tensor]:
        """Gives the weights that were there."""
        before = [parameter.clone() for _, parameter in _learning(objective)]
        _fill(objective, self.buffers())
        return before


def _learning(objective: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in objective.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def _fill(objective: nn.Module, weights: Iterable[Tensor]) -> None:
    for (_, parameter), value in zip(_learning(objective), weights, strict=True):
        parameter.copy_(value)


class Means:
    """Weighted running means of scalars, kept on their device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        for name, value in values.items():
            term = value.detach().float() * weight
            self.sums[name] = self.sums[name] + term if name in self.sums else term
        self.count += weight

    def take(self, over_ranks: bool = False) -> dict[str, float]:
        """The means so far, and a fresh start. over_ranks: of all processes together."""
        if not self.sums:
            return {}
        names = list(self.sums)
        total = torch.stack([self.sums[n] for n in names] + [torch.tensor(float(self.count)).to(self.sums[names[0]])])
        if over_ranks and dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        self.sums, self.count = {}, 0
        *sums, count = total.tolist()
        return {name: value / count for name, value in zip(names, sums, strict=True)}


def has_convolution(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) for m in module.modules())


def _channels_last(view: View) -> View:
    """Convolutions are faster so; a 4-D tensor that meets none loses nothing."""
    x = view["x"]
    return {**view, "x": x.contiguous(memory_format=torch.channels_last)} if x.ndim == 4 else view
