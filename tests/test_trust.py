"""A stranger's run folder or checkpoint runs nothing."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ssl_runner import runs
from ssl_runner.checkpoint import load_checkpoint
from ssl_runner.errors import RequestError
from ssl_runner.trust import check_trust

EVIL = [
    "os.system",
    "posix.system",
    "logging.os.system",
    "builtins.eval",
    "functools.partial",
    "subprocess.Popen",
    "torch.hub.load",
    "torch.load",
    "torch.utils.cpp_extension.load",
    "torch.nn.modules.module.torch.load",
    "torch.optim.torch.hub.load",
    "torch.nn.init.warnings.warn",
    "torch.nn.Module.__init__",
    "torch.nn.functional.relu",
    "ssl_runner.runs.os.system",
    "ssl_runner.runs.subprocess.Popen",
    "ssl_runner.runs.write",
    "ssl_runner.cli.main",
    "ssl_runner.datasets.base.torch.nn.functional.torch.load",
    "hydra.utils.instantiate",
    "ssl_runnerx.evil.Class",
    "timm.models.create_model",
    "ssl_runner..runs",
    "ssl_runner",
    "",
    None,
    ["os.system"],
]


@pytest.mark.parametrize("target", EVIL, ids=str)
@pytest.mark.parametrize("wrap", [lambda n: {"data": n}, lambda n: {"a": [{"b": [n]}]}], ids=["node", "nested"])
def test_only_trusted_classes_may_be_named(target: Any, wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(RequestError, match=r"origin.yaml: .*nothing of it was run"):
        check_trust(wrap({"_target_": target, "_args_": ["echo"]}), "origin.yaml")


@pytest.mark.parametrize(
    "target",
    [
        "ssl_runner.objectives.simclr.SimCLR",
        "ssl_runner.datasets.digits.Digits",
        "ssl_runner.backbones.timm.Timm",
        "torch.nn.Linear",
        "torch.optim.AdamW",
        # an alias is judged by what it resolves to
        "ssl_runner.objectives.simclr.Objective",
    ],
)
def test_the_projects_own_and_torch_classes_pass(target: str) -> None:
    check_trust({"backbone": {"_target_": target}}, "origin.yaml")


def test_a_person_may_vouch_for_their_own_package() -> None:
    node = {"_target_": "collections.OrderedDict"}
    with pytest.raises(RequestError, match=r"trust=\[your_package\]"):
        check_trust(node, "origin.yaml")
    check_trust(node, "origin.yaml", also=["collections"])


def test_interpolations_of_a_stored_config_are_refused() -> None:
    with pytest.raises(RequestError, match="interpolation"):
        check_trust({"data": {"root": "${oc.env:HOME}"}}, "origin.yaml")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_config_passes_or_is_refused_with_a_message(config: Any) -> None:
    try:
        check_trust(config, "origin.yaml")
    except RequestError as error:
        assert "origin.yaml" in str(error)


class Malicious:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    "content",
    [Malicious(), {"state_dict": Malicious()}, {"config": [Malicious()]}],
    ids=["itself", "in the state", "in the config"],
)
@pytest.mark.parametrize("save", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c))], ids=["torch", "pickle"])
def test_a_malicious_pickle_runs_nothing(
    content: Any, save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(content, tmp_path / "evil.ckpt")
    with pytest.raises(RequestError, match=r"evil\.ckpt"):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@given(st.binary(max_size=200))
def test_random_bytes_are_no_checkpoint_and_say_so(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.ckpt"
    path.write_bytes(data)
    with pytest.raises(RequestError, match=r"x\.ckpt"):
        load_checkpoint(path)


def run_folder(folder: Path, **nodes: Any) -> Path:
    """A run folder as a stranger could hand it over."""
    config = {
        "stage": "pretrain",
        "name": "x",
        "seed": 0,
        "data": {"_target_": "ssl_runner.datasets.fake.Fake"},
    }
    config |= {"views": {}, "backbone": {"_target_": "ssl_runner.backbones.timm.Timm"}, "evaluators": {}}
    folder.mkdir()
    (folder / runs.CONFIG).write_text(yaml.safe_dump({**config, **nodes}))
    save_file(
        {"w": torch.zeros(1)},
        str(folder / runs.BACKBONE),
        metadata={"config": json.dumps({**config, **nodes})},
    )
    return folder


HOSTILE: list[dict[str, Any]] = [
    {"backbone": {"_target_": "os.system", "command": "touch ran"}},
    {"data": {"_target_": "logging.os.system", "command": "touch ran"}},
    {"backbone": {"_target_": "functools.partial", "_args_": ["os.system", "touch ran"]}},
    {"evaluators": {"knn": {"_target_": "os.system", "command": "touch ran"}}},
    {"finetune": {"objective": {"_target_": "os.system", "command": "touch ran"}}},
    {"finetune": {"objective._target_": "os.system"}},
    {"finetune": {"hydra": {"run": {"dir": "/tmp/elsewhere"}}}},
    {"finetune": {"optim": {"_name_": "../../../x"}}},
    {"finetune": {"trust": ["os"]}},
    {"data": {"_target_": "ssl_runner.datasets.fake.Fake", "shape": "${oc.env:HOME}"}},
    {"trust": ["posix"], "backbone": {"_target_": "posix.system", "command": "touch ran"}},
]


@pytest.mark.parametrize("nodes", HOSTILE, ids=str)
@pytest.mark.parametrize("kind", ["folder", "safetensors", "ckpt"])
def test_finetuning_from_a_hostile_run_runs_nothing(
    nodes: dict[str, Any], kind: str, ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "evil", **nodes)
    source = folder
    if kind == "safetensors":
        source = folder / runs.BACKBONE
    elif kind == "ckpt":
        source = tmp_path / "evil.ckpt"
        config = yaml.safe_load((folder / runs.CONFIG).read_text())
        torch.save({"config": json.dumps(config), "state_dict": {}}, source)
    code, _, err = ssl_run("finetune", f"from={source}")
    assert code == 2, err
    assert "Traceback" not in err
    assert not (tmp_path / "ran").exists()
    assert str(source.name) in err or "finetune." in err


@pytest.mark.parametrize("nodes", [n for n in HOSTILE if "finetune" not in n], ids=str)
def test_resuming_a_hostile_run_runs_nothing(
    nodes: dict[str, Any], ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "evil", **nodes)
    code, _, err = ssl_run("resume", str(folder))
    assert code == 2
    assert "config.yaml" in err
    assert "Traceback" not in err
    assert not (tmp_path / "ran").exists()


def test_yaml_tags_are_not_followed(ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "evil")
    (folder / runs.CONFIG).write_text("stage: !!python/object/apply:os.system ['touch ran']\nbackbone: {}\n")
    for verb in (["resume", str(folder)], ["finetune", f"from={folder}"]):
        code, _, err = ssl_run(*verb)
        assert code == 2
        assert "config.yaml: can't be read" in err
    assert not (tmp_path / "ran").exists()
