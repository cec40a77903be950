"""Signs of failure: measured as the papers say, told of runs that fail and of no other, and without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner import stages
from ssl_runner.checkpoint import load_checkpoint
from ssl_runner.objectives.byol import BYOL
from ssl_runner.objectives.ijepa import IJEPA
from ssl_runner.objectives.simsiam import SimSiam
from ssl_runner.types import Backbone, Batch, Loss
from ssl_runner.watch import (
    Spread,
    Watch,
    collapsed,
    dead,
    effective_rank,
    exploded,
    gap,
    mark,
    no_teacher,
    portions,
    relative_std,
    spread_of,
    teachers,
)
from tests.conftest import TINY

Call = Callable[..., tuple[int, str, str]]
RUN = [*TINY, "evaluators=none", "duration=60 steps", "validate_every=6 steps", "checkpoint_every=60 steps"]


# -- what is measured ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (9, 9)])
def test_the_effective_rank_is_the_exponential_of_an_entropy(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    z = torch.randn(shape) @ torch.diag(torch.linspace(0.1, 3, shape[1])) + 7
    singular = torch.linalg.svdvals((z - z.mean(0)).double()).tolist()
    shares = [s / sum(singular) for s in singular]
    entropy = -sum(p * math.log(p) for p in shares if p > 1e-12)
    assert effective_rank(z) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_features_that_are_not_finite_are_no_reason_to_stop() -> None:
    spread = spread_of(torch.tensor([[1.0, float("nan")], [2.0, 3.0]]))
    assert math.isnan(spread.rank)
    assert list(collapsed("feature", spread, Spread(9.0, 0.5, 2), pulled=False)) == []


def test_the_effective_rank_counts_dimensions() -> None:
    corners = torch.cat([torch.eye(5), -torch.eye(5)])
    assert effective_rank(corners) == pytest.approx(5)
    assert effective_rank(corners * 1e-4 + 100.0) == pytest.approx(5, rel=1e-2)  # neither scale nor place matters
    assert effective_rank(torch.randn(20, 1) @ torch.randn(1, 8) + 3) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(20, 8)) == 0


def test_the_spread_of_unit_rows() -> None:
    torch.manual_seed(0)
    z = 2 * torch.randn(30, 4) + 1
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in z.tolist()]
    stds = []
    for column in zip(*unit, strict=True):
        mean = sum(column) / 30
        stds.append(math.sqrt(sum((x - mean) ** 2 for x in column) / 29))
    assert relative_std(z) == pytest.approx(sum(stds) / 4 * math.sqrt(4), rel=1e-5)
    assert relative_std(torch.randn(4000, 64)) == pytest.approx(1, abs=0.02)
    assert relative_std(torch.ones(5, 64) * torch.rand(5, 1)) == pytest.approx(0, abs=1e-6)


def test_portions_hold_every_sample_once() -> None:
    x, pad = torch.arange(14.0).view(7, 2), torch.zeros(7, 3, dtype=torch.bool)
    samples = {"inputs": [{"x": x, "pad": pad}], "index": torch.arange(7), "label": torch.arange(7), "cropped": True}
    parts = list(portions(samples, 3))  # type: ignore[arg-type]
    assert [len(part["index"]) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part["inputs"][0]["x"] for part in parts]), x)
    assert torch.equal(torch.cat([part["label"] for part in parts]), torch.arange(7))
    assert all(part["cropped"] and part["inputs"][0]["pad"].shape[1] == 3 for part in parts)


class Small(Backbone):
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.layer(x)


def moved_byol(momentum: float) -> tuple[BYOL, dict[str, float]]:
    """After a step; projector and predictor have the same shapes."""
    torch.manual_seed(0)
    objective = BYOL(Small(), hidden=8, dim=4, momentum=momentum)
    first = {name: mark(teacher) for name, teacher in teachers(objective)}
    with torch.no_grad():
        for p in objective.parameters():
            if p.requires_grad:
                p.add_(0.1)
    objective.after_step(0.0)
    return objective, first


@pytest.mark.parametrize(("momentum", "words"), [(0.9, None), (0.0, "equals what it should"), (1.0, "has not moved")])
def test_a_teacher_that_is_none_is_told(momentum: float, words: str | None) -> None:
    objective, first = moved_byol(momentum)
    assert set(first) == {"target_backbone", "target_projector"}
    for name, teacher in teachers(objective):
        online = {"target_backbone": objective.backbone, "target_projector": objective.projector}[name]
        difference = sum(
            float((a - b).detach().square().sum())
            for a, b in zip(teacher.copy.parameters(), online.parameters(), strict=True)
        )
        wanted = math.sqrt(difference / sum(float(p.detach().square().sum()) for p in online.parameters()))
        apart = gap(teacher, objective)
        assert apart == pytest.approx(wanted, rel=1e-4)
        signs = list(no_teacher(name, apart, moved=mark(teacher) != first[name]))
        assert len(signs) == (words is not None)
        assert all(words in told and name in told for _, told in signs)


def test_before_the_first_step_a_teacher_is_as_it_should_be() -> None:
    objective = BYOL(Small(), hidden=8, dim=4)
    for name, teacher in teachers(objective):
        assert gap(teacher, objective) == 0
        assert not list(no_teacher(name, 0.0, moved=False))


def test_the_gap_is_found_by_structure_where_the_teacher_wraps_the_backbone() -> None:
    from tests.test_contract import build

    objective = build("ijepa", "encoder")
    assert isinstance(objective, IJEPA)
    ((_, teacher),) = teachers(objective)
    assert gap(teacher, objective) == 0
    with torch.no_grad():
        next(objective.backbone.parameters()).add_(1.0)
    assert gap(teacher, objective) > 0  # type: ignore[operator]


# -- what is told ----------------------------------------------------------------------------------------------


def test_dead_codes_are_told_and_sound_shares_are_not() -> None:
    most: dict[str, float] = {}
    for share in (0.9, 0.5, 0.6, 0.2):
        assert not list(dead({"train/loss": 0.0, "train/codes_used": share}, most))
    ((sign, words),) = dead({"train/codes_used": 0.125}, most)
    assert sign == "train/codes_used"
    assert words.startswith("most codes are dead: 12.50% of them are in use, at most 90.00% so far; try")
    assert len(list(dead({"train/prototypes_used": 1 / 512}, {}))) == 1  # one of many, from the start
    assert not list(dead({"train/prototypes_used": 0.02}, {}))  # a batch much smaller than the prototypes


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([2.0, 1.0, 0.01, 0.5], False),  # a multiple of the smallest, and less than the first
        ([0.04, 5.0, 11.0, 9.0], False),  # a queue fills
        ([2.0, 3.0, 15.0, 31.0], True),
        ([2.0, 3000.0], True),
        ([-0.01, -0.9, -0.2, -0.1], False),
        ([-1.0, -2.0, -3.0, 500.0], True),
        ([0.0, 0.0, 0.0, 0.0], False),
        ([1.0, 1.0, 1.0, math.nan], False),  # the learner's own business
    ],
)
def test_an_exploding_loss_is_told(losses: list[float], told: bool) -> None:
    """The first two are of the first tenth."""
    found = []
    for n, loss in enumerate(losses):
        before = [losses[0], max(abs(each) for each in losses[: min(n, 2)])] if n else []
        found += list(exploded(loss, before, early=n < 2))
    assert bool(found) == told


def test_collapse_is_judged_by_what_it_was() -> None:
    untrained = Spread(40.0, 0.06, 128)
    assert not list(collapsed("feature", Spread(20.0, 0.05, 128), untrained, pulled=False))
    ((sign, words),) = collapsed("feature", Spread(1.3, 0.4, 128), untrained, pulled=False)
    assert sign == "feature rank"
    assert "1.3 of 128 dimensions in use (rank), was 40 untrained; try a smaller optim.lr" in words
    assert not list(collapsed("feature", Spread(1.3, 0.4, 128), untrained, pulled=True))
    assert not list(collapsed("feature", Spread(1.3, 0.4, 128), Spread(2.0, 0.1, 128), pulled=False))
    assert [s for s, _ in collapsed("feature", Spread(9.0, 1e-3, 128), untrained, pulled=True)] == ["feature std"]
    assert [s for s, _ in collapsed("projection", Spread(9.0, 0.05, 8), untrained, pulled=True)] == ["projection std"]


# -- runs ------------------------------------------------------------------------------------------------------


class NoStop(SimSiam):
    """Without the stop of the gradient and without predictor: the shortest way down is a constant."""

    def __init__(self, backbone: Backbone, *, hidden: int = 16, dim: int = 8):
        super().__init__(backbone, hidden=hidden, dim=dim)
        self.predictor = nn.Sequential()

    def forward(self, batch: Batch) -> Loss:
        za, zb = (self.projector(self.backbone(**view)) for view in batch["views"])
        return Loss(-F.cosine_similarity(za, zb).mean())


class NoPredictor(BYOL):
    """Without predictor, and with a target that follows at once."""

    def __init__(self, backbone: Backbone, *, hidden: int = 16, dim: int = 8):
        super().__init__(backbone, hidden=hidden, dim=dim, momentum=0.0)
        self.predictor = nn.Sequential()


def test_a_run_that_collapses_is_told_once(ssl_run: Call, tmp_path: Path) -> None:
    small = ["backbone=encoder", "backbone.depth=1", "backbone.stem.dim=32", "objective.hidden=64", "objective.dim=32"]
    for name in ("NoStop", "NoPredictor"):
        broken = [f"objective._target_=tests.test_watch.{name}", *small, "evaluators=none", "optim=sgd", "optim.lr=0.6"]
        code, out, err = ssl_run(
            "pretrain", "objective=byol", *broken, "clip=1.0", "duration=40 steps", f"hydra.run.dir={name}"
        )
        assert code == 0, err
        assert out.count("have collapsed") >= 1, out
        assert all(out.count(line) == 1 for line in out.splitlines() if line.startswith("warning"))


@pytest.mark.parametrize("task", ["simclr", "byol"])
def test_a_sound_run_is_told_nothing(task: str, ssl_run: Call, tmp_path: Path) -> None:
    code, out, err = ssl_run("pretrain", f"task={task}", *RUN, "hydra.run.dir=r")
    assert code == 0, err
    assert "warning" not in out
    header = (tmp_path / "r" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/feature_rank", "val/feature_std", "val/projection_rank", "val/projection_std"} <= set(header)
    assert ("val/teacher_gap" in header) == (task == "byol")


class Blind(pl.Callback):
    pass


def test_a_watched_run_ends_with_the_very_weights_of_an_unwatched_one(
    ssl_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*RUN, "duration=12 steps", "backbone=resnet_tiny"]
    args = [a for a in args if not a.startswith(("backbone.", "backbone=encoder"))]
    assert ssl_run("pretrain", "task=byol", *args, "hydra.run.dir=watched")[0] == 0
    monkeypatch.setattr(stages, "Watch", Blind)
    assert ssl_run("pretrain", "task=byol", *args, "hydra.run.dir=alone")[0] == 0
    one, two = (load_checkpoint(tmp_path / n / "checkpoints" / "last.ckpt")["state_dict"] for n in ("watched", "alone"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_resumed_watch_remembers(ssl_run: Call, tmp_path: Path) -> None:
    watch = Watch()
    watch.untrained, watch.told = {"feature": Spread(3.0, 0.5, 8)}, ["loss"]
    watch.most, watch.losses, watch.teachers = {"train/codes_used": 0.5}, [1.0, 2.0], {"teacher": 4.0}
    again = Watch()
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()
    assert again.untrained["feature"].rank == 3.0
    assert ssl_run("pretrain", "task=simclr", *RUN, "duration=6 steps", "hydra.run.dir=r")[0] == 0
    (saved,) = [
        state
        for name, state in load_checkpoint(tmp_path / "r" / "checkpoints" / "last.ckpt")["callbacks"].items()
        if "Watch" in name
    ]
    assert saved["untrained"]["feature"][2] == 16
    assert saved["losses"]
