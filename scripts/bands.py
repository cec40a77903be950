"""The bands of the small recipes' contracts, measured over three seeds and written into conf/task.

    python scripts/bands.py run DIR [METHOD ...]     # what is not yet there
    python scripts/bands.py write DIR [METHOD ...]   # the `contract:` of each recipe that has its three runs

A run is `ssl-run pretrain +task=METHOD seed=SEED evaluators=[knn]`. The band reaches from the lowest score to the
highest, and beyond both by their distance or 0.02, whichever is more.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path

from results import CONF, SEEDS, recipes, run_all

METRIC = "knn/accuracy"


def contract(method: str, folder: Path) -> str | None:
    files = [folder / method / str(seed) / "metrics.json" for seed in SEEDS]
    if not all(f.is_file() for f in files):
        return None
    found = [json.loads(f.read_text()) for f in files]
    scores = sorted(metrics[METRIC] for metrics in found)
    margin = max(0.02, scores[-1] - scores[0])
    low, high = scores[0] - margin, min(1.0, scores[-1] + margin)
    seconds = statistics.median(metrics["time/seconds"] for metrics in found)
    untrained = statistics.mean(metrics[f"{METRIC}/untrained"] for metrics in found)
    return (
        f"contract: {{metric: {METRIC}, band: [{low:.3f}, {high:.3f}], budget: {seconds:.0f} s on one core,\n"
        f'           source: "{scores[0]:.3f} to {scores[-1]:.3f} over seeds 0, 1, 2 (untrained {untrained:.3f}), '
        f'2 cores of a Xeon, {time.strftime("%Y-%m-%d")}"}}\n'
    )


def write(method: str, text: str) -> None:
    path = CONF / f"{method}.yaml"
    found = re.sub(r"^contract:(.*\n)(^ .*\n)*", "", path.read_text(), flags=re.M)
    head, finetune, tail = found.partition("finetune:\n")
    path.write_text(head + text + finetune + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["run", "write"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*", default=[])
    given = parser.parse_args()
    methods = given.methods or recipes()
    if given.step == "run":
        run_all(given.folder.resolve(), {method: [f"+task={method}", "evaluators=[knn]"] for method in methods})
        return
    for method in methods:
        text = contract(method, given.folder)
        if text is None:
            print(f"{method}: not measured")
        else:
            write(method, text)


if __name__ == "__main__":
    main()
