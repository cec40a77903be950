"""Learning-rate schedules: what the peak is multiplied by, as a function of the run's progress.

A schedule is called with `progress`, the share of optimiser steps done, and `warmup`, the share of them that
warm-up takes; both in [0, 1]. Its field `warmup` is the duration as a person gives it ("10 epochs", "5%"):
whoever knows the number of steps turns it into the share. Warm-up is linear from 0 (Goyal et al., 2017,
Section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from ssl_runner.durations import Duration

Share = Annotated[float, Ge(0), Le(1)]


@dataclass(kw_only=True)
class Schedule:
    """Warm-up, then what a subclass says. The default is none."""

    warmup: Duration = "0%"

    def __call__(self, progress: float, warmup: float) -> float:
        """The factor, in [0, 1]."""
        ramp = progress / warmup if progress < warmup else 1.0
        done = max(0.0, progress - warmup) / (1 - warmup) if warmup < 1 else 0.0
        return ramp * self.level(progress, done)

    def level(self, progress: float, done: float) -> float:
        """The factor without warm-up. progress: share of the run; done: share of what follows warm-up."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Cosine(Schedule):
    """Half a cosine over what follows warm-up (Loshchilov & Hutter, 2017, Equation 5, without restarts).

    end: the last factor, a share of the peak.
    """

    warmup: Duration = "5%"
    end: Share = 0.0

    def level(self, progress: float, done: float) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(kw_only=True)
class Constant(Schedule):
    """The peak, once warm."""

    def level(self, progress: float, done: float) -> float:
        return 1.0


@dataclass(kw_only=True)
class Step(Schedule):
    """Multiplied by `gamma` from each milestone on (MoCo v1: at epochs 120 and 160 of 200).

    milestones: shares of the whole run, warm-up included.
    """

    milestones: tuple[Share, ...] = (0.6, 0.8)
    gamma: Annotated[float, Gt(0), Le(1)] = 0.1

    def level(self, progress: float, done: float) -> float:
        return self.gamma ** sum(progress >= milestone for milestone in self.milestones)
