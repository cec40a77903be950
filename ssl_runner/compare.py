"""`ssl-run compare`: runs side by side, those that differ in their seed alone as one row."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_runner import jobs, report, runs
from ssl_runner.errors import RequestError, nearest

FORMATS = ("terminal", "markdown", "csv", "latex")
APART = ("seed", "device", "workers", "log_every", "checkpoint_every", "trust", "logger", "contract", "from")
"""What does not make another experiment of a run."""
LOWER = ("loss", "perplexity", "bits_per", "cer", "wer", "eer", "mse", "mae", "rmse")
"""The beginnings of the names of figures of which less is better."""
UNTOLD = ("train/", "val/", "speed/", "time/")
"""The beginnings of figures that are columns only when they are asked for."""


class Run(NamedTuple):
    """A run folder, and its figures, None if it has not finished.

    failure: how a job of a sweep failed, was killed, or was pruned. chosen_by: the figures of the search it is of.
    """

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, float] | None
    failure: dict[str, Any] | None = None
    chosen_by: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """What is to be said of it, where it gives no figures or has broken its promise."""
        if self.failure is not None:
            kind, error = self.failure["kind"], str(self.failure["error"]).partition("\n")[0]
            return f"{self.folder}: {error if error.startswith(kind) else f'{kind}: {error}'}"
        if self.metrics is None:
            return f"{self.folder}: not finished; go on by `ssl-run resume {self.folder}`"
        return None


class Row(NamedTuple):
    """Runs that differ in their seed alone. differs: what sets them apart from others of their name, by config key."""

    name: str
    differs: dict[str, Any]
    runs: list[Run]

    def values(self, metric: str) -> list[float]:
        return [run.metrics[metric] for run in self.runs if run.metrics is not None and metric in run.metrics]

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if run.metrics is None]


class Figure(NamedTuple):
    """Over runs. half: of the width of the mean's 95% interval, None for one run."""

    mean: float | None
    half: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return ""
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def find(roots: Sequence[Path]) -> list[Run]:
    """Every run at or below the folders; of `run` folders the whole, not their stages.

    Raises RequestError where a folder is none or holds no run, and for a broken file in it.
    """
    found: dict[Path, Run] = {}
    for root in roots:
        if not root.is_dir():
            raise RequestError(f"{root}: no such folder")
        inside = sorted(path.parent for path in root.rglob(runs.CONFIG))
        if not inside:
            raise RequestError(f"{root}: holds no run; give a run folder, a sweep's folder, or one above them")
        for folder in inside:
            if not any(above in found for above in folder.resolve().parents):
                job = jobs.read_job(folder) or {}
                figures, failure = runs.read_metrics(folder), jobs.read_failure(folder)
                config = runs.read_config(folder)
                found[folder.resolve()] = Run(folder, config, figures, failure, tuple(job.get("metrics", ())))
    return list(found.values())


def leaderboard(found: Sequence[Run], metric: str | None = None) -> tuple[list[Row], str]:
    """Rows, the best first, and the figure that they are ordered by: of a search, the one that it chose by.

    Rows without that figure come last. Raises RequestError where no finished run has it.
    """
    flat = [dict(_flat({k: v for k, v in run.config.items() if k not in APART})) for run in found]
    alike: dict[str, list[dict[str, Any]]] = {}
    for each in flat:
        alike.setdefault(str(each.get("name", "")), []).append(each)
    differing = {name: _differing(some) for name, some in alike.items()}
    rows: dict[str, Row] = {}
    for run, each in zip(found, flat, strict=True):
        name = str(each.get("name", ""))
        differs = {key: each.get(key) for key in differing[name]}
        row = rows.setdefault(json.dumps([name, differs]), Row(name, _told(differs), []))
        row.runs.append(run)
    figures = columns(list(rows.values()))
    known = list(dict.fromkeys(key for run in found for key in run.metrics or {}))
    searched = {run.chosen_by[:1] for run in found}
    chosen = searched.pop() if len(searched) == 1 else ()
    by = metric if metric is not None else next(iter([*chosen, *figures]), None)
    if by is None or by not in known:
        if metric is not None and known:
            raise RequestError(f"metric={metric}: no run has this figure{nearest(metric, known)}")
        raise RequestError("none of these runs has finished, so that there is nothing to compare")
    sign = 1 if lower_is_better(by) else -1

    def place(row: Row) -> tuple[bool, float]:
        values = row.values(by)
        return (not values, sign * _mean(values) if values else 0.0)

    return sorted(rows.values(), key=place), by


def columns(rows: Sequence[Row]) -> list[str]:
    """The first figure of each evaluator, in the order in which runs give them; losses if there are no others."""
    every = dict.fromkeys(key for row in rows for run in row.runs for key in run.metrics or {})
    scores = [key for key in every if not key.endswith(("/untrained", "/raw"))]
    first: dict[str, str] = {}
    for key in scores:
        if not key.startswith(UNTOLD):
            first.setdefault(key.partition("/")[0], key)
    return list(first.values()) or [key for key in scores if "loss" in key]


def lower_is_better(metric: str) -> bool:
    return metric.rpartition("/")[2].startswith(LOWER)


def over(values: Sequence[float]) -> Figure:
    """The mean, and half the width of its 95% interval by Student's t over n - 1 degrees of freedom."""
    if not values:
        return Figure(None, None)
    mean, n = _mean(values), len(values)
    if n == 1:
        return Figure(mean, None)
    from scipy.special import stdtrit

    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return Figure(mean, float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n))


def table(rows: Sequence[Row], by: str, figures: Sequence[str]) -> tuple[list[str], list[list[str | Figure]]]:
    """The heads and the cells. Beside the figure that the rows are ordered by stand its baselines."""
    differing = list(dict.fromkeys(key for row in rows for key in row.differs))
    baselines = [f"{by}/{kind}" for kind in ("untrained", "raw") if any(row.values(f"{by}/{kind}") for row in rows)]
    wanted = [by, *baselines, *(figure for figure in figures if figure != by)]
    cells: list[list[str | Figure]] = []
    for row in rows:
        done = len(row.runs) - len(row.unfinished)
        count = str(done) if not row.unfinished else f"{done} of {len(row.runs)}"
        told = ["" if row.differs.get(key) is None else str(row.differs[key]) for key in differing]
        cells.append([row.name, *told, count, *(over(row.values(figure)) for figure in wanted)])
    return ["name", *differing, "runs", *wanted], cells


def written(heads: Sequence[str], cells: Sequence[Sequence[str | Figure]], form: str) -> str:
    """The table as text, in one of FORMATS but the terminal's. CSV has a column of its own for each interval."""
    if form == "csv":
        numbers = [any(isinstance(row[n], Figure) for row in cells) for n in range(len(heads))]
        file = io.StringIO()
        out = csv.writer(file, lineterminator="\n")
        out.writerow(
            [t for h, number in zip(heads, numbers, strict=True) for t in ([h, f"{h}/interval"] if number else [h])]
        )
        for row in cells:
            out.writerow([value for cell in row for value in (cell if isinstance(cell, Figure) else [cell])])
        return file.getvalue()
    told = [[str(cell) for cell in row] for row in cells]
    if form == "markdown":
        rows = [[cell.replace("|", "\\|") for cell in row] for row in (heads, ["---"] * len(heads), *told)]
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)
    head, *body = [" & ".join(map(_latex, row)) + r" \\" for row in (heads, *told)]
    begin = rf"\begin{{tabular}}{{{'l' * len(heads)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def compare(roots: Sequence[Path], metric: str | None, form: str) -> str | None:
    """What is printed; None where the terminal has got its own table."""
    found = find(roots)
    rows, by = leaderboard(found, metric)
    heads, cells = table(rows, by, columns(rows) if metric is None else [])
    if form != "terminal":
        return written(heads, cells, form)
    order = "the lowest first" if lower_is_better(by) else "the highest first"
    notes = [run.note for row in rows for run in row.runs if run.note is not None]
    title = f"{len(found)} runs by {by}, {order}; mean and half of the 95% interval over seeds"
    report.board(title, heads, [[str(cell) for cell in row] for row in cells], notes)
    return None


# -- the parts of a table --------------------------------------------------------------------------------------


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = sorted({key for each in configs for key in each})
    return [key for key in keys if len({json.dumps(each.get(key)) for each in configs}) > 1]


def _told(differs: Mapping[str, Any]) -> dict[str, Any]:
    """A part of another class by its name, and without its arguments."""
    targets = [key for key in differs if key.endswith("._target_")]
    told = {key.removesuffix("._target_"): str(differs[key] or "").rpartition(".")[2] for key in targets}
    others = {k: v for k, v in differs.items() if not any(k.startswith(f"{part}.") for part in told)}
    return told | others


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _latex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("±", r"$\pm$")
