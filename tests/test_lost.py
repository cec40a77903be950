"""Nothing is lost: killed at any moment, out of memory, disk or company, a run goes on to what it would have been."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssl_runner import cli, jobs, runs
from ssl_runner.checkpoint import load_checkpoint, save_backbone, save_checkpoint
from ssl_runner.objectives.simclr import SimCLR
from ssl_runner.types import Backbone
from tests.conftest import TINY, TINY_FINETUNE, environment
from tests.starter import Run, Starter

STEPS = 30
SMALL = [*TINY, f"duration={STEPS} steps", "evaluators=none", "checkpoint_every=1 steps", "validate_every=5 steps"]
SMALL += ["log_every=3"]


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    with Starter() as started:
        yield started


def pretrain(folder: str, *extra: str) -> list[str]:
    keys = {each.partition("=")[0] for each in extra}
    kept = [each for each in SMALL if not keys & {key := each.partition("=")[0], key.partition(".")[0]}]
    first = [] if "objective" in keys else ["objective=simclr"]
    return ["pretrain", *first, *kept, *extra, f"hydra.run.dir={folder}"]


def figures(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what depends on the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith(("speed/", "time/"))} for row in csv.DictReader(file)]


def same(one: Path, other: Path) -> None:
    """The weights, all other state, the best checkpoint and every figure that was logged."""
    a, b = load_file(str(one / runs.BACKBONE)), load_file(str(other / runs.BACKBONE))
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    for name in (runs.LAST, runs.BEST):
        x, y = (load_checkpoint(folder / runs.CHECKPOINTS / name) for folder in (one, other))
        assert [k for k, v in x["state_dict"].items() if not torch.equal(v, y["state_dict"][k])] == []
        for s, t in zip(x["optimizer_states"], y["optimizer_states"], strict=True):
            for key, state in s["state"].items():
                theirs = t["state"][key]
                assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(theirs[k])) for k, v in state.items())
    assert figures(one) == figures(other)


def last(folder: Path) -> Path:
    return folder / runs.CHECKPOINTS / runs.LAST


def wait_for(what: Callable[[], object], run: Run) -> None:
    until = time.monotonic() + 120
    while not what():
        assert not run.ended(), run.wait()
        assert time.monotonic() < until
        time.sleep(0.002)


def step_of(folder: Path) -> int:
    """The step of the last checkpoint, which is whole whenever it is looked at."""
    return load_checkpoint(last(folder))["global_step"] if last(folder).is_file() else 0


# -- killed ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    code, told = starter.run(*pretrain("run"), cwd=folder)
    assert code == 0, told
    return folder / "run"


def killed(starter: Starter, cwd: Path, kills: int, delay: Callable[[], float]) -> int:
    """Starts a run, kills it so often, and resumes it after each kill -> how many kills fell into a write."""
    folder, torn = cwd / "run", 0
    for _ in range(kills):
        claimed = folder / runs.CONFIG
        run = starter.start(*(("resume", "run") if claimed.is_file() else pretrain("run")), cwd=cwd)
        wait_for(claimed.is_file, run)
        time.sleep(delay())
        run.send(signal.SIGKILL)
        code, told = run.wait()
        assert code in (0, -signal.SIGKILL), told
        torn += any(re.fullmatch(r"\..+?(\.\d+)+", path.name) for path in folder.rglob(".*"))
        step_of(folder)
    code, told = starter.run("resume", "run", cwd=cwd)
    assert code == 0, told
    return torn


def test_killed_at_random_moments_it_ends_as_if_it_never_was(starter: Starter, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    killed(starter, tmp_path, 4, lambda: draw.uniform(0, 0.5))
    same(whole, tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".*")), "what the killed ones left is cleared away"


@pytest.mark.slow
def test_killed_at_fifty_random_moments(starter: Starter, whole: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("KILL_SEED", "1"))
    draw, count, torn = random.Random(seed), 0, 0
    while count < 50:
        (tmp_path / str(count)).mkdir()
        torn += killed(starter, tmp_path / str(count), 5, lambda: draw.uniform(0, 1.0))
        same(whole, tmp_path / str(count) / "run")
        count += 5
    print(f"{count} kills, {torn} of them while a file was written")


def test_killed_while_it_writes_a_checkpoint_the_one_before_is_whole(
    starter: Starter, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = starter.start(*pretrain("run"), cwd=tmp_path)
    wait_for(lambda: last(folder).is_file() and step_of(folder) > 3, run)
    writing = folder / runs.CHECKPOINTS / f".{runs.LAST}.{run.pid}"
    while not writing.exists():
        assert not run.ended()
    run.send(signal.SIGKILL)
    assert run.wait()[0] == -signal.SIGKILL
    assert writing.exists(), "it was killed too late to show anything"
    assert 3 < step_of(folder) < STEPS
    code, told = starter.run("resume", "run", cwd=tmp_path)
    assert code == 0, told
    same(whole, folder)
    assert not writing.exists()


def test_killed_in_its_evaluation_it_is_not_trained_again(starter: Starter, tmp_path: Path) -> None:
    """Also in the validation of the last step, which is then made up for."""
    code, told = starter.run(*pretrain("a"), cwd=tmp_path)
    assert code == 0, told
    whole, killed = tmp_path / "a", tmp_path / "b"
    os.rename(whole, killed)
    starter.run(*pretrain("a"), cwd=tmp_path)
    (killed / runs.METRICS).unlink()
    (killed / runs.BACKBONE).unlink()
    code, told = starter.run("resume", "b", cwd=tmp_path)
    assert code == 0, told
    assert f"resumed at step {STEPS}" in told
    same(whole, killed)
    one, other = (runs.read_metrics(folder) or {} for folder in (whole, killed))
    assert one.keys() == other.keys()
    assert one["train/loss"] == other["train/loss"]
    assert one["val/loss"] == other["val/loss"]


def test_a_run_that_still_runs_is_not_gone_on_with(
    starter: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run = starter.start(*pretrain("run"), cwd=tmp_path)
    wait_for(lambda: step_of(folder), run)
    run.send(signal.SIGSTOP)
    monkeypatch.setattr(jobs, "PATIENCE", 0.1)
    config = (folder / runs.CONFIG).read_text()
    assert cli.answer(["ssl-run", "resume", str(folder), "workers=3"]) == 2
    assert (folder / runs.CONFIG).read_text() == config
    assert "another process is at this run" in capsys.readouterr().err
    run.send(signal.SIGCONT)
    code, told = run.wait()
    assert code == 0, told
    assert not list(folder.rglob(".*")), "its lock is gone with it"


def test_a_stage_of_a_run_that_another_process_is_at_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; from pathlib import Path; from ssl_runner.jobs import alone\n"
    code += "with alone(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    stage = tmp_path / "run" / "pretrain"
    stage.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(stage)], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    monkeypatch.setattr(jobs, "PATIENCE", 0.1)
    args = [f"finetune.{each}" for each in TINY_FINETUNE]
    answered = cli.answer(["ssl-run", "run", *pretrain(str(tmp_path / "run"))[1:], *args])
    holder.communicate()
    assert answered == 2
    assert f"{stage}: another process is at this run" in capsys.readouterr().err


KINDS = {
    "a teacher": ["objective=byol", "objective.hidden=16", "objective.dim=8"],
    "a queue": ["objective=moco_v2", "objective.queue=32", "objective.hidden=16", "objective.dim=8"],
    "prototypes": ["objective=swav", "objective.prototypes=8", "objective.hidden=16", "objective.dim=8"],
    "masks": ["objective=mae", "views=plain", "objective.depth=1", "objective.heads=2", "objective.dim=8"],
    "text": ["objective=mlm", "data=text", "data.root=words", "data.vocab_size=300", "data.length=16", "views=ids"],
    "files and workers": ["data=folder", "data.root=pictures", "data.size=8", "data.channels=1", "data.cache=no"],
}
KINDS["text"] += ["backbone=encoder_ids", "backbone.depth=1", "backbone.heads=2", "backbone.stem.dim=16"]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(
    request: pytest.FixtureRequest, starter: Starter, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The folder of a run of some kind that was never stopped, and how it is asked for."""
    from PIL import Image

    cwd = tmp_path_factory.mktemp("kind")
    extra = list(KINDS[request.param])
    draw = random.Random(0)
    if "data=text" in extra:
        (cwd / "words").mkdir()
        words = [f"w{n}" for n in range(200)]
        for n in range(60):
            (cwd / "words" / f"{n}.txt").write_text(" ".join(draw.choices(words, k=60)))
        extra[extra.index("data.root=words")] = f"data.root={cwd}/words"
    if "data=folder" in extra:
        (cwd / "pictures").mkdir()
        for n in range(40):
            side = 9 + n % 4
            Image.frombytes("L", (side, side), draw.randbytes(side * side)).save(cwd / "pictures" / f"{n}.png")
        extra[extra.index("data.root=pictures")] = f"data.root={cwd}/pictures"
    code, told = starter.run(*pretrain("run", *extra), cwd=cwd)
    assert code == 0, told
    return cwd / "run", extra


def test_a_run_of_any_kind_goes_on_bit_identically(
    kind: tuple[Path, list[str]], starter: Starter, tmp_path: Path
) -> None:
    whole, extra = kind
    run = starter.start(*pretrain("run", *extra), cwd=tmp_path)
    wait_for(lambda: step_of(tmp_path / "run") >= 7, run)
    run.send(signal.SIGKILL)
    assert run.wait()[0] == -signal.SIGKILL
    code, told = starter.run("resume", "run", cwd=tmp_path)
    assert code == 0, told
    same(whole, tmp_path / "run")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("kind", ["files and workers"], indirect=True)
def test_a_data_worker_that_dies_ends_the_run_with_advice(
    kind: tuple[Path, list[str]], starter: Starter, tmp_path: Path
) -> None:
    run = starter.start(*pretrain("run", *kind[1], "duration=3000 steps"), cwd=tmp_path)
    wait_for(lambda: step_of(tmp_path / "run") >= 2, run)
    os.kill(children(run.pid)[0], signal.SIGKILL)
    code, told = run.wait()
    assert code == 1, told
    assert "ssl-run: a data worker ended" in told
    assert "fewer workers" in told
    assert "Traceback" not in told
    assert step_of(tmp_path / "run") >= 2


# -- no room, no memory ----------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoint_before_whole(starter: Starter, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = starter.start(*pretrain("run"), cwd=tmp_path)
    wait_for(lambda: step_of(folder) >= 4, run)
    run.send(signal.SIGKILL)
    run.wait()
    before = step_of(folder)
    code, told = starter.run("resume", "run", cwd=tmp_path, limits={"RLIMIT_FSIZE": last(folder).stat().st_size // 2})
    assert code == 1, told
    assert re.search(rf"run/checkpoints/({runs.LAST}|{runs.BEST}): can't be written", told), told
    assert "Make room" in told
    assert "Traceback" not in told
    assert step_of(folder) == before
    code, told = starter.run("resume", "run", cwd=tmp_path)
    assert code == 0, told
    same(whole, folder)


@pytest.mark.slow
def test_a_disk_that_fills_up(starter: Starter, whole: Path, tmp_path: Path) -> None:
    """A real one, of memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount; the test above fills none, and sees the same")
    try:
        folder = disk / "run"
        run = starter.start(*pretrain(str(folder)), cwd=tmp_path)
        wait_for(lambda: step_of(folder) >= 4, run)
        filler = disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        code, told = run.wait()
        assert code == 1, told
        assert "No space left on device" in told
        assert "Traceback" not in told
        assert 4 <= step_of(folder) < STEPS
        filler.unlink()
        code, told = starter.run("resume", str(folder), cwd=tmp_path)
        assert code == 0, told
        same(whole, folder)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_disk_has_a_file_and_its_name_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power failure: what was renamed without being on the disk may be empty then."""
    order: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def renamed(source: Any, target: Any) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed)
    save_checkpoint({"a": torch.zeros(3)}, tmp_path / "x.ckpt")
    save_backbone(torch.nn.Linear(2, 2), tmp_path / "x.safetensors", {})
    assert order == ["file", "rename", "folder"] * 2


def test_a_batch_that_does_not_fit_into_memory(starter: Starter, tmp_path: Path) -> None:
    big = ["data.samples=5600", "batch_size=4096", "duration=2 steps"]  # its similarities take 256 MiB, several times
    limits = {"RLIMIT_AS": starter.size() + (600 << 20)}
    code, told = starter.run(*pretrain("run", *big), cwd=tmp_path, limits=limits)
    assert code == 1, told
    assert "ssl-run: out of memory" in told
    assert all(key in told for key in ("batch_size", "accumulate", "precision"))
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:20],
)
def test_after_a_batch_too_large_the_checkpoint_stays(
    error: Exception, ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = SimCLR.forward, itertools.count()

    def failing(self: SimCLR, batch: Any) -> Any:
        if next(calls) == 4:
            raise error
        return forward(self, batch)

    monkeypatch.setattr(SimCLR, "forward", failing)
    code, _, err = ssl_run(*pretrain("run", "validate_every=30 steps"))
    assert code == 1
    assert err.startswith("ssl-run: out of memory")
    assert all(key in err for key in ("batch_size", "accumulate", "precision", "resume"))
    assert "Traceback" not in err
    assert step_of(tmp_path / "run") == 4


# -- ranks -----------------------------------------------------------------------------------------------------

PLAIN = ["views=plain", "views.branches.plain.copies=2", "batch_size=16"]  # nothing random that is a rank's own
STEADY = ["optim=sgd", "optim.lr=0.3"]  # AdamW makes much of rounding where gradients are small
TWO = ["device=ddp", "device.accelerator=cpu", "device.devices=2"]


def ranks(starter: Starter, cwd: Path, *args: str) -> list[Run]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    return [starter.start(*args, cwd=cwd, LOCAL_RANK=str(n), **env) for n in range(2)]


@pytest.fixture(scope="module")
def pair(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that was never stopped."""
    cwd = tmp_path_factory.mktemp("pair")
    for run in ranks(starter, cwd, *pretrain("run", *PLAIN, *TWO)):
        code, told = run.wait()
        assert code == 0, told
    return cwd / "run"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_rank_that_is_lost_ends_the_others(
    which: int, how: int, starter: Starter, pair: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    timeout = "device.timeout=0.08"
    both = ranks(starter, tmp_path, *pretrain("run", *PLAIN, *TWO, timeout, "duration=5000 steps"))
    wait_for(lambda: step_of(folder) >= 5, both[0])
    both[which].send(how)
    code, told = both[1 - which].wait()
    assert code == 1, told
    assert "ssl-run: another rank of this run ended, or did not answer within device.timeout" in told
    assert "Traceback" not in told
    both[which].send(signal.SIGCONT if how == signal.SIGSTOP else signal.SIGKILL)
    assert both[which].wait()[0] == (1 if how == signal.SIGSTOP else -signal.SIGKILL)
    assert step_of(folder) >= 5


def test_a_lost_rank_costs_no_step(starter: Starter, pair: Path, tmp_path: Path) -> None:
    both = ranks(starter, tmp_path, *pretrain("run", *PLAIN, *TWO))
    wait_for(lambda: step_of(tmp_path / "run") >= 5, both[0])
    both[1].send(signal.SIGKILL)
    assert [run.wait()[0] for run in both] == [1, -signal.SIGKILL]
    for run in ranks(starter, tmp_path, "resume", "run"):
        code, told = run.wait()
        assert code == 0, told
    same(pair, tmp_path / "run")


class Slow:
    """An evaluator that takes longer than ranks wait for each other in training."""

    asks, parts, labelled = Backbone, (), False

    def refusal(self, source: object) -> None:
        return None

    def __call__(self, embed: object, data: object) -> dict[str, float]:
        time.sleep(3)
        return {"slow": 1.0}


def test_the_other_ranks_wait_for_an_evaluation_of_any_length(starter: Starter, tmp_path: Path) -> None:
    args = ["evaluators.slow._target_=tests.test_lost.Slow", "device.timeout=0.08", "duration=2 steps"]
    for run in ranks(starter, tmp_path, *pretrain("run", *PLAIN, *TWO, *args)):
        code, told = run.wait()
        assert code == 0, told
    assert (runs.read_metrics(tmp_path / "run") or {})["slow/slow"] == 1


def test_it_goes_on_with_more_ranks_and_with_fewer(starter: Starter, tmp_path: Path) -> None:
    """The global batches stay the same: where nothing else is drawn at random, so do the weights."""
    code, told = starter.run(*pretrain("one", *PLAIN, *STEADY), cwd=tmp_path)
    assert code == 0, told
    folder = tmp_path / "run"
    run = starter.start(*pretrain("run", *PLAIN, *STEADY), cwd=tmp_path)
    wait_for(lambda: step_of(folder) >= 6, run)
    run.send(signal.SIGKILL)
    run.wait()
    first = step_of(folder)
    both = ranks(starter, tmp_path, "resume", "run", "device.devices=2")
    wait_for(lambda: step_of(folder) >= first + 4, both[0])
    for run in both:
        run.send(signal.SIGKILL)
    told, _ = (run.wait()[1] for run in both)
    assert "1 ranks saved this checkpoint, and 2 go on" in told
    assert "each rank now has 8 samples" in told
    assert first < step_of(folder) < STEPS
    code, told = starter.run("resume", "run", "device.devices=1", cwd=tmp_path)
    assert code == 0, told
    assert "2 ranks saved this checkpoint, and 1 go on" in told
    one, other = (load_file(str(tmp_path / name / runs.BACKBONE)) for name in ("one", "run"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert [row["step"] for row in figures(folder)] == [row["step"] for row in figures(tmp_path / "one")]


# -- asked to stop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGUSR1, 138), (signal.SIGUSR2, 140), (signal.SIGTERM, 143)])
def test_slurm_is_asked_to_queue_the_job_again(
    signum: int, code: int, starter: Starter, whole: Path, tmp_path: Path
) -> None:
    """Where it warned of the time limit; not where the job was cancelled."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    env = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    args = pretrain("run", "checkpoint_every=1000 steps", "validate_every=5 steps")
    run = starter.start(*args, cwd=tmp_path, **env)
    wait_for(lambda: step_of(tmp_path / "run") >= 5, run)
    run.send(signum)
    found, told = run.wait()
    assert found == code, told
    assert "a checkpoint was saved" in told
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").is_file() else []
    assert asked == ([] if signum == signal.SIGTERM else ["requeue 17"])
    found, told = starter.run("resume", "run", cwd=tmp_path)
    assert found == 0, told
    same(whole, tmp_path / "run")


def test_both_ranks_stop_at_the_same_step(starter: Starter, pair: Path, tmp_path: Path) -> None:
    """Though one alone was asked to."""
    both = ranks(starter, tmp_path, *pretrain("run", *PLAIN, *TWO))
    wait_for(lambda: step_of(tmp_path / "run") >= 3, both[0])
    both[1].send(signal.SIGTERM)
    codes = [run.wait() for run in both]
    assert [code for code, _ in codes] == [143, 0], codes
    for run in ranks(starter, tmp_path, "resume", "run"):
        code, told = run.wait()
        assert code == 0, told
    same(pair, tmp_path / "run")


def test_a_validation_that_was_broken_off_is_made_up_for(starter: Starter, tmp_path: Path) -> None:
    long = ["data.samples=6000", "validate_every=4 steps", "checkpoint_every=1 epochs"]
    code, told = starter.run(*pretrain("whole", *long, "duration=8 steps"), cwd=tmp_path)
    assert code == 0, told
    folder = tmp_path / "run"
    run = starter.start(*pretrain("run", *long, "duration=8 steps"), cwd=tmp_path)
    wait_for(lambda: step_of(folder) == 4, run)
    run.send(signal.SIGTERM)
    code, told = run.wait()
    assert code == 143, told
    assert not [row for row in figures(folder) if row.get("val/loss")], "the validation went on to its end"
    code, told = starter.run("resume", "run", cwd=tmp_path)
    assert code == 0, told
    same(tmp_path / "whole", folder)


# -- all else that may break -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run"])
def test_a_folder_that_can_not_be_written_to_is_refused_before_training(
    place: str, ssl_run: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = ssl_run(*pretrain(place))
    assert code == 2, err
    assert err.startswith(f"ssl-run: {place}")
    assert "can't be written to" in err
    assert "Traceback" not in err
    assert "pretrain" not in out


def test_a_clock_that_jumps_changes_nothing(
    ssl_run: Callable[..., tuple[int, str, str]], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + draw.uniform(-1e9, 1e9))
    code, _, err = ssl_run(*pretrain("run"))
    assert code == 0, err
    monkeypatch.undo()
    same(whole, tmp_path / "run")
    found = runs.read_metrics(tmp_path / "run") or {}
    assert 0 < found["time/seconds"] < 600
    assert found["speed/samples_per_s"] > 0


def test_a_logger_that_fails_ends_no_run(
    ssl_run: Callable[..., tuple[int, str, str]], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    def refuse(self: object, *args: object, **kwargs: object) -> None:
        raise ConnectionError("the server is down")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", refuse)
    code, out, err = ssl_run(*pretrain("run", "logger=tensorboard"))
    assert code == 0, err
    assert out.count("the server is down") == 1
    same(whole, tmp_path / "run")


def test_weights_and_biases_that_can_not_be_reached_are_written_here(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    code, out, err = ssl_run(*pretrain("run", "logger=wandb", "duration=2 steps", "validate_every=2 steps"))
    assert code == 0, err
    assert out.count("http://127.0.0.1:9 can't be reached") == 1
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert run.name.endswith((tmp_path / "run" / "wandb_id.txt").read_text())
    assert not any(b"a" * 40 in path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
