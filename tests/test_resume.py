"""Killed in any way at any moment, a run goes on to the very weights it would have had."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssl_runner import cli, runs
from ssl_runner.checkpoint import load_checkpoint
from tests.conftest import TINY, command, environment, process

STEPS = 40
LONG = [
    *TINY,
    f"duration={STEPS} steps",
    "evaluators=none",
    "checkpoint_every=4 steps",
    "validate_every=9 steps",
]
VARIANTS = {
    "plain": [],
    "accumulated": ["accumulate=2"],
    "mixed precision, LARS, averaged weights": ["precision=bf16-mixed", "optim=lars", "engine.average=0.9"],
    "convolutions": ["backbone=resnet_tiny"],
}


def arguments(folder: Path, *extra: str) -> list[str]:
    own_backbone = any(e.startswith("backbone") for e in extra)
    general = [a for a in LONG if not (own_backbone and a.startswith("backbone"))]
    return ["pretrain", "task=simclr", *general, *extra, f"hydra.run.dir={folder}"]


def start(folder: Path, *extra: str) -> subprocess.Popen:
    args = command(*arguments(folder, *extra))
    return subprocess.Popen(
        args,
        cwd=folder.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(folder: Path, step: int, child: subprocess.Popen) -> None:
    table = folder / "metrics.csv"
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if child.poll() is not None:
            pytest.fail(f"ended before step {step}: {child.communicate()[0]}")
        lines = table.read_text().splitlines() if table.is_file() else []
        if len(lines) > 1 and int(lines[-1].split(",")[0]) >= step:
            return
        time.sleep(0.005)
    pytest.fail(f"no step {step} in two minutes")


def same_result(a: Path, b: Path) -> None:
    one, two = load_file(str(a / runs.BACKBONE)), load_file(str(b / runs.BACKBONE))
    assert one.keys() == two.keys()
    assert [k for k in one if not torch.equal(one[k], two[k])] == []
    last_a, last_b = (load_checkpoint(x / runs.CHECKPOINTS / runs.LAST) for x in (a, b))
    assert [k for k, v in last_a["state_dict"].items() if not torch.equal(v, last_b["state_dict"][k])] == []
    for s, t in zip(last_a["optimizer_states"], last_b["optimizer_states"], strict=True):
        for key, state in s["state"].items():
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(t["state"][key][k])) for k, v in state.items())


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    extra = VARIANTS[request.param]
    torch.set_num_threads(1)
    assert cli.answer(["ssl-run", *arguments(folder, *extra)]) == 0
    return folder, extra


@pytest.mark.parametrize("step", [6, 23])
def test_killed_and_resumed_it_ends_with_the_same_weights(
    step: int, variant: tuple[Path, list[str]], tmp_path: Path
) -> None:
    whole, extra = variant
    folder = tmp_path / "run"
    child = start(folder, *extra)
    wait_for_step(folder, step, child)
    child.kill()
    child.wait()
    stopped_at = load_checkpoint(folder / runs.CHECKPOINTS / runs.LAST)["global_step"]
    assert 0 < stopped_at < STEPS
    assert cli.answer(["ssl-run", "resume", str(folder)]) == 0
    same_result(whole, folder)
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    trained = [int(row.split(",")[0]) for row in rows if row.split(",")[1]]
    assert sorted(set(trained)) == trained, "no step is logged twice"


@pytest.mark.parametrize("variant", ["accumulated"], indirect=True)
def test_views_that_are_made_ahead_are_those_of_the_step_also_when_resumed(
    variant: tuple[Path, list[str]], tmp_path: Path
) -> None:
    whole, extra = variant
    folder = tmp_path / "run"
    child = start(folder, *extra, "ahead=2")
    wait_for_step(folder, 6, child)
    child.kill()
    child.wait()
    assert cli.answer(["ssl-run", "resume", str(folder)]) == 0
    same_result(whole, folder)


@pytest.mark.parametrize("variant", ["plain"], indirect=True)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_says_so_in_the_exit_code(
    signum: int, code: int, variant: tuple[Path, list[str]], tmp_path: Path
) -> None:
    whole, _ = variant
    folder = tmp_path / "run"
    child = start(folder, "checkpoint_every=1000 steps")
    wait_for_step(folder, 5, child)
    child.send_signal(signum)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == code, out
    assert "a checkpoint was saved" in out
    assert load_checkpoint(folder / runs.CHECKPOINTS / runs.LAST)["global_step"] >= 5
    assert cli.answer(["ssl-run", "resume", str(folder)]) == 0
    same_result(whole, folder)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    assert ssl_run("pretrain", "task=simclr", *TINY, "evaluators=none", "hydra.run.dir=a")[0] == 0
    assert ssl_run("pretrain", "task=simclr", *TINY, "evaluators=none", "hydra.run.dir=b")[0] == 0
    for path in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.json", "backbone.safetensors"):
        (tmp_path / "b" / path).unlink()
    assert ssl_run("resume", "b")[0] == 0
    same_result(tmp_path / "a", tmp_path / "b")


def test_a_run_of_stages_goes_on_with_the_stage_it_was_in(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    args = [*TINY, "evaluators=[knn]", "finetune.duration=6 steps", "finetune.batch_size=16"]
    assert ssl_run("run", "task=simclr", *args, "hydra.run.dir=r")[0] == 0
    before = json.loads((tmp_path / "r" / "metrics.json").read_text())
    written = (tmp_path / "r" / "pretrain" / runs.BACKBONE).stat().st_mtime_ns
    for path in (
        "metrics.json",
        "finetune/metrics.json",
        "evaluate/metrics.json",
        "finetune/checkpoints/last.ckpt",
    ):
        (tmp_path / "r" / path).unlink()
    code, _, err = ssl_run("resume", "r")
    assert code == 0, err
    after = json.loads((tmp_path / "r" / "metrics.json").read_text())
    timing = ("time/", "speed/")
    assert {k: v for k, v in before.items() if not k.startswith(timing)} == {
        k: v for k, v in after.items() if not k.startswith(timing)
    }
    assert (tmp_path / "r" / "pretrain" / runs.BACKBONE).stat().st_mtime_ns == written


def test_a_corrupt_checkpoint_is_named(ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    assert ssl_run("pretrain", "task=simclr", *TINY, "evaluators=none", "hydra.run.dir=a")[0] == 0
    (tmp_path / "a" / "metrics.json").unlink()
    path = tmp_path / "a" / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = ssl_run("resume", "a")
    assert code == 2
    assert "last.ckpt: can't be read as a checkpoint" in err


def test_the_same_seed_gives_the_same_weights_in_another_process(
    variant: tuple[Path, list[str]], tmp_path: Path
) -> None:
    whole, extra = variant
    found = process(*arguments(tmp_path / "again", *extra), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    same_result(whole, tmp_path / "again")
