"""What a view costs on one core: conf/views/simclr.yaml, batched, against torchvision's steps one by one.

    OMP_NUM_THREADS=1 python scripts/bench_views.py [--size 32] [--batch 256] [--rounds 9]

Both start from uint8 images in memory and end with normalised float views. torchvision runs twice, on uint8
and on float tensors, and its faster way counts. All ways alternate within a round. The figures are medians of
the rounds, in microseconds of CPU time a view, so that other work on the machine disturbs them little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torchvision
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor
from torchvision.transforms import v2

from ssl_runner.types import as_float
from ssl_runner.views import Views

CONF = Path(__file__).parents[1] / "conf"
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
BLUR = {32: 3, 64: 7, 96: 9, 224: 23}


def ours(size: int) -> Views:
    facts = [f"++views.{key}.size={size}" for key in ("fit", "branches.both.transforms.crop")]
    facts += [f"++views.last.normalize.{key}={list(value)}" for key, value in (("mean", MEAN), ("std", STD))]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(overrides=["+views=simclr", *facts]).views, _convert_="all")


def theirs(size: int) -> dict[str, v2.Transform]:
    """The same steps, name by name."""
    return {
        "crop": v2.RandomResizedCrop(size, antialias=True),
        "flip": v2.RandomHorizontalFlip(0.5),
        "jitter": v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        "grey": v2.RandomGrayscale(0.2),
        "blur": v2.RandomApply([v2.GaussianBlur(BLUR[size], (0.1, 2.0))], 0.5),
        "normalize": v2.Normalize(MEAN, STD),
    }


def one_by_one(images: Tensor, steps: list[v2.Transform]) -> Callable[[], Tensor]:
    pipeline = v2.Compose(steps)
    return lambda: torch.stack([pipeline(image) for image in images])


def medians(ways: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """name -> (a call, how many views it makes). Returns microseconds a view."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for each in range(rounds + 1):
        for name, (call, views) in ways.items():
            start = time.process_time()
            call()
            if each:  # the first round warms up
                times[name].append((time.process_time() - start) / views * 1e6)
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, choices=BLUR)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    large = torch.empty(31 * 2**20, dtype=torch.uint8)  # as in training, where large tensors come and go:
    del large  # once one of that size is freed, glibc keeps its pages instead of faulting them in anew
    coarse = torch.rand(args.batch, 3, 8, 8)
    images = torch.nn.functional.interpolate(coarse, (args.size, args.size), mode="bicubic")
    images = images.clamp(0, 1).mul(255).round().to(torch.uint8)
    few = images[: max(4, 2048 // args.size)]

    views, steps = ours(args.size), theirs(args.size)
    scale = v2.ToDtype(torch.float32, scale=True)
    ways = {
        "ours": (lambda: views({"inputs": [{"x": images}]}), 2 * len(images)),
        "uint8": (one_by_one(few, [*list(steps.values())[:-1], scale, steps["normalize"]]), len(few)),
        "float": (one_by_one(few, [scale, *steps.values()]), len(few)),
    }
    cost = medians(ways, args.rounds)
    faster = min(cost["uint8"], cost["float"])
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{versions}, {torch.get_num_threads()} thread; {args.size} x {args.size}, batch {args.batch}")
    print(f"whole view, ours                 {cost['ours']:10.1f} us")
    print(f"whole view, torchvision, uint8   {cost['uint8']:10.1f} us")
    print(f"whole view, torchvision, float   {cost['float']:10.1f} us")
    print(f"torchvision's faster way / ours  {faster / cost['ours']:10.1f}")

    x, few_x = as_float(images), as_float(few)
    modules = {**views.branches["both"].transforms, **views.last}
    print(f"{'one step, on float':20s} {'ours':>10s} {'torchvision':>12s}")
    for name, module in modules.items():
        pair = {
            "ours": (partial(module.transform, x), len(x)),
            "theirs": (one_by_one(few_x, [steps[name]]), len(few)),
        }
        cost = medians(pair, args.rounds)
        print(f"{name:20s} {cost['ours']:10.1f} {cost['theirs']:12.1f}")


if __name__ == "__main__":
    main()
