"""How a run is spread over processes: what of Lightning's strategies this project uses, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ssl_runner import devices
from ssl_runner.checkpoint import load_checkpoint


def strategy_for(device: Mapping[str, Any], accelerator: str) -> Any:
    """What Lightning's Trainer gets. device: a config's. accelerator: what that came to."""
    ranks = devices.ranks(device, accelerator)
    if device["strategy"] == "fsdp":
        return Sharded(ranks)
    if device["strategy"] == "ddp" or (ranks > 1 and accelerator != "tpu"):
        # Synchronised statistics, and queues and centres of all ranks, are equal on all without being sent around.
        return DDPStrategy(broadcast_buffers=not device["sync_batchnorm"])
    return "auto"


class Sharded(ModelParallelStrategy):
    """FSDP2: the learner cuts its objective when Lightning lets it (see ssl_runner.parallel.shard).

    A checkpoint is the file that one process would write: whole, by rank 0. So a run goes on with any strategy and on
    any number of ranks, and its weights are read like those of any run.
    """

    def __init__(self, ranks: int):
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        state = whole(self.model.state_dict())
        first: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            state[name] = state[first.setdefault(id(parameter), name)]  # a weight of two names stays one
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        content = load_checkpoint(Path(checkpoint_path))
        assert self.model is not None
        self.model.load_state_dict(cut(content["state_dict"], self.model))
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
            cut_states = {}
            numbered = [p for group in optimizer.param_groups for p in group["params"]]
            for number, values in state["state"].items():
                cut_states[number] = {name: like(value, numbered[number]) for name, value in values.items()}
            optimizer.load_state_dict({**state, "state": cut_states})
        return content


def whole(state: Any) -> Any:
    """The same, put together where it is cut: nested mappings and lists, on every rank, cut tensors on the host."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    return [whole(value) for value in state] if isinstance(state, list) else state


def cut(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A whole state_dict as a cut model takes it."""
    own = model.state_dict()
    return {name: like(value, own.get(name)) for name, value in state.items()}


def like(value: Any, other: Any) -> Any:
    """A tensor, cut as another of the same shape is."""
    if isinstance(other, DTensor) and isinstance(value, torch.Tensor) and value.shape == other.shape:
        return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
    return value
