"""The table of docs/results.md: every small recipe on one small set of real images, over three seeds.

    python scripts/results.py unpack DIR [--cifar10 TRAIN.tar.xz TEST.tar.xz]   # fixed subsets, as class folders
    python scripts/results.py run DIR [METHOD ...]                             # what is not yet there
    python scripts/results.py table DIR > docs/results.md

`unpack` writes DIR/fashion from Fashion-MNIST (Debian's dataset-fashion-mnist), and DIR/cifar10 from archives of class
folders: the first 500 training and 200 test images of each class. `run` is a `ssl-run pretrain` for each method and
seed, into DIR/runs/METHOD/SEED; one that is done is not run again. Every method has the constants of its recipe on
digits; nothing was tuned on these images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CONF = Path(__file__).parent.parent / "conf" / "task"
SEEDS = (0, 1, 2)
PER_CLASS = {"train": 500, "test": 200}
FASHION = ["data=folder", "data.size=28", "data.channels=1", "data.mean=[0.286]", "data.std=[0.353]"]
CIFAR = ["data=folder", "data.size=32", "data.mean=[0.491,0.482,0.447]", "data.std=[0.247,0.243,0.262]"]
COMMON = ["evaluators=[knn,linear]", "workers=0"]
CONVOLUTIONS = ["backbone.small_stem=false"]  # the usual stem: a quarter of the side, a sixteenth of the time
TOKENS = ["backbone.stem.block=[7,7]"]
SPECIAL = {
    "dino": ["views.branches.local.transforms.crop.size=20"],
    "relative_position": ["objective.patch=7"],
}
LONG = {"data2vec": "30 epochs"}
FINE = {"relative_position", "super_resolution"}  # about single pixels and small patches: half the side, the fine stem
COLOUR = {"colourisation"}
VARIANTS = {
    "simmim_convolutional": (
        "simmim",
        ["backbone=resnet_tiny", "objective.block=2", "optim.lr=2.0e-3", "data.size=14"],
    )
}
LARGE = ("_cifar10", "_imagenet", "_wikipedia", "_openwebtext", "_librispeech")  # names of recipes end with their data
SCORES = ("knn/accuracy", "linear/accuracy")


def small() -> list[str]:
    """The small recipes, measured here: all that are for no published data set of a paper's size."""
    names = sorted(p.stem for p in CONF.glob("[!_]*.yaml"))
    return [name for name in names if not name.endswith(LARGE)]


def on_images() -> list[str]:
    """Those of the small recipes that learn from images, one a method."""
    bases = ("  - _digits\n", "  - _digits_resnet\n")
    texts = {name: (CONF / f"{name}.yaml").read_text() for name in small()}
    return [name for name, text in texts.items() if name in COLOUR or any(base in text for base in bases)]


def rows() -> list[str]:
    """Of the table on Fashion-MNIST."""
    return sorted([*on_images(), *VARIANTS])


def environment(run: Path) -> dict[str, Any]:
    return json.loads((run / "environment.json").read_text())


def overrides(method: str, data: Path) -> list[str]:
    source = (
        [*CIFAR, f"data.root={data / 'cifar10'}"] if method in COLOUR else [*FASHION, f"data.root={data / 'fashion'}"]
    )
    if method in VARIANTS:
        recipe, changed = VARIANTS[method]
        return [f"+task={recipe}", *source, *COMMON, "duration=10 epochs", *changed]
    tokens = "/backbone: encoder" in (CONF / f"{method}.yaml").read_text()
    stem = TOKENS if tokens else ["data.size=14"] if method in FINE else CONVOLUTIONS
    duration = LONG.get(method, "10 epochs")
    return [f"+task={method}", *source, *COMMON, f"duration={duration}", *stem, *SPECIAL.get(method, [])]


def unpack(folder: Path, archives: list[Path]) -> None:
    from PIL import Image

    from ssl_runner.datasets.fashion_mnist import DEBIAN, read_idx

    for part, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(f"{DEBIAN}/{prefix}-images-idx3-ubyte.gz", dims=3).numpy()
        labels = read_idx(f"{DEBIAN}/{prefix}-labels-idx1-ubyte.gz", dims=1).tolist()
        for label in sorted(set(labels)):
            inner = folder / "fashion" / part / str(label)
            inner.mkdir(parents=True, exist_ok=True)
            places = [n for n, each in enumerate(labels) if each == label]
            for n in places[: PER_CLASS[part]]:
                Image.fromarray(images[n]).save(inner / f"{n:05d}.png")
    for archive, part in zip(archives, PER_CLASS, strict=False):
        kept: dict[str, int] = {}
        with tarfile.open(archive) as tar:
            for member in sorted(tar.getmembers(), key=lambda m: m.name):
                name = Path(member.name)
                if member.isfile() and kept.get(name.parent.name, 0) < PER_CLASS[part]:
                    kept[name.parent.name] = kept.get(name.parent.name, 0) + 1
                    inner = folder / "cifar10" / part / name.parent.name
                    inner.mkdir(parents=True, exist_ok=True)
                    content = tar.extractfile(member)
                    assert content is not None
                    (inner / name.name).write_bytes(content.read())


def run_all(folder: Path, given: dict[str, list[str]], verb: str = "pretrain") -> None:
    """A run for each method's overrides and each seed, into folder/METHOD/SEED, one on each core. SEED in an override
    stands for the seed."""

    def one(case: tuple[int, str]) -> None:
        seed, method = case
        target = folder / method / str(seed)
        if (target / "metrics.json").is_file():
            return
        chosen = [override.replace("SEED", str(seed)) for override in given[method]]
        command = ["ssl-run", verb, *chosen, f"seed={seed}", f"hydra.run.dir={target}"]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        print(f"{method} {seed}: exit {done.returncode} in {time.monotonic() - started:.0f} s", flush=True)
        if done.returncode:
            print(f"{' '.join(command)}\n{done.stdout[-500:]}{done.stderr[-1500:]}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, [(seed, method) for seed in SEEDS for method in given]))


def table(folder: Path) -> None:
    def cell(found: list[dict[str, float]], name: str) -> str:
        values = [metrics[name] for metrics in found]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 and "/raw" not in name else ""
        return f"{statistics.mean(values):.3f}{spread}"

    print(
        __doc__.split("\n")[0].replace("The table of docs/results.md: every", "# Every") if __doc__ else "", end="\n\n"
    )
    lines, below, missing, about, seconds = [], [], [], {}, []
    for method in rows():
        files = [folder / "runs" / method / str(seed) / "metrics.json" for seed in SEEDS]
        found = [json.loads(f.read_text()) for f in files if f.is_file()]
        if len(found) < len(SEEDS):
            missing.append(f"{method} ({len(found)} of {len(SEEDS)})")
        if not found:
            continue
        about = environment(files[0].parent)
        seconds += [metrics["time/seconds"] for metrics in found]
        columns = [cell(found, f"{score}{suffix}") for score in SCORES for suffix in ("", "/untrained", "/raw")]
        gain = {s: statistics.mean(m[s] - m[f"{s}/untrained"] for m in found) for s in SCORES}
        if min(gain.values()) <= 0:
            below.append(f"{method} ({', '.join(f'{score} {value:+.3f}' for score, value in gain.items())})")
        lines.append(f"| {method} | {' | '.join(columns)} |")
    print(
        "Each method's recipe on digits (`conf/task/METHOD.yaml`), with its constants as they are, on the first 500\n"
        "training images of each class of Fashion-MNIST at 28x28 (colourisation, which needs colour: of CIFAR-10 at\n"
        "32x32), for 10 epochs, scored on 200 test images of each class; a small ResNet with its usual stem, or a\n"
        "small transformer on blocks of 7x7 for the methods that hide or predict patches. super_resolution and\n"
        "relative_position are about details that this stem drops: they have the fine one, on 14x14, and so has\n"
        "SimMIM on the ResNet, with the other pretexts' rate. data2vec has 30 epochs. Accuracy, mean and standard\n"
        "deviation over seeds 0, 1 and 2, beside the same backbone untrained and the raw pixels. Nothing else was\n"
        "tuned on these images. Such short runs say that a method learns; they do not rank methods.\n"
    )
    print("| method | kNN | untrained | raw | linear | untrained | raw |\n|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    print(f"\nNot above the untrained backbone: {', '.join(below) or 'none'}.")
    if missing:
        print(f"\nNot complete: {', '.join(missing)}.")
    cores, processor = about["cpu_cores"], about["processor"]
    print(
        f"\nMeasured {time.strftime('%Y-%m-%d')} on {cores} cores of {processor}, "
        f"torch {about['packages']['torch']}, a median of {statistics.median(seconds):.0f} s a run "
        "on one busy core:\n\n"
        "    python scripts/results.py unpack DIR --cifar10 TRAIN.tar.xz TEST.tar.xz\n"
        "    python scripts/results.py run DIR\n    python scripts/results.py table DIR > docs/results.md"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["unpack", "run", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*", default=[])
    parser.add_argument("--cifar10", nargs=2, type=Path, default=[], metavar=("TRAIN", "TEST"))
    given = parser.parse_args()
    if given.step == "unpack":
        unpack(given.folder, given.cifar10)
    elif given.step == "run":
        folder = given.folder.resolve()
        run_all(folder / "runs", {method: overrides(method, folder) for method in given.methods or rows()})
    else:
        table(given.folder)


if __name__ == "__main__":
    main()
