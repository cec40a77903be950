"""Loggers beside metrics.csv: written into the run folder, never a prompt, never a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_runner import loggers
from tests.conftest import TINY, process

SHORT = [*TINY, "duration=2 steps", "evaluators=none"]


def test_tensorboard_events_are_in_the_run_folder(ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, err = ssl_run("pretrain", "task=simclr", *SHORT, "logger=tensorboard", "hydra.run.dir=r")
    assert code == 0, err
    assert list((tmp_path / "r" / "tensorboard").glob("events.out.tfevents.*"))
    assert (tmp_path / "r" / "metrics.csv").is_file()


def test_wandb_without_a_key_is_offline_and_asks_nothing(tmp_path: Path) -> None:
    found = process(
        "pretrain", "task=simclr", *SHORT, "logger=wandb", "hydra.run.dir=r",
        cwd=tmp_path, WANDB_API_KEY="", HOME=str(tmp_path), WANDB_SILENT="true",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    (run,) = (tmp_path / "r" / "wandb").glob("offline-run-*")
    assert run.name.endswith((tmp_path / "r" / "wandb_id.txt").read_text())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_command(
    name: str, ssl_run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda n: None if n.startswith(name) else real(n))
    code, _, err = ssl_run("pretrain", "task=simclr", *SHORT, f"logger={name}")
    assert code == 2
    assert f"pip install {name}" in err
