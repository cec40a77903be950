"""`hparams_search=optuna`: Optuna proposes, the sweep's jobs run, and one figure or several of them are told back.

The study is a SQLite file in the sweep's folder, so the same command goes on with it. A trial that was running when the
sweep was killed is the first to go on, in its own folder and from its checkpoint; no trial is lost or made twice.

Akiba, Sano, Yanase, Ohta, Koyama, KDD 2019. https://arxiv.org/abs/1907.10902
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from annotated_types import Gt

from ssl_runner import runs
from ssl_runner.compare import lower_is_better
from ssl_runner.errors import Pruned, RequestError, nearest
from ssl_runner.seeds import derive

if TYPE_CHECKING:
    import optuna
    import pytorch_lightning as pl

STUDY, NAME = "study.db", "sweep"
UNFIT = ("val/loss", "val/feature_rank")
"""What every run tells of the validation part, and few would choose by unless they say so."""
Direction = Literal["minimize", "maximize"]
Value = bool | int | float | str | None


class Range(NamedTuple):
    """Numbers from low to high: whole ones if both are. log: drawn evenly in the logarithm. step: between two."""

    low: int | float
    high: int | float
    log: bool
    step: int | float | None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)


class Optuna:
    """space: what is tried, by config key: a list of values, or {low: 1e-4, high: 0.1, log: true}, {low: 1, high: 8,
    step: 1}, whole numbers if the bounds are. Keys may be nested or dotted.
    trials: how many, with those that were pruned or failed. A grid has no more than its combinations.
    metric: the figure of metrics.json to choose by, a list of several, or {figure: minimize or maximize}. null: that of
    the validation part that the recipe is about: val/knn with online=knn, and a finetuning's own.
    sampler: tpe, cmaes (ranges alone), random, or grid (lists alone, in order).
    prune: median stops a trial whose metric at a validation is below the median of the others at that step.
    seed: of the proposals. The same history and seed give the same next trial, however often the sweep was killed.
    """

    def __init__(
        self,
        *,
        trials: Annotated[int, Gt(0)],
        space: dict[str, Any] | None = None,
        metric: str | list[str] | dict[str, Direction] | None = None,
        sampler: Literal["tpe", "cmaes", "random", "grid"] = "tpe",
        prune: Literal["median", "none"] = "none",
        seed: int = 0,
    ):
        if find_spec("optuna") is None:
            raise RequestError("hparams_search: optuna is not installed; pip install 'ssl-runner[sweep]'")
        self.space = dict(_leaves(space or {}, ""))
        if not self.space:
            raise RequestError(
                "hparams_search.space: is empty; give it what is to be tried, e.g. "
                "'hparams_search.space.optim.lr={low: 1e-4, high: 1e-1, log: true}'"
            )
        self.trials, self.sampler, self.prune, self.seed = trials, sampler, prune, seed
        self.metric = metric
        ranges = [key for key, choice in self.space.items() if isinstance(choice, Range)]
        lists = [key for key in self.space if key not in ranges]
        if sampler == "grid" and ranges:
            raise RequestError(f"hparams_search.space.{ranges[0]}: a grid needs a list of values; or use sampler=tpe")
        if sampler == "cmaes" and (lists or len(ranges) < 2):
            which = f".{lists[0]}: cmaes moves numbers, and this is a list" if lists else ": cmaes needs two ranges"
            raise RequestError(f"hparams_search.space{which}; use hparams_search.sampler=tpe")
        if sampler == "grid":
            self.trials = min(trials, math.prod(len(choice) for choice in self.space.values()))

    def metrics(self, config: Mapping[str, Any]) -> dict[str, Direction]:
        """The figures to choose by, checked against what these runs will give, with their directions.

        Raises RequestError for a figure that they won't give, and where none was named and none is meant.
        """
        known = list(_known(config))
        if self.metric is None:
            meant = [name for name in known if name.startswith("val/") and name not in UNFIT]
            if not meant:
                raise RequestError(
                    "hparams_search.metric: name a figure to choose by: with online=knn it is val/knn, of the "
                    f"validation part; there {'is' if len(known) == 1 else 'are'}: {', '.join(sorted(known))}"
                )
            named: list[str] = meant[:1]
        else:
            named = [self.metric] if isinstance(self.metric, str) else list(self.metric)
        for name in named:
            head, _, tail = name.partition("/")
            if name not in known and not (head in of_test_part(config) and tail):
                raise RequestError(
                    f"hparams_search.metric={name}: these runs give no such figure"
                    f"{nearest(name, [*known, *(f'{each}/...' for each in of_test_part(config))])}"
                )
        if not named:
            raise RequestError("hparams_search.metric: is empty; name a figure to choose by")
        if len(named) > 1 and self.sampler == "cmaes":
            raise RequestError("hparams_search.sampler=cmaes: takes one metric; use tpe for several")
        if len(named) > 1 and self.prune != "none":
            raise RequestError(f"hparams_search.prune={self.prune}: takes one metric; with several, use prune=none")
        if self.prune != "none" and not named[0].startswith("val/"):
            raise RequestError(
                f"hparams_search.prune={self.prune}: needs a figure of every validation, such as val/knn with "
                f"online=knn, and {named[0]} is none"
            )
        if isinstance(self.metric, dict):
            return dict(self.metric)
        return {name: "minimize" if lower_is_better(name) else "maximize" for name in named}

    def samples(self) -> Iterator[dict[str, Value]]:
        """Points that together hold each listed value and both ends of each range: what can be checked beforehand."""
        ends = {
            key: [choice.low, choice.high] if isinstance(choice, Range) else choice
            for key, choice in self.space.items()
        }
        for n in range(max(map(len, ends.values()))):
            yield {key: values[min(n, len(values) - 1)] for key, values in ends.items()}

    def study(self, folder: Path, directions: Mapping[str, Direction]) -> optuna.Study:
        """The sweep's, made or gone on with."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(
            storage=storage(folder),
            study_name=NAME,
            directions=list(directions.values()),
            pruner=pruner(self.prune),
            load_if_exists=True,
        )

    def left(self, study: optuna.Study) -> Iterator[optuna.Trial]:
        """The trials that are still to be run, each proposed when it is asked for: first those that were cut off."""
        import optuna

        state = optuna.trial.TrialState
        for frozen in study.get_trials(states=(state.RUNNING,)):
            yield optuna.Trial(study, frozen._trial_id)
        if self.sampler == "grid":
            for values in itertools.product(*self.space.values()):
                study.enqueue_trial(dict(zip(self.space, values, strict=True)), skip_if_exists=True)
        begun = tuple(each for each in state if each != state.WAITING)
        while (number := len(study.get_trials(deepcopy=False, states=begun))) < self.trials:
            study.sampler = self._sampler(derive(self.seed, "trial", number) % 2**32)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                yield study.ask({key: _distribution(choice) for key, choice in self.space.items()})

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """A new one for each trial: what it has learned is in the study, and its draws depend on the trial's number."""
        import optuna

        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        if self.sampler == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def storage(folder: Path) -> optuna.storages.RDBStorage:
    import optuna

    # several processes write a few lines each
    return optuna.storages.RDBStorage(
        f"sqlite:///{(folder / STUDY).absolute()}", engine_kwargs={"connect_args": {"timeout": 120}}
    )


def pruner(name: str) -> optuna.pruners.BasePruner:
    import optuna

    return optuna.pruners.MedianPruner() if name == "median" else optuna.pruners.NopPruner()


def watching(folder: Path, job: Mapping[str, Any] | None) -> list[pl.Callback]:
    """What tells the study of each validation of a job, where trials are pruned."""
    if job is None or job.get("prune") is None:
        return []
    import optuna
    import pytorch_lightning as pl

    about = job["prune"]
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class Pruning(pl.Callback):
        """Reports the metric of each validation, and ends the run when the study says so, on all ranks."""

        def __init__(self) -> None:
            self.trial: optuna.Trial | None = None

        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            step, prune = trainer.global_step, False
            value = pl_module.val_metrics[about["metric"]]
            if runs.is_main():
                if self.trial is None:
                    by = pruner(about["by"])
                    study = optuna.load_study(study_name=NAME, storage=storage(folder.parent), pruner=by)
                    self.trial = optuna.Trial(study, about["trial"])
                with warnings.catch_warnings():  # a resumed run reports some steps again
                    warnings.simplefilter("ignore", UserWarning)
                    self.trial.report(value, step)
                prune = self.trial.should_prune()
            if trainer.world_size > 1:
                prune = trainer.strategy.reduce_boolean_decision(prune, all=False)
            if prune and pl_module.progress(step) < 1:
                raise Pruned(f"pruned at step {step}, where {about['metric']} was {value:.4f}")

    return [Pruning()]


def of_test_part(config: Mapping[str, Any]) -> list[str]:
    """The beginnings of the names of those figures by which a choice is no honest result: they are of the test part."""
    return [*config["evaluators"], *(["finetune"] if config["stage"] in ("finetune", "run", "verify") else [])]


# -- the parts of a search -------------------------------------------------------------------------------------


def _known(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of the figures that a run of this config is known to give; its evaluators have names of their own."""
    from hydra.utils import get_class

    if config["online"]:
        yield get_class(config["online"]["_target_"]).metric  # type: ignore[attr-defined]
    if config["stage"] == "finetune":
        monitor = get_class(config["objective"]["_target_"]).monitor  # type: ignore[attr-defined]
        yield monitor.removeprefix("-")
    yield from ("val/loss", "train/loss", "val/feature_rank", "speed/samples_per_s", "time/seconds")


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Range | list[Value]]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        here = f"hparams_search.space.{key}"
        if isinstance(value, Mapping) and not {"low", "high", "log", "step"} & set(value):
            if not value:
                raise RequestError(f"{here}: is empty; give a list of values, or low and high")
            yield from _leaves(value, f"{key}.")
        elif isinstance(value, Mapping):
            yield key, _range(value, here)
        elif isinstance(value, list) and value:
            wrong = [each for each in value if not isinstance(each, Value)]
            if wrong:
                raise RequestError(f"{here}: a list holds numbers, words, true, false or null, and not {wrong[0]!r}")
            yield key, value
        else:
            raise RequestError(
                f"{here}: give a list of values or {{low: 1e-4, high: 0.1, log: true}}, not {json.dumps(value)}"
            )


def _range(node: Mapping[str, Any], here: str) -> Range:
    for key in node:
        if key not in Range._fields:
            raise RequestError(f"{here}.{key}: a range takes no such key{nearest(key, Range._fields)}")
    for key in ("low", "high", "step"):
        value = node.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number and (key != "step" or value is not None):
            raise RequestError(f"{here}.{key}: must be a number, got {json.dumps(value)}")
    log = node.get("log", False)
    if not isinstance(log, bool):
        raise RequestError(f"{here}.log: must be true or false, got {json.dumps(log)}")
    found = Range(node["low"], node["high"], log, node.get("step"))
    if found.low >= found.high:
        raise RequestError(f"{here}: low={found.low} must be below high={found.high}")
    if found.log and found.low <= 0:
        raise RequestError(f"{here}: log: true needs a low above 0, got {found.low}")
    if found.log and found.step is not None:
        raise RequestError(f"{here}: has log: true or a step, not both")
    if found.step is not None and found.step <= 0:
        raise RequestError(f"{here}.step: must be above 0, got {found.step}")
    return found


def _distribution(choice: Range | list[Value]) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(choice, Range):
        return CategoricalDistribution(choice)
    if choice.whole:
        return IntDistribution(int(choice.low), int(choice.high), log=choice.log, step=int(choice.step or 1))
    return FloatDistribution(float(choice.low), float(choice.high), log=choice.log, step=choice.step)


def best(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The best trial; of several metrics, those that no other one beats in all."""
    if not any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False)):
        return []
    return [study.best_trial] if len(study.directions) == 1 else study.best_trials
