"""The examples of CONTRIBUTING.md are run as they are printed: a page that misleads fails here."""

from __future__ import annotations

import importlib
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ssl_runner.datasets.splits import stratified
from tests.conftest import TINY, TINY_FINETUNE

Call = Callable[..., tuple[int, str, str]]

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {
    section.splitlines()[0]: dict(
        re.findall(r"^`(my_\w+/[\w/.]+)`\n\n```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    )
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)
    if "\n`my_" in section
}
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("ssl-run")
]
SIZES = [size for size in TINY if not size.startswith("data")]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files and data for them: a class is a place that is bright."""
    for files in EXAMPLES.values():
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    rng = np.random.RandomState(0)
    label = np.arange(120) % 4
    x = rng.randint(0, 40, size=(120, 1, 8, 8))
    x[np.arange(120), 0, 2 * label] += 200
    np.savez(tmp_path / "mine.npz", x=x.astype(np.uint8), label=label)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def command(verb: str) -> list[str]:
    (found,) = [c for c in COMMANDS if c[0] == verb]
    return found


def test_there_are_three_examples_and_each_is_short() -> None:
    assert [list(files) for files in EXAMPLES.values()] == [
        ["my_lab/objectives.py", "my_conf/objective/align_uniform.yaml"],
        ["my_lab/datasets.py", "my_conf/data/npz.yaml"],
        ["my_lab/evaluators.py", "my_conf/evaluators/nearest_mean.yaml"],
    ]
    for title, files in EXAMPLES.items():
        assert sum(len(text.splitlines()) for text in files.values()) < 40, title


def test_the_printed_commands_work_with_the_printed_files(lab: Path, ssl_run: Call) -> None:
    code, out, _ = ssl_run(*command("list"))
    assert code == 0
    assert re.search(r"align_uniform +alignment and uniformity", out)

    code, _, err = ssl_run(*command("pretrain"), *SIZES)
    assert code == 0, err
    (folder,) = (lab / "outputs" / "pretrain").glob("*/*")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["objective"]["_target_"] == "my_lab.objectives.AlignUniform"
    assert config["data"] == {"_target_": "my_lab.datasets.Npz", "path": "mine.npz"}
    assert config["evaluators"]["nearest_mean"] == {"_target_": "my_lab.evaluators.NearestMean"}
    assert config["backbone"]["stem"]["shape"] == [1, 8, 8], "a fact of the new data"
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "train/align" in header
    assert "train/uniform" in header
    metrics = json.loads((folder / "metrics.json").read_text())
    for figure in ("accuracy", "f1"):
        for embed in ("", "/untrained", "/raw"):
            assert 0 <= metrics[f"nearest_mean/{figure}{embed}"] <= 1
    assert metrics["nearest_mean/accuracy/raw"] == 1, "bright places tell these classes apart"

    trusting = command("finetune")
    assert any(arg.startswith("trust=") for arg in trusting)
    code, _, err = ssl_run(*[a for a in trusting if not a.startswith("trust=")], *TINY_FINETUNE)
    assert code == 2
    assert "my_lab.datasets.Npz" in err
    assert "trust=[" in err
    assert not (lab / "outputs" / "finetune").exists()
    code, _, err = ssl_run(*trusting, *TINY_FINETUNE)
    assert code == 0, err
    assert len(list((lab / "outputs" / "finetune").rglob("metrics.json"))) == 1


def test_a_misspelled_argument_of_an_own_class_gets_the_printed_words(lab: Path, ssl_run: Call) -> None:
    code, _, err = ssl_run(*command("pretrain"), *SIZES, "objective.uniformty=2")
    assert code == 2
    told = "objective.uniformty: AlignUniform takes no such argument; did you mean 'uniformity'?"
    assert told in err
    assert told in PAGE.replace("\n", " ")


def test_missing_data_is_a_wrong_request(lab: Path, ssl_run: Call) -> None:
    code, _, err = ssl_run(*command("pretrain"), *SIZES, "data.path=nowhere.npz")
    assert code == 2
    assert "data.path=nowhere.npz: no such file" in err


def test_the_example_loss_is_the_papers(lab: Path) -> None:
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    pairs = [
        math.exp(-2 * sum((float(p) - float(q)) ** 2 for p, q in zip(z[i], z[j], strict=True)))
        for i in range(5)
        for j in range(i)
    ]
    found = importlib.import_module("my_lab.objectives").log_potential(z)
    assert found.item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)


def test_the_example_data_states_its_training_parts_facts(lab: Path) -> None:
    source = importlib.import_module("my_lab.datasets").Npz(path=str(lab / "mine.npz"))
    file = np.load(lab / "mine.npz")
    train, _, test = stratified(torch.from_numpy(file["label"]), (0.6, 0.2, 0.2))
    assert [len(source.split(n)) for n in ("pretrain", "train", "val", "test")] == [72, 72, 24, 24]
    assert torch.equal(source.split("test").x, torch.from_numpy(file["x"])[test])
    pixels = file["x"][train.numpy()] / 255
    assert source.facts["mean"] == pytest.approx((pixels.mean(),), rel=1e-5)
    assert source.facts["std"] == pytest.approx((pixels.std(),), rel=1e-3)
    assert (source.facts["shape"], source.facts["size"], source.facts["num_classes"]) == ((1, 8, 8), 8, 4)
