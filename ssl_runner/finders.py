"""What a run can find out about itself before it begins: a learning rate, and how much fits into the memory. Both try a
few steps on a copy, which is thrown away."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice

import torch
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.optim.recipe import Optim
from ssl_runner.seeds import of_step
from ssl_runner.types import Objective, Samples, as_batch
from ssl_runner.views.base import Views

TRIED = 80  # learning rates
LOWEST, HIGHEST = 1e-3, 1e2  # of them, times the recipe's
SMOOTH = 0.9  # how much of the mean loss so far stays at each step
NOISE = 10  # steps behind which the mean is worth something
LOST = 4.0  # a loss of so many times the lowest is past all use


class Trial:
    """Optimiser steps of a copy of an objective, on a device, drawn as the run's first ones.

    context: that in which its forward pass runs, of a number format.
    """

    def __init__(
        self,
        objective: Objective,
        views: Views,
        optim: Optim,
        *,
        global_batch: int,
        seed: int,
        device: torch.device,
        context: Callable[[], AbstractContextManager],
    ):
        self.views, self.optim, self.seed, self.device, self.context = views, optim, seed, device, context
        self.objective = copy.deepcopy(objective).to(device).train()
        self.optimizer = optim(self.objective, global_batch)

    def step(self, micro_batches: Sequence[Samples], number: int, factor: float) -> float:
        """One step at `factor` times the learning rate; gives the loss before it."""
        from lightning_fabric.utilities import move_data_to_device

        self.optim.pace(self.optimizer, factor, 0.0)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for place, samples in enumerate(micro_batches):
            torch.manual_seed(of_step(self.seed, 0, number * len(micro_batches) + place))
            moved = move_data_to_device(samples, self.device)
            with self.context():
                loss: Tensor = self.objective(as_batch(moved, self.views(moved), self.objective.backbone)).value
            (loss / len(micro_batches)).backward()
            total += loss.detach() / len(micro_batches)
        self.optimizer.step()
        self.objective.after_step(0.0)
        return float(total)


def find_lr(trial: Trial, batches: Iterator[Samples], *, accumulate: int) -> float:
    """A factor of the recipe's learning rate: a tenth of where the loss is lowest in a run whose rate rises
    exponentially from step to step (after the range test of Smith, 2017, Cyclical Learning Rates for Training Neural
    Networks). Raises RequestError where it is lowest before it learned anything."""
    factors = [LOWEST * (HIGHEST / LOWEST) ** (n / (TRIED - 1)) for n in range(TRIED)]
    losses: list[float] = []
    mean = 0.0
    for n, factor in enumerate(factors):
        loss = trial.step(list(islice(batches, accumulate)), n, factor)
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        losses.append(mean / (1 - SMOOTH ** (n + 1)))
        if not math.isfinite(loss) or losses[-1] - min(losses) > LOST * max(abs(min(losses)), 1e-3):
            break
    return factors[lowest(losses)] / 10


def lowest(losses: Sequence[float]) -> int:
    """Where smoothed losses are lowest, behind the first few, which are but their noise."""
    known = [loss if math.isfinite(loss) else math.inf for loss in losses]
    best = min(range(len(known)), key=known.__getitem__)
    if best < NOISE:
        raise RequestError("engine.find_lr: the loss falls at no learning rate; set optim.lr by hand")
    return best


def find_accumulate(trial: Callable[[int], object], batch_size: int, start: int) -> int:
    """The fewest micro-batches, from `start` on, into which a batch divides and of which a step fits the memory.

    trial: a step of so many micro-batches, which raises torch.OutOfMemoryError where it does not fit.
    """
    for count in (n for n in range(start, batch_size + 1) if batch_size % n == 0):
        try:
            trial(count)
        except torch.OutOfMemoryError:
            continue
        return count
    raise RequestError("engine.find_accumulate: not even one sample fits the memory; take a smaller backbone or views")
