"""The training step: what moves once per optimiser step, what each rank draws, and what disturbs nothing."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ssl_runner.callbacks import Checkpoints
from ssl_runner.checkpoint import load_checkpoint
from ssl_runner.data import Numbered, TrainBatches, Viewed
from ssl_runner.datasets.base import Arrays
from ssl_runner.durations import Clock
from ssl_runner.errors import RunError
from ssl_runner.learner import Learner, Means
from ssl_runner.objectives.simclr import SimCLR
from ssl_runner.optim.recipe import SGD
from ssl_runner.optim.schedules import Cosine
from ssl_runner.seeds import of_step
from ssl_runner.types import Backbone, Batch, Loss, Objective
from ssl_runner.views.base import Branch, Views
from ssl_runner.views.filters import GaussianNoise
from tests.conftest import TINY

Call = Callable[..., tuple[int, str, str]]
BASE = [*TINY, "evaluators=none", "duration=8 steps"]


def learner(objective: nn.Module) -> Learner:
    views = Views(branches={"plain": Branch(transforms={})})
    clock = Clock(samples=64, global_batch=16, duration="2 epochs")
    return Learner(
        objective,  # type: ignore[arg-type]
        views,
        optim=SGD(lr=0.1),
        schedule=Cosine(warmup="0 steps"),
        clock=clock,
        seed=3,
    )


def test_views_made_ahead_are_those_of_the_step_and_leave_the_same_draws_to_the_objective() -> None:
    views = Views(branches={"noisy": Branch(transforms={"noise": GaussianNoise(std=0.1)}, copies=2)})
    dataset = Arrays(torch.rand(12, 1, 4, 4), torch.arange(12))
    batches = TrainBatches(12, 4, batches=9, rank=1, ranks=2, seed=3)
    batches.start = 7
    number, keys = next(iter(Numbered(batches)))
    ahead = Viewed(dataset, views, seed=3, rank=1).__getitems__((number, keys))
    assert (number, ahead["inputs"], len(ahead["index"])) == (7, [], 4)

    step = learner(Constant(1.0))
    step.views = views
    torch.manual_seed(of_step(3, 1, 7))  # as the training step does first
    expected, then = step.drawn(dataset.__getitems__(keys)), torch.rand(3)
    torch.manual_seed(of_step(3, 1, 7))
    found = step.drawn(ahead)
    assert len(found) == 2
    assert all(one["x"].equal(other["x"]) for one, other in zip(found, expected, strict=True))
    assert torch.rand(3).equal(then)


class Constant(Objective):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.weight = nn.Parameter(torch.tensor(value))
        self.progress: list[float] = []

    def forward(self, batch: Batch) -> Loss:
        return Loss(self.weight * 1, {"term": self.weight.detach() + 0, "other": torch.zeros(())})

    def after_step(self, progress: float) -> None:
        self.progress.append(progress)


def test_draws_depend_on_rank_and_step_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    each = learner(Constant(1.0))
    optimizer = each.optim(each.objective, 16)
    trainer = SimpleNamespace(optimizers=[optimizer], global_step=0)
    monkeypatch.setattr(Learner, "trainer", property(lambda self: trainer))
    monkeypatch.setattr(Learner, "global_step", property(lambda self: 0))

    def draw(rank: int, batch: int) -> Tensor:
        monkeypatch.setattr(Learner, "global_rank", property(lambda self: rank))
        torch.rand(batch + 5)  # whatever was drawn before
        each.on_train_batch_start({}, batch)
        return torch.rand(4)

    assert torch.equal(draw(0, 0), draw(0, 0))
    assert not torch.equal(draw(0, 0), draw(1, 0)), "ranks would see the same augmentations"
    assert not torch.equal(draw(0, 0), draw(0, 1))


def lrs(path: Path) -> list[float]:
    with open(path) as file:
        return [float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_schedule_moves_by_optimiser_step(accumulate: int, ssl_run: Call, tmp_path: Path) -> None:
    args = ["optim=sgd", "optim.lr=0.2", "schedule.warmup=2 steps", f"accumulate={accumulate}"]
    code, out, err = ssl_run("pretrain", "task=simclr", *BASE, *args, "hydra.run.dir=r")
    assert code == 0, err
    peak = 0.2 * 16 / 256  # scaled by the global batch, micro-batches included, once
    wanted = [peak * Cosine()(step / 8, 2 / 8) for step in range(8)]
    assert lrs(tmp_path / "r" / "metrics.csv") == pytest.approx(wanted)
    assert ("adds no negatives" in out) == (accumulate == 2)


def test_after_step_is_called_once_per_optimiser_step(ssl_run: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(SimCLR, "after_step", lambda self, progress: seen.append(progress))
    assert ssl_run("pretrain", "task=simclr", *BASE, "accumulate=2")[0] == 0
    assert seen == pytest.approx([(n + 1) / 8 for n in range(8)])


def test_validation_and_logging_leave_training_as_it_is(ssl_run: Call, tmp_path: Path) -> None:
    often = ["validate_every=1 steps", "log_every=1", "checkpoint_every=1 steps"]
    seldom = ["validate_every=8 steps", "log_every=8", "checkpoint_every=8 steps"]
    for name, args in (("often", often), ("seldom", seldom)):
        assert ssl_run("pretrain", "task=simclr", *BASE, *args, f"hydra.run.dir={name}")[0] == 0
    one, two = (load_checkpoint(tmp_path / n / "checkpoints" / "last.ckpt")["state_dict"] for n in ("often", "seldom"))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_a_non_finite_term_is_named_with_its_batch_and_never_saved(tmp_path: Path) -> None:
    each = learner(Constant(float("nan")))
    samples = {"inputs": [{"x": torch.zeros(2, 1)}], "index": torch.tensor([7, 9])}
    with pytest.raises(RunError, match=r"non-finite loss and term in batch 5, samples \[7, 9\]"):
        each.training_step(samples, 5)  # type: ignore[arg-type]
    saving = Checkpoints(tmp_path, every=1, monitor="-val/loss", config={})
    with pytest.raises(RunError, match="batch 5"):
        saving._save(SimpleNamespace(), each, "last.ckpt")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_first_bad_batch_is_the_one_that_is_named() -> None:
    """As on a device that is asked now and then: later batches, good or bad, change nothing."""
    each = learner(Constant(1.0))
    nan, one = torch.tensor(float("nan")), torch.tensor(1.0)
    samples = {"index": torch.arange(20)}
    each._watch(Loss(one, {"a": one, "b": one}), samples, 0)  # type: ignore[arg-type]
    each.check_finite = lambda: None  # type: ignore[method-assign]
    each._watch(Loss(one, {"a": one, "b": nan}), {"index": torch.arange(20) + 100}, 3)  # type: ignore[arg-type]
    each._watch(Loss(nan, {"a": nan, "b": one}), samples, 4)  # type: ignore[arg-type]
    each._watch(Loss(one, {"a": one, "b": one}), samples, 5)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"non-finite b in batch 3, samples \[100, 101, .*107\]"):
        Learner.check_finite(each)


def test_means_weigh_by_samples() -> None:
    means = Means()
    means.add({"loss": torch.tensor(1.0)}, weight=3)
    means.add({"loss": torch.tensor(5.0)}, weight=1)
    assert means.take() == {"loss": 2.0}
    assert means.take() == {}
