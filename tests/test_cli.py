"""What a person types and what they get: verbs, folders, figures, messages and exit codes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ssl_runner import build, cli, runs
from ssl_runner.checkpoint import save_backbone
from ssl_runner.compose import kept, offer, without
from ssl_runner.errors import RunError
from ssl_runner.learner import Learner
from tests.conftest import TINY, TINY_FINETUNE, environment
from tests.test_resume import same_result

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny pretraining, shared by the tests that go on from one."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    assert cli.answer(["ssl-run", "pretrain", "task=simclr", *TINY, f"hydra.run.dir={folder}", "evaluators=knn"]) == 0
    return folder


def test_a_pretraining_writes_its_folder(pretrained: Path) -> None:
    assert {p.name for p in pretrained.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "metrics.json",
        "environment.json",
        "checkpoints",
        "backbone.safetensors",
    }
    assert {p.name for p in (pretrained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    config = yaml.safe_load((pretrained / "config.yaml").read_text())
    assert config["backbone"]["stem"]["shape"] == [1, 8, 8], "facts of the data are in the config"
    assert "${" not in (pretrained / "config.yaml").read_text()
    metrics = json.loads((pretrained / "metrics.json").read_text())
    assert {"train/loss", "val/loss", "speed/samples_per_s", "time/seconds"} <= set(metrics)
    assert {"knn/accuracy", "knn/accuracy/raw", "knn/accuracy/untrained"} <= set(metrics)
    assert all(isinstance(v, float) for v in metrics.values())
    with open(pretrained / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows if r.get("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [int(r["step"]) for r in rows if r.get("val/loss")] == [3, 6]


def test_the_summary_names_the_folder_and_the_next_command(ssl_run: Call, tmp_path: Path) -> None:
    code, out, _ = ssl_run("pretrain", "task=simclr", *TINY, "evaluators=none")
    assert code == 0
    (folder,) = (tmp_path / "outputs" / "pretrain" / "simclr").iterdir()
    assert str(folder) in out.replace("\n", "")
    assert f"next: ssl-run finetune from={folder}" in out.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize("what", ["folder", "safetensors", "last.ckpt", "best.ckpt"])
def test_finetuning_goes_on_from_a_run_without_restating_it(
    what: str, pretrained: Path, ssl_run: Call, tmp_path: Path
) -> None:
    source = {"folder": pretrained, "safetensors": pretrained / runs.BACKBONE}.get(
        what, pretrained / "checkpoints" / what
    )
    code, out, err = ssl_run("finetune", f"from={source}", *TINY_FINETUNE, "hydra.run.dir=ft")
    assert code == 0, err
    assert "100.0% of the backbone's parameters" in out
    metrics = json.loads((tmp_path / "ft" / "metrics.json").read_text())
    assert {"finetune/accuracy", "val/accuracy", "train/loss"} <= set(metrics)
    config = yaml.safe_load((tmp_path / "ft" / "config.yaml").read_text())
    before = yaml.safe_load((pretrained / "config.yaml").read_text())
    assert config["backbone"] == before["backbone"]
    assert config["data"] == before["data"]
    assert config["name"] == "simclr"


def test_finetuning_starts_from_the_pretrained_weights(pretrained: Path, ssl_run: Call, tmp_path: Path) -> None:
    frozen = [*TINY_FINETUNE, "objective.freeze=true"]
    ssl_run("finetune", f"from={pretrained}", *frozen, "hydra.run.dir=ft")
    a, b = load_file(str(pretrained / runs.BACKBONE)), load_file(str(tmp_path / "ft" / runs.BACKBONE))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_finetuning_of_a_run_without_its_weights_starts_where_the_run_did(
    pretrained: Path, ssl_run: Call, tmp_path: Path
) -> None:
    given = [f"from={pretrained}", "untrained=true", *TINY_FINETUNE, "objective.freeze=true"]
    code, out, err = ssl_run("finetune", *given, "hydra.run.dir=ft")
    assert code == 0, err
    assert "without its weights" in out
    began = build.backbone(runs.read_config(pretrained)).state_dict()
    found = load_file(str(tmp_path / "ft" / runs.BACKBONE))
    assert all(torch.equal(found[key], began[key]) for key in found)
    code, _, err = ssl_run("pretrain", *TINY, "untrained=true")
    assert code == 2
    assert "untrained: is for finetuning" in err


def test_finetuning_from_nothing_and_on_few_labels(ssl_run: Call, tmp_path: Path) -> None:
    scratch = [a for a in TINY if a.startswith(("data", "views", "backbone"))]
    code, _, err = ssl_run(
        "finetune",
        "from=null",
        *scratch,
        *TINY_FINETUNE,
        "labels=3 per class",
        "name=scratch",
        "hydra.run.dir=ft",
    )
    assert code == 0, err
    config = yaml.safe_load((tmp_path / "ft" / "config.yaml").read_text())
    assert config["from"] is None


def test_overrides_work_on_what_is_inherited(pretrained: Path, ssl_run: Call) -> None:
    code, out, _ = ssl_run("finetune", f"from={pretrained}", "data.samples=64", "--cfg", "job")
    assert code == 0
    config = yaml.safe_load(out)
    assert config["data"]["samples"] == 64
    assert config["data"]["_target_"].endswith("Fake")
    code, out, _ = ssl_run("finetune", f"from={pretrained}", "data=digits", "--cfg", "job")
    assert yaml.safe_load(out)["data"] == {"_target_": "ssl_runner.datasets.digits.Digits"}


RECIPE = """# @package _global_
# BYOL on other data and with another backbone
defaults:
  - override /objective: byol

name: again
seed: 3
data: {samples: 16, on_broken: skip}
backbone: {depth: 3, dropout: 0.3, stem: {dim: 64, causal: true}}
"""
GOING_ON = [each for each in TINY if not each.startswith(("data", "backbone", "objective"))]


@pytest.fixture
def recipe(tmp_path: Path) -> list[str]:
    """A recipe whose data and backbone are not those of a run, by the flags and the override that choose it."""
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "again.yaml").write_text(RECIPE)
    return ["--config-dir", "own", "task=again", *GOING_ON, "objective.hidden=16", "objective.dim=8"]


def test_pretraining_goes_on_from_a_run_by_another_recipe(
    pretrained: Path, recipe: list[str], ssl_run: Call, tmp_path: Path
) -> None:
    """Data, backbone and its weights are the run's; the rest is the recipe's."""
    still = ["seed=0", "optim.lr=1.0e-12", "evaluators=knn", "hydra.run.dir=r"]
    code, out, err = ssl_run("pretrain", *recipe, f"from={pretrained}", *still)
    assert code == 0, err
    assert "100.0% of the backbone's parameters" in out
    assert "note: the recipe again sets data: {'samples': 16, 'on_broken': 'skip'}, but data is now the run's" in out
    config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    before = yaml.safe_load((pretrained / "config.yaml").read_text())
    assert {key: config[key] for key in ("data", "backbone")} == {key: before[key] for key in ("data", "backbone")}
    assert config["name"] == "again"
    assert config["objective"]["_target_"].endswith(".BYOL")
    a, b = load_file(str(pretrained / runs.BACKBONE)), load_file(str(tmp_path / "r" / runs.BACKBONE))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)
    metrics, first = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "r", pretrained))
    assert metrics["knn/accuracy"] == pytest.approx(first["knn/accuracy"], abs=0.05)
    assert metrics["knn/accuracy/untrained"] == first["knn/accuracy/untrained"], "it is not what the run had learned"


def test_what_is_typed_comes_over_what_a_pretraining_goes_on_from(
    pretrained: Path, recipe: list[str], ssl_run: Call
) -> None:
    def composed(*typed: str) -> dict:
        code, out, err = ssl_run("pretrain", *recipe, *typed, "--cfg", "job")
        assert code == 0, err
        return yaml.safe_load(out)

    config = composed(f"from={pretrained}", "data.samples=64", "backbone.drop_path=0.1")
    assert config["seed"] == 3
    assert config["data"]["samples"] == 64
    assert (config["backbone"]["drop_path"], config["backbone"]["depth"]) == (0.1, 1)
    assert "dropout" not in config["backbone"]
    assert composed(f"from={pretrained}", "data=digits")["data"]["samples"] == 16, "the recipe's, as without from"
    assert composed("from=null")["backbone"]["depth"] == 3


def test_another_rank_makes_of_the_rewritten_command_what_the_first_one_did(pretrained: Path) -> None:
    once = cli._rewritten("pretrain", ["task=mae", f"from={pretrained}", "data.samples=64"])
    assert {"data=from_run", "backbone=from_run", "+task=mae", "++data.samples=64"} <= set(once)
    assert cli._rewritten("pretrain", once) == once


def test_the_weights_come_from_the_run_and_not_from_a_hub_whatever_the_recipe_says() -> None:
    run = {"data": {"length": 8}, "backbone": {"name": "bert", "pretrained": True}}
    found = kept(offer(run), {"backbone": {"pretrained": True, "dropout": 0.1}})
    assert found == ["data=from_run", "backbone=from_run", "++backbone.pretrained=false", "~backbone.dropout"]


def test_a_pretraining_that_went_on_from_a_run_is_resumed_without_it(
    pretrained: Path, recipe: list[str], ssl_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pretrained, tmp_path / "first")
    call = ["pretrain", *recipe, "from=first", "evaluators=none"]
    assert ssl_run(*call, "hydra.run.dir=whole")[0] == 0
    step = Learner.training_step

    def broken(self: Learner, samples: dict, batch_idx: int) -> torch.Tensor:
        if batch_idx == 4:
            raise RunError("the power went")
        return step(self, samples, batch_idx)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", broken)
        assert ssl_run(*call, "hydra.run.dir=stopped")[0] == 1
    shutil.rmtree(tmp_path / "first")
    code, out, err = ssl_run("resume", "stopped")
    assert code == 0, err
    assert "resumed at step 4" in out.replace("\n", " ")
    assert "% of the backbone's parameters" not in out
    same_result(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["from=nowhere"], "from=nowhere: no such run folder"),
        (["from=a,b", "-m"], "one run at a time"),
        (["from=RUN", "task=simclr,byol", "-m"], "task=simclr,byol: with from=, one recipe at a time"),
        (["from=RUN", "task=simclr", "backbone=resnet_tiny"], "nothing of it fits this backbone. 0 tensors matched"),
        (["from=RUN", "task=simclr", "data=digits", "data.size=16"], "and the backbone is for (1, 8, 8)"),
    ],
)
def test_a_run_that_a_pretraining_cant_go_on_from_is_said_to_be_none(
    typed: list[str], message: str, pretrained: Path, ssl_run: Call, tmp_path: Path
) -> None:
    typed = [each.replace("RUN", str(pretrained)) for each in typed]
    code, out, err = ssl_run("pretrain", *typed, *GOING_ON, "hydra.run.dir=r")
    assert code == 2
    assert message in err
    assert "pretrain step" not in out
    assert not (tmp_path / "r" / "config.yaml").exists(), "the mended command can use the folder"


def test_a_whole_run_goes_on_from_a_run(pretrained: Path, recipe: list[str], ssl_run: Call, tmp_path: Path) -> None:
    later = ["finetune.duration=2 steps", "finetune.batch_size=16", "evaluators=none", "hydra.run.dir=r"]
    code, out, err = ssl_run("run", *recipe, f"from={pretrained}", *later)
    assert code == 0, err
    assert f"{pretrained}: " in out
    inner = {
        name: yaml.safe_load((tmp_path / "r" / name / "config.yaml").read_text()) for name in ("pretrain", "finetune")
    }
    assert inner["pretrain"]["from"] == str(pretrained)
    assert inner["finetune"]["from"] == str(tmp_path / "r" / "pretrain"), "not from what the pretraining went on from"


def test_a_strangers_run_is_not_built_to_go_on_from_it(ssl_run: Call, tmp_path: Path) -> None:
    config = {"stage": "pretrain", "data": {"_target_": "os.system"}, "backbone": {"_target_": "os.system"}}
    save_backbone(torch.nn.Linear(1, 1), tmp_path / "b.safetensors", config)
    code, _, err = ssl_run("pretrain", "task=simclr", "from=b.safetensors")
    assert code == 2
    assert "data._target_: 'os.system' is not in ssl_runner" in err
    assert "backbone._target_" in err


def test_evaluate_repeats_the_figures_of_the_run(pretrained: Path, ssl_run: Call, tmp_path: Path) -> None:
    code, _, err = ssl_run("evaluate", f"from={pretrained}", "hydra.run.dir=ev")
    assert code == 0, err
    again = json.loads((tmp_path / "ev" / "metrics.json").read_text())
    before = json.loads((pretrained / "metrics.json").read_text())
    assert {k: v for k, v in again.items() if k.startswith("knn")} == {
        k: v for k, v in before.items() if k.startswith("knn")
    }


def test_run_hands_the_checkpoint_on_and_sums_up(ssl_run: Call, tmp_path: Path) -> None:
    args = [*TINY, "evaluators=[knn]", *(f"finetune.{a}" for a in TINY_FINETUNE if "precision" not in a)]
    code, out, err = ssl_run(
        "run", "task=simclr", *args, "finetune.optim=sgd", "finetune.optim.lr=0.02", "hydra.run.dir=r"
    )
    assert code == 0, err
    folder = tmp_path / "r"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {
        "finetune/accuracy",
        "knn/accuracy",
        "knn/accuracy/raw",
        "train/loss",
        "speed/samples_per_s",
    } <= set(metrics)
    config = yaml.safe_load((folder / "finetune" / "config.yaml").read_text())
    assert config["from"] == str(folder / "pretrain")
    assert config["optim"]["_target_"].endswith("SGD")
    assert config["optim"]["lr"] == 0.02
    assert json.loads((folder / "pretrain" / "metrics.json").read_text()).keys().isdisjoint({"knn/accuracy"})
    code, out, _ = ssl_run("resume", "r")
    assert (code, "finished already" in out) == (0, True)


def test_a_wrong_finetune_key_is_found_before_pretraining(ssl_run: Call, tmp_path: Path) -> None:
    for verb in ("run", "pretrain"):
        code, _, err = ssl_run(verb, "task=simclr", *TINY, "finetune.optim.lrr=1")
        assert code == 2
        assert "finetune.optim.lrr: AdamW takes no such argument; did you mean 'lr'?" in err
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_sweep_makes_a_run_per_combination(ssl_run: Call, tmp_path: Path) -> None:
    code, _, err = ssl_run(
        "pretrain",
        "-m",
        "+task=simclr",
        *TINY,
        "duration=2 steps",
        "evaluators=none",
        "seed=1,2",
        "optim.lr=0.1,0.3",
        "launcher=inline",
    )
    assert code == 0, err
    configs = [yaml.safe_load(p.read_text()) for p in (tmp_path / "outputs").rglob("config.yaml")]
    assert sorted((c["seed"], c["optim"]["lr"]) for c in configs) == [(1, 0.1), (1, 0.3), (2, 0.1), (2, 0.3)]


def test_a_failed_run_of_a_sweep_does_not_stop_the_others(ssl_run: Call, tmp_path: Path) -> None:
    code, _, err = ssl_run(
        "pretrain", "-m", "task=simclr", *TINY, "evaluators=none", "batch_size=999,16", "launcher=inline"
    )
    assert code == 2
    assert "batch_size=999: there are only" in err
    assert len(list((tmp_path / "outputs").rglob("metrics.json"))) == 1


def test_plan_trains_nothing_and_shows_the_views(ssl_run: Call, tmp_path: Path) -> None:
    code, out, err = ssl_run("plan", "task=simclr", *TINY, "batch_size=32", "hydra.run.dir=p")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "p").iterdir()} == {"config.yaml", "views.png"}
    image = Image.open(tmp_path / "p" / "views.png")
    assert image.size[0] == 3 * 68, "as it is, and two views"
    for words in (
        "global batch",
        "0.6 -> 0.075",
        "memory",
        "parameters",
        "checkpoints/{last,best}.ckpt",
    ):
        assert words in out


def test_an_explicit_folder_is_never_shared(pretrained: Path, ssl_run: Call) -> None:
    before = (pretrained / "config.yaml").read_bytes()
    code, _, err = ssl_run("pretrain", "task=simclr", *TINY, f"hydra.run.dir={pretrained}")
    assert code == 2
    assert "holds a run already" in err
    assert (pretrained / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["pretain"], "pretain: no such verb; did you mean 'pretrain'?"),
        (["pretrain", "task=simclrr"], "task=simclrr: no such choice; did you mean 'simclr'?"),
        (["pretrain", "data=cifar11"], "data=cifar11: no such choice; did you mean 'cifar10"),
        (["pretrain", "objektive=simclr"], "objektive: no such key; did you mean 'objective'?"),
        (["pretrain", "optim.lr="], "optim.lr: must be a number"),
        (["pretrain", "seed=[1"], "seed"),
        (["pretrain", "data=cifar10", "data.root=nowhere"], "data.download=true"),
        (["pretrain", "data=folder", "data.root=nowhere"], "nowhere"),
        (["finetune"], "finetune needs from=RUN"),
        (["finetune", "from=nowhere"], "from=nowhere: no such run folder"),
        (["finetune", "from=latest"], "no finished pretraining"),
        (["evaluate", "from=null"], "nothing to evaluate"),
        (["finetune", "from=a,b", "-m"], "one run at a time"),
        (["list", "objectives"], "did you mean 'objective'"),
        (["resume"], "resume takes one run folder"),
        (["resume", "nowhere"], "nowhere: no such run folder"),
        (["pretrain", "backbone=timm", "backbone.name=resnet81"], "resnet81"),
        (["pretrain", "--config-dir", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_gets_words_and_exit_code_2(args: list[str], words: str, ssl_run: Call, tmp_path: Path) -> None:
    code, _, err = ssl_run(*args)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("checkpoints"))
    assert not list(tmp_path.rglob("config.yaml")), "a refused run leaves no folder that looks like one"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so asking for one is right")
def test_a_gpu_that_is_not_there_is_said_with_what_is(ssl_run: Call) -> None:
    code, _, err = ssl_run("pretrain", "task=simclr", *TINY, "device=gpu")
    assert code == 2
    assert "device.accelerator=gpu: torch sees no CUDA GPU; there is: cpu (" in err


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(ssl_run: Call, tmp_path: Path) -> None:
    code, _, err = ssl_run(
        "pretrain",
        "task=simclr",
        *TINY,
        "optim=sgd",
        "optim.lr=1e30",
        "checkpoint_every=1 steps",
        "hydra.run.dir=r",
    )
    assert code == 1
    assert "non-finite loss in batch" in err
    assert "samples [" in err
    state = torch.load(tmp_path / "r" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(v.isfinite().all() for v in state.values())


def test_other_data_of_another_shape_is_refused(pretrained: Path, ssl_run: Call) -> None:
    code, _, err = ssl_run("finetune", f"from={pretrained}", "data=fake", *TINY_FINETUNE)
    assert code == 2
    assert "gives samples of shape (3, 32, 32), and the backbone is for (1, 8, 8)" in err


def test_list_tells_every_choice_in_a_line(ssl_run: Call) -> None:
    code, out, _ = ssl_run("list")
    assert code == 0
    for group in cli.GROUPS:
        for path in (Path(cli.__file__).parent.parent / "conf" / group).glob("[!_]*.yaml"):
            (line,) = [x for x in out.split(f"{group}:\n")[1].splitlines() if x.split()[:1] == [path.stem]][:1]
            assert len(line.split()) > 2, f"{path} has no description"


def test_a_persons_own_groups_are_found(ssl_run: Call, tmp_path: Path) -> None:
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "mine.yaml").write_text(
        "# @package _global_\n# my recipe\ndefaults:\n  - simclr\n  - _self_\n\nname: mine\nseed: 7\n"
    )
    _, out, _ = ssl_run("list", "task", "--config-dir", "own")
    assert "my recipe" in out
    code, out, err = ssl_run("pretrain", "--config-dir", "own", "task=mine", "--cfg", "job")
    assert code == 0, err
    assert yaml.safe_load(out)["seed"] == 7


def test_a_recipes_leftovers_are_pointed_out(ssl_run: Call) -> None:
    code, out, _ = ssl_run("pretrain", "task=simclr", *TINY, "duration=1 steps", "evaluators=none", "optim=adamw")
    assert code == 0
    assert "note: the recipe simclr sets optim: {'lr': 0.6}, which now applies to your choice of optim" in out
    assert "sets schedule" not in out


def test_what_another_choice_has_no_place_for_is_left_out_and_said(ssl_run: Call, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "mine").mkdir()
    for n in range(20):
        rows = torch.randn(30, 2, generator=generator).tolist()
        (tmp_path / "mine" / f"{n}.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in rows))
    args = ["data=series", "data.root=mine", "duration=1 steps", "batch_size=4", "evaluators=none", "device=cpu"]
    code, out, err = ssl_run("pretrain", "task=ts2vec", *args, "hydra.run.dir=r")
    assert code == 0, err
    assert "note: the recipe ts2vec sets data.name, for which your choice of data has no place: it is left out" in out
    assert "name" not in yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["data"]
    # a recipe that takes a whole group away
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "mine.yaml").write_text(
        "# @package _global_\n# mine\ndefaults:\n  - ts2vec\n  - _self_\n\nname: mine\nlogger: null\n"
    )
    _, _, err = ssl_run("plan", "--config-dir", "own", "task=mine", *args, "logger=none")
    assert "Traceback" not in err
    # what a person typed is never left out
    code, _, err = ssl_run("pretrain", "task=ts2vec", *args, "data.name=JapaneseVowels")
    assert code == 2
    assert "data.name: Series takes no such argument" in err
    # arguments of an objective, parts of evaluators, steps of views
    code, out, err = ssl_run("plan", "task=simclr_watch", *args, "objective=byol", "views=two_series")
    assert code == 0, err
    assert "sets objective.temperature, for which your choice of objective has no place" in out
    assert "sets views: {'branches': " in out
    code, out, err = ssl_run("plan", "task=clip_emoji", "data=pairs", "data.root=none.csv", "evaluators=none")
    assert code == 2
    assert "2 faults" in err, "the columns that are to be named, and nothing of the recipe's zero-shot classes"


@pytest.mark.parametrize(
    ("stated", "node", "kept", "gone"),
    [
        ({"zero_shot": {"names": {"a": ["b"]}}}, {"zero_shot": {"names": {"a": ["b"]}}}, {}, ["evaluators.zero_shot"]),
        (
            {"knn": {"k": 3}},
            {"knn": {"_target_": "ssl_runner.evaluators.knn.KNN", "k": 3}},
            {"knn": {"_target_": "ssl_runner.evaluators.knn.KNN", "k": 3}},
            [],
        ),
        (
            {"knn": {"k": 3, "depth": 2}},
            {"knn": {"_target_": "ssl_runner.evaluators.knn.KNN", "k": 3, "depth": 2}},
            {"knn": {"_target_": "ssl_runner.evaluators.knn.KNN", "k": 3}},
            ["evaluators.knn.depth"],
        ),
    ],
)
def test_leftovers_within_nodes(stated: dict, node: dict, kept: dict, gone: list[str]) -> None:
    assert without(stated, node, "evaluators", [])[::2] == (kept, gone)


def test_a_user_folder_of_images_pretrains_and_evaluates(ssl_run: Call, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("schön", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(12):
            size = (20 + n, 31 - n)
            pixels = torch.randint(0, 256, (size[0] * size[1] * 3,), generator=generator).tolist()
            Image.frombytes("RGB", size, bytes(pixels)).save(tmp_path / "photos" / name / f"{n}.png")
    (tmp_path / "photos" / "dog" / "broken.png").write_bytes(b"\x89PNG")
    args = [a for a in TINY if not a.startswith(("data", "views", "batch_size"))]
    code, _, err = ssl_run(
        "pretrain", "task=simclr", *args, "data=folder", "data.root=photos", "data.size=16", "views=simclr",
        "batch_size=8", "evaluators=[knn]", "workers=1", "hydra.run.dir=r",
    )  # fmt: skip
    assert code == 0, err
    assert "broken.png" in err
    assert "knn/accuracy" in json.loads((tmp_path / "r" / "metrics.json").read_text())
    code, _, err = ssl_run(
        "pretrain", "task=simclr", *args, "data=folder", "data.root=photos", "data.size=16", "views=simclr",
        "batch_size=8", "evaluators=none", "workers=1", "data.on_broken=stop",
    )  # fmt: skip
    assert code == 1
    assert "ssl-run: 'photos/dog/broken.png' can't be read" in err
    assert "Traceback" not in err


def test_completion_offers_verbs_groups_and_choices() -> None:
    def complete(line: str) -> list[str]:
        env = environment(COMP_LINE=line, COMP_POINT=str(len(line)))
        command = [sys.executable, "-m", "ssl_runner.cli", "-sc", "query=bash"]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()

    assert complete("ssl-run pre") == ["pretrain"]
    assert "objective=simclr" in complete("ssl-run pretrain objective=s")
    assert any(c.startswith("optim.") for c in complete("ssl-run pretrain optim."))


def test_help_and_lists_import_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; from ssl_runner import cli; cli.answer(['ssl-run', *sys.argv[1:]]); print(*sys.modules)"
    for args in (["--help"], ["list"], ["pretrain", "--help"]):
        command = [sys.executable, "-c", code, *args]
        out = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
        assert not {"torch", "hydra", "omegaconf", "pydantic", "yaml", "rich"} & set(out.splitlines()[-1].split())


def test_verify_runs_all_three_stages_for_a_promise_about_the_finetuning(ssl_run: Call, tmp_path: Path) -> None:
    tuned = [f"finetune.{each}" for each in TINY_FINETUNE if not each.startswith("precision")]
    promise = ["contract.metric=finetune/accuracy", "contract.band=[0.0,1.0]"]
    code, out, err = ssl_run("verify", "task=simclr", *TINY, *tuned, "evaluators=none", *promise, "hydra.run.dir=v")
    assert code == 0, err
    assert re.search(r"inside its band: simclr: finetune/accuracy = [01]\.\d+, promised 0\.0 to 1\.0", out)
    assert (tmp_path / "v" / "finetune" / runs.BACKBONE).is_file()


def test_a_config_error_imports_neither_lightning_nor_timm(tmp_path: Path) -> None:
    code = "import sys; from ssl_runner import cli; c = cli.answer(sys.argv); print(c, *sys.modules)"
    command = [sys.executable, "-c", code, "pretrain", "task=simclr", "objective.temprature=1"]
    found = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path, check=True)
    code_and_modules = found.stdout.split()
    assert code_and_modules[0] == "2"
    heavy = {
        "pytorch_lightning",
        "lightning_fabric",
        "timm",
        "transformers",
        "torchvision",
        "torchmetrics",
        "sklearn",
    }
    assert not heavy & set(code_and_modules)
    assert "Error executing" not in found.stderr


SLOW_DISK = """
import time
from ssl_runner import cli, stages
save = stages.save_backbone
stages.save_backbone = lambda *args: (time.sleep(1), save(*args))
cli.main()
"""


def test_two_ranks_train_validate_and_evaluate_on_a_slow_disk(tmp_path: Path) -> None:
    """The second rank has nothing to write: it must not start finetuning before the first has written the weights."""
    (tmp_path / "main.py").write_text(SLOW_DISK)
    found = subprocess.run(
        [
            sys.executable, "main.py", "run", "task=simclr", *TINY, "device=ddp", "device.accelerator=cpu",
            "device.devices=2", "finetune.duration=2 steps", "finetune.batch_size=16", "evaluators=[knn]",
            "hydra.run.dir=r",
        ],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert {"finetune/accuracy", "knn/accuracy"} <= set(metrics)
    assert "on 2 x cpu" in found.stdout


def test_verify_holds_a_recipe_to_its_contract(ssl_run: Call) -> None:
    args = ["verify", "task=simclr", *TINY, "evaluators=[knn]", "contract.metric=knn/accuracy"]
    code, out, err = ssl_run(*args, "contract.band=[0,1]")
    assert code == 0, err
    assert "inside its band: simclr: knn/accuracy = " in out
    code, _, err = ssl_run(*args, "contract.band=[1.5,2]")
    assert code == 1
    assert "outside its band: simclr: knn/accuracy = " in err
    code, _, err = ssl_run("verify", *TINY, "name=x")
    assert code == 2
    assert "contract: the recipe x promises nothing that could be verified" in err
    code, _, err = ssl_run("verify", "task=simclr", *TINY, "contract.bond=[0,1]", "contract.band=[1]")
    assert code == 2
    assert "contract.bond: Contract takes no such argument; did you mean 'band'?" in err
    assert "contract.band: " in err


def test_a_base_recipes_leftovers_count_as_the_recipes(tmp_path: Path) -> None:
    (tmp_path / "_base.yaml").write_text("defaults:\n  - override /optim: lars\noptim: {lr: 1}\nviews: {a: 1}\n")
    (tmp_path / "mine.yaml").write_text("defaults:\n  - _base\n  - override /views: grey\n  - _self_\noptim: {lr: 2}\n")
    stated = cli._stated(tmp_path, "mine")
    assert stated["optim"] == {"lr": 2}
    assert stated["views"] == {"a": 1}
