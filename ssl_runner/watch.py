"""Signs of failure, watched while training and said in words: collapsed features, dead codes, a teacher that is none,
an exploding loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn

from ssl_runner import runs
from ssl_runner.data import DataModule
from ssl_runner.learner import Learner
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Objective, Samples

SAMPLES = 256  # whose features are measured, at most
EARLY = 0.5  # share of the run by which projections have spread: they begin close together, and SwAV is slow
Sign = tuple[str, str]  # what is told once a run, and its words


class Spread(NamedTuple):
    """How (n, dim) rows lie: see `effective_rank` and `relative_std`."""

    rank: float
    std: float
    dim: int


class Watch(pl.Callback):
    """Measures the features of the same few plain samples before training and at the end of each validation, on the
    main process alone, and tells each sign of failure once a run.

    Logs val/feature_rank and val/feature_std; the same of the projections, where the objective has a `projector` of
    features, as those have that compare embeddings; and the largest val/teacher_gap, where it has teachers. It
    draws nothing and changes nothing: with it and without, a run ends with the same weights.
    """

    def __init__(self) -> None:
        self.untrained: dict[str, Spread] = {}
        self.teachers: dict[str, float] = {}  # the mark of each teacher's first weights
        self.most: dict[str, float] = {}  # the largest share of codes in use so far
        self.losses: list[float] = []  # the first one, and the largest size in the first tenth of the run
        self.told: list[str] = []
        self._samples: list[Samples] = []
        self._logged: Mapping[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "untrained": {name: list(spread) for name, spread in self.untrained.items()},
            "teachers": self.teachers,
            "most": self.most,
            "losses": self.losses,
            "told": self.told,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.untrained = {name: Spread(*spread) for name, spread in state_dict["untrained"].items()}
        self.teachers, self.most = state_dict["teachers"], state_dict["most"]
        self.losses, self.told = state_dict["losses"], state_dict["told"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not runs.is_main() or isinstance(trainer.strategy, ModelParallelStrategy):
            return  # one process alone can't call a backbone that is in pieces on all
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._samples = list(portions(data.glimpse(SAMPLES), data.per_rank))
        if not self.untrained:
            self.untrained = self.spreads(trainer, pl_module)
            self.teachers = {name: mark(teacher) for name, teacher in teachers(pl_module.objective)}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = pl_module.train_metrics
        if not runs.is_main() or not metrics or metrics is self._logged:
            return
        self._logged = metrics
        loss, step = metrics["train/loss"], trainer.global_step
        early = pl_module.progress(step) <= 0.1
        self.tell(step, exploded(loss, self.losses, early=early))
        if not self.losses:
            self.losses = [loss, abs(loss)] if loss else []  # 0: it only gathers yet what it will learn from
        elif early:
            self.losses[1] = max(self.losses[1], abs(loss))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self._samples:
            return
        objective, step = pl_module.objective, trainer.global_step
        spreads = self.spreads(trainer, pl_module)
        found = {f"val/{name}_rank": spread.rank for name, spread in spreads.items()}
        found |= {f"val/{name}_std": spread.std for name, spread in spreads.items()}
        gaps = {name: gap(teacher, objective) for name, teacher in teachers(objective)}
        if known := [each for each in gaps.values() if each is not None]:
            found["val/teacher_gap"] = max(known)
        pl_module.val_metrics |= found
        pl_module.record(found)
        if pl_module.progress(step) >= EARLY:
            for name, spread in spreads.items():
                self.tell(step, collapsed(name, spread, self.untrained[name], pulled=objective.labelled))
        self.tell(step, dead(pl_module.train_metrics, self.most))
        for name, teacher in teachers(objective):
            self.tell(step, no_teacher(name, gaps[name], moved=mark(teacher) != self.teachers[name]))

    def tell(self, step: int, signs: Iterator[Sign]) -> None:
        for sign, words in signs:
            if sign not in self.told:
                self.told.append(sign)
                print(f"warning: at step {step} {words}", flush=True)

    @torch.no_grad()
    def spreads(self, trainer: pl.Trainer, learner: Learner) -> dict[str, Spread]:
        """Of features, and of projections, as evaluation would have them now."""
        objective, projector = learner.objective, projector_of(learner.objective)
        modes = [(module, module.training) for module in objective.modules()]
        objective.eval()
        rows: dict[str, list[Tensor]] = {}
        with learner.averaged(), torch.random.fork_rng(devices=[]), trainer.precision_plugin.forward_context():
            for samples in self._samples:
                moved = trainer.strategy.batch_to_device(samples)
                view = learner.batch(moved, [learner.views.plain(moved)])["views"][0]
                features = objective.backbone(**trainer.precision_plugin.convert_input(view))
                rows.setdefault("feature", []).append(features.float().cpu())
                if projector is not None:
                    rows.setdefault("projection", []).append(projector(features).float().cpu())
        for module, mode in modes:
            module.training = mode
        return {name: spread_of(torch.cat(parts)) for name, parts in rows.items()}


# -- what is told ----------------------------------------------------------------------------------------------


def collapsed(name: str, now: Spread, untrained: Spread, *, pulled: bool) -> Iterator[Sign]:
    """name: "feature" or "projection". pulled: labels draw each class to one place, so that a low rank is no fault.

    Untrained features may lie close together, so they are judged by how they began. Projections are what the loss
    compares, and a loss that does not collapse spreads them: from 0.1 to 0.9 in sound runs, 0.02 to 0.08 in failed.
    """
    least = 0.08 if name == "projection" else 0.03 * untrained.std
    remedy = "try a smaller optim.lr, a longer schedule.warmup, or weaker views"
    if now.std < least:
        yield (
            f"{name} std",
            f"the {name}s have collapsed to nearly one direction: a spread of {now.std:.2g} of 1, "
            f"was {untrained.std:.2g} untrained; {remedy}",
        )
    if not pulled and now.rank < 2 <= untrained.rank / 2:
        yield (
            f"{name} rank",
            f"the {name}s have collapsed: {now.rank:.1f} of {now.dim} dimensions in use (rank), "
            f"was {untrained.rank:.0f} untrained; {remedy}",
        )


def dead(metrics: Mapping[str, float], most: dict[str, float]) -> Iterator[Sign]:
    """Of logged shares in use. most: the largest of each so far, which is kept up to date."""
    for name, share in metrics.items():
        if not name.endswith(("prototypes_used", "codes_used")):
            continue
        most[name] = max(share, most.get(name, 0.0))
        if share < max(0.2 * most[name], 0.005):
            what = name.rpartition("/")[2].removesuffix("_used")
            yield (
                name,
                f"most {what} are dead: {share:.2%} of them are in use, at most {most[name]:.2%} so far; "
                f"try fewer of them, a smaller optim.lr, or a larger batch_size",
            )


def no_teacher(name: str, apart: float | None, *, moved: bool) -> Iterator[Sign]:
    """apart: the gap between a teacher and what it follows; moved: whether it has left its first weights."""
    if apart == 0 and moved:
        yield name, f"the teacher {name} equals what it should follow slowly; try a larger objective.momentum"
    if apart is not None and apart > 0 and not moved:
        yield name, f"the teacher {name} has not moved; try a smaller objective.momentum, or precision=32"


def exploded(loss: float, before: Sequence[float], *, early: bool) -> Iterator[Sign]:
    """before: the first loss, and the largest in size in the first tenth of the run; empty at the first.

    early: within that tenth, when a loss may well rise, as one with a queue does while that fills.
    """
    if before and loss > (1000 * max(before[1], 1.0) if early else 10 * max(before[1], 1e-3)):
        yield (
            "loss",
            f"the loss has exploded: {loss:.3g}, and {before[0]:.3g} at first; "
            "try a smaller optim.lr, a longer schedule.warmup or clip=1.0",
        )


# -- what is measured ------------------------------------------------------------------------------------------


def spread_of(rows: Tensor) -> Spread:
    rows = rows.double()
    if not bool(rows.isfinite().all()):  # the loss tells of that, and stops the run
        return Spread(math.nan, math.nan, rows.shape[1])
    return Spread(effective_rank(rows), relative_std(rows), rows.shape[1])


def effective_rank(features: Tensor) -> float:
    """Of (n, dim) features about their mean: exp of the entropy of their singular values' shares, between 1 and
    min(n - 1, dim); 0 where all rows are equal (Roy & Vetterli, 2007; Garrido et al., 2023, RankMe)."""
    centred = (features - features.mean(0)).double()
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if not singular.sum() > 0:
        return 0.0
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def relative_std(features: Tensor) -> float:
    """Of (n, dim) features: the standard deviation over rows of unit length, averaged over dimensions, times the
    root of dim: 1 where rows point in every direction alike, 0 where all point in one (Chen & He, 2021, SimSiam)."""
    return float(F.normalize(features, dim=1).std(0).mean()) * math.sqrt(features.shape[1])


def projector_of(objective: Objective) -> nn.Module | None:
    """What it calls its projector, if that takes features."""
    projector = getattr(objective, "projector", None)
    first = next(projector.parameters(), None) if isinstance(projector, nn.Module) else None
    return projector if first is not None and first.shape[1:] == (objective.backbone.dim,) else None


def portions(samples: Samples, size: int) -> Iterator[Samples]:
    """The same samples, `size` at a time."""
    for first in range(0, len(samples["index"]), size):
        part = slice(first, first + size)
        cut: Samples = {**samples, "index": samples["index"][part]}
        cut["inputs"] = [{name: each[part] for name, each in view.items()} for view in samples["inputs"]]
        if "label" in samples:
            cut["label"] = samples["label"][part]
        yield cut


def teachers(objective: nn.Module) -> Iterator[tuple[str, Teacher]]:
    for name, module in objective.named_modules():
        if isinstance(module, Teacher):
            yield name, module


@torch.no_grad()
def mark(teacher: Teacher) -> float:
    """A number that changes when the teacher's weights do."""
    return sum(float(p.double().square().sum()) for p in teacher.copy.parameters())


@torch.no_grad()
def gap(teacher: Teacher, objective: Objective) -> float | None:
    """The distance between a teacher's weights and those it follows, relative to the length of the latter.

    They are found by structure: among the objective's modules outside of teachers that have parameters of the same
    names and shapes, the nearest. None where there are none.
    """
    mine = dict(teacher.copy.named_parameters())
    inside = {id(module) for _, each in teachers(objective) for module in each.modules()}
    found = []
    for module in objective.modules():
        if id(module) in inside:
            continue
        theirs = dict(module.named_parameters())
        if all(name in theirs and theirs[name].shape == p.shape for name, p in mine.items()):
            apart = sum(float((p.double() - theirs[name].double()).square().sum()) for name, p in mine.items())
            length = sum(float(theirs[name].double().square().sum()) for name in mine)
            found.append(math.sqrt(apart / length) if length else 0.0)
    return min(found, default=None)
