"""`ssl-run plan`: what a pretraining would be, found without training: sizes, steps, memory, and its views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ssl_runner import build, devices, runs
from ssl_runner.data import LOOKED_AT, glimpse
from ssl_runner.durations import Clock
from ssl_runner.pictures import undo
from ssl_runner.seeds import derive
from ssl_runner.types import Batch, Objective, as_batch, as_float

VIEWS = "views"


def plan(config: dict[str, Any], folder: Path) -> dict[str, float]:
    """Prints the plan and writes views.png and config.yaml into the plan's own folder."""
    source, config = build.source(config)
    parts = build.assemble(source, config)
    objective = parts.objective
    split = "train" if objective.labelled else "pretrain"
    dataset = source.split(split)  # type: ignore[arg-type]
    clock = Clock(len(dataset), config["batch_size"], config["duration"])
    optim = build.make(config["optim"])
    optimizer = optim(objective, clock.global_batch)
    schedule = build.make(config["schedule"])
    accelerator = devices.accelerator(config["device"]["accelerator"])
    precision, why = devices.precision(config["precision"]["mode"], accelerator)

    samples = glimpse(source, parts.views, dataset, LOOKED_AT, config["seed"])
    torch.manual_seed(derive(config["seed"], "step", 0, 0))
    views = parts.views(samples)

    runs.claim(folder, config)
    columns = [undo(view["x"], parts.views.last) for view in views]
    first = samples["inputs"][0]["x"]
    if not samples.get("cropped", False) and first.dtype == torch.uint8:
        columns.insert(0, as_float(first))
    shown = source.write(columns, folder / VIEWS)
    memory = estimate_memory(
        objective,
        optimizer,
        as_batch(samples, views, objective.backbone),
        clock.global_batch,
        mixed="bf16" in precision or "16-mixed" in precision,
    )
    sizes = {name: _count(child) for name, child in objective.named_children()}
    warmup = clock.steps(schedule.warmup)
    rows = [
        (
            "data",
            f"{type(source).__name__}: {len(dataset)} {split} samples of {source.facts['shape']}, "
            f"{source.facts['num_classes']} classes",
        ),
        ("views", ", ".join(str(tuple(v["x"].shape[1:])) for v in views)),
        (
            "parameters",
            f"{_count(objective):,} trained ({', '.join(f'{k} {n:,}' for k, n in sizes.items() if n)})",
        ),
        ("global batch", f"{clock.global_batch} ({config['accumulate']} micro-batches)"),
        (
            "learning rate",
            f"{optim.lr:g} -> {optim.scaled_lr(clock.global_batch):g} at the global batch, warm-up {warmup} steps",
        ),
        (
            "steps",
            f"{clock.total} ({clock.steps_per_epoch} an epoch, {clock.total / clock.steps_per_epoch:.1f} epochs)",
        ),
        ("precision", f"{precision} ({why})"),
        ("device", accelerator),
        ("memory", f"about {memory / 2**30:.2f} GiB on one device"),
        (
            "a run writes",
            "config.yaml metrics.csv metrics.json environment.json checkpoints/{last,best}.ckpt backbone.safetensors",
        ),
        ("into", f"outputs/pretrain/{config['name']}/DATE_TIME"),
        ("views to look at", str(shown or "none: there is no form in which to write them")),
    ]
    table = Table(title=f"plan {config['name']}", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    advice = getattr(objective.backbone, "advice", None)
    if advice:
        console.print(f"note: {advice}")
    return {"plan/steps": float(clock.total), "plan/memory_bytes": float(memory)}


def estimate_memory(
    objective: Objective, optimizer: torch.optim.Optimizer, batch: Batch, global_batch: int, *, mixed: bool
) -> int:
    """Bytes of weights, gradients, optimiser state and the activations kept for the backward pass.

    Activations are counted in one forward pass of a few samples and scaled to the batch; the optimiser is taken to
    keep two values per parameter, or one with momentum alone.
    """
    seen: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    held = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        objective(batch)
    activations = sum(n for pointer, n in seen.items() if pointer not in held)
    weights = sum(p.numel() * p.element_size() for p in objective.parameters())
    trained = sum(p.numel() * p.element_size() for g in optimizer.param_groups for p in g["params"])
    states = 2 if "betas" in optimizer.defaults else 1
    scale = global_batch / len(batch["index"]) * (0.5 if mixed else 1.0)
    return int(weights + trained * (1 + states) + activations * scale)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
