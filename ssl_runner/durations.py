"""Durations as people write them, and the one place where they become optimiser steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from ssl_runner.errors import RequestError

_UNITS = {
    "epochs": "epochs",
    "epoch": "epochs",
    "ep": "epochs",
    "steps": "steps",
    "step": "steps",
    "st": "steps",
}
_UNITS |= {"samples": "samples", "sample": "samples", "%": "%"}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?(?:e\d+)?|\.\d+)\s*([a-z]+|%)\s*", re.IGNORECASE)


def parse(text: str) -> tuple[float, str]:
    """ "60 epochs", "60ep", "500 steps", "5%" or "1e6 samples" -> (number, unit).

    Raises ValueError for anything else.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is no duration; write '60 epochs', '60ep', '500 steps', '5%' or '1e6 samples'")
    return float(match[1]), _UNITS[match[2].lower()]


def _is_duration(text: str) -> str:
    parse(text)
    return text


Duration = Annotated[str, AfterValidator(_is_duration)]
"""The annotation that makes the config check refuse a string that is no duration."""


@dataclass(frozen=True)
class Clock:
    """How long a run is, in optimiser steps.

    samples: in one epoch. global_batch: samples an optimiser step sees, over all ranks and micro-batches.
    duration: of the whole run. The last incomplete batch of an epoch is dropped.
    """

    samples: int
    global_batch: int
    duration: str

    def __post_init__(self) -> None:
        if self.samples < self.global_batch:
            raise RequestError(
                f"batch_size={self.global_batch}: there are only {self.samples} training samples; "
                f"use batch_size={self.samples} or less"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.global_batch

    @property
    def total(self) -> int:
        """Steps of the whole run, at least one."""
        number, unit = parse(self.duration)
        if unit == "%":
            raise RequestError(f"duration={self.duration}: a run can't be a share of itself; say '60 epochs'")
        return max(1, self._steps(number, unit))

    def steps(self, duration: str) -> int:
        """Any duration in steps; a percentage is of the whole run."""
        number, unit = parse(duration)
        return round(number / 100 * self.total) if unit == "%" else self._steps(number, unit)

    def share(self, duration: str) -> float:
        """Any duration as a share of the run, in [0, 1]."""
        return min(1.0, self.steps(duration) / self.total)

    def _steps(self, number: float, unit: str) -> int:
        per_unit = {"epochs": float(self.steps_per_epoch), "steps": 1.0, "samples": 1 / self.global_batch}[unit]
        return round(number * per_unit)
