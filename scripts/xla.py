"""Pretrains, finetunes and evaluates through torch_xla, on a processor in place of a TPU, and holds what was pretrained
to the same run without, and to one that is stopped by a signal and resumed.

    python3.11 -m venv /tmp/xla
    /tmp/xla/bin/pip install 'torch==2.9.*' 'torch_xla==2.9.*' 'torchvision==0.24.*'
    /tmp/xla/bin/pip install pytorch-lightning hydra-core pydantic rich timm scikit-learn safetensors pytest hypothesis
    /tmp/xla/bin/pip install --no-deps --editable .
    PJRT_DEVICE=CPU /tmp/xla/bin/python scripts/xla.py

In an environment of its own, since torch_xla is built for one release of torch. Exit status 1: it failed, learned
something else than without torch_xla, or something else when it was run again or in two pieces.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch_xla._internal import tpu

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_runner import cli
from ssl_runner.learner import Learner
from tests.conftest import TINY, TINY_FINETUNE

TPU = ["device=tpu", "device.devices=1"]
RUNS = {"tpu": TPU, "again": TPU, "pieces": TPU, "processor": ["device=cpu"]}
STOP = 3  # behind so many steps the one in pieces is stopped
OBJECTIVES = ("simclr", "byol")
FINETUNE = [f"finetune.{each}" for each in TINY_FINETUNE]
SAME = ["~views.branches.both.transforms.noise"]  # it is drawn on the device, whose generator gives other values


def main() -> int:
    tpu.num_available_devices = lambda: 1  # Lightning asks it for TPUs, of which a processor has none
    wrong = False
    for name in OBJECTIVES:
        for draws, also in {"with noise": [], "without noise": SAME}.items():
            found = learned([f"task={name}", *TINY, *FINETUNE, "evaluators=knn", *also])
            if found is None:
                return 1
            again, pieces, processor = (apart(found["tpu"], found[other]) for other in list(RUNS)[1:])
            print(
                f"{name} {draws}: largest difference of a weight behind 6 steps: {again:.2g} from the same run again, "
                f"{pieces:.2g} from the run in pieces, {processor:.2g} from the run without torch_xla"
            )
            wrong |= again > 0 or pieces > 0 or (draws == "without noise" and processor > 1e-5)
    return int(wrong)


def learned(args: list[str]) -> dict[str, dict[str, Tensor]] | None:
    """The weights of each of RUNS, None where one fails."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, device in RUNS.items():
            run = ["ssl-run", "run", *args, *device, f"hydra.run.dir={folder}/{kind}"]
            if kind == "pieces":
                with patch.object(Learner, "after_step", stopped):
                    if cli.answer(run) != 128 + signal.SIGTERM:
                        return None
                run = ["ssl-run", "resume", f"{folder}/{kind}"]
            if cli.answer(run):
                return None
            found[kind] = load_file(f"{folder}/{kind}/pretrain/backbone.safetensors")
    return found


after_step = Learner.after_step


def stopped(learner: Learner) -> None:
    after_step(learner)
    if learner.global_step + 1 == STOP:
        signal.raise_signal(signal.SIGTERM)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((other[name] - value).abs().max()) for name, value in one.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
