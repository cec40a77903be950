"""Run folders: claimed once, written atomically, found again."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_runner import runs
from ssl_runner.checkpoint import load_backbone, load_checkpoint, save_backbone, save_checkpoint
from ssl_runner.errors import RequestError
from ssl_runner.loggers import Table

CONFIG = {"stage": "pretrain", "name": "x", "backbone": {"_target_": "y"}}


def _claim(folder: str) -> bool:
    try:
        runs.claim(Path(folder), CONFIG)
    except RequestError:
        return False
    return True


def test_a_folder_belongs_to_one_run_however_many_ask(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(_claim, [str(tmp_path / "run")] * 40))
    assert sum(got) == 1
    assert runs.read_config(tmp_path / "run") == CONFIG
    with pytest.raises(RequestError, match="ssl-run resume"):
        runs.claim(tmp_path / "run", CONFIG)


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"can't be written to"):
        runs.claim(tmp_path / "file" / "run", CONFIG)


def test_writing_replaces_in_one_step_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    runs.write(path, "old")
    runs.write(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_failed_save_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint({"step": 1}, path)
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        save_checkpoint({"step": (n for n in ())}, path)  # what can't be pickled fails half-way
    assert load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_backbone_comes_back_with_a_receipt(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    save_backbone(net, tmp_path / "b.safetensors", CONFIG)
    other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    receipt = load_backbone(other, tmp_path / "b.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert "7 tensors matched (100.0%" in str(receipt)
    assert runs.find(str(tmp_path / "b.safetensors")).config == CONFIG


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3)), "5 unexpected in the file"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)),
            "2 missing in the file: 2.weight, 2.bias",
        ),
        (
            nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)),
            r"1 of another shape: 0.weight \(3, 4\) for \(3, 5\)",
        ),
        (nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1)}), "nothing of it fits"),
    ],
)
def test_a_backbone_that_does_not_fit_is_an_error_with_a_receipt(tmp_path: Path, net: nn.Module, message: str) -> None:
    save_backbone(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), tmp_path / "b.safetensors", CONFIG)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RequestError, match=message) as error:
        load_backbone(net, tmp_path / "b.safetensors")
    assert "b.safetensors" in str(error.value)
    assert "% of the backbone's parameters" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"x" * 100, (2**60).to_bytes(8, "little") + b"{}"])
def test_a_broken_safetensors_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"broken\.safetensors"):
        runs.find(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "no such run folder"), ("empty", "no run folder"), ("latest", "no finished pretraining")],
)
def test_what_is_no_run_is_said_to_be_none(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=message):
        runs.find(name)


def test_latest_is_the_newest_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(["pretrain/x/1", "pretrain/x/2", "finetune/x/3", "run/x/0/finetune"]):
        folder = Path("outputs") / name
        runs.claim(folder, {**CONFIG, "name": name})
        save_backbone(nn.Linear(1, 1), folder / runs.BACKBONE, CONFIG)
        import os

        os.utime(folder / runs.BACKBONE, (n, n))
    assert runs.find("latest").config["name"] == "pretrain/x/2"


def test_unfinished_runs_are_pointed_to_resume(tmp_path: Path) -> None:
    runs.claim(tmp_path / "run", CONFIG)
    with pytest.raises(RequestError, match="ssl-run resume"):
        runs.find(str(tmp_path / "run"))


def test_the_table_grows_columns_and_forgets_what_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = Table(path)
    table.add({"a": 1.0}, step=1)
    table.add({"a": 2.0}, step=2)
    table.add({"b": 3.0}, step=2)
    assert path.read_text().split() == ["step,a,b", "1,1.0,", "2,2.0,", "2,,3.0"]
    again = Table(path)
    again.keep(1)
    again.add({"b": 9.0}, step=2)
    assert path.read_text().split() == ["step,a,b", "1,1.0,", "2,,9.0"]


def test_the_environment_can_be_traced(tmp_path: Path) -> None:
    runs.write_environment(tmp_path)
    content = json.loads((tmp_path / runs.ENVIRONMENT).read_text())
    assert content["packages"]["torch"] == torch.__version__.split("+")[0] or content["packages"]["torch"]
    assert content["cpu_cores"] >= 1
    assert content["processor"]
