"""`ssl-run compare`: which runs are one row, what a row says, and in which order."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_runner.compare import Figure, compare, find, leaderboard, lower_is_better, over

Call = Callable[..., tuple[int, str, str]]


def run(folder: Path, metrics: dict[str, float] | None, **config: Any) -> None:
    folder.mkdir(parents=True)
    whole = {"stage": "pretrain", "name": "simclr", "seed": 0, "backbone": {"_target_": "a.Net"}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))


def sweep(root: Path) -> Path:
    """Two rates over three seeds, and a run that has not finished."""
    for lr, scores in ((0.1, (0.5, 0.6, 0.7)), (0.3, (0.8, 0.9, 0.7))):
        for seed, score in enumerate(scores):
            metrics = {"train/loss": 1.0, "knn/accuracy": score, "knn/accuracy/raw": 0.4, "linear/accuracy": 0.9}
            run(root / f"{lr}" / f"{seed}", metrics, seed=seed, optim={"lr": lr}, workers=seed)
    run(root / "late", None, seed=3, optim={"lr": 0.1})
    return root


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    rows, by = leaderboard(find([sweep(tmp_path)]))
    assert by == "knn/accuracy"
    assert [(row.differs, len(row.runs), len(row.unfinished)) for row in rows] == [
        ({"optim.lr": 0.3}, 3, 0),
        ({"optim.lr": 0.1}, 4, 1),
    ]


def test_the_interval_is_students() -> None:
    # two degrees of freedom: 4.302653 standard errors (any table of t)
    mean, half = over([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert over([0.5]) == Figure(0.5, None)
    assert over([]) == Figure(None, None)


@pytest.mark.parametrize(
    ("metric", "lower"),
    [("train/loss", True), ("likelihood/bits_per_byte", True), ("transcripts/cer", True), ("knn/accuracy", False)],
)
def test_less_is_better_of_errors(tmp_path: Path, metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower
    for n, value in enumerate((0.2, 0.3)):
        run(tmp_path / str(n), {metric: value}, optim={"lr": float(n)})
    rows, _ = leaderboard(find([tmp_path]), metric)
    assert [row.differs["optim.lr"] for row in rows] == ([0.0, 1.0] if lower else [1.0, 0.0])


def test_other_parts_are_told_by_their_class_and_recipes_by_their_name(tmp_path: Path) -> None:
    run(tmp_path / "a", {"knn/accuracy": 0.5}, objective={"_target_": "x.SimCLR", "temperature": 0.1})
    run(tmp_path / "b", {"knn/accuracy": 0.6}, objective={"_target_": "x.BYOL", "momentum": 0.9})
    run(tmp_path / "c", {"knn/accuracy": 0.7}, name="mae", objective={"_target_": "x.MAE"}, batch_size=9)
    rows, _ = leaderboard(find([tmp_path]))
    assert [(row.name, row.differs) for row in rows] == [
        ("mae", {}),
        ("simclr", {"objective": "BYOL"}),
        ("simclr", {"objective": "SimCLR"}),
    ]


def test_a_run_of_all_stages_is_one(tmp_path: Path) -> None:
    run(tmp_path / "r", {"knn/accuracy": 0.5}, stage="run")
    for stage in ("pretrain", "finetune"):
        run(tmp_path / "r" / stage, {"knn/accuracy": 0.1}, stage=stage)
    assert [each.folder for each in find([tmp_path, tmp_path / "r"])] == [tmp_path / "r"]


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    told = compare([sweep(tmp_path)], None, "csv")
    assert told is not None
    first, second = csv.DictReader(io.StringIO(told))
    assert (first["optim.lr"], first["runs"], second["runs"]) == ("0.3", "3", "3 of 4")
    assert float(first["knn/accuracy"]) == pytest.approx(0.8)
    assert float(first["knn/accuracy/interval"]) == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert float(first["knn/accuracy/raw"]) == pytest.approx(0.4)
    markdown = compare([tmp_path], "linear/accuracy", "markdown")
    assert markdown is not None
    assert markdown.splitlines()[0] == "| name | optim.lr | runs | linear/accuracy |"
    assert "| simclr | 0.1 | 3 of 4 | 0.900 ± 0.000 |" in markdown
    latex = compare([tmp_path], None, "latex")
    assert latex is not None
    assert r"simclr & 0.3 & 3 & 0.800 $\pm$ 0.248 & 0.400 $\pm$ 0.000 & 0.900 $\pm$ 0.000 \\" in latex
    assert latex.startswith("\\begin{tabular}{llllll}\n\\toprule\n")


def test_a_sweeps_failures_are_told_and_a_search_is_ordered_by_its_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, kind in enumerate((None, None, "failed", "killed", "pruned")):
        figures = {"val/knn": 0.5 + n / 10, "knn/accuracy": 0.9 - n / 10}
        run(tmp_path / "s" / str(n), None if kind else figures, optim={"lr": float(n)})
        (tmp_path / "s" / str(n) / "job.json").write_text(json.dumps({"number": n, "metrics": {"val/knn": "maximize"}}))
        if kind:
            told = {"failed": "no memory\nat all", "killed": "ended by SIGKILL", "pruned": "pruned at step 3"}[kind]
            failure = {"kind": kind, "error": told, "code": 1}
            (tmp_path / "s" / str(n) / "failure.json").write_text(json.dumps(failure))
    rows, by = leaderboard(find([tmp_path]))
    assert by == "val/knn"
    assert [row.differs["optim.lr"] for row in rows] == [1.0, 0.0, 2.0, 3.0, 4.0]
    assert compare([tmp_path / "s"], None, "terminal") is None
    out = capsys.readouterr().out.replace("\n", " ")
    for words in ("/2: failed: no memory", "/3: killed: ended by SIGKILL", "/4: pruned at step 3"):
        assert f"s{words}" in out
    assert "at all" not in out
    run(tmp_path / "other", {"knn/accuracy": 0.1})
    assert leaderboard(find([tmp_path]))[1] == "knn/accuracy", "runs that were not all chosen by one figure"


def test_the_command(ssl_run: Call, tmp_path: Path) -> None:
    sweep(tmp_path / "s")
    code, out, err = ssl_run("compare", "s")
    assert code == 0, err
    assert "7 runs by knn/accuracy, the highest first" in out
    assert "s/late: not finished; go on by `ssl-run resume s/late`" in out
    assert out.index("0.800 ± 0.248") < out.index("0.600 ± 0.248")
    for args, said in (
        ((), "compare takes one folder or more"),
        (("none",), "none: no such folder"),
        (("s", "metric=knn/acuracy"), "did you mean 'knn/accuracy'?"),
        (("s", "format=html"), "format=html: no such format"),
        (("s/late",), "none of these runs has finished"),
    ):
        code, _, err = ssl_run("compare", *args)
        assert code == 2
        assert said in err
    (tmp_path / "empty").mkdir()
    assert "holds no run" in ssl_run("compare", "empty")[2]
