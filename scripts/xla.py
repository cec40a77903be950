"""Pretrains through torch_xla, on a processor in place of a TPU, and holds it to the same run without.

    python3.11 -m venv /tmp/xla
    /tmp/xla/bin/pip install 'torch==2.9.*' 'torch_xla==2.9.*' 'torchvision==0.24.*'
    /tmp/xla/bin/pip install pytorch-lightning hydra-core pydantic rich timm scikit-learn safetensors pytest hypothesis
    /tmp/xla/bin/pip install --no-deps --editable .
    PJRT_DEVICE=CPU /tmp/xla/bin/python scripts/xla.py

In an environment of its own, since torch_xla is built for one release of torch. Exit status 1: it failed, or learned
something else.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch_xla._internal import tpu

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_runner import cli
from tests.conftest import TINY

RUNS = {"tpu": ["device=tpu", "device.devices=1"], "cpu": ["device=cpu"]}
OBJECTIVES = ("simclr", "byol")


def main() -> int:
    tpu.num_available_devices = lambda: 1  # Lightning asks it for TPUs, of which a processor has none
    worst = 0.0
    for name in OBJECTIVES:
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for kind, device in RUNS.items():
                args = [f"task={name}", *TINY, "evaluators=none", "schedule=constant", *device]
                if cli.answer(["ssl-run", "pretrain", *args, f"hydra.run.dir={folder}/{kind}"]):
                    return 1
                found[kind] = load_file(f"{folder}/{kind}/backbone.safetensors")
            apart = max(float((found["tpu"][k] - v).abs().max()) for k, v in found["cpu"].items())
            print(f"{name}: largest difference of a weight behind 6 steps: {apart:.2g}")
            worst = max(worst, apart)
    return 0 if worst < 1e-3 else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
