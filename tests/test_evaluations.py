"""Evaluators that score what was pretrained, heads and all: in its own run, and from its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]

SENTENCES = ("the cat sat on the mat", "a dog ran in the park", "the sun shone all day", "we saw a bird fly by")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for n in range(40):
        lines = [SENTENCES[(n + k) % 4] for k in range(6)]
        (folder / f"{n}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def language_model(corpus: Path, tmp_path: Path) -> list[str]:
    return [
        "data=text", f"data.root={corpus}", "data.tokenizer=bytes", "data.length=32", f"data.cache={tmp_path / 'c'}",
        "views=ids", "backbone=encoder_ids", "backbone.depth=1", "backbone.heads=2", "backbone.stem.dim=16",
        "backbone.causal=true", "batch_size=16", "duration=4 steps", "workers=0", "device=cpu", "precision=32",
    ]  # fmt: skip


def test_a_pretext_is_scored_alike_in_its_run_and_from_its_folder(ssl_run: Call, corpus: Path, tmp_path: Path) -> None:
    args = [*language_model(corpus, tmp_path), "objective=clm", "evaluators=likelihood"]
    code, _, err = ssl_run("pretrain", *args, "hydra.run.dir=r")
    assert code == 0, err
    first = json.loads((tmp_path / "r" / "metrics.json").read_text())
    scores = {key: value for key, value in first.items() if key.startswith("likelihood/")}
    assert scores["likelihood/bits_per_byte"] != scores["likelihood/bits_per_byte/untrained"]
    code, _, err = ssl_run("evaluate", "from=r", "hydra.run.dir=e")
    assert code == 0, err
    second = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {key: second[key] for key in scores} == pytest.approx(scores)


def test_heads_that_are_not_there_are_asked_for(ssl_run: Call, corpus: Path, tmp_path: Path) -> None:
    args = [*language_model(corpus, tmp_path), "objective=clm", "evaluators=likelihood"]
    assert ssl_run("pretrain", *args, "evaluators=none", "hydra.run.dir=r")[0] == 0
    shutil.copy(tmp_path / "r" / "backbone.safetensors", tmp_path / "alone.safetensors")
    code, _, err = ssl_run("evaluate", "from=alone.safetensors", "evaluators=likelihood")
    assert code == 2
    assert "evaluators.likelihood: asks for what was pretrained, heads and all" in err
    assert "give from=RUN_FOLDER" in err


def test_an_objective_that_is_not_of_the_kind_is_refused_before_anything_runs(
    ssl_run: Call, corpus: Path, tmp_path: Path
) -> None:
    args = [*language_model(corpus, tmp_path), "objective=mlm", "evaluators=likelihood"]
    code, _, err = ssl_run("pretrain", *args)
    assert code == 2
    assert "evaluators.likelihood: Surprise scores a Likelihood, and MLM is none" in err
    code, _, err = ssl_run("pretrain", "task=simclr", "evaluators=tagging")
    assert code == 2
    assert "evaluators.tagging: Tagging scores a TokenBackbone, and " in err


def test_an_empty_part_is_noticed_before_training(ssl_run: Call, tmp_path: Path) -> None:
    for n in range(12):
        (tmp_path / "texts" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / "ab"[n % 2] / f"{n}.txt").write_text(SENTENCES[n % 4] * 4)
    args = [*language_model(tmp_path / "texts", tmp_path), "objective=simclr", "views=dropout_ids", "duration=1 steps"]
    for part, evaluator in (("test", "knn"), ("val", "linear")):
        code, out, err = ssl_run("pretrain", *args, f"data.{part}=0", f"evaluators={evaluator}")
        assert code == 2, out
        assert f"evaluators.{evaluator}: the {part} part is empty: give the data one, e.g. data.{part}=0.1" in err
        assert "steps of" not in out
    code, out, err = ssl_run("pretrain", *args, "data.test=0", "evaluators=none", "hydra.run.dir=r")
    assert code == 0, err
    code, out, err = ssl_run("finetune", "from=r", "duration=1 steps")
    assert code == 2, out
    assert "the test part is empty" in err
    assert "steps of" not in out


def test_a_step_of_a_view_that_torch_could_not_hold_is_refused(ssl_run: Call) -> None:
    code, _, err = ssl_run(
        "plan", "+task=simclr", "+views.branches.both.transforms.half={_target_: ssl_runner.views.HorizontalFlip}"
    )
    assert code == 2
    assert "no step can be named 'half'" in err
