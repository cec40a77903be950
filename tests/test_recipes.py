"""Every recipe composes, is right in itself and keeps the form; published ones say what their papers say."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from ssl_runner import build
from ssl_runner.compose import following
from ssl_runner.config import check, plain
from ssl_runner.objectives.supervised import Supervised
from ssl_runner.optim.recipe import Optim
from ssl_runner.types import Objective

TASKS = Path(__file__).parent.parent / "conf" / "task"
RECIPES = sorted(path.stem for path in TASKS.glob("[!_]*.yaml"))
IMAGES = ("_cifar10", "_imagenet")
TEXT = ("_wikipedia", "_openwebtext")
SPEECH = ("_librispeech",)
PUBLISHED = [name for name in RECIPES if name.endswith(IMAGES + TEXT + SPEECH)]

NO_FIGURE = {
    "autoencoder_cifar10",
    "colourisation_cifar10",
    "data2vec_cifar10",
    "data2vec_imagenet",
    "denoising_cifar10",
    "ijepa_cifar10",
    "inpainting_cifar10",
    "jigsaw_cifar10",
    "mae_cifar10",
    "next_patch_cifar10",
    "relative_position_cifar10",
    "rotation_cifar10",
    "simmim_cifar10",
    "simmim_imagenet",
    "super_resolution_cifar10",
    "triplet_cifar10",
    "vae_cifar10",
    "vq_vae_cifar10",
    "bert_wikipedia",
    "electra_wikipedia",
    "roberta_wikipedia",
    "simcse_wikipedia",
    "wav2vec2_librispeech",
}
"""Nobody published a score of these that an evaluator here measures, and this project has not run them."""


def text(name: str) -> str:
    return (TASKS / f"{name}.yaml").read_text(encoding="utf-8")


def header(name: str) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("#"), text(name).splitlines()[1:])
    return " ".join(line.lstrip("# ") for line in lines)


@functools.cache
def composed(name: str) -> dict[str, Any]:
    """What `ssl-run run +task=name` composes. Its pretraining differs in `stage` alone."""
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        return plain(compose("run", [f"+task={name}"]))


# -- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_composes_and_has_no_fault(name: str) -> None:
    config = composed(name)
    check(config)
    check({**config, "stage": "pretrain"})
    assert config["name"] == name  # it names the run folder


def test_what_recipes_set_for_their_finetuning_has_no_fault() -> None:
    different = {json.dumps(composed(name)["finetune"], sort_keys=True): name for name in RECIPES}
    for name in different.values():
        with initialize_config_module("ssl_runner.conf", version_base="1.3"):
            check(following("finetune", composed(name), "/nowhere"), prefix=f"{name}: finetune.")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_where_it_comes_from(name: str) -> None:
    lines = text(name).splitlines()
    assert lines[0] == "# @package _global_"
    assert 10 <= len(lines) <= 25, "a recipe is deltas; what several share belongs in a base recipe (_*.yaml)"
    assert re.search(r"\b(19|20)\d\d\b", header(name)), "the header cites the paper, with its year"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_promises_a_score_that_it_measures(name: str) -> None:
    contract = composed(name)["contract"]
    if name in NO_FIGURE:
        assert contract is None, "it promises something now: take it off the list"
        return
    assert contract is not None, "without a contract `ssl-run verify` has nothing to hold it to"
    low, high = contract["band"]
    assert 0 < low < high
    if not contract["metric"].startswith(("likelihood/", "bits/", "enhancement/")):  # those are no shares
        assert high <= 1
    assert contract["metric"].split("/")[0] in (*composed(name)["evaluators"], "finetune")


def test_the_list_of_recipes_without_promises_names_published_ones() -> None:
    assert set(PUBLISHED) >= NO_FIGURE


# -- the published ones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_says_that_it_was_not_run_here(name: str) -> None:
    assert "Expected:" in header(name)
    assert "Budget:" in header(name)
    assert "not run here" in header(name)
    contract = composed(name)["contract"]
    if contract is None:
        return
    assert re.search(r"published (by|at) .*not run here$", contract["source"])
    if name.endswith(TEXT):
        return
    kind = "kNN" if contract["metric"] == "knn/accuracy" else "(linear )?top-1"
    stated = float(re.search(rf"([\d.]+)% {kind}", header(name))[1]) / 100
    band = pytest.approx([stated - 0.01, stated + 0.01], abs=6e-4)  # a point around what is stated, rounded
    assert contract["band"] == band


def test_published_recipes_do_not_repeat_each_other() -> None:
    def said(name: str) -> set[str]:
        return {
            line for line in text(name).splitlines() if ":" in line and not line.startswith(("#", "  - ", "defaults"))
        }

    for one, other in itertools.combinations(PUBLISHED, 2):
        assert len(said(one) & said(other)) <= 4, f"{one} and {other}: move what they share to a base recipe"


PEAKS = {
    "simclr_imagenet": 4.8,
    "byol_imagenet": 3.2,
    "moco_v2_imagenet": 0.03,
    "moco_v3_imagenet": 9.6,
    "moco_v3_vit_imagenet": 2.4e-3,
    "simsiam_imagenet": 0.1,
    "barlow_twins_imagenet": 1.6,
    "vicreg_imagenet": 1.6,
    "swav_imagenet": 4.8,
    "deepcluster_v2_imagenet": 4.8,
    "dino_imagenet": 2e-3,
    "ibot_imagenet": 2e-3,
    "mae_imagenet": 2.4e-3,
    "ijepa_imagenet": 1e-3,
    "simmim_imagenet": 8e-4,
    "data2vec_imagenet": 2e-3,
    "nnclr_imagenet": 4.8,
    "inst_disc_imagenet": 0.03,
    "dcl_cifar10": 0.06,
    "rotation_cifar10": 0.1,
    "byol_cifar10": 1.0,
}
"""The learning rate after warm-up that the authors' own scaling comes to, at the authors' batch."""


@pytest.mark.parametrize(("name", "peak"), PEAKS.items())
def test_the_learning_rate_reaches_the_papers(name: str, peak: float) -> None:
    optim: Optim = build.make(composed(name)["optim"])
    assert optim.scaled_lr(composed(name)["batch_size"]) == pytest.approx(peak)


def test_every_imagenet_recipe_has_its_peak() -> None:
    assert {name for name in RECIPES if name.endswith("_imagenet")} <= set(PEAKS)


# -- what their optimisers do, on models that have shapes and no memory ----------------------------------------------


FACTS = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "num_classes": 1000, "samples": 45000}


def parts(name: str) -> tuple[Objective, Optim, int]:
    """(objective, optimiser, global batch)."""
    config = composed(name)
    side = 224 if name.endswith("_imagenet") else 32
    filled = build.fill(config, {**FACTS, "shape": (3, side, side), "size": side})
    with torch.device("meta"):
        objective = build.make(filled["objective"], build.make(filled["backbone"]))
    return objective, build.make(filled["optim"]), config["batch_size"]


def of(objective: Objective, group: dict[str, Any]) -> set[str]:
    names = {parameter: name for name, parameter in objective.named_parameters()}
    return {names[parameter] for parameter in group["params"]}


@pytest.mark.parametrize("name", ["simsiam_imagenet", "simsiam_cifar10"])
def test_simsiams_predictor_has_a_constant_rate(name: str) -> None:
    objective, optim, batch = parts(name)
    constant = [group for group in optim.groups(objective, batch) if not group["scheduled"]]
    assert set().union(*(of(objective, group) for group in constant)) == {
        name for name, _ in objective.named_parameters() if name.startswith("predictor.")
    }
    assert {group["lr"] for group in constant} == {optim.scaled_lr(batch)}


@pytest.mark.parametrize(("name", "rate"), [("barlow_twins_imagenet", 0.0048 * 8), ("barlow_twins_cifar10", 0.03)])
def test_barlow_twins_biases_and_norms_are_slower(name: str, rate: float) -> None:
    objective, optim, batch = parts(name)
    slow = [group for group in optim.groups(objective, batch) if group["lr"] == pytest.approx(rate)]
    assert set().union(*(of(objective, group) for group in slow)) == {
        name for name, parameter in objective.named_parameters() if parameter.ndim == 1 and parameter.requires_grad
    }
    assert {group["weight_decay"] for group in slow} == {0.0}


def test_moco_v3s_patch_embedding_stays_random() -> None:
    objective, optim, batch = parts("moco_v3_vit_imagenet")
    trained = set().union(*(of(objective, group) for group in optim.groups(objective, batch)))
    backbone = {name for name, _ in objective.named_parameters() if name.startswith("backbone.")}
    assert {name.rpartition("patch_embed.")[2] for name in backbone - trained} == {"proj.weight", "proj.bias"}


def test_maes_finetuning_slows_down_towards_the_input() -> None:
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        config = following("finetune", composed("mae_imagenet"), "/nowhere")
    filled = build.fill(config, {**FACTS, "shape": (3, 224, 224), "size": 224})
    with torch.device("meta"):
        objective = Supervised(build.make(filled["backbone"]), num_classes=1000)
    peak = 5e-4 * 1024 / 256
    groups = build.make(filled["optim"]).groups(objective, config["batch_size"])
    rate = {name: group["lr"] for group in groups for name in of(objective, group)}
    assert rate["head.weight"] == pytest.approx(peak)
    assert rate["backbone.model.blocks.11.mlp.fc1.weight"] == pytest.approx(peak * 0.65)
    assert rate["backbone.model.blocks.0.mlp.fc1.weight"] == pytest.approx(peak * 0.65**12)
    assert rate["backbone.model.patch_embed.proj.weight"] == pytest.approx(peak * 0.65**13)


@pytest.mark.parametrize(
    ("name", "seen"), [("swav_imagenet", (2, 6)), ("dino_imagenet", (2, 8)), ("ibot_imagenet", (2, 10))]
)
def test_multi_crops_are_as_many_and_as_large_as_in_the_paper(name: str, seen: tuple[int, int]) -> None:
    filled = build.fill(composed(name), {**FACTS, "shape": (3, 224, 224), "size": 224})
    crops = build.make(filled["views"]).crops([{"x": torch.zeros(3, 250, 250)}])
    assert [crop["x"].shape[-1] for crop in crops] == [224] * seen[0] + [96] * seen[1]


# -- the embedded one, run ---------------------------------------------------------------------------------------


def test_simclr_on_digits_beats_its_baselines(ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """It reaches what the README says of it, on real images."""
    code, _, err = ssl_run("run", "+task=simclr", "hydra.run.dir=r")
    assert code == 0, err
    scores = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert scores["knn/accuracy"] >= 0.95
    assert scores["linear/accuracy"] >= 0.95
    assert scores["finetune/accuracy"] >= 0.95
    few = scores["linear_10_per_class/accuracy"]
    assert few > scores["linear_10_per_class/accuracy/raw"] + 0.03
    assert few > scores["linear_10_per_class/accuracy/untrained"] + 0.1
