"""Sweeps: the same command again runs only what is missing, a failure stops no other job, a search loses no trial."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_runner import build, jobs, online, runs, sweeps
from ssl_runner.checkpoint import load_backbone
from ssl_runner.data import DataModule
from ssl_runner.datasets.base import Source
from ssl_runner.datasets.fake import Fake
from ssl_runner.errors import RequestError, Stopped
from ssl_runner.evaluators.knn import KNN
from ssl_runner.launchers import ATTENDED, Inline, Joblib, Launcher, Process, Submitit
from ssl_runner.online import Neighbours, chosen
from ssl_runner.search import NAME, Optuna, Range, storage
from ssl_runner.stages import frozen
from tests.conftest import TINY, command, environment, process
from tests.test_resume import same_result

Call = Callable[..., tuple[int, str, str]]
QUICK = ["pretrain", "-m", "task=simclr", *TINY, "evaluators=none", "launcher=inline"]
SEARCH = [*QUICK, "online=knn", "hparams_search=optuna"]
LR = "hparams_search.space.optim.lr={low: 1e-4, high: 1e-1, log: true}"
HEAT = "hparams_search.space.objective.temperature={low: 0.1, high: 0.9}"


def folder_of(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "outputs").glob("*/*/sweep_*")
    return found


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=storage(folder))


def score(config: dict[str, Any]) -> float:
    return -((config["optim"]["lr"] - 0.01) ** 2) - (config["objective"]["temperature"] - 0.3) ** 2


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Jobs that only write figures, for what a sweep does with them: the numbers of those that ran."""
    ran: list[int] = []

    def run(self: Launcher, arguments: Sequence[str], folder: Path) -> int:
        assert arguments[:2] == ["resume", str(folder)]
        ran.append(json.loads((folder / jobs.JOB).read_text())["number"])
        found = score(runs.read_config(folder))
        runs.write_metrics(folder, {"val/loss": -found, "val/knn": found, "train/loss": 1.0, "time/seconds": 1.0})
        return 0

    monkeypatch.setattr(Inline, "run", run)
    monkeypatch.setattr(Joblib, "run", run)
    return ran


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """The jobs of `acted`, but that the one of this place in the order raises."""
    inner, count = Inline.run, iter(range(1000))

    def run(self: Inline, arguments: Sequence[str], folder: Path) -> int:
        if next(count) == at:
            (folder / runs.CHECKPOINTS).mkdir()
            (folder / runs.CHECKPOINTS / runs.LAST).touch()
            raise error
        return inner(self, arguments, folder)

    monkeypatch.setattr(Inline, "run", run)


# -- grids -----------------------------------------------------------------------------------------------------


def test_a_failure_is_written_down_and_the_same_command_runs_only_what_is_missing(
    ssl_run: Call, tmp_path: Path
) -> None:
    command = [*QUICK, "duration=2 steps", "batch_size=999,16"]
    code, out, err = ssl_run(*command)
    assert code == 2
    assert "batch_size=999: there are only" in err
    assert "2 jobs: 2 to run" in out
    folder = folder_of(tmp_path)
    failure = json.loads((folder / "0" / jobs.FAILURE).read_text())
    assert failure["kind"] == "failed"
    assert "batch_size=999: there are only" in failure["error"]
    done = (folder / "1" / runs.METRICS).stat().st_mtime_ns
    assert re.search(r"0 +│ +batch_size=999 │ failed │", out)
    assert re.search(r"1 +│ +batch_size=16 │ +done │ +\d\.\d{4} │", out)

    code, out, err = ssl_run(*command)
    assert code == 2
    assert "2 jobs: 1 done, 1 to run again" in out
    assert "job 0 (" in out
    assert "job 1 (" not in out
    assert "1 of 2 jobs failed" in err
    assert (folder / "1" / runs.METRICS).stat().st_mtime_ns == done
    assert folder_of(tmp_path) == folder, "no second folder"


def test_a_job_that_was_stopped_goes_on_from_its_checkpoint(
    ssl_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_runner.callbacks import Checkpoints

    before = Checkpoints.on_train_batch_end

    def stopped(self: Checkpoints, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 4 and "sweep_" in str(self.folder):
            os.kill(os.getpid(), signal.SIGTERM)
        before(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stopped)
        assert ssl_run(*QUICK, "seed=1")[0] == 128 + signal.SIGTERM
    code, out, err = ssl_run(*QUICK, "seed=1")
    assert code == 0, err
    assert "1 jobs: 1 to go on" in out
    assert "resumed at step 4" in out
    assert ssl_run(*QUICK[:1], *QUICK[2:-1], "seed=1", "hydra.run.dir=whole")[0] == 0
    same_result(folder_of(tmp_path) / "0", tmp_path / "whole")


def test_a_sweeps_folder_depends_on_what_is_run_and_on_nothing_else(
    ssl_run: Call, acted: list[int], tmp_path: Path
) -> None:
    def named(*args: str) -> str:
        code, out, err = ssl_run(*QUICK, *args)
        assert code == 0, err
        return re.search(r"sweep (\S+): ", out)[1]  # type: ignore[index]

    one = named("seed=1,2", "optim.lr=0.1")
    assert named("optim.lr=0.1", "seed=1,2", "launcher=joblib", "launcher.jobs=2") == one
    assert acted == [0, 1]
    assert named("seed=1,3", "optim.lr=0.1") != one
    assert named("seed=1,2", "optim.lr=0.2") != one
    assert named("name=one,two").startswith("outputs/pretrain/several/sweep_")
    assert named("seed=1,2", "hydra.sweep.dir=mine") == "mine"
    assert (tmp_path / "mine" / "1" / runs.CONFIG).is_file()
    code, _, err = ssl_run(*QUICK, "seed=1,3", "hydra.sweep.dir=mine")
    assert code == 2
    assert "mine/1: holds a job of another config (seed=2)" in err


def test_all_jobs_are_checked_before_the_first_one_runs(ssl_run: Call, acted: list[int], tmp_path: Path) -> None:
    for args, words in (
        (["optim.lr=0.1,-1"], "optim.lr: must be greater than 0"),
        (["optim.lrr=0.1,0.2"], "optim.lrr: SGD takes no such argument; did you mean 'lr'?"),
        (["optim.lr=interval(0.1, 0.2)"], "a range has no end of values"),
        (["seed=1,2", "hydra/launcher=basic2"], "hydra/launcher=basic2: no such choice"),
        (["seed=1,2", "launcher.jbs=2"], "launcher.jbs: Inline takes no such argument"),
    ):
        code, _, err = ssl_run(*QUICK, *args)
        assert code == 2
        assert words in err
    assert not acted
    assert not (tmp_path / "outputs").exists()
    for args, words in (("hparams_search=optuna", "hparams_search: "), ("launcher=ray", "launcher=ray: ")):
        code, _, err = ssl_run(*QUICK[:1], *QUICK[2:-1], args)
        assert code == 2
        assert f"{words}is for sweeps; add -m" in err


def test_a_job_of_another_process_is_waited_for_and_not_run_twice(
    ssl_run: Call, acted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ssl_run(*QUICK, "seed=1,2")[0] == 0
    folder = folder_of(tmp_path) / "1"
    (folder / runs.METRICS).rename(folder / "later")
    holder = """
import os, sys, time
from pathlib import Path
from ssl_runner.jobs import alone
folder = Path(sys.argv[1])
with alone(folder) as free:
    print(free, flush=True)
    sys.stdin.readline()
    os.rename(folder / "later", folder / "metrics.json")
"""
    child = subprocess.Popen(
        [sys.executable, "-c", holder, str(folder)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "True\n"
    with jobs.alone(folder) as free:
        assert not free
    monkeypatch.setattr(jobs, "PATIENCE", 0.1)
    with pytest.raises(RequestError, match="another process is at this run"), jobs.attended(folder):
        pytest.fail("two at one job")
    acted.clear()
    told: list[float] = []

    def sleep(seconds: float) -> None:
        if not told:
            child.communicate("go\n")  # the other one ends while this one waits for it
        told.append(seconds)

    monkeypatch.setattr(sweeps, "time", SimpleNamespace(sleep=sleep))
    _, out, _ = ssl_run(*QUICK, "seed=1,2")
    assert told == [0.5]
    assert "job 1 (seed=2): another process is at it; waiting for that" in out
    assert not acted


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from ssl_runner.jobs import alone\n"
    code += "with alone(Path(sys.argv[1])):\n    if os.fork() == 0: import time; time.sleep(20); os._exit(0)\n"
    code += "    print('held', flush=True); os.kill(os.getpid(), 9)"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment(), stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.wait() == -9
    try:
        with jobs.alone(tmp_path) as free:
            assert free, "what it had forked still lives, and holds nothing"
    finally:
        os.killpg(child.pid, signal.SIGKILL)


# -- launchers -------------------------------------------------------------------------------------------------


def test_a_process_ends_with_the_one_that_waits_for_it() -> None:
    code = "import time; from ssl_runner.launchers import attend; attend(); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(**{ATTENDED: "1"}), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    child.stdin.close()
    assert child.wait(10) == -signal.SIGTERM


def test_as_many_jobs_as_asked_run_at_a_time_and_each_is_drawn_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, most, drawn = [0], [0], [0]

    def items() -> Iterator[int]:
        for n in range(9):
            drawn[0] += 1
            yield n

    def work(n: int) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.02 * random.Random(n).random())
        assert drawn[0] <= done[0] + 3, "a search proposes with all that is known by then"
        now[0] -= 1
        done[0] += 1

    done = [0]
    Joblib(jobs=3).each(work, items())
    assert (most[0], done[0]) == (3, 9)


def test_a_fault_in_the_middle_is_raised_and_does_not_hang() -> None:
    def work(n: int) -> None:
        if n == 2:
            raise RequestError("two")

    with pytest.raises(RequestError, match="two"):
        Joblib(jobs=2).each(work, range(100))

    def items() -> Iterator[int]:
        yield 0
        raise RequestError("no more")

    with pytest.raises(RequestError, match="no more"):
        Joblib(jobs=2).each(work, items())


def test_a_killed_job_is_written_down_and_the_rest_go_on(
    ssl_run: Call, acted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Joblib.run
    monkeypatch.setattr(Joblib, "run", lambda self, a, folder: -9 if folder.name == "0" else inner(self, a, folder))
    code, out, err = ssl_run(*QUICK[:-1], "seed=1,2,3")
    assert code == 1
    assert "1 of 3 jobs failed" in err
    assert jobs.read_failure(folder_of(tmp_path) / "0") == {"kind": "killed", "error": "ended by SIGKILL", "code": 1}
    assert [jobs.state(folder_of(tmp_path) / str(n)) for n in range(3)] == ["killed", "done", "done"]
    monkeypatch.setattr(Joblib, "run", inner)
    code, out, err = ssl_run(*QUICK[:-1], "seed=1,2,3")
    assert code == 0, err
    assert "3 jobs: 2 done, 1 to run again" in out
    assert acted == [1, 2, 0]


def test_slurm_is_asked_for_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, says in (("srun", ""), ("sbatch", "echo Submitted batch job 12")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launcher = Submitit(
        partition="gpu", gpus=4, cpus=8, hours=1.5, memory=64, requeue=2, options={"constraint": "a100"}
    )
    launcher.executor(tmp_path / "job").submit(Process(["--version"], None))
    script = next((tmp_path / "job" / "submitit").glob("*.sh"))
    asked = set(re.findall(r"#SBATCH --(\S+)", script.read_text()))
    wanted = {"partition=gpu", "gpus-per-node=4", "ntasks-per-node=4", "cpus-per-task=8", "time=90", "mem=64GB"}
    assert wanted | {"constraint=a100", "nodes=1"} <= asked


def test_a_batch_job_whose_time_is_up_saves_and_is_queued_again(tmp_path: Path) -> None:
    one = Process(["list", "task"], None)
    stopped: list[str] = []
    one.stop = lambda: stopped.append("stop")  # type: ignore[method-assign]
    one.wait = lambda: stopped.append("wait")  # type: ignore[method-assign]
    again = one.checkpoint()
    assert stopped == ["stop", "wait"], "it has saved before it is queued again"
    assert again.function.arguments == ["list", "task"]


# -- searches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_search_that_is_killed_twice_tries_what_it_would_have_tried(
    sampler: str, ssl_run: Call, acted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = [*SEARCH, LR, HEAT, f"hparams_search.sampler={sampler}", "hparams_search.trials=6"]
    assert ssl_run(*search, "hydra.sweep.dir=whole")[0] == 0
    for at in (1, 2):
        with monkeypatch.context() as patch:
            interrupted(patch, at, Stopped(signal.SIGTERM))
            assert ssl_run(*search)[0] == 128 + signal.SIGTERM
    acted.clear()
    code, out, err = ssl_run(*search)
    assert code == 0, err
    assert "6 jobs: 3 done, 1 to go on, 2 to run" in out
    assert acted == [3, 4, 5], "the one that was cut off goes on first, in its own folder"
    ours, whole = study_of(folder_of(tmp_path)).trials, study_of(tmp_path / "whole").trials
    assert [t.state.name for t in ours] == ["COMPLETE"] * 6
    assert [t.params for t in ours] == [t.params for t in whole]
    assert len({tuple(t.params.values()) for t in ours}) == 6
    assert [t.value for t in ours] == [t.value for t in whole]
    best = max(range(6), key=lambda n: ours[n].value)
    assert f"best: {best} (" in out


def test_more_trials_go_on_with_the_same_study(ssl_run: Call, acted: list[int], tmp_path: Path) -> None:
    for trials in (3, 5, 5):
        assert ssl_run(*SEARCH, LR, HEAT, f"hparams_search.trials={trials}")[0] == 0
    assert acted == [0, 1, 2, 3, 4]
    assert len(study_of(folder_of(tmp_path)).trials) == 5


def test_a_failed_trial_is_recorded_and_counted(
    ssl_run: Call, acted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Inline.run
    monkeypatch.setattr(Inline, "run", lambda self, a, f: 1 if f.name == "1" else inner(self, a, f))
    code, _, err = ssl_run(*SEARCH, LR, HEAT, "hparams_search.trials=4")
    assert code == 1
    assert "1 of 4 jobs failed" in err
    states = [t.state.name for t in study_of(folder_of(tmp_path)).trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_grid_tries_all_its_combinations_once_in_order(ssl_run: Call, acted: list[int], tmp_path: Path) -> None:
    space = "hparams_search.space={optim.lr: [0.1, 0.2], objective.temperature: [0.1, 0.5, 0.9]}"
    for trials in (4, 20):
        code, _, err = ssl_run(*SEARCH, space, "hparams_search.sampler=grid", f"hparams_search.trials={trials}")
        assert code == 0, err
    trials = study_of(folder_of(tmp_path)).trials
    assert [tuple(t.params.values()) for t in trials] == [(a, b) for a in (0.1, 0.2) for b in (0.1, 0.5, 0.9)]


def test_several_figures_have_a_best_trial_each_way(ssl_run: Call, acted: list[int], tmp_path: Path) -> None:
    args = ["hparams_search.metric={val/knn: maximize, val/loss: maximize}", "hparams_search.trials=4"]
    code, out, err = ssl_run(*SEARCH, LR, HEAT, *args)
    assert code == 0, err
    assert "val / knn ┃ val / loss" in out
    study = study_of(folder_of(tmp_path))
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert all(trial.values[0] == -trial.values[1] for trial in study.trials)
    told = re.findall(r"\d+ \(optim", out[out.index("best: ") :])
    assert len(told) == 4, "each is better than the others in one of two"


def test_two_trials_run_at_the_same_time(
    ssl_run: Call, acted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, both = Joblib.run, threading.Barrier(2, timeout=120)

    def run(self: Joblib, arguments: Sequence[str], folder: Path) -> int:
        both.wait()  # goes on only when another one is here too
        return inner(self, arguments, folder)

    monkeypatch.setattr(Joblib, "run", run)
    code, _, err = ssl_run(*SEARCH, LR, HEAT, "hparams_search.trials=6", "launcher=joblib", "launcher.jobs=2")
    assert code == 0, err
    assert sorted(acted) == list(range(6))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["hparams_search.metric=val/kn"], "metric=val/kn: these runs give no such figure; did you mean 'val/knn'?"),
        (["hparams_search.metric=knn/accuracy"], "metric=knn/accuracy: these runs give no such figure"),
        (["hparams_search.space.optim.lrr=[1,2]"], "optim.lrr: SGD takes no such argument; did you mean 'lr'?"),
        (["hparams_search.space.objective.temperature=[0.1,hot]"], "objective.temperature: must be a number"),
        (["hparams_search.space.batch_size={low: 0, high: 8}"], "batch_size: must be greater than 0"),
        (["online=none"], "hparams_search.metric: name a figure to choose by"),
        (["seed=1,2"], "seed: a search tries what hparams_search.space holds; put it there as a list"),
        (["hparams_search.sampler=tpee"], "hparams_search.sampler: must be 'tpe', 'cmaes', 'random' or 'grid'"),
        (["hparams_search.prune=median", "hparams_search.metric=train/loss"], "needs a figure of every validation"),
        (["hparams_search.prune=median", "hparams_search.metric=[val/knn,val/loss]"], "takes one metric"),
        (["hparams_search.sampler=cmaes"], "cmaes needs two ranges"),
        (["hparams_search.sampler=grid"], "hparams_search.space.optim.lr: a grid needs a list of values"),
    ],
)
def test_a_search_is_checked_before_anything_runs(
    args: list[str], words: str, ssl_run: Call, acted: list[int], tmp_path: Path
) -> None:
    code, _, err = ssl_run(*SEARCH, LR, *args)
    assert code == 2, err
    assert words in err
    assert not acted
    assert not (tmp_path / "outputs").exists()


def test_choosing_by_the_test_part_is_said_to_be_what_it_is(ssl_run: Call, acted: list[int]) -> None:
    args = [a for a in SEARCH if not a.startswith("evaluators")]
    _, out, err = ssl_run(*args, "evaluators=knn", LR, "hparams_search.metric=knn/accuracy", "hparams_search.trials=1")
    assert "note: knn/accuracy is of the test part" in out
    assert "hparams_search.metric=knn/accuracy: " in err, "the figures of `acted` lack it"
    assert "gives no such figure" in err


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "space: is empty"),
        ({"a": {}}, "space.a: is empty"),
        ({"a": 3}, "space.a: give a list of values or"),
        ({"a": []}, "space.a: give a list of values or"),
        ({"a": {"b": [[1]]}}, r"space.a.b: a list holds numbers, words, true, false or null, and not \[1\]"),
        ({"a": {"low": 1}}, "space.a.high: must be a number, got null"),
        ({"a": {"low": 1, "high": "2"}}, 'space.a.high: must be a number, got "2"'),
        ({"a": {"low": 1, "high": True}}, "space.a.high: must be a number, got true"),
        ({"a": {"low": 1, "hihg": 2}}, "space.a.hihg: a range takes no such key; did you mean 'high'?"),
        ({"a": {"low": 2, "high": 2}}, "space.a: low=2 must be below high=2"),
        ({"a": {"low": 0, "high": 2, "log": True}}, "space.a: log: true needs a low above 0"),
        ({"a": {"low": 1, "high": 2, "log": 1}}, "space.a.log: must be true or false, got 1"),
        ({"a": {"low": 1, "high": 2, "log": True, "step": 1}}, "space.a: has log: true or a step, not both"),
        ({"a": {"low": 1, "high": 2, "step": 0}}, "space.a.step: must be above 0"),
    ],
)
def test_a_wrong_space_is_told_by_its_key(space: dict, words: str) -> None:
    with pytest.raises(RequestError, match=f"hparams_search.{words}".replace("?", r"\?").replace(".", r"\.")):
        Optuna(trials=1, space=space)


def test_a_space_may_be_nested_or_dotted() -> None:
    low_high = {"low": 1, "high": 8}
    for space in ({"optim.lr": low_high, "seed": [1, 2]}, {"optim": {"lr": low_high}, "seed": [1, 2]}):
        search = Optuna(trials=1, space=space)
        assert search.space == {"optim.lr": Range(1, 8, False, None), "seed": [1, 2]}
        assert search.space["optim.lr"].whole
        assert list(search.samples()) == [{"optim.lr": 1, "seed": 1}, {"optim.lr": 8, "seed": 2}]
    assert not Range(1, 8.0, False, None).whole


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["low", "high", "log", "step", "a", "b"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_no_space_crashes(space: dict) -> None:
    with contextlib.suppress(RequestError):
        assert list(Optuna(trials=1, space=space).samples())


def test_a_trial_that_is_worse_than_the_others_is_pruned(ssl_run: Call, tmp_path: Path) -> None:
    search = [*SEARCH, LR, "hparams_search.prune=median", "hparams_search.trials=7"]
    # six trials of another time, all better than any real one
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 0, KeyboardInterrupt())
        assert ssl_run(*search)[0] == 130
    study = study_of(folder_of(tmp_path))
    (running,) = study.trials
    for n in range(6):
        other = {"params": {"optim.lr": 0.001 * (n + 1)}, "distributions": running.distributions}
        study.add_trial(optuna.trial.create_trial(**other, value=2.0, intermediate_values={3: 2.0, 6: 2.0}))
    (folder_of(tmp_path) / "0" / runs.CHECKPOINTS / runs.LAST).unlink()
    code, _, err = ssl_run(*search)
    assert code == 0, err
    assert jobs.state(folder_of(tmp_path) / "0") == "pruned"
    failure = jobs.read_failure(folder_of(tmp_path) / "0")
    assert failure is not None
    assert failure["error"].startswith("pruned at step 3, where val/knn was 0.")
    assert not (folder_of(tmp_path) / "0" / runs.METRICS).exists()
    assert study_of(folder_of(tmp_path)).trials[0].state.name == "PRUNED"


# -- the online score ------------------------------------------------------------------------------------------

CONVOLUTIONS = [a for a in TINY if not a.startswith("backbone")]
ONLINE = ["pretrain", "task=simclr", *CONVOLUTIONS, "backbone=resnet_tiny", "engine.average=0.9"]


class ByValidation:
    """Data of which the evaluator gets the validation part, where it asks for the test part."""

    def __init__(self, data: DataModule):
        self.data, self.num_classes = data, data.num_classes

    def features(self, embed: Any, split: Any) -> Any:
        return self.data.features(embed, "val" if split == "test" else split)


def test_an_online_score_disturbs_nothing_and_is_of_the_validation_part(
    ssl_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ssl_run(*ONLINE, "evaluators=none", "hydra.run.dir=without")[0] == 0
    seen: list[str] = []
    made: list[DataModule] = []
    plain = DataModule.plain

    def noted(self: DataModule, dataset: Any) -> Any:
        parts: Any = ("train", "val", "test")
        seen.append(next(part for part in parts if dataset is self.source.split(part)))
        made.append(self)
        return plain(self, dataset)

    queries: list[torch.Tensor] = []
    votes = online.votes
    monkeypatch.setattr(DataModule, "plain", noted)
    monkeypatch.setattr(online, "votes", lambda query, *rest: votes(queries.append(query) or query, *rest))
    assert ssl_run(*ONLINE, "evaluators=none", "online=knn", "online.k=3", "hydra.run.dir=with")[0] == 0
    assert seen == ["train", "val"] * 2, "at each validation, and never the test part"
    same_result(tmp_path / "without", tmp_path / "with")
    one, two = (json.loads((tmp_path / f / runs.METRICS).read_text()) for f in ("without", "with"))
    assert one.keys() | {"val/knn"} == two.keys()
    assert [k for k in one if not k.startswith(("speed/", "time/")) and one[k] != two[k]] == []
    backbone = build.backbone(runs.read_config(tmp_path / "with"))
    load_backbone(backbone, tmp_path / "with" / runs.BACKBONE)
    assert two["val/knn"] == KNN(k=3)(frozen(backbone), ByValidation(made[0]))["accuracy"]
    averaged, _ = made[0].features(frozen(backbone), "val")
    torch.testing.assert_close(queries[-1], averaged)


def test_an_online_score_is_of_no_more_samples_than_asked_and_always_the_same() -> None:
    data = Fake(samples=200, shape=(1, 4, 4)).split("train")
    torch.manual_seed(1)
    one = chosen(data, 50)
    torch.manual_seed(2)
    assert torch.equal(one.x, chosen(data, 50).x)  # type: ignore[union-attr]
    assert len(one) == 50
    assert chosen(data, 1000) is data


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data=digits", "online.k=0"], "online.k: must be greater than or equal to 1"),
        (
            ["data=movielens_100k", "evaluators=ranking", "objective=clm", "views=ids", "backbone=encoder_ids"],
            "online: needs samples with a class each, and this data has none",
        ),
    ],
)
def test_an_online_score_is_refused_where_there_are_no_classes(args: list[str], words: str, ssl_run: Call) -> None:
    code, _, err = ssl_run("pretrain", "online=knn", *args)
    assert code == 2
    assert words in err


def test_an_online_score_is_refused_where_the_data_turns_out_to_have_none(ssl_run: Call) -> None:
    class Unlabelled(Source):
        valued = True

    with pytest.raises(RequestError, match="online: needs samples with a class each, and this data has values"):
        Neighbours().check(Unlabelled())
    with pytest.raises(RequestError, match="online: the val part is empty"):
        Neighbours().check(NoValidation())


class NoValidation(Fake):
    def split(self, name: Any) -> Any:
        return super().split(name).part(torch.arange(0)) if name == "val" else super().split(name)


# -- real processes --------------------------------------------------------------------------------------------

REAL = ["task=simclr", *TINY, "duration=4 steps", "validate_every=2 steps", "evaluators=none"]
DIGITS = ["task=simclr", "duration=20 steps", "batch_size=32", "validate_every=10 steps", "checkpoint_every=2 steps"]
TRIALS = 12


def finished(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/metrics.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [["joblib", "launcher.jobs=2"], ["submitit_local", "launcher.jobs=2"], ["ray"]],
    ids=lambda each: each[0],
)
def test_jobs_run_where_they_are_sent(launcher: list[str], tmp_path: Path) -> None:
    sweep = ["pretrain", "-m", *REAL, "batch_size=999,16", f"launcher={launcher[0]}", *launcher[1:]]
    if launcher[0] == "ray":
        sweep.append("launcher.cpus=0.5")  # two at a time on one core
    found = process(*sweep, "hydra.sweep.dir=s", cwd=tmp_path)
    assert found.returncode == 2, found.stderr + found.stdout
    assert "1 of 2 jobs failed" in found.stderr
    states = {p.name: jobs.state(p) for p in (tmp_path / "s").iterdir() if p.is_dir()}
    assert states == {"0": "failed", "1": "done"}
    failure = jobs.read_failure(tmp_path / "s" / "0")
    assert failure is not None
    assert "batch_size=999: there are only" in failure["error"]
    figures = runs.read_metrics(tmp_path / "s" / "1")
    assert figures is not None
    assert figures["val/loss"] > 0


@pytest.mark.slow
def test_jobs_of_two_ranks_start_no_sweep_in_their_ranks(tmp_path: Path) -> None:
    ranks = ["device=ddp", "device.accelerator=cpu", "device.devices=2"]
    found = process("pretrain", "-m", *REAL, *ranks, "seed=1,2", "hydra.sweep.dir=s", cwd=tmp_path)
    assert found.returncode == 0, found.stderr + found.stdout
    assert found.stdout.count("2 jobs: 2 to run") == 1
    assert found.stdout.count("on 2 x cpu") == 2
    assert [p.name for p in finished(tmp_path / "s")] == ["0", "1"]


@pytest.mark.slow
def test_a_killed_job_is_recorded_by_a_sweep_that_goes_on(tmp_path: Path) -> None:
    """The job's process kills itself; the class comes from a module of the person's own, which a job may build."""
    (tmp_path / "own.py").write_text(
        "import os\nfrom ssl_runner.objectives.simclr import SimCLR\n\n\nclass Deadly(SimCLR):\n"
        "    def forward(self, batch):\n        os.kill(os.getpid(), 9)\n"
    )
    sweep = ["pretrain", "-m", *REAL, "++objective._target_=own.Deadly,ssl_runner.objectives.simclr.SimCLR"]
    found = process(*sweep, "hydra.sweep.dir=s", cwd=tmp_path)
    assert found.returncode == 1, found.stderr + found.stdout
    assert [jobs.state(tmp_path / "s" / n) for n in "01"] == ["killed", "done"]


@pytest.mark.slow
def test_twelve_trials_on_two_cores_killed_twice(tmp_path: Path) -> None:
    """Once the sweep alone, whose jobs have to end themselves; once all of its processes at the same moment."""
    search = [
        "pretrain", "-m", *DIGITS, "precision=32", "evaluators=none", "online=knn", "online.samples=512",
        "hparams_search=optuna", f"hparams_search.trials={TRIALS}", LR, HEAT, "launcher.jobs=2", "hydra.sweep.dir=s",
    ]  # fmt: skip
    folder = tmp_path / "s"
    for kill, behind in ((os.kill, 2), (os.killpg, 6)):
        child = subprocess.Popen(
            command(*search), cwd=tmp_path, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL
        )
        until = time.monotonic() + 1500
        while len(finished(folder)) < behind or not any(
            (p / runs.CHECKPOINTS / runs.LAST).is_file() for p in folder.glob("*/") if not (p / runs.METRICS).is_file()
        ):
            assert time.monotonic() < until, "no trial finishes"
            assert child.poll() is None, "the sweep ended by itself"
            time.sleep(0.05)
        kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        before = {p.name: (p / runs.METRICS).read_text() for p in finished(folder)}
        assert len(before) < TRIALS
    found = subprocess.run(command(*search), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert re.search(r"12 jobs: [67] done, [12] to go on, \d to run", found.stdout), found.stdout
    trials = study_of(folder).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * TRIALS
    assert [p.name for p in finished(folder)] == sorted(str(n) for n in range(TRIALS))
    for name, text in before.items():
        assert (folder / name / runs.METRICS).read_text() == text, "what was done is not done again"
    for trial in trials:
        figures = json.loads((folder / str(trial.number) / runs.METRICS).read_text())
        assert trial.value == figures["val/knn"]
        config = runs.read_config(folder / str(trial.number))
        assert trial.params["optim.lr"] == config["optim"]["lr"]
    board = process("compare", "s", cwd=tmp_path)
    assert "12 runs by val/knn, the highest first" in board.stdout, board.stderr
    print(found.stdout, board.stdout)
