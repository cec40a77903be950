"""Pretrains, finetunes and evaluates through torch_xla, on a processor in place of a TPU, and holds what was pretrained
to the same run without.

    python3.11 -m venv /tmp/xla
    /tmp/xla/bin/pip install 'torch==2.9.*' 'torch_xla==2.9.*' 'torchvision==0.24.*'
    /tmp/xla/bin/pip install pytorch-lightning hydra-core pydantic rich timm scikit-learn safetensors pytest hypothesis
    /tmp/xla/bin/pip install --no-deps --editable .
    PJRT_DEVICE=CPU /tmp/xla/bin/python scripts/xla.py

In an environment of its own, since torch_xla is built for one release of torch. Exit status 1: it failed, learned
something else than without torch_xla, or something else when it was run again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch_xla._internal import tpu

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_runner import cli
from tests.conftest import TINY, TINY_FINETUNE

RUNS = {
    "tpu": ["device=tpu", "device.devices=1"],
    "again": ["device=tpu", "device.devices=1"],
    "processor": ["device=cpu"],
}
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
            again, processor = (apart(found["tpu"], found[other]) for other in ("again", "processor"))
            print(
                f"{name} {draws}: largest difference of a weight behind 6 steps: {again:.2g} from the same run again, "
                f"{processor:.2g} from the run without torch_xla"
            )
            wrong |= again > 0 or (draws == "without noise" and processor > 1e-5)
    return int(wrong)


def learned(args: list[str]) -> dict[str, dict[str, Tensor]] | None:
    """The weights of each of RUNS, None where one fails."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, device in RUNS.items():
            if cli.answer(["ssl-run", "run", *args, *device, f"hydra.run.dir={folder}/{kind}"]):
                return None
            found[kind] = load_file(f"{folder}/{kind}/pretrain/backbone.safetensors")
    return found


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((other[name] - value).abs().max()) for name, value in one.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
