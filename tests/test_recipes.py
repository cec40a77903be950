"""The embedded recipe reaches what the README says of it, on real images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch


def test_simclr_on_digits_beats_its_baselines(ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    torch.set_num_threads(2)
    code, _, err = ssl_run("run", "+task=simclr", "hydra.run.dir=r")
    assert code == 0, err
    scores = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert scores["knn/accuracy"] >= 0.95
    assert scores["linear/accuracy"] >= 0.95
    assert scores["finetune/accuracy"] >= 0.95
    few = scores["linear_10_per_class/accuracy"]
    assert few > scores["linear_10_per_class/accuracy/raw"] + 0.03
    assert few > scores["linear_10_per_class/accuracy/untrained"] + 0.1
