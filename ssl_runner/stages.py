"""The stages: pretrain, finetune, evaluate, and all three in a row. Each takes a checked config and a run folder,
goes on from the folder's last checkpoint if there is one, and gives its metrics."""

from __future__ import annotations

import logging
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.utilities import move_data_to_device
from lightning_fabric.utilities.warnings import PossibleUserWarning
from torch import Tensor

from ssl_runner import build, devices, finders, jobs, kernels, report, runs, search
from ssl_runner.callbacks import AtomicIO, AtomicXlaIO, Checkpoints, Display, Outside, TableLogger
from ssl_runner.checkpoint import load_backbone, load_checkpoint, objective_weights, save_backbone
from ssl_runner.config import Device, Engine
from ssl_runner.data import LOOKED_AT, DataModule
from ssl_runner.datasets.base import Source
from ssl_runner.datasets.splits import few_labels
from ssl_runner.durations import Clock
from ssl_runner.errors import RequestError, RunError, nearest
from ssl_runner.learner import Learner
from ssl_runner.loggers import Table
from ssl_runner.parallel import forget, in_bf16, in_fp8, indivisible
from ssl_runner.parts.batchnorm import synchronise
from ssl_runner.pictures import undo
from ssl_runner.seeds import derive
from ssl_runner.strategies import Sharded, strategy_for
from ssl_runner.trust import check_trust
from ssl_runner.types import Backbone, Embed, Evaluator, Objective, Predictor, TokenBackbone, View, as_batch, seen_by
from ssl_runner.watch import Watch

Metrics = dict[str, float]
Stage = Callable[[dict[str, Any], Path], Metrics]


def pretrain(config: dict[str, Any], folder: Path) -> Metrics:
    """Trains a backbone by its objective, saves it, and evaluates it with the configured evaluators."""
    started = time.monotonic()
    source, config = build.source(config)
    evaluators = build.evaluators(config, source)
    parts = build.assemble(source, config, starting_point(config, folder))
    data, metrics = fit(parts, folder, monitor="-val/loss")
    with patience():
        if runs.is_main():
            show(parts, data, folder / runs.SHOWN)
            metrics |= evaluations(parts.config, source, evaluators, parts.objective.backbone, parts.objective, data)
    return finish(config, folder, metrics, started, f"ssl-run finetune from={shlex.quote(str(folder))}")


def finetune(config: dict[str, Any], folder: Path) -> Metrics:
    """Trains a backbone (from a run, or untrained) with labels; scores the best epoch on validation by the test set."""
    started = time.monotonic()
    source, config = build.source(config)
    test = source.split("test")
    if not len(test):
        raise RequestError("the test part is empty: give the data one, e.g. data.test=0.1")
    if test.label is None and test.target is None:
        raise RequestError("the test part has no labels to score by; give it some, or leave finetuning out")
    parts = build.assemble(source, config, starting_point(config, folder))
    data, metrics = fit(parts, folder, monitor=parts.objective.monitor)
    with patience():
        if runs.is_main():
            best = load_checkpoint(folder / runs.CHECKPOINTS / runs.BEST)
            parts.objective.load_state_dict(objective_weights(best["state_dict"]))
            metrics |= {f"finetune/{k}": v for k, v in test_scores(parts.objective, data).items()}
            save_backbone(parts.objective.backbone, folder / runs.BACKBONE, parts.config)
    return finish(config, folder, metrics, started, None)


def evaluate(config: dict[str, Any], folder: Path) -> Metrics:
    """Runs the evaluators on a run's frozen features."""
    started = time.monotonic()
    source, config = build.source(config)
    evaluators = build.evaluators(config, source)
    encoder = build.backbone(config)
    origin = runs.find(config["from"])
    say(f"{config['from']}: {load_backbone(encoder, origin.weights)}")
    objective = None
    asking = [name for name, evaluator in evaluators.items() if issubclass(evaluator.asks, Objective)]
    if asking:
        objective = pretrained(config, source, origin, encoder, asking[0])
        config = {**config, "objective": origin.config["objective"]}
    data = DataModule(
        source,
        build.make(config["views"]),
        split="train",
        plain_val=True,
        per_rank=config["batch_size"],
        batches=0,
        seed=config["seed"],
        workers=config["workers"],
    )
    if devices.accelerator(config["device"]["accelerator"]) == "gpu":
        data.device = torch.device("cuda")
    with patience():
        metrics = evaluations(config, source, evaluators, encoder, objective, data) if runs.is_main() else {}
    return finish(config, folder, metrics, started, None)


def run(config: dict[str, Any], folder: Path) -> Metrics:
    """pretrain -> finetune -> evaluate, each in its own folder below this one; finished ones are not run again."""
    started = time.monotonic()
    metrics: Metrics = {}
    for name, stage in (("pretrain", pretrain), ("finetune", finetune), ("evaluate", evaluate)):
        inner = folder / name
        done = runs.read_metrics(inner)
        if done is None:
            with jobs.attended(inner):
                done = stage(runs.read_config(inner), inner)
        # the pretraining's loss and speed are the run's
        metrics |= {
            k: v for k, v in done.items() if name == "pretrain" or not k.startswith(("train/", "val/", "speed/"))
        }
    return finish(config, folder, metrics, started, f"ssl-run finetune from={shlex.quote(str(folder))}")


def verify(config: dict[str, Any], folder: Path) -> Metrics:
    """Runs a recipe's pretraining, or all three stages for a contract about the finetuning, and holds it to that.

    Raises RunError when the score is outside its band.
    """
    metric, (low, high) = config["contract"]["metric"], config["contract"]["band"]
    if metric.startswith("finetune/"):
        metrics = run(config, folder)
    else:
        metrics = pretrain({**config, "stage": "pretrain"}, folder)
    if metric not in metrics:
        raise RunError(f"contract.metric={metric}: this run gives no such score{nearest(metric, metrics)}")
    told = (
        f"{config['name']}: {metric} = {metrics[metric]:.4f}, promised {low} to {high} ({config['contract']['source']})"
    )
    if not low <= metrics[metric] <= high:
        raise RunError(f"outside its band: {told}")
    say(f"inside its band: {told}")
    return metrics


STAGES: Mapping[str, Stage] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "run": run,
    "verify": verify,
}


# -- the steps of a stage --------------------------------------------------------------------------------------


def starting_point(config: Mapping[str, Any], folder: Path) -> Backbone:
    """The backbone with the weights of the run that `from` names; untrained where it names none, or that is asked for.

    A run that is resumed has its own weights in its checkpoint, and needs those of the other run no more.
    """
    encoder = build.backbone(config)
    if config.get("untrained"):
        say(f"{config['from']}: only what it is, without its weights")
    elif config.get("from") is not None and not (folder / runs.CHECKPOINTS / runs.LAST).is_file():
        say(f"{config['from']}: {load_backbone(encoder, runs.find(config['from']).weights)}")
    return encoder


def fit(parts: build.Parts, folder: Path, *, monitor: str) -> tuple[DataModule, Metrics]:
    """Trains to the end of the configured duration, from the last checkpoint if the folder has one.

    Leaves what is to be evaluated and kept in `parts.objective`: whole, in fp32, with averaged weights.
    """
    config, source, objective = parts.config, parts.source, parts.objective
    if runs.is_main():
        runs.tidy(folder)
        runs.write(folder / runs.CONFIG, runs.dump(config))
        runs.write_environment(folder)
    engine = Engine(**config.get("engine", {}))
    online = build.make(config["online"]) if config.get("online") else None
    if online is not None:
        online.check(source)
    finetuning = config["stage"] == "finetune"
    keep = None
    if config.get("labels") is not None:
        keep = few_labels(_labels(source), config["labels"])
    split = "train" if objective.labelled else "pretrain"
    samples = len(source.split(split)) if keep is None else len(keep)  # type: ignore[arg-type]
    batch_size = min(config["batch_size"], samples) if keep is not None else config["batch_size"]
    clock = Clock(samples, batch_size, config["duration"])

    accelerator = devices.accelerator(config["device"]["accelerator"])
    precision, why = devices.precision(config["precision"]["mode"], accelerator)
    if accelerator == "cpu" and config["device"]["tune_allocator"]:
        devices.tune_allocator()
    mended = kernels.mend(objective) if accelerator == "cpu" and precision != "32-true" else []
    if mended:
        say(
            f"note: {', '.join(mended)}: computed in fp32, which is slower, for this torch gets it wrong in bf16 on "
            "this processor; another number of groups or width of the kernel may be right (ssl_runner/kernels.py)"
        )
    if engine.find_lr or engine.find_accumulate:
        config = parts.config = found_out(
            parts, engine, clock, split, keep, accelerator=accelerator, precision=precision
        )
        if runs.is_main():
            runs.write(folder / runs.CONFIG, runs.dump(config))
    table = Table(folder / "metrics.csv")
    last = folder / runs.CHECKPOINTS / runs.LAST
    resumed = load_checkpoint(last) if last.is_file() else None
    if runs.is_main() and table.rows:
        table.keep(0 if resumed is None else resumed["rows"])

    trainer = trainer_for(
        config,
        folder,
        accelerator=accelerator,
        precision=precision,
        validate_every=max(1, min(clock.total, clock.steps(config["validate_every"]))) * config["accumulate"],
        loggers=[
            TableLogger(table),
            *([Outside(build.make(config["logger"]).make(folder, config["name"], config))] if config["logger"] else []),
        ],
        callbacks=[
            Display(config["stage"]),
            Watch(),
            *([] if online is None else [online.callback()]),
            Checkpoints(
                folder / runs.CHECKPOINTS,
                every=max(1, clock.steps(config["checkpoint_every"])),
                monitor=monitor,
                config=config,
            ),
            *search.watching(folder, jobs.read_job(folder)),
        ],
    )
    shares = trainer.world_size * config["accumulate"]
    if batch_size % shares:
        raise RequestError(
            f"batch_size={batch_size} does not divide over {trainer.world_size} ranks "
            f"x accumulate={config['accumulate']}"
        )
    if trainer.world_size > 1 and config["device"]["sync_batchnorm"]:
        synchronise(objective)
    if precision == "bf16-true" and accelerator != "tpu":
        in_bf16(objective)
    if precision == "fp8":
        in_fp8(objective)
    if engine.checkpointing:
        forget(objective)
    if engine.compile:
        # drawn as without: a run that goes on must not depend on whether it is compiled
        objective.compile(dynamic=False, options={"fallback_random": True})
    learner = Learner(
        objective,
        parts.views,
        optim=build.make(config["optim"]),
        schedule=build.make(config["schedule"]),
        clock=clock,
        seed=config["seed"],
        decay=engine.average,
        plain_val=finetuning,
        log_every=config["log_every"],
    )
    data = DataModule(
        source,
        parts.views,
        split=split,  # type: ignore[arg-type]
        plain_val=finetuning,
        per_rank=batch_size // shares,
        batches=clock.total * config["accumulate"],
        seed=config["seed"],
        workers=config["workers"],
        ahead=config.get("ahead", 0),
        keep=keep,
    )
    advice = getattr(objective.backbone, "advice", None)
    if advice:
        say(f"note: {advice}")
    if objective.contrasts and config["accumulate"] > 1:
        say(
            f"note: accumulate={config['accumulate']} saves memory but adds no negatives: "
            f"a sample is contrasted within its micro-batch of {batch_size // config['accumulate']}"
        )
    elif config["accumulate"] > 1 and (why_not := indivisible(objective)):
        say(f"note: accumulate={config['accumulate']} is not the same as the whole batch at once: {why_not}")
    where = "" if resumed is None else f", resumed at step {resumed['global_step']}"
    say(
        f"{config['stage']} {config['name']}: {clock.total} steps of {batch_size} samples "
        f"on {trainer.world_size} x {accelerator} in {precision} ({why}){where}"
    )
    if resumed is not None and resumed["ranks"] != trainer.world_size:
        say(
            f"note: {resumed['ranks']} ranks saved this checkpoint, and {trainer.world_size} go on: the global batches "
            f"stay the same, of which each rank now has {batch_size // trainer.world_size} samples; what views and "
            "masks draw at random is another from here on"
        )
    started = time.monotonic()
    trainer.fit(learner, data, ckpt_path=None if resumed is None else last)
    trained = objective_weights(trainer.strategy.lightning_module_state_dict())
    if isinstance(trainer.strategy, Sharded):
        parts.objective = build.assemble(source, config).objective
    parts.objective.float().load_state_dict(trained)
    data.device = trainer.strategy.root_device
    metrics = {"train/loss": learner.train_metrics["train/loss"], **learner.val_metrics}
    metrics["speed/samples_per_s"] = (
        (clock.total - (resumed or {}).get("global_step", 0)) * batch_size / (time.monotonic() - started)
    )
    if runs.is_main() and config["stage"] == "pretrain":
        save_backbone(parts.objective.backbone, folder / runs.BACKBONE, config)
    trainer.strategy.barrier()  # no rank goes on to the next stage before the weights that it starts from are written
    return data, metrics


def found_out(
    parts: build.Parts, engine: Engine, clock: Clock, split: Any, keep: Any, *, accelerator: str, precision: str
) -> dict[str, Any]:
    """The config with what the finders found in it, so that a run that is resumed does not look for it again."""
    config, device = parts.config, torch.device("cuda" if accelerator == "gpu" else "cpu")
    if accelerator == "tpu" or devices.ranks(config["device"], accelerator) > 1:
        raise RequestError(
            "engine.find_lr, engine.find_accumulate: try on one GPU or the processor; set device.devices=1"
        )
    if engine.find_accumulate and accelerator == "cpu":
        raise RequestError("engine.find_accumulate: needs a GPU, which says so when its memory is full; leave it out")
    low = devices.autocast(precision, accelerator)
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(low)

    def trial() -> finders.Trial:
        return finders.Trial(
            parts.objective,
            parts.views,
            build.make(config["optim"]),
            global_batch=clock.global_batch,
            seed=config["seed"],
            device=device,
            context=lambda: torch.autocast(device.type, dtype, enabled=dtype is not None),
        )

    def batches(accumulate: int) -> Iterator[Any]:
        data = DataModule(
            parts.source,
            parts.views,
            split=split,
            plain_val=False,
            per_rank=clock.global_batch // accumulate,
            batches=finders.TRIED * accumulate,
            seed=config["seed"],
            workers=config["workers"],
            keep=keep,
        )
        return iter(data.train_dataloader())

    accumulate = config["accumulate"]
    if engine.find_accumulate:
        one_step = lambda count: trial().step(list(islice(batches(count), count)), 0, 0.0)  # noqa: E731
        accumulate = finders.find_accumulate(one_step, clock.global_batch, accumulate)
        say(f"found: accumulate={accumulate}")
    lr = config["optim"]["lr"]
    if engine.find_lr:
        lr *= finders.find_lr(trial(), batches(accumulate), accumulate=accumulate)
        say(f"found: optim.lr={lr:.3g}")
    done = {**config["engine"], "find_lr": False, "find_accumulate": False}
    return {**config, "accumulate": accumulate, "optim": {**config["optim"], "lr": lr}, "engine": done}


def trainer_for(
    config: Mapping[str, Any],
    folder: Path,
    *,
    accelerator: str,
    precision: str,
    validate_every: int,
    loggers: list[Any],
    callbacks: list[pl.Callback],
) -> pl.Trainer:
    """Lightning's Trainer, with everything that this project does itself turned off."""
    quieten()
    device = config["device"]
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1 if accelerator == "cpu" and device["devices"] == "auto" else device["devices"],
        num_nodes=device["num_nodes"],
        strategy=strategy_for(device, accelerator),
        precision=devices.autocast(precision, accelerator),  # type: ignore[arg-type]
        max_epochs=1,  # one long pass: TrainBatches runs through all epochs
        accumulate_grad_batches=config["accumulate"],
        gradient_clip_val=config["clip"],
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        benchmark=True,
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicXlaIO() if accelerator == "tpu" else AtomicIO()],
        default_root_dir=folder,
    )
    if hasattr(trainer.strategy, "_timeout"):  # of any strategy of several processes
        trainer.strategy._timeout = timedelta(minutes=Device(**device).timeout)
    return trainer


@contextmanager
def patience() -> Iterator[None]:
    """What rank 0 does alone within it may take as long as it likes: the others wait at its end, by a group of their
    own, for `device.timeout` would end them. They go on at once, with an error, if rank 0 is no more."""
    group: Any = None
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        group = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    yield
    if group is not None:
        dist.barrier(group=group)
        dist.destroy_process_group(group)


def evaluations(
    config: Mapping[str, Any],
    source: Source,
    evaluators: Mapping[str, Evaluator],
    trained: Backbone,
    objective: Objective | None,
    data: DataModule,
) -> Metrics:
    """Every evaluator on what was trained, on the same untrained, and on the raw input.

    objective: the trained one, where an evaluator asks for it.
    """
    if not evaluators:
        return {}
    untrained, its_objective = build.backbone(config), None
    if any(issubclass(evaluator.asks, Objective) for evaluator in evaluators.values()):
        its_objective = build.objective(config, untrained).to(data.device)
    embeds: dict[str, Embed] = {
        "": frozen(trained.to(data.device), objective),
        "/untrained": frozen(untrained.to(data.device), its_objective),
        "/raw": Embed(source.raw),
    }
    metrics: Metrics = {}
    for name, evaluator in evaluators.items():
        say(f"evaluating {name} ...")
        for suffix, embed in embeds.items():
            metrics |= {f"{name}/{k}{suffix}": v for k, v in evaluator(embed, data).items()}
    return metrics


def pretrained(
    config: Mapping[str, Any], source: Source, origin: runs.Origin, encoder: Backbone, evaluator: str
) -> Objective:
    """The objective of the run that `from` led to, with its heads. Raises RequestError where it can't be had."""
    node, asked = origin.config.get("objective"), f"evaluators.{evaluator}: asks for what was pretrained"
    kept = origin.weights if origin.weights.suffix == ".ckpt" else origin.weights.parent / runs.CHECKPOINTS / runs.LAST
    if not node or not kept.is_file():
        raise RequestError(f"{asked}, heads and all, and {origin.weights} has the backbone alone; give from=RUN_FOLDER")
    check_trust(node, str(origin.weights), config["trust"])
    built = build.objective({**config, "objective": build.fill(node, source.facts)}, encoder)
    prefix = "objective."
    state = load_checkpoint(kept)["state_dict"]
    built.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return built


@torch.no_grad()
def show(parts: build.Parts, data: DataModule, folder: Path) -> None:
    """Writes what the objective makes of a few samples that it did not train on, where it has something to show."""
    samples = data.glimpse(LOOKED_AT)
    torch.manual_seed(derive(parts.config["seed"], "pictures"))
    objective, views = parts.objective.to(data.device).eval(), parts.views.to(data.device)
    seen = [{name: t.to(data.device) for name, t in view.items()} for view in views(samples)]
    for name, columns in objective.show(as_batch(samples, seen, objective.backbone)).items():
        file = parts.source.write([undo(column.cpu(), views.last) for column in columns], folder / name)
        if file is not None:
            say(f"to look at: {file}")


@torch.no_grad()
def test_scores(objective: Objective, data: DataModule) -> Metrics:
    """The scores of what was learned from labels, on the test part's undisturbed samples."""
    assert isinstance(objective, Predictor)  # or it had been refused
    objective.to(data.device).eval()
    seen = data.plain(data.source.split("test"))
    batches = (as_batch(samples, [view], objective.backbone) for view, samples in seen)
    return objective.scores(move_data_to_device(batch, data.device) for batch in batches)


def finish(config: Mapping[str, Any], folder: Path, metrics: Metrics, started: float, then: str | None) -> Metrics:
    """Writes metrics.json, whose presence says that the stage is done, and prints the summary."""
    metrics["time/seconds"] = time.monotonic() - started
    if runs.is_main():
        runs.write_metrics(folder, metrics)
        report.summary(f"{config['stage']} {config['name']}", metrics, folder, then)
    return metrics


def frozen(backbone: Backbone, objective: Objective | None = None) -> Embed:
    """The backbone as evaluators get it: in evaluation mode (BatchNorm statistics fixed), without gradients; and the
    objective around it."""

    def tokens(view: View) -> Tensor:
        assert isinstance(backbone, TokenBackbone)
        return backbone.tokens(**seen_by(backbone, view))

    for module in (backbone, objective):
        if module is not None:
            module.eval().requires_grad_(False)
    return Embed(
        lambda view: backbone(**seen_by(backbone, view)),
        tokens=tokens if isinstance(backbone, TokenBackbone) else None,
        objective=objective,
    )


def _labels(source: Any) -> torch.Tensor:
    train = source.split("train")
    if train.label is None:
        raise RequestError("labels: this data has none")
    if source.valued:
        raise RequestError("labels: counts samples of each class, and these labels are values; leave it out")
    return train.label


def say(text: str) -> None:
    if runs.is_main():
        print(text, flush=True)


def quieten() -> None:
    """Lightning's own chatter is of no use to the reader of a terminal; its warnings about faults are kept."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # says which rank it was that ended, before it ends the others
    logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for text in (
        ".*does not have many workers.*",
        ".*ended before the epoch ended.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=text)
