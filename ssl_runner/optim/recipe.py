"""Optimisers as a paper states them: a learning rate for a reference batch, and which parameters decay.

One class an optimiser; its fields are the keys of the config (``optim.lr=0.1 optim.momentum=0.9``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

from ssl_runner.errors import RequestError
from ssl_runner.optim import lars
from ssl_runner.optim.rules import Kind, Rule, Rules, deciding, heights, kinds


@dataclass(kw_only=True)
class Optim:
    """What all optimisers have in common.

    lr: the published learning rate, at a global batch of `reference_batch` samples; it is multiplied by
    global batch / reference_batch, once (Goyal et al., 2017, Section 2.1). reference_batch None: lr as given.
    decay: "weights" keeps biases, norms and other parameters of at most one dimension, and class, position,
    mask and register tokens, out of weight decay and of LARS's adaptation; "all": nothing is (MoCo v2).
    weight_decay_end: weight decay moves to this along half a cosine over the run (DINO: 0.04 to 0.4); None: it stays.
    layer_decay: a layer of the backbone learns at this times the rate of the layer above it (MAE's finetuning: 0.65).
    rules: name -> Rule, parameters that a paper treats apart. Where two match, the later one decides.
    """

    lr: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)] = 0.0
    weight_decay_end: Annotated[float, Ge(0)] | None = None
    reference_batch: Annotated[int, Gt(0)] | None = 256
    decay: Literal["weights", "all"] = "weights"
    layer_decay: Annotated[float, Gt(0), Le(1)] | None = None
    rules: Rules = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: Mapping[str, Any] = self.rules
        self.rules = {name: r if isinstance(r, Rule) else Rule(**r) for name, r in given.items()}

    def scaled_lr(self, global_batch: int, lr: float | None = None) -> float:
        """The peak of `lr`, or of the optimiser's own. global_batch: samples per optimiser step, all ranks and
        accumulation included."""
        published = self.lr if lr is None else lr
        return published if self.reference_batch is None else published * global_batch / self.reference_batch

    def freeze(self, module: nn.Module) -> None:
        """Takes the gradient from the parameters that a rule freezes, so that neither decay nor momentum moves them.

        To be called before DDP wraps the module, for DDP waits for the gradient of all that have one then.
        Raises RequestError for a rule that decides about no parameter.
        """
        rule_of = deciding(module, self.rules, kinds(module, self.decay))
        for name, parameter in module.named_parameters():
            if name in rule_of and self.rules[rule_of[name]].frozen:
                parameter.requires_grad_(False)

    def groups(self, module: nn.Module, global_batch: int) -> list[dict[str, Any]]:
        """The module's trainable parameters, each once: one group for all that are treated alike.

        A group holds "params", "kind" ("decayed" or "excluded"), "name" (the kind, the rule and the layer),
        "weight_decay", "lr", "base_lr" (the lr that schedules multiply) and "scheduled" (whether they do).
        The first group is without rule, decayed and of the top layer, where there are such parameters.
        Freezes what rules freeze. Raises RequestError when the module has nothing to train, when a rule decides
        about no parameter, and for a layer_decay on a backbone without blocks.
        """
        self.freeze(module)
        kind_of = kinds(module, self.decay)
        rule_of = deciding(module, self.rules, kind_of)
        height_of = heights(module) if self.layer_decay is not None else {}
        alike: dict[tuple[str, int, Kind], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                key = (rule_of.get(name, ""), height_of.get(parameter, 0), kind_of[name])
                alike.setdefault(key, []).append(parameter)
        if not alike:
            raise RequestError("optim: nothing to train, for every parameter is frozen; unfreeze a part")
        return [self._group(*key, alike[key], global_batch) for key in sorted(alike)]

    def _group(
        self, rule: str, height: int, kind: Kind, params: list[nn.Parameter], global_batch: int
    ) -> dict[str, Any]:
        stated = self.rules.get(rule)
        lr = self.scaled_lr(global_batch, stated.lr if stated else None)
        if self.layer_decay is not None:
            lr *= self.layer_decay**height
        return {
            "params": params,
            "name": "/".join([kind, *([rule] if rule else []), *([f"layer -{height}"] if height else [])]),
            "kind": kind,
            "weight_decay": self.weight_decay if kind == "decayed" else 0.0,
            "lr": lr,
            "base_lr": lr,
            "scheduled": stated is None or stated.scheduled,
        }

    def pace(self, optimizer: torch.optim.Optimizer, factor: float, progress: float) -> None:
        """Sets what changes from step to step, as a function of the step alone.

        factor: the schedule's, for learning rates. progress: the share of steps done, in [0, 1].
        """
        decay = self.weight_decay_at(progress)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * (factor if group["scheduled"] else 1.0)
            group["weight_decay"] = decay if group["kind"] == "decayed" else 0.0

    def weight_decay_at(self, progress: float) -> float:
        """Of the decayed groups."""
        if self.weight_decay_end is None:
            return self.weight_decay
        left = (1 + math.cos(math.pi * progress)) / 2
        return self.weight_decay_end + (self.weight_decay - self.weight_decay_end) * left

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
        groups = [{**g, "adapt": g["kind"] == "decayed"} for g in self.groups(module, global_batch)]
        lr = self.scaled_lr(global_batch)
        return lars.LARS(groups, lr, momentum=self.momentum, trust=self.trust, clip=self.clip)
