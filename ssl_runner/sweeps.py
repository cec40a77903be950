"""`ssl-run VERB -m ...`: many runs of one command. The same command again runs only what is missing.

A sweep has a folder of its own, named by a digest of what is run, and in it each job has one, from which can be read
what became of it. All jobs are composed and checked before the first one runs.
"""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from ssl_runner import compare, compose, report, runs
from ssl_runner.errors import RequestError, RunError, nearest
from ssl_runner.jobs import FAILURE, JOB, STATES, State, alone, failed, read_failure, read_job, state
from ssl_runner.launchers import Launcher
from ssl_runner.search import Optuna, best, of_test_part
from ssl_runner.trust import PACKAGES

OF_SWEEP = ("launcher", "hparams_search")
"""Keys that a job's own config has no use for."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep. about: what its job.json holds. later: the configs of its stages, by folder."""

    number: int
    overrides: list[str]
    folder: Path
    config: dict[str, Any]
    later: dict[str, dict[str, Any]]
    about: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.number} ({' '.join(self.overrides)})"


def sweep(master: DictConfig, loader: Any, arguments: Sequence[str]) -> None:
    """Runs what Hydra was told to sweep. Raises RequestError for what can't be run at all, and where every failure was
    one of the request; RunError where other jobs failed."""
    from ssl_runner.build import make
    from ssl_runner.config import check_node

    with hydra_config(master):
        where: Any = OmegaConf.to_container(master.launcher, resolve=True)
        how: Any = OmegaConf.to_container(master.hparams_search, resolve=True)
    check_node(where, "launcher")
    check_node(how, "hparams_search")
    if master.hydra.runtime.choices["hydra/launcher"] != "basic":
        raise RequestError("hydra/launcher: say launcher=joblib, inline, submitit, submitit_local or ray")
    fixed, swept = _divided(arguments, loader)
    composer = Composer(master, loader, fixed)
    launcher: Launcher = make(where)
    if not how:
        _Grid(composer, launcher, list(itertools.product(*swept))).run()
        return
    if swept:
        raise RequestError(
            f"{compose.key_of(swept[0][0])}: a search tries what hparams_search.space holds; put it there as a list"
        )
    _Search(composer, launcher, make(how), how).run()


class Composer:
    """Makes jobs of overrides, as Hydra composes them."""

    def __init__(self, master: DictConfig, loader: Any, fixed: Sequence[str]):
        self.master, self.loader, self.fixed = master, loader, list(fixed)
        self._made: dict[tuple[str, ...], tuple[dict[str, Any], str, list[str]]] = {}

    def config(self, own: Sequence[str], number: int) -> tuple[dict[str, Any], str, list[str]]:
        """A job's config, checked, the name of its folder, and notes on it."""
        from ssl_runner.cli import checked

        asked = (str(number), *own)
        if asked in self._made:
            return self._made[asked]
        composed = self.loader.load_sweep_config(self.master, [*self.fixed, *own])
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = number
        with hydra_config(composed):
            config, notes = checked(_without_hydra(composed))
            folder = str(OmegaConf.select(composed, "hydra.sweep.subdir"))
        made = {key: value for key, value in config.items() if key not in OF_SWEEP}
        self._made[asked] = made, folder, notes
        return self._made[asked]

    def job(self, own: Sequence[str], number: int, root: Path, *, of: Mapping[str, Any] | None = None) -> Job:
        """of: what else its job.json holds."""
        from ssl_runner.cli import stages_of

        config, name, _ = self.config(own, number)
        folder = root / name
        about = {"number": number, "overrides": [o.lstrip("+") for o in own], "digest": digest(config), **(of or {})}
        with hydra_config(self.master):
            later = stages_of(config, folder)
        return Job(number, about["overrides"], folder, config, later, about)

    def root(self, configs: Sequence[Mapping[str, Any]], also: Any = None) -> Path:
        """The sweep's folder: that of hydra.sweep.dir, or one named by what is run."""
        given = str(self.master.hydra.sweep.dir)
        if given:
            return Path(given)
        names = {str(config["name"]) for config in configs}
        name = names.pop() if len(names) == 1 else "several"
        return Path("outputs") / configs[0]["stage"] / name / f"sweep_{digest([list(configs), also])}"


def digest(content: Any) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=5).hexdigest()


# -- what a sweep does -----------------------------------------------------------------------------------------


class _Grid:
    """Every combination of the swept values, in their order."""

    def __init__(self, composer: Composer, launcher: Launcher, points: Sequence[Sequence[str]]):
        found = [composer.config(own, number) for number, own in enumerate(points)]
        _say_notes(notes for _, _, notes in found)
        self.launcher = launcher
        self.configs = [config for config, _, _ in found]
        self.composer, self.points = composer, points

    def run(self) -> None:
        if self.configs[0]["stage"] == "plan":
            from ssl_runner.plan import plan

            for config in self.configs:
                plan(config, Path())
            return
        root = self.composer.root(self.configs)
        jobs = [self.composer.job(own, number, root) for number, own in enumerate(self.points)]
        twice = [job for job in jobs if sum(job.folder == other.folder for other in jobs) > 1]
        if twice:
            raise RequestError(f"hydra.sweep.subdir: gives jobs the same folder, {twice[0].folder}")
        for job in jobs:
            prepare(job)
        before = [state(job.folder) for job in jobs]
        print(f"sweep {root}: {_counted(before)}", flush=True)
        left = [job for job in jobs if not (job.folder / runs.METRICS).is_file()]
        left.sort(key=lambda job: STATES.index(state(job.folder)))
        self.launcher.each(lambda job: run(job, self.launcher), left)
        _told(root, jobs, None)


class _Search:
    """The trials of a study."""

    def __init__(self, composer: Composer, launcher: Launcher, search: Optuna, node: Mapping[str, Any]):
        self.composer, self.launcher, self.search = composer, launcher, search
        points = [_overrides(point) for point in search.samples()]
        found = [composer.config(own, number) for number, own in enumerate(points)]
        if found[0][0]["stage"] == "plan":
            raise RequestError("hparams_search: is for runs, and plan makes none")
        _say_notes(notes for _, _, notes in found)
        self.directions = search.metrics(found[0][0])
        dishonest = [name for name in self.directions if name.partition("/")[0] in of_test_part(found[0][0])]
        if dishonest:
            print(
                f"note: {dishonest[0]} is of the test part: what is chosen by it has seen that part, so that its score "
                "there is no honest result. Figures that begin with val/ are of the validation part"
            )
        own = {key: value for key, value in node.items() if key != "trials"}
        self.root = composer.root([found[0][0]], own)
        self.jobs: dict[int, Job] = {}
        self._composing = threading.Lock()  # Hydra keeps what it composes in places that threads share

    def run(self) -> None:
        import optuna

        self.root.mkdir(parents=True, exist_ok=True)
        with alone(self.root) as free:
            if not free:
                raise RequestError(
                    f"{self.root}: another process is at this search; launcher.jobs says how many trials run at a time"
                )
            study = self.search.study(self.root, self.directions)
            if [d.name.lower() for d in study.directions] != list(self.directions.values()):
                raise RequestError(f"{self.root}: holds a search by other figures; name another hydra.sweep.dir")
            trials = study.get_trials(deepcopy=False)
            for frozen in trials:
                if frozen.params and frozen.state != optuna.trial.TrialState.WAITING:
                    self.job(frozen)
            states = [state(job.folder) for job in self.jobs.values()]
            states += ["new"] * (self.search.trials - len(states))
            print(f"sweep {self.root}: {_counted(states)}", flush=True)
            self.launcher.each(lambda trial: self.work(study, trial), self.search.left(study))
            _told(self.root, [self.jobs[n] for n in sorted(self.jobs)], (study, self.directions))

    def job(self, trial: Any) -> Job:
        """A trial's, prepared."""
        if trial.number not in self.jobs:
            of: dict[str, Any] = {"metrics": self.directions}
            if self.search.prune != "none":
                of["prune"] = {"trial": trial._trial_id, "metric": next(iter(self.directions)), "by": self.search.prune}
            own = _overrides({key: trial.params[key] for key in self.search.space})
            job = self.composer.job(own, trial.number, self.root, of=of)
            prepare(job)
            self.jobs[trial.number] = job
        return self.jobs[trial.number]

    def work(self, study: Any, trial: Any) -> None:
        """Runs a trial and tells the study of it."""
        from optuna.trial import TrialState

        with self._composing:
            job = self.job(trial)
        if state(job.folder) not in ("done", "pruned"):
            run(job, self.launcher)
        became = state(job.folder)
        if became == "done":
            figures = runs.read_metrics(job.folder) or {}
            missing = [name for name in self.directions if name not in figures]
            if missing:
                hint = nearest(missing[0], figures)
                raise RequestError(f"hparams_search.metric={missing[0]}: {job.folder} gives no such figure{hint}")
            study.tell(trial, [figures[name] for name in self.directions])
        elif became == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, state=TrialState.FAIL)


def run(job: Job, launcher: Launcher) -> None:
    """Runs a job to an end that its folder tells of. One that another process is at is waited for."""
    waited = False
    while True:
        with alone(job.folder) as free:
            pass
        if free:
            break
        if not waited:
            waited = True
            print(f"job {job}: another process is at it; waiting for that", flush=True)
        time.sleep(0.5)
    if waited and state(job.folder) in ("done", "pruned"):
        return
    print(f"job {job}: {'goes on' if state(job.folder) == 'stopped' else 'starts'}", flush=True)
    (job.folder / FAILURE).unlink(missing_ok=True)
    named = {target.partition(".")[0] for target in _targets(job.config)}  # by the person who asked for this sweep
    own = sorted(named - {package.partition(".")[0] for package in PACKAGES})
    code = launcher.run(["resume", str(job.folder), *([f"trust=[{','.join(own)}]"] if own else [])], job.folder)
    if state(job.folder) in ("new", "stopped"):
        by = -code if code < 0 else code - 128 if code > 128 else None
        told = f"exit code {code}" if by is None else f"ended by {signal.Signals(by).name}"
        failed(job.folder, "failed" if by is None else "killed", told, 1)
    became = state(job.folder)
    words = read_failure(job.folder)
    print(f"job {job}: {became}{'' if words is None else ', ' + words['error']}", flush=True)


def prepare(job: Job) -> None:
    """Makes a job's folder, unless it is there. Raises RequestError where it holds another run."""
    before = read_job(job.folder)
    if before is not None and before.get("digest") != job.about["digest"]:
        raise RequestError(
            f"{job.folder}: holds a job of another config ({' '.join(before.get('overrides', []))}); name another "
            "hydra.sweep.dir, or remove that folder"
        )
    if before is None:
        if (job.folder / runs.CONFIG).is_file():
            raise RequestError(f"{job.folder}: holds a run that is of no sweep; name another hydra.sweep.dir")
        runs.write(job.folder / JOB, json.dumps(job.about, indent=2) + "\n")
    for folder, config in ((job.folder, job.config), *((job.folder / name, c) for name, c in job.later.items())):
        if not (folder / runs.CONFIG).is_file():
            runs.write(folder / runs.CONFIG, runs.dump(config))


# -- the parts of a sweep --------------------------------------------------------------------------------------


def _divided(arguments: Sequence[str], loader: Any) -> tuple[list[str], list[list[str]]]:
    """What all jobs have, and for each swept key its overrides. Raises RequestError for ranges without an end."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(arguments)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif override.is_discrete_sweep():
            swept[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise RequestError(
                f"{override.input_line}: a range has no end of values; use choice(...), or hparams_search=optuna"
            )
    return fixed, list(swept.values())


def _overrides(point: Mapping[str, Any]) -> list[str]:
    """Values by key as overrides; the choice of a group by its name."""
    from ssl_runner.cli import overriding

    return [overriding(key, value) for key, value in point.items()]


@contextmanager
def hydra_config(composed: DictConfig) -> Iterator[None]:
    """Within it `${hydra:...}` means this config's, as within a job of Hydra's."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals

    setup_globals()
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(composed)
    try:
        yield
    finally:
        instance.cfg = before


def _without_hydra(composed: DictConfig) -> DictConfig:
    found = composed.copy()
    with open_dict(found):
        del found["hydra"]
    return found


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        yield from (value for key, value in node.items() if key == "_target_")
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _say_notes(found: Iterator[list[str]]) -> None:
    for note in dict.fromkeys(note for notes in found for note in notes):
        print(note)


def _counted(states: Sequence[State]) -> str:
    words = {"done": "done", "pruned": "pruned", "stopped": "to go on", "new": "to run", "failed": "to run again"}
    words["killed"] = words["failed"]
    counts: dict[str, int] = {}
    for each in sorted(states, key=STATES.index):
        counts[words[each]] = counts.get(words[each], 0) + 1
    return f"{len(states)} jobs: {', '.join(f'{count} {word}' for word, count in counts.items())}"


def _told(root: Path, jobs: Sequence[Job], studied: tuple[Any, Mapping[str, str]] | None) -> None:
    """The table at the end. Raises where a job failed."""
    figures = {job.number: runs.read_metrics(job.folder) or {} for job in jobs}
    if studied is not None:
        names = list(studied[1])
    else:
        known = compare.columns([compare.Row("", {}, compare.find([job.folder for job in jobs]))]) if jobs else []
        names = known[:1]
    cells, notes, codes = [], [], []
    for job in jobs:
        became, failure = state(job.folder), read_failure(job.folder)
        scores = [f"{figures[job.number][name]:.4f}" if name in figures[job.number] else "" for name in names]
        cells.append([str(job.number), " ".join(job.overrides), became, *scores])
        if failure is not None:
            notes.append(f"{job.folder}: {failure['error'].splitlines()[0]}")
            codes += [failure["code"]] if became in ("failed", "killed") else []
    if studied is not None:
        by_number = {job.number: str(job) for job in jobs}
        told = [by_number[trial.number] for trial in best(studied[0])]
        notes += [f"best: {', '.join(told)}"] if told else []
    notes.append(f"compare: ssl-run compare {root}")
    report.board(f"sweep {root.name}", ["job", "overrides", "state", *names], cells, notes)
    if codes:
        words = f"{len(codes)} of {len(jobs)} jobs failed; each folder's {FAILURE} says how"
        raise RequestError(words) if all(code == 2 for code in codes) else RunError(words)
