"""Composing what follows a run: what goes on from it takes its data and backbone, as config groups.

The run's own nodes are offered to Hydra under the choice `from_run`, so that every kind of override works on them:
`data.size=64` changes one key, `data=cifar10` replaces the lot.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString

from ssl_runner.config import arguments, plain
from ssl_runner.errors import RequestError

INHERITED = ("data", "views", "backbone", "evaluators", "finetune")
"""What finetune and evaluate take from a run's config, and so what must be trusted when it is a stranger's."""

KEPT = ("data", "backbone")
"""What a pretraining that goes on from a run takes from it."""

FROM_RUN = "from_run"
"""The choice of a group that is the run's own node."""

CHOICE = "_name_"
"""In the `finetune` mapping, the key that holds a group's choice: finetune.optim=sgd is {optim: {_name_: sgd}}."""


def offer(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Makes a run's nodes the choice `from_run` of their groups, and gives them."""
    nodes = {group: dict(config.get(group) or {}) for group in ("data", "views", "backbone", "evaluators")}
    nodes["backbone"] = _unfetched(nodes["backbone"])
    # sized and normalised as in the run, otherwise undisturbed
    nodes["views"]["branches"] = {"plain": {"_target_": "ssl_runner.views.base.Branch", "transforms": {}}}
    for group, node in nodes.items():
        ConfigStore.instance().store(group=group, name=FROM_RUN, node=node, package=group)
    return nodes


def _unfetched(node: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone without weights from a hub, nor in the backbones inside it: they come from the run."""
    found = {key: _unfetched(value) if isinstance(value, Mapping) else value for key, value in node.items()}
    return {**found, "pretrained": False} if found.get("pretrained") else found


def kept(nodes: Mapping[str, Mapping[str, Any]], recipe: Mapping[str, Any]) -> list[str]:
    """The overrides by which a pretraining has the data and backbone of a run, whatever its recipe says of them.

    nodes: the run's, as offered. recipe: what the recipe states, which Hydra puts over any choice of a group.
    """
    found = [f"{group}={FROM_RUN}" for group in KEPT]
    for group in KEPT:
        found += _taken_back(recipe.get(group) or {}, nodes[group], group)
    return found


def _taken_back(stated: Mapping[str, Any], node: Mapping[str, Any], path: str) -> Iterator[str]:
    """Each key that is stated becomes what it is in the node, or goes."""
    for key, value in stated.items():
        here = f"{path}.{key}"
        if key not in node:
            yield f"~{here}"
        elif isinstance(value, Mapping) and isinstance(node[key], Mapping):
            yield from _taken_back(value, node[key], here)
        else:
            yield f"++{here}={quoted(node[key])}"


def without(
    stated: Mapping[str, Any], node: Mapping[str, Any], path: str, typed: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """A node without what a recipe states of another choice and this one has no place for.

    Gives the node, what of the stated is still in it, and the paths of what is not. Keys that were typed stay, right
    or wrong. There is no place for an argument that the target does not take, nor for parts of a step, a view or an
    evaluator that this choice does not have.
    """
    kept: dict[str, Any] = dict(node)
    left: dict[str, Any] = {}
    gone: list[str] = []
    takes = arguments(node)
    named = path == "evaluators" or any(isinstance(each, Mapping) and "_target_" in each for each in node.values())
    for key, value in stated.items():
        here, inner = f"{path}.{key}", node.get(key)
        if key not in node or any(each == here or each.startswith(f"{here}.") for each in typed):
            continue
        is_node = isinstance(inner, Mapping) and isinstance(value, Mapping)
        absent = takes is None and named and is_node and "_target_" not in inner  # type: ignore[operator]
        if absent or (takes is not None and key not in takes):
            del kept[key]
            gone.append(here)
        elif is_node:
            kept[key], still, more = without(value, inner, here, typed)  # type: ignore[arg-type]
            left |= {key: still} if still else {}
            gone += more
        else:
            left[key] = value
    return kept, left, gone


def overrides(mapping: Mapping[str, Any], origin: str) -> list[str]:
    """A `finetune` mapping as command-line overrides. Raises RequestError for keys that are none of its business."""
    return list(_flatten(mapping, "", origin))


def _flatten(mapping: Mapping[str, Any], prefix: str, origin: str) -> Iterator[str]:
    for key, value in mapping.items():
        path = f"{prefix}.{key}".lstrip(".")
        if not re.fullmatch(r"\w+", str(key)) or path.split(".")[0] in ("hydra", "trust", "from", "stage"):
            raise RequestError(f"finetune.{path}: can't be set by {origin}")
        if key == CHOICE:
            if not re.fullmatch(r"[\w-]+", str(value)):
                raise RequestError(f"finetune.{prefix}={value!r}: no name of a config")
            yield f'{prefix}="{value}"' if str(value).isdigit() else f"{prefix}={value}"  # precision=32 is a name
        elif isinstance(value, Mapping) and value:
            yield from sorted(_flatten(value, path, origin), key=lambda each: not each.startswith(f"{path}="))
        else:
            yield f"++{path}={quoted(value)}"


def quoted(value: Any) -> str:
    """A plain value in Hydra's override grammar."""
    if isinstance(value, str):
        return QuotedString(text=value, quote=Quote.double).with_quotes()
    if isinstance(value, list):
        return "[" + ",".join(quoted(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{quoted(v)}" for k, v in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def key_of(override: str) -> str:
    """`++optim.lr=0.1` -> `optim.lr`."""
    return override.lstrip("+~").partition("=")[0]


def not_restated(inherited: Sequence[str], given: Sequence[str]) -> list[str]:
    """The inherited overrides, less those that the command line states anew: a key, or the choice of its group."""
    keys = {key_of(g) for g in given}
    return [i for i in inherited if key_of(i) not in keys and key_of(i).split(".")[0] not in keys]


def following(verb: str, config: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Inside a Hydra job: the config of the stage that will go on from `folder`, composed before that folder is
    filled, so that its faults are found before time is spent."""
    offer(config)
    general = ("seed", "name", "workers", "trust", "log_every", "device", "precision")
    shared = {key: config[key] for key in general}
    given = overrides(config["finetune"], "the recipe") if verb == "finetune" else []
    general_overrides = not_restated([f"++{k}={quoted(v)}" for k, v in shared.items()], given)
    return plain(compose(verb, [f"++from={quoted(folder)}", *general_overrides, *given]))
