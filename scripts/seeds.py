"""The table of a recipe over seeds, as the README shows it.

    python scripts/seeds.py +task=simclr [more overrides]

Runs `ssl-run run -m seed=0,1,2 ...` and prints every accuracy as mean ± standard deviation over the seeds, beside the
same backbone untrained and the raw input, with the command, the date and the kind of machine.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ssl_runner import runs
from ssl_runner.report import rows

SEEDS = "0,1,2"


def cell(values: list[float | None]) -> str:
    found = [v for v in values if v is not None]
    return f"{statistics.mean(found):.3f} ± {statistics.stdev(found):.3f}" if found else ""


def main(overrides: list[str]) -> None:
    command = ["ssl-run", "run", "-m", *overrides, f"seed={SEEDS}"]
    folder = Path("outputs") / "seeds" / time.strftime("%Y-%m-%d_%H-%M-%S")
    subprocess.run([*command, f"hydra.sweep.dir={folder}"], check=True)
    found = [json.loads(p.read_text()) for p in sorted(folder.glob("*/metrics.json"))]
    environment = json.loads(next(folder.glob("*/pretrain/environment.json")).read_text())
    print("| score on the test part | this run | untrained | raw input |\n|---|---|---|---|")
    for name, *_ in rows(found[0]):
        if name.endswith("/accuracy"):
            columns = [[m.get(f"{name}{suffix}") for m in found] for suffix in ("", "/untrained", "/raw")]
            print(f"| `{name}` | {' | '.join(map(cell, columns))} |")
    seconds = statistics.mean(m["time/seconds"] for m in found)
    print(
        f"\nMean ± standard deviation over {len(found)} seeds, {seconds:.0f} s a run. `{' '.join(command)}`, "
        f"{time.strftime('%Y-%m-%d')}, {environment['cpu_cores']} cores of {environment['processor']}, "
        f"torch {environment['packages']['torch']}, Python {platform.python_version()}, "
        f"ssl-runner {runs._version('ssl-runner')}."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
