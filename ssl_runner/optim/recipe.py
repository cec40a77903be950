"""Optimisers as a paper states them: a learning rate for a reference batch, and which parameters decay.

One class an optimiser; its fields are the keys of the config (``optim.lr=0.1 optim.momentum=0.9``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from ssl_runner.errors import RequestError
from ssl_runner.optim import lars

TOKENS = frozenset({"cls_token", "pos_embed", "mask_token", "reg_token", "dist_token"})
"""Parameters of any rank that are positions or special tokens, by the last component of their name."""


@dataclass(kw_only=True)
class Optim:
    """What all optimisers have in common.

    lr: the published learning rate, at a global batch of `reference_batch` samples; it is multiplied by
    global batch / reference_batch, once (Goyal et al., 2017, Section 2.1). reference_batch None: lr as given.
    decay: "weights" keeps biases, norms and other parameters of at most one dimension, and class, position,
    mask and register tokens, out of weight decay and of LARS's adaptation; "all": nothing is (MoCo v2).
    """

    lr: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)] = 0.0
    reference_batch: Annotated[int, Gt(0)] | None = 256
    decay: Literal["weights", "all"] = "weights"

    def scaled_lr(self, global_batch: int) -> float:
        """The peak. global_batch: samples per optimiser step, all ranks and accumulation included."""
        return self.lr if self.reference_batch is None else self.lr * global_batch / self.reference_batch

    def groups(self, module: nn.Module, global_batch: int) -> list[dict[str, Any]]:
        """The module's trainable parameters, each once, in at most two groups, "decayed" and "excluded".

        A group holds "params", "name", "weight_decay", "lr" and "base_lr" (the lr that schedules multiply).
        Raises RequestError when the module has nothing to train.
        """
        excluded = set() if self.decay == "all" else _excluded(module)
        lr = self.scaled_lr(global_batch)
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not trained:
            raise RequestError("optim: nothing to train, for every parameter is frozen; unfreeze a part")
        kinds = {
            "decayed": (self.weight_decay, [p for n, p in trained if n not in excluded]),
            "excluded": (0.0, [p for n, p in trained if n in excluded]),
        }
        return [
            {"params": params, "name": name, "weight_decay": decay, "lr": lr, "base_lr": lr}
            for name, (decay, params) in kinds.items()
            if params
        ]

    def __call__(self, module: nn.Module, global_batch: int) -> torch.optim.Optimizer:
        """An optimiser over `groups`."""
        raise NotImplementedError


@dataclass(kw_only=True)
class SGD(Optim):
    """torch.optim.SGD: decay is added to the gradient, lr multiplies the momentum buffer."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False

    def __call__(self, module: nn.Module, global_batch: int) -> torch.optim.SGD:
        groups = self.groups(module, global_batch)
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(kw_only=True)
class AdamW(Optim):
    """AdamW (Loshchilov & Hutter, 2019): decay acts on the weights apart from the gradient, times lr."""

    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)
    eps: Annotated[float, Gt(0)] = 1e-8

    def __call__(self, module: nn.Module, global_batch: int) -> torch.optim.AdamW:
        first, second = self.betas
        return torch.optim.AdamW(self.groups(module, global_batch), betas=(first, second), eps=self.eps)


@dataclass(kw_only=True)
class LARS(Optim):
    """LARS (You et al., 2017), see ssl_runner.optim.lars. Excluded parameters are not adapted either.

    trust: the paper's eta. clip: the local rate never exceeds lr.
    """

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    trust: Annotated[float, Gt(0)] = 0.001
    clip: bool = False

    def __call__(self, module: nn.Module, global_batch: int) -> lars.LARS:
        groups = [{**g, "adapt": g["name"] == "decayed"} for g in self.groups(module, global_batch)]
        lr = self.scaled_lr(global_batch)
        return lars.LARS(groups, lr, momentum=self.momentum, trust=self.trust, clip=self.clip)


def _excluded(module: nn.Module) -> set[str]:
    """Names of the parameters that decay and adaptation leave alone.

    Beside those that their rank or TOKENS tells, those that a module inside lists in a method
    ``no_weight_decay()``, timm's convention: names relative to that module.
    """
    names = {n for n, p in module.named_parameters() if p.ndim <= 1 or n.rpartition(".")[2] in TOKENS}
    for prefix, part in module.named_modules():
        listed = getattr(part, "no_weight_decay", None)
        if callable(listed):
            names |= {f"{prefix}.{name}" if prefix else name for name in listed()}
    return names
