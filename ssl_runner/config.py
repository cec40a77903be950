"""The top-level keys of a config, and `check`: every fault of a composed config, found before time is spent.

The signature of a class is the schema of its YAML node. Nothing is written down twice: `check` binds each
`_target_` node to its callable's signature, validates each value against its annotation and sees that the parts
fit each other.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal

from annotated_types import Gt, Len, Lt
from hydra.utils import get_class, get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from ssl_runner.datasets.splits import Amount
from ssl_runner.durations import Duration
from ssl_runner.errors import RequestError, nearest
from ssl_runner.types import Matching, Objective, Predictor

Positive = Annotated[int, Gt(0)]


@dataclass
class Precision:
    """Number formats. auto: bf16-mixed where the hardware computes it natively, else 32."""

    mode: Literal["auto", "32", "bf16-mixed", "16-mixed", "bf16-true", "fp8"]


@dataclass
class Device:
    """Where to run. The fields are those of Lightning's Trainer, but for the last three.

    sync_batchnorm: over ranks. tune_allocator: on CPU, let glibc keep freed memory (see ssl_runner.devices).
    timeout: minutes in which ranks wait for one of them in a step; then the run fails, and can be resumed.
    """

    accelerator: Literal["auto", "cpu", "gpu", "tpu"]
    devices: Positive | Literal["auto"] | list[int] = "auto"
    num_nodes: Positive = 1
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    sync_batchnorm: bool = True
    tune_allocator: bool = True
    timeout: Annotated[float, Gt(0)] = 10.0


@dataclass
class Engine:
    """How the training is carried out, whatever is trained.

    average: decay of a moving average of the weights, which is validated, evaluated and kept in place of the last ones.
    compile: the objective, by torch.compile. checkpointing: what the blocks of a stack compute is computed again in
    the backward pass instead of kept (Chen et al., 2016, Training Deep Nets with Sublinear Memory Cost).
    find_lr: set optim.lr by a range test. find_accumulate: set accumulate to the fewest micro-batches that fit the
    memory. Both before the run begins, which notes what was found in its config (see ssl_runner.finders).
    """

    average: Annotated[float, Gt(0), Lt(1)] | None = None
    compile: bool = False
    checkpointing: bool = False
    find_lr: bool = False
    find_accumulate: bool = False


@dataclass
class Contract:
    """What a recipe promises, for `ssl-run verify`: a metric of metrics.json, the band it falls in, the budget that
    takes, and who measured it."""

    metric: str
    band: Annotated[list[float], Len(2, 2)]
    budget: str
    source: str


@dataclass
class Config:
    """The top-level keys of every verb. `from` (finetune, evaluate) is a Python keyword, so it is added below."""

    stage: Literal["pretrain", "finetune", "evaluate", "run", "plan", "verify"]
    name: str  # of the recipe; names the run folder
    data: dict[str, Any]
    views: dict[str, Any]
    backbone: dict[str, Any]
    objective: dict[str, Any]
    optim: dict[str, Any]
    schedule: dict[str, Any]
    evaluators: dict[str, Any]
    precision: Precision
    device: Device
    logger: dict[str, Any]
    seed: int
    duration: Duration  # of training
    batch_size: Positive  # the global one: over all ranks and micro-batches
    accumulate: Positive  # micro-batches per optimiser step
    clip: Annotated[float, Gt(0)] | None  # gradient norm
    workers: Annotated[int, Gt(-1)]  # processes that read samples, where samples are files
    log_every: Positive  # optimiser steps
    validate_every: Duration
    checkpoint_every: Duration
    engine: Engine = field(default_factory=Engine)
    online: dict[str, Any] = field(default_factory=dict)  # a score while pretraining
    launcher: dict[str, Any] = field(default_factory=dict)  # of a sweep: where its jobs run
    hparams_search: dict[str, Any] = field(default_factory=dict)  # of a sweep: what is tried, and by which figure
    contract: Contract | None = None
    labels: Amount | None = None  # finetuning on few labels: "10%", "10 per class"
    ahead: Annotated[int, Gt(-1)] = 0  # batches whose views another process works out beforehand, on a processor
    untrained: bool = False  # finetuning as the run that `from` names asks for, without its weights
    trust: list[str] = field(default_factory=list)  # packages whose classes a stored config may name
    finetune: dict[str, Any] = field(default_factory=dict)  # overrides for the finetuning that follows


FACTS = frozenset(
    {"shape", "size", "mean", "std", "num_classes", "samples", "vocab", "length", "mask", "special", "separator"}
    | {"columns", "label_mean", "label_std", "words", "frames", "rate", "alphabet", "horizon"}
)
"""Required arguments that may be left out of a config: the data source fills them in."""

PROVIDED = {"objective": {"backbone"}}
"""What the runner hands to a `_partial_` node, by group."""

TRAINED = ("objective", "optim", "schedule")
"""Groups that an evaluation does without."""

OPTIONAL = ("online", "launcher", "hparams_search")
"""Groups that a stored config may lack."""

HINTS = {
    "epochs": "duration=60ep",
    "max_epochs": "duration=60ep",
    "max_steps": "'duration=500 steps'",
    "lr": "optim.lr",
}
HINTS |= {"device.gpus": "device.devices", "model": "backbone", "dataset": "data", "augmentations": "views"}
HINTS |= {"num_workers": "workers", "weight_decay": "optim.weight_decay"}

Fault = tuple[str, str]  # dotted path, what is wrong


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The composed config as plain values, interpolations resolved."""
    try:
        found = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise RequestError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    assert isinstance(found, dict)
    config = {str(key): value for key, value in found.items()}
    if isinstance(config.get("device"), dict):  # what a device leaves out has its default
        config["device"] = {f.name: f.default for f in fields(Device) if f.default is not MISSING} | config["device"]
    return config


def check(config: Mapping[str, Any], prefix: str = "") -> None:
    """Raises RequestError with ALL faults of a composed config, each with its dotted path.

    Touches no data and no device, and imports only what the targets' own modules import.
    """
    faults = list(_top_faults(config))
    for group in ("data", "views", "backbone", "objective", "optim", "schedule", "evaluators", "logger", *OPTIONAL):
        if isinstance(config.get(group), dict):
            faults += _node_faults(config[group], group, PROVIDED.get(group, set()))
    for group in ("data", "views", "backbone", *(() if config.get("stage") == "evaluate" else TRAINED)):
        if isinstance(config.get(group), dict) and "_target_" not in config[group]:
            faults.append((group, f"has no _target_, which says what it is; choose one by {group}=..."))
    if not faults:
        faults = list(_misfits(config))
    _refuse(faults, prefix)


def check_node(node: Mapping[str, Any], path: str) -> None:
    """The same of one node alone, such as that of a data source."""
    _refuse(list(_node_faults(node, path, set())), "")


def _refuse(faults: Sequence[Fault], prefix: str) -> None:
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "\n".join(f"  {prefix}{path}: {fault}" for path, fault in faults)
        raise RequestError(f"{count} in the composed config:\n{lines}")


# -- the top level ---------------------------------------------------------------------------------------------


def _top_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    hints = typing.get_type_hints(Config, include_extras=True) | {"from": str | None}
    required = {f.name for f in fields(Config) if f.default is MISSING and f.default_factory is MISSING}
    for key, value in config.items():
        if key not in hints:
            yield key, "no such key" + (f"; say {HINTS[key]}" if key in HINTS else nearest(key, hints))
        elif value == "???":
            yield key, f"must be given, e.g. {key}=..."
        elif isinstance(value, dict) and (records := [a for a in _alternatives(hints[key]) if is_dataclass(a)]):
            yield from _bind(records[0], value, key, set())
        elif is_dataclass(hints[key]):  # pydantic judges it no further
            yield key, f"must be a mapping of its keys, got {value!r}"
        else:
            yield from _value_faults(hints[key], value, key)
    for key in sorted(required - set(config)):
        yield key, f"must be given, e.g. {key}=..."


# -- a node against its signature ------------------------------------------------------------------------------


def _node_faults(node: Any, path: str, provided: set[str]) -> Iterator[Fault]:
    """The faults of every `_target_` node at or below `node`."""
    if isinstance(node, dict) and "_target_" in node:
        target = _locate(node["_target_"])
        if isinstance(target, str):
            yield f"{path}._target_", target
        else:
            given = {k: v for k, v in node.items() if k not in ("_target_", "_partial_", "_convert_", "_recursive_")}
            yield from _bind(target, given, path, provided)
        provided = set()
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from _node_faults(value, f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}", provided)


def _bind(target: Any, given: Mapping[str, Any], path: str, provided: set[str]) -> Iterator[Fault]:
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    name = getattr(target, "__name__", str(target))
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    for key, value in given.items():
        here = f"{path}.{key}"
        if key not in parameters and not open_ended:
            hint = (
                f"; say {HINTS[f'{path}.{key}']}"
                if f"{path}.{key}" in HINTS
                else nearest(key, set(parameters) - provided)
            )
            yield here, f"{name} takes no such argument{hint}"
        elif value == "???":
            yield here, f"must be given, e.g. {here}=..."
        elif key in provided:
            yield here, "is handed over by the runner; leave it out"
        elif key in hints:
            yield from _value_faults(hints[key], value, here)
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and key not in given and key not in provided and key not in FACTS:
            yield f"{path}.{key}", f"{name} needs it"


def arguments(node: Mapping[str, Any]) -> Collection[str] | None:
    """The names that a node's target takes; None where it has no target, or none that can be told."""
    target = _locate(node["_target_"]) if "_target_" in node else None
    if target is None or isinstance(target, str):
        return None
    return inspect.signature(target).parameters


def _value_faults(annotation: Any, value: Any, path: str) -> Iterator[Fault]:
    """The faults of one value against its annotation; nodes to be built are judged by the class they build."""
    base = _strip(annotation)
    if isinstance(value, dict) and "_target_" in value:
        wanted = [c for c in _alternatives(base) if inspect.isclass(c) and c is not Any]
        found = _locate(value["_target_"])
        if wanted and set(wanted) <= {int, float, str, bool, type(None)}:
            yield path, f"must be a value, got a {value['_target_']!r}"
        elif wanted and inspect.isclass(found) and not value.get("_partial_") and not issubclass(found, tuple(wanted)):
            yield path, f"{found.__name__} is no {' or '.join(c.__name__ for c in wanted)}"
    elif _holds_target(value):
        inner = typing.get_args(next((a for a in _alternatives(base) if typing.get_args(a)), base))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _value_faults(inner[-1] if inner else Any, item, f"{path}.{key}")
    else:
        try:
            adapter = TypeAdapter(annotation, config={"arbitrary_types_allowed": True})
        except Exception:  # an annotation that pydantic can't express (a forward reference to a live object)
            return
        try:
            adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            message = "; ".join(dict.fromkeys(_told(e) for e in error.errors()))
            where = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
            yield f"{path}{where}", f"{message}, got {value!r}"


def _told(error: Any) -> str:
    """A pydantic error in a person's words."""
    if error["type"] == "literal_error":
        return f"must be {error['ctx']['expected']}" + _nearest_choice(error)
    message = error["msg"].removeprefix("Value error, ")
    return message.replace("Input should be", "must be").replace("a valid ", "a ")


def _nearest_choice(error: Any) -> str:
    names = [part.strip("' ") for part in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
    hint = nearest(str(error["input"]), names)
    return hint if "did you mean" in hint else ""


def _strip(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def _alternatives(annotation: Any) -> Sequence[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [_strip(a) for a in typing.get_args(annotation)]
    return [annotation]


def _holds_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_holds_target, value.values()))
    return isinstance(value, list) and any(map(_holds_target, value))


def _locate(target: Any) -> Any:
    """The callable, or a str that says why there is none."""
    if not isinstance(target, str):
        return f"must be a dotted path, got {target!r}"
    try:
        found = get_object(target)
    except Exception as error:  # importing a person's own module may fail in any way; that is the fault to report
        reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
        return f"can't import {target!r}: {reason}"
    return found if callable(found) else f"{target!r} can't be called"


# -- parts against each other ----------------------------------------------------------------------------------


def _misfits(config: Mapping[str, Any]) -> Iterator[Fault]:
    """What no part can see alone. Called once every node is right in itself."""
    if "_target_" in config["objective"]:
        objective: Any = get_class(config["objective"]["_target_"])
        backbone = get_class(config["backbone"]["_target_"])
        hint = typing.get_type_hints(objective.__init__).get("backbone")
        wanted = [kind for kind in _alternatives(hint) if inspect.isclass(kind)]
        if wanted and not issubclass(backbone, tuple(wanted)):
            names = " or a ".join(kind.__name__ for kind in wanted)
            yield "backbone", f"{objective.__name__} needs a {names}, and {backbone.__name__} is none"
        both = [config["views"], config["views"].get("second") or {}]
        count = sum(branch.get("copies", 1) for views in both for branch in views.get("branches", {}).values())
        if objective.views not in (None, count):
            yield "views", f"{objective.__name__} needs {objective.views} views, and these are {count}"
        elif issubclass(objective, Matching) and not config["views"].get("second"):
            yield "views", f"{objective.__name__} needs a view of each input of pairs; use views such as image_text"
        labels = getattr(get_class(config["data"]["_target_"]), "labelled", None)
        if objective.labelled and labels is False:
            yield "objective", f"{objective.__name__} needs labels, and this data has none"
        if config["stage"] == "finetune" and not issubclass(objective, Predictor):
            yield "objective", f"{objective.__name__} makes no predictions to score; supervised and regression do"
        valued = getattr(get_class(config["data"]["_target_"]), "valued", False)
        if config.get("online") and (labels is False or valued):
            yield "online", "needs samples with a class each, and this data has none; use online=none"
        for name, node in config["evaluators"].items():
            if not isinstance(node, dict) or "_target_" not in node:
                yield f"evaluators.{name}", "is no evaluator, which says what it is by its _target_"
                continue
            evaluator: Any = get_class(node["_target_"])
            if getattr(evaluator, "labelled", False) and labels is False:
                yield f"evaluators.{name}", "needs labels, and this data has none; use evaluators=none"
            asked = getattr(evaluator, "asks", backbone)
            if not issubclass(backbone, asked) and not issubclass(objective, asked):
                found = objective.__name__ if issubclass(asked, Objective) else backbone.__name__
                yield f"evaluators.{name}", f"{evaluator.__name__} scores a {asked.__name__}, and {found} is none"
    if config.get("untrained") and config["stage"] != "finetune":
        yield "untrained", "is for finetuning, beside from=RUN"
    if config.get("online") and config["stage"] == "evaluate":
        yield "online", "is for training; evaluators=knn scores a run"
    if config["stage"] == "verify" and config.get("contract") is None:
        yield "contract", f"the recipe {config['name']} promises nothing that could be verified"
    if config["batch_size"] % config["accumulate"]:
        yield (
            "batch_size",
            f"{config['batch_size']} does not divide into accumulate={config['accumulate']} micro-batches",
        )
    yield from unrunnable(config)


def unrunnable(config: Mapping[str, Any]) -> Iterator[Fault]:
    """What does not go together of number formats, devices and ways to train."""
    device, mode = config["device"], config["precision"]["mode"]
    where, strategy = device["accelerator"], device.get("strategy", "auto")
    compiled = (config.get("engine") or {}).get("compile", False)
    if where == "cpu" and mode == "16-mixed":
        yield "precision.mode", "16-mixed needs a GPU; on CPU use bf16-mixed or 32"
    if mode == "fp8":
        if where in ("cpu", "tpu"):
            yield "precision.mode", f"fp8 needs a GPU from compute capability 8.9 on, and this is a {where.upper()}"
        if importlib.util.find_spec("torchao") is None:
            yield "precision.mode", "fp8 needs torchao, which is not installed: pip install torchao"
    if strategy == "fsdp" and mode in ("16-mixed", "bf16-true", "fp8"):
        why = "cuts weights of one kind only" if mode == "bf16-true" else "is not tried with it"
        if mode == "16-mixed":
            why = "would scale the loss of each rank by itself"
        yield "precision.mode", f"fsdp {why}, so {mode} is refused; use bf16-mixed or 32"
    if strategy == "fsdp" and compiled:
        yield "engine.compile", "does not go with fsdp, which puts hooks around the blocks; use device=ddp"
    several = device.get("num_nodes", 1) != 1 or device.get("devices", "auto") not in ("auto", 1)
    for key in ("find_lr", "find_accumulate"):
        if (config.get("engine") or {}).get(key) and (strategy != "auto" or several):
            what = "optim.lr" if key == "find_lr" else "accumulate"
            yield f"engine.{key}", f"tries on one device; find it with device.devices=1, then give {what}"
    if where == "cpu" and (config.get("engine") or {}).get("find_accumulate"):
        yield (
            "engine.find_accumulate",
            "goes by the error of a GPU that is out of memory, and a system ends the process instead; `ssl-run plan` "
            "estimates the memory",
        )
    if strategy == "deepspeed":
        yield (
            "device.strategy",
            "deepspeed writes a checkpoint as a folder of pickles, which is neither replaced in one step nor safe to "
            "read; use device=fsdp, which cuts the same state over the ranks",
        )
    if where == "tpu" and strategy != "auto":
        yield "device.strategy", f"{strategy} is not for TPUs, over whose cores torch_xla spreads a run; leave it out"
    if where == "tpu" and compiled:
        yield "engine.compile", "torch_xla compiles for TPUs by itself; leave it out"
    if where == "tpu" and mode in ("16-mixed", "bf16-mixed"):
        yield "precision.mode", "TPUs compute in bf16-true or 32"
