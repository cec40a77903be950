"""What is done to an objective for the sake of memory, and kept out of its code: sharding over ranks, and forgetting
activations. It goes by how modules are built, never by what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ssl_runner.errors import RequestError
from ssl_runner.types import Objective


def indivisible(objective: Objective) -> str | None:
    """Why accumulating the gradients of micro-batches is not the same as a step of their whole; None if it is."""
    if objective.contrasts:
        return "a sample is contrasted within its micro-batch"
    if any(isinstance(module, _BatchNorm) for module in objective.modules()):
        return "BatchNorm takes its statistics from a micro-batch"
    return objective.indivisible


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of all stacks inside, inner ones first: modules made of others that stand in a ModuleList or a
    Sequential beside none but their own kind, as transformer blocks, residual blocks and the stages of a network do."""
    found: list[nn.Module] = []
    for child in module.children():
        found += blocks(child)
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        held = [child for child in module.children() if any(True for _ in child.parameters())]
        if len(Counter(map(type, held))) == 1 and all(any(True for _ in child.children()) for child in held):
            found += [child for child in held if child not in found]
    return found


def in_bf16(objective: nn.Module) -> None:
    """Matrices, kernels and tables that learn, in bf16, in place: nearly all weights, their gradients and optimiser
    state. Biases, norms and buffers stay as they are, and so do teachers, whose steps are too small for bf16."""
    for parameter in objective.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            parameter.data = parameter.data.bfloat16()


def in_fp8(objective: nn.Module, *, emulate: bool = False) -> None:
    """Linear layers that learn multiply in 8 bits, in place, where their sides are multiples of 16, as the hardware
    asks; their weights stay as they are (Micikevicius et al., 2022, FP8 Formats for Deep Learning; here by torchao,
    each tensor scaled by its largest value). emulate: with the rounding, on hardware that lacks it.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(layer: nn.Module, name: str) -> bool:
        if not isinstance(layer, nn.Linear) or not layer.weight.requires_grad:
            return False
        return layer.in_features % 16 == 0 and layer.out_features % 16 == 0

    convert_to_float8_training(objective, module_filter_fn=fits, config=Float8LinearConfig(emulate=emulate))


def shard(objective: nn.Module, mesh: DeviceMesh) -> None:
    """Cuts parameters, gradients and optimiser state over the ranks of a mesh, in place (torch's FSDP2).

    Between two steps a rank holds its part of each; a block is whole on all while it is at work, and what is in no
    block while the objective is. Buffers stay whole. Raises RequestError for a parameter that can't be cut.
    """
    from torch.distributed.fsdp import fully_shard

    for name, parameter in objective.named_parameters():
        if not parameter.ndim:
            raise RequestError(f"device.strategy=fsdp: {name} has no dimension to be cut along; use device=ddp")
    objective.to(memory_format=torch.contiguous_format)  # what is cut must lie in order
    for module in (*blocks(objective), objective):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def forget(objective: nn.Module) -> None:
    """Blocks keep nothing but their input for the backward pass, which computes the rest again: the same losses,
    gradients and state, for less memory and a third more work. Raises RequestError where there is no block.

    Of stacks within stacks the inner blocks are taken; a teacher's keep nothing anyway.
    """
    found = [block for block in blocks(objective) if any(p.requires_grad for p in block.parameters())]
    if not found:
        raise RequestError("engine.checkpointing: this backbone has no stack of blocks to do it by; leave it out")
    for block in found:
        if not blocks(block):
            block.forward = _forgetful(block)


def _forgetful(block: nn.Module) -> Callable[..., Any]:
    forward = block.forward

    @wraps(forward)  # of the same signature, for some ask
    def forgetful(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        contexts = lambda: (nullcontext(), _unchanged(block))  # noqa: E731
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return forgetful


@contextmanager
def _unchanged(block: nn.Module) -> Iterator[None]:
    """Running statistics have counted the batch already when it is computed again."""
    before = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)  # past autograd, which need not know that nothing changed
