"""LARS: Large Batch Training of Convolutional Networks.

You, Gitman, Ginsburg, 2017. https://arxiv.org/abs/1708.03888
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Momentum SGD in which each tensor's step is in proportion to the tensor's own norm.

    For a tensor w with gradient g, as SimCLR and BYOL use it:

        d = g + weight_decay * w                  decay comes first
        d = trust * |w| / |d| * d                 only where the group's "adapt" is true and no norm is 0
        v = momentum * v + d
        w = w - lr * v

    Algorithm 1 of the paper differs in two places: it adapts by |g| + weight_decay * |w|, the upper bound of
    the |d| used here, and it multiplies by lr before momentum. Here lr stands where torch.optim.SGD has it,
    outside the momentum buffer, so that a new learning rate acts on the whole step at once.

    trust: the paper's eta. clip: the local rate, trust * |w| / |d|, replaces lr where it is smaller and never
    exceeds it ("clip" of NVIDIA's LARC); without it the two are multiplied.
    Groups may carry "adapt" (default true): false is plain momentum SGD, as used for biases and norms.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        clip: bool = False,
    ):
        defaults = {"momentum": momentum, "weight_decay": weight_decay, "trust": trust, "clip": clip}
        super().__init__(params, {"lr": lr, "adapt": True, **defaults})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. closure: evaluates the loss anew, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        steps = list(torch._foreach_add([p.grad for p in params], params, alpha=group["weight_decay"]))
        if group["adapt"]:
            for step, ratio in zip(steps, _ratios(params, steps, group), strict=True):
                step.mul_(ratio)
        buffers = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(state["momentum_buffer"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, steps)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def _ratios(params: list[Tensor], steps: list[Tensor], group: dict[str, Any]) -> Tensor:
    """(len(params),): what each step is multiplied by. On the device, so that nothing waits for it."""
    w = torch.stack(torch._foreach_norm(params))
    d = torch.stack(torch._foreach_norm(steps))
    ratio = group["trust"] * w / d
    if group["clip"]:
        ratio = (ratio / group["lr"]).clamp(max=1.0)  # lr may be 0, at the start of a warm-up: then this is 1
    return torch.where((w > 0) & (d > 0), ratio, 1.0)
