"""Which parameters an optimiser treats alike: by kind, by the name a paper's rule gives, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import BeforeValidator
from torch import Tensor, nn

from ssl_runner.errors import RequestError, nearest

Kind = Literal["decayed", "excluded"]

TOKENS = frozenset({"cls_token", "pos_embed", "mask_token", "reg_token", "dist_token"})
"""Parameters of any rank that are positions or special tokens, by the last component of their name."""


@dataclass(kw_only=True)
class Rule:
    """What a paper does with some parameters and not with the others.

    match: their names within the objective, with * for anything ("predictor.*", "*.bias").
    kind: only those that decay, or only those excluded from it; None: both.
    lr: their published learning rate at the reference batch, in place of the optimiser's; None: the same.
    scheduled: false is a constant learning rate, without warm-up too.
    frozen: they stay as they are. BatchNorm's running statistics are no parameters, and move on.
    """

    match: str
    kind: Kind | None = None
    lr: Annotated[float, Gt(0)] | None = None
    scheduled: bool = True
    frozen: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that says nothing, or that freezes what it gives a learning rate."""
        paced = self.lr is not None or not self.scheduled
        if paced == self.frozen:
            said = "freezes what it also gives a learning rate" if paced else "changes nothing"
            raise ValueError(f"{said}; say lr=... or scheduled=false, or else frozen=true")

    def meets(self, name: str, kind: Kind) -> bool:
        return self.kind in (None, kind) and fnmatchcase(name, self.match)


def _known_keys(rules: Any) -> Any:
    """Pydantic ignores what a dataclass does not know; here it is a fault."""
    known = [f.name for f in fields(Rule)]
    for name, rule in rules.items() if isinstance(rules, dict) else ():
        for key in rule if isinstance(rule, dict) else ():
            if key not in known:
                raise ValueError(f"{name}.{key}: a rule has no such key{nearest(key, known)}")
    return rules


Rules = Annotated[Mapping[str, Rule], BeforeValidator(_known_keys)]


def kinds(module: nn.Module, decay: Literal["weights", "all"]) -> dict[str, Kind]:
    """The kind of every parameter, by name. See ``ssl_runner.optim.recipe.Optim`` for what is excluded."""
    excluded = set() if decay == "all" else _excluded(module)
    return {name: "excluded" if name in excluded else "decayed" for name, _ in module.named_parameters()}


def deciding(module: nn.Module, rules: Mapping[str, Rule], kind: Mapping[str, Kind]) -> dict[str, str]:
    """Parameter name -> the name of the rule that decides about it, where there is one: the last that meets it.

    Parameters that do not train are met by rules that freeze alone. Raises RequestError for a rule that decides
    about none.
    """
    found: dict[str, str] = {}
    met: set[str] = set()
    for name, parameter in module.named_parameters():
        for key, rule in rules.items():
            if rule.meets(name, kind[name]) and (parameter.requires_grad or rule.frozen):
                found[name] = key
                met.add(key)
    for key in rules.keys() - set(found.values()):
        path, match = f"optim.rules.{key}", rules[key].match
        if key in met:
            raise RequestError(f"{path}: a later rule decides about all that it matches; put it last, or leave it out")
        which = f"no parameter that trains and is {rules[key].kind}" if rules[key].kind else "no parameter that trains"
        parts = {name.partition(".")[0] for name, p in module.named_parameters() if p.requires_grad}
        raise RequestError(f"{path}.match={match!r}: matches {which}{nearest(match.partition('.')[0], parts)}")
    return found


def heights(module: nn.Module) -> dict[Tensor, int]:
    """How far below the top a parameter of the objective's backbone lies, in layers: 1 for the last block's, one more
    for each block below it, and one more than the first block's for the stem's. Others are not in it: they are at
    the top, 0, and so is the norm that follows the blocks (Bao et al., 2022, BEiT, and MAE count so).

    What a backbone names before its blocks is its stem: tokens, positions, patch embedding.
    Raises RequestError for a backbone without `blocks`, its own or its `model`'s.
    """
    backbone = getattr(module, "backbone", None)
    for part in (backbone, getattr(backbone, "model", None)):
        blocks = getattr(part, "blocks", None)
        if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks):
            break
    else:
        kind = type(module if backbone is None else backbone).__name__
        raise RequestError(
            f"optim.layer_decay: {kind} has no row of blocks to count layers by; take a transformer such as "
            "backbone=encoder, or set optim.layer_decay=null"
        )
    inside = {p: len(blocks) - n for n, block in enumerate(blocks) for p in block.parameters()}
    found: dict[Tensor, int] = {}
    below = True
    for parameter in backbone.parameters():  # type: ignore[union-attr]
        below = below and parameter not in inside
        if below:
            found[parameter] = len(blocks) + 1
        elif parameter in inside:
            found[parameter] = inside[parameter]
    return found


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
