"""What a run says at its end: one table, the folder, and the next command to type."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def rows(metrics: Mapping[str, float]) -> list[tuple[str, float | None, float | None, float | None]]:
    """(metric, value, untrained, raw) for every score that is no timing; some baselines stand alone."""
    figures = [k for k in metrics if not k.startswith(("time/", "speed/"))]
    scores = [k.removesuffix("/raw").removesuffix("/untrained") for k in figures]
    return [(k, metrics.get(k), metrics.get(f"{k}/untrained"), metrics.get(f"{k}/raw")) for k in dict.fromkeys(scores)]


def summary(title: str, metrics: Mapping[str, float], folder: Path, then: str | None) -> None:
    """Prints the table. Scores stand beside the untrained backbone and the raw input, where those were taken."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for column in ("this run", "untrained", "raw input"):
        table.add_column(column, justify="right")
    for name, *values in rows(metrics):
        table.add_row(name, *("" if v is None else f"{v:.4f}" for v in values))
    console.print(table)
    seconds = metrics.get("time/seconds")
    speed = metrics.get("speed/samples_per_s")
    took = "" if seconds is None else f" in {seconds:.0f} s"
    console.print(f"done{took}{'' if speed is None else f' at {speed:.0f} samples/s'}: {folder}")
    if then:
        console.print(f"next: {then}")


def board(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """Prints a leaderboard, and below it what is to be said of its runs."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(title=title, title_justify="left")
    for n, head in enumerate(heads):
        table.add_column(head.replace("/", " / "), justify="left" if n == 0 else "right")
    for row in cells:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(note)
