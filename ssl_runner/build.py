"""From a checked config to live parts: the one place where `_target_` nodes become objects."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, get_object, instantiate

from ssl_runner.config import FACTS
from ssl_runner.datasets.base import Source
from ssl_runner.errors import RequestError, RunError
from ssl_runner.seeds import derive
from ssl_runner.types import Backbone, Evaluator, Objective
from ssl_runner.views.base import Views


def make(node: Mapping[str, Any], *args: Any) -> Any:
    """Builds a node and what is below it. A `_partial_` node is called with `args`."""
    try:
        built = instantiate(dict(node), _convert_="all")
        return built(*args) if node.get("_partial_") else built
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (RequestError, RunError)):
            raise cause from None
        raise


def fill(node: Any, facts: Mapping[str, Any]) -> Any:
    """A copy of a config node in which required arguments that were left out hold the data's facts: below a key
    `second`, those of the second input of pairs."""
    if isinstance(node, list):
        return [fill(each, facts) for each in node]
    if not isinstance(node, dict):
        return node
    its = facts.get("second", facts)
    filled = {key: fill(value, its if key == "second" else facts) for key, value in node.items()}
    if "_target_" in node:
        for name, parameter in inspect.signature(get_object(node["_target_"])).parameters.items():
            if parameter.default is parameter.empty and name not in filled and name in facts:
                value = facts[name]
                filled[name] = list(value) if isinstance(value, tuple) else value
    return filled


def merged(node: Mapping[str, Any], pinned: Mapping[str, Any]) -> dict[str, Any]:
    """A node with what its part pinned, which may be of the parts inside it."""
    found = dict(node)
    for key, value in pinned.items():
        inside = isinstance(value, Mapping) and "_target_" in (node.get(key) or {})
        found[key] = merged(node[key], value) if inside else value
    return found


@dataclass
class Parts:
    """What a stage works with, and the config that would build it again without the data."""

    config: dict[str, Any]
    source: Source
    views: Views
    objective: Objective


def backbone(config: Mapping[str, Any]) -> Backbone:
    """The untrained backbone of a config. The same seed gives the same weights, so a run's starting point can be
    built again."""
    torch.manual_seed(derive(config["seed"], "backbone"))
    return make(config["backbone"])


def source(config: Mapping[str, Any]) -> tuple[Source, dict[str, Any]]:
    """The opened data source, and the config with every fact filled in."""
    opened: Source = make(config["data"])
    facts = {**opened.facts, "samples": len(opened.split("pretrain"))}
    views = fill(config["views"], facts)
    _complete(views, "views", type(opened).__name__)
    facts = _seen(facts, make(views))
    _same(config["backbone"], facts)
    groups = ("backbone", "objective", "evaluators")
    filled = {"views": views} | {group: fill(config[group], facts) for group in groups if group in config}
    _complete(filled, "", type(opened).__name__)
    return opened, {**config, **filled, "data": merged(config["data"], opened.pinned())}


def _seen(facts: Mapping[str, Any], views: Views) -> dict[str, Any]:
    """The facts with the shapes that the views make of the data's. Raises RequestError for views of pairs on others."""
    seen = dict(facts)
    if "shape" in seen:
        seen["shape"] = views.shape(tuple(seen["shape"]))
    if views.second is not None:
        if "second" not in seen:
            raise RequestError("views.second: is for the second input of pairs, and this data has one input alone")
        seen["second"] = _seen(seen["second"], views.second)
    return seen


def evaluators(config: Mapping[str, Any], opened: Source) -> dict[str, Evaluator]:
    """Built before training, so that what is wrong with them, or with the data for them, is said before it."""
    built = {name: make(node) for name, node in config["evaluators"].items()}
    for name, evaluator in built.items():
        refusal = evaluator.refusal(opened)
        if refusal is not None:
            raise RequestError(f"evaluators.{name}: {refusal}")
        for part in evaluator.parts:
            if not len(opened.split(part)):
                raise RequestError(
                    f"evaluators.{name}: the {part} part is empty: give the data one, e.g. data.{part}=0.1, or use "
                    "evaluators=none"
                )
    return built


def assemble(opened: Source, filled: dict[str, Any], built: Backbone | None = None) -> Parts:
    """built: a backbone with weights already, else an untrained one."""
    encoder = backbone(filled) if built is None else built
    pinned: dict[str, Any] = getattr(encoder, "pinned", dict)()  # what a backbone read elsewhere about itself
    filled = {**filled, "backbone": merged(filled["backbone"], pinned)}
    wanted: Any = get_class(filled["objective"]["_target_"])
    if wanted.labelled and wanted.valued != opened.valued:
        kinds = ("values", "classes") if wanted.valued else ("classes", "values")
        raise RequestError(
            f"objective: {wanted.__name__} learns labels that are {kinds[0]}; here are {kinds[1]} or none"
        )
    return Parts(filled, opened, make(filled["views"]), objective(filled, encoder))


def objective(filled: Mapping[str, Any], encoder: Backbone) -> Objective:
    """An untrained objective around a backbone."""
    torch.manual_seed(derive(filled["seed"], "objective"))
    return make(filled["objective"], encoder)


def _complete(node: Any, path: str, data: str) -> None:
    """Raises RequestError where a part still lacks a fact that this data does not tell."""
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        target = get_object(node["_target_"])
        for name, parameter in inspect.signature(target).parameters.items():
            if parameter.default is parameter.empty and name in FACTS and name not in node:
                raise RequestError(
                    f"{path}.{name}: {target.__name__} needs it, and the data, {data}, does not tell it; choose parts "
                    "and data that go together"
                )
    for key, value in node.items():
        _complete(value, f"{path}.{key}".lstrip("."), data)


def _same(node: Any, facts: Mapping[str, Any]) -> None:
    """A backbone whose config states what samples it is for (it comes from a run) must get such samples."""
    if isinstance(node, dict):
        for name in ("shape", "vocab", "length", "columns"):
            stated, found = node.get(name), facts.get(name)
            if stated is not None and found is not None and _listed(stated) != _listed(found):
                raise RequestError(
                    f"data: gives samples of {name} {found}, and the backbone is for {_listed(stated)}; "
                    f"choose data of that {name}, or set {'data.size' if name == 'shape' else 'it in data'}"
                )
        for key, value in node.items():
            _same(value, facts.get("second", facts) if key == "second" else facts)


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
