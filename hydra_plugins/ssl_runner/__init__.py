"""The sweeper that `-m` runs. Hydra takes a plugin from this namespace alone; the work is done in ssl_runner.sweeps."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Sweep(Sweeper):
    """One sweeper for grids and searches. params: keys to be swept, as in Hydra's own `hydra.sweeper.params`."""

    def __init__(self, params: dict[str, Any] | None = None):
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        from ssl_runner import sweeps

        assert self.hydra_context is not None
        assert self.config is not None
        params = [f"{key}={value}" for key, value in self.params.items()]
        sweeps.sweep(self.config, self.hydra_context.config_loader, [*params, *arguments])
