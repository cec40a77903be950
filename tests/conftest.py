from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from ssl_runner import cli

settings.register_profile("untimed", deadline=None)  # no example may fail for being slow on a loaded machine
settings.load_profile("untimed")

TINY = [
    "data=fake",
    "data.samples=96",
    "data.shape=[1,8,8]",
    "views=grey",
    "backbone=encoder",
    "backbone.depth=1",
    "backbone.stem.dim=16",
    "backbone.heads=2",
    "objective.hidden=16",
    "objective.dim=8",
    "batch_size=16",
    "duration=6 steps",
    "precision=32",
    "log_every=1",
    "validate_every=3 steps",
    "checkpoint_every=2 steps",
]
"""A pretraining of a second: what the runner does is the same at every size."""

TINY_FINETUNE = ["duration=4 steps", "batch_size=16", "precision=32", "log_every=1"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ssl_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """ssl_run("pretrain", ...) in this process and in a folder of its own -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = cli.answer(["ssl-run", *args])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capfd.readouterr()
        return code, out, err

    return call


def process(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """ssl-run as a real process."""
    return subprocess.run(command(*args), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=300)


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "ssl_runner.cli", *args]


def environment(**env: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent), **env}
