"""Runs every objective in every way that this machine has, and writes down which did what.

    python scripts/matrix.py --write docs/matrix.md
    python scripts/matrix.py --only simclr mae

Each cell of the tables is a run of a few optimiser steps of a tiny model, or the reason that `ssl-run` gives for
refusing it, as its config check words it. A run that does not end as it should is told in its cell, and makes the exit
status 1. The strategies that need two processes share one pair of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ssl_runner import parallel, runs  # noqa: E402
from ssl_runner.config import unrunnable  # noqa: E402
from ssl_runner.errors import RequestError  # noqa: E402
from tests import test_strategies as ways  # noqa: E402

MODES = ("32", "bf16-mixed", "bf16-true", "16-mixed", "fp8")
STRATEGIES = {
    "one process": {"strategy": "auto"},
    "two micro-batches": {"strategy": "auto"},
    "DDP, two processes": {"strategy": "ddp"},
    "FSDP2, two processes": {"strategy": "fsdp"},
    "DeepSpeed": {"strategy": "deepspeed"},
    "TPU": {"strategy": "auto", "accelerator": "tpu"},
}
HOW = {"DDP, two processes": "ddp", "FSDP2, two processes": "fsdp"}
EXTRA = ("engine.checkpointing", "engine.compile")
FEW = 2  # steps, where nothing is compared


class Notes:
    """Reasons, each told once below the tables and named by a number in them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, kind: str, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"{kind} [{self.texts.index(text) + 1}]"


def refusal(device: dict[str, Any], mode: str, **engine: bool) -> str | None:
    """What the config check says against it on this machine, which has but a processor."""
    config = {"device": {"accelerator": "cpu", **device}, "precision": {"mode": mode}, "engine": engine}
    faults = [f"{path}: {text}" for path, text in unrunnable(config)]
    return "; ".join(faults) or None


def finite(state: dict[str, torch.Tensor]) -> str:
    return "ran" if all(v.isfinite().all() for v in state.values()) else "FAILED: not finite"


def tried(run: Callable[..., str], *args: Any) -> str:
    try:
        return run(*args)
    except Exception as error:  # it is this script's purpose to tell of any
        traceback.print_exc()
        return f"FAILED: {type(error).__name__}"


def on_one(name: str, mode: str) -> str:
    steps = ways.STEPS if mode == "32" else FEW
    return finite(ways.state_of(ways.learn(name, ways.WIDEST[name], "one", mode=mode, steps=steps)))


def on_micro_batches(name: str, mode: str, notes: Notes) -> str:
    """Where it divides on some backbone, that one is taken."""
    backbones = [b for o, b in ways.contract.CASES if o == name]
    backbone = next((b for b in backbones if not parallel.indivisible(ways.contract.build(name, b))), backbones[-1])
    steps = ways.STEPS if mode == "32" else FEW
    halves = ways.learn(name, backbone, "one", parts=ways.HALVES, mode=mode, steps=steps)
    if mode != "32":
        return finite(ways.state_of(halves))
    why = parallel.indivisible(halves)
    if why is not None:
        return notes(finite(ways.state_of(halves)), f"not the same as the whole batch at once: {why}")
    far = ways.apart(ways.state_of(halves), ways.state_of(ways.learn(name, backbone, "one")))
    return "equal" if not far else f"FAILED: {far[0]} differs"


def on_two(found: list[dict[Any, Any]], name: str, how: str, mode: str) -> str:
    states = [each[name, how, mode] for each in found]
    if any(isinstance(state, str) for state in states):
        print(*states, sep="\n")
        return "FAILED: " + next(s for s in states if isinstance(s, str)).strip().splitlines()[-1][:80]
    if ways.apart(states[1], states[0]):
        return "FAILED: ranks differ"
    if mode != "32":
        return finite(states[0])
    far = ways.apart(states[0], ways.state_of(ways.learn(name, ways.WIDEST[name], "one")))
    return "equal" if not far else f"FAILED: {far[0]} differs"


def extra(name: str, key: str, notes: Notes) -> str:
    stacked = [b for o, b in ways.contract.CASES if o == name and parallel.blocks(ways.contract.BACKBONES[b]())]
    how = key.removeprefix("engine.")
    backbone = stacked[-1] if stacked and how == "checkpointing" else ways.WIDEST[name]
    try:
        state = ways.state_of(ways.learn(name, backbone, how, steps=FEW))
    except RequestError as error:
        return notes("refused", str(error))
    torch._dynamo.reset()
    far = ways.apart(state, ways.state_of(ways.learn(name, backbone, "one", steps=FEW)))
    return "equal" if not far else f"FAILED: {far[0]} differs"


def cell(name: str, strategy: str, mode: str, found: list[dict[Any, Any]], notes: Notes) -> str:
    device = STRATEGIES[strategy]
    reason = refusal(device, mode)
    if reason is not None:
        return notes("refused", reason)
    if strategy == "TPU":
        return notes("not here", "no TPU on this machine; scripts/xla.py runs torch_xla on a processor")
    if strategy in HOW:
        return on_two(found, name, HOW[strategy], mode)
    if strategy == "one process":
        return tried(on_one, name, mode)
    return tried(on_micro_batches, name, mode, notes)


def tables(names: list[str], notes: Notes) -> str:
    """Markdown: a table for each strategy, and one of what else changes how a run is carried out."""
    pairs = [(n, how, m) for n in names for s, how in HOW.items() for m in MODES if not refusal(STRATEGIES[s], m)]
    with tempfile.TemporaryDirectory() as folder:
        found = ways.two_ranks(Path(folder), pairs)
    text = ""
    for strategy in STRATEGIES:
        text += f"\n## {strategy}\n\n| objective | {' | '.join(MODES)} |\n|{'---|' * (len(MODES) + 1)}\n"
        for name in names:
            text += f"| {name} | {' | '.join(cell(name, strategy, mode, found, notes) for mode in MODES)} |\n"
        print(strategy, flush=True)
    text += f"\n## One process, in 32 bits\n\n| objective | {' | '.join(EXTRA)} |\n|---|---|---|\n"
    for name in names:
        text += f"| {name} | {' | '.join(tried(extra, name, key, notes) for key in EXTRA)} |\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(ways.WIDEST), help="objectives")
    parser.add_argument("--write", type=Path, help="a Markdown file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    started, notes = time.monotonic(), Notes()
    body = tables(given.only, notes)
    minutes = (time.monotonic() - started) / 60
    told = "\n".join(f"{n}. {text}" for n, text in enumerate(notes.texts, 1))
    text = f"""# What was run

Every objective, on a tiny backbone that it takes, with every strategy and number format: {date.today()},
{runs._processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {minutes:.0f} minutes, by

    python {shlex.join(sys.argv)}

- **equal**: {ways.STEPS} optimiser steps ({FEW} in the last table), and every parameter and buffer is what one process
  has behind the same steps on the joined batch, up to the order of sums (1e-3 relative, 5e-5 absolute).
- **ran**: some optimiser steps, on all ranks to the same finite parameters.
- **refused**: not offered; `ssl-run` says why before it starts. [n]: the reason below. What needs a GPU is refused here
  because this machine has none.

Averaged weights (`engine.average`) follow the optimiser and know no objective, and so have no column.
{body}
## Reasons

{told}
"""
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 1 if "FAILED" in body else 0


if __name__ == "__main__":
    sys.exit(main())
