"""`ssl-run VERB ...`: from what a person types to Hydra, and from any failure to one clear message.

Help, lists and faults of the command line must answer at once, so nothing heavy is imported at the top.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ssl_runner.errors import RequestError, RunError, Stopped, explained, nearest

HELP = """\
ssl-run: self-supervised learning, config-driven: pretrain, finetune, evaluate

usage: ssl-run VERB [GROUP=CHOICE] [KEY=VALUE] ... [HYDRA FLAGS]

  pretrain +task=simclr     pretrain a backbone, save it, evaluate its frozen features; with from=RUN go on from a run
  finetune from=RUN         go on from a run folder, .safetensors, .ckpt or `latest`, with labels;
                            from=null trains from scratch
  evaluate from=RUN         run the evaluators on a run's frozen features
  run +task=simclr          pretrain, finetune, evaluate, one table at the end; finetune.KEY=VALUE sets the middle
  plan +task=simclr         train nothing: sizes, steps, memory, and a picture of the views
  verify +task=simclr       run a recipe and say whether its score fell where the recipe promises
  list [GROUP]              the choices of every config group, a line each
  resume RUN                go on exactly where a stopped run was; device.KEY=VALUE and workers=N may be others
  compare DIR ...           a leaderboard of the runs below folders, over their seeds; metric=knn/accuracy,
                            format=markdown, csv or latex
  pack SRC DST              a folder of images as tar shards, with checksums; data=audio for recordings;
                            shard=256 (MB); format=memmap size=64 for arrays on disk; data=cifar10 DST for other data

groups: task data views backbone objective optim schedule evaluators online precision device logger; for sweeps
        launcher hparams_search
keys:   seed duration batch_size accumulate clip workers ahead labels log_every validate_every checkpoint_every
        engine.average engine.compile engine.checkpointing engine.find_lr engine.find_accumulate
        trust, and every argument of a choice: objective.temperature=0.2, optim.lr=0.1, device.devices=2
flags:  -m (one run per combination: seed=1,2 optim.lr=0.1,0.3; launcher=joblib launcher.jobs=2 for two at a time;
        hparams_search=optuna to search; the same command again runs what is missing)
        --cfg job (print the config, run nothing)
        --config-dir DIR (your own groups)   --shell-completion install=bash   --hydra-help
        hydra.run.dir=DIR (where the run is written; default outputs/VERB/NAME/DATE_TIME)

exit codes: 0 done, 2 the request was wrong, 1 it failed, 128 + signal stopped after saving (130 Ctrl-C, 143 SIGTERM,
            138 and 140 SIGUSR1 and SIGUSR2: under SLURM these also queue the job again)
"""

VERBS = ("pretrain", "finetune", "evaluate", "run", "plan", "verify")
PLAIN = ("list", "resume", "compare", "pack")  # verbs that compose no config
GROUPS = [
    "task",
    "data",
    "views",
    "backbone",
    "objective",
    "optim",
    "schedule",
    "evaluators",
    "online",
    "precision",
    "device",
    "logger",
    "launcher",
    "hparams_search",
]  # in the order in which a person chooses


def main() -> None:
    """The console script."""
    for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, partial(_terminate, os.getpid()))
    if "SSL_RUNNER_ATTENDED" in os.environ:
        from ssl_runner.launchers import attend

        attend()
    sys.exit(answer(sys.argv))


def answer(argv: list[str]) -> int:
    """Does what argv asks for, returns the exit code. Changes argv in place: Lightning starts other ranks with it."""
    try:
        return dispatch(argv)
    except Stopped as stop:
        return _stopped(stop.signum)
    except KeyboardInterrupt:
        return _fail(130, "stopped")
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> int:
    """Tells a person of it, and gives its exit code."""
    if isinstance(error, RequestError | RunError):
        return _fail(2 if isinstance(error, RequestError) else 1, error)
    told = _hydra_fault(error)
    if told is not None:
        return _fail(2, told)
    told = explained(error)
    if told is not None:
        return _fail(1, told)
    traceback.print_exc()
    return 1


def _stopped(signum: int) -> int:
    """The other ranks end without a word, and without an exit code for which a launcher would kill rank 0 too."""
    from ssl_runner import runs

    if not runs.is_main():
        return 0
    print(f"stopped by {signal.Signals(signum).name}; a checkpoint was saved", file=sys.stderr)
    _requeue(signum)
    return 128 + signum


def _terminate(main: int, signum: int, frame: Any) -> None:
    """A signal outside of training, where there is nothing to save. main: the process that answers it: SLURM sends it
    to data workers as well."""
    if os.getpid() == main:
        _requeue(signum)
    elif signum != signal.SIGTERM:
        return
    sys.exit(128 + signum)


def _requeue(signum: int) -> None:
    """Has SLURM queue this job again, where it warned of the time limit, as `sbatch --signal` asks it to.

    A job that is cancelled or preempted gets SIGTERM, and SLURM does itself what is to be done then. Whether a job may
    be queued again is for scontrol to say.
    """
    from ssl_runner import runs

    job = os.environ.get("SLURM_JOB_ID")
    if job is None or signum not in (signal.SIGUSR1, signal.SIGUSR2) or not runs.is_main():
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        refusal = asked.stderr.strip() or f"exit code {asked.returncode}" if asked.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        refusal = str(error)
    told = f"can't be queued again by scontrol: {refusal}" if refusal else "is queued again"
    print(f"SLURM job {job} {told}", file=sys.stderr, flush=True)


def _fail(code: int, message: object) -> int:
    text = str(message)
    if text.startswith("Caught "):  # it comes from a data worker, wrapped in that process's traceback
        text = re.sub(r"^[\w.]+Error: ", "", text.strip().splitlines()[-1])
    print(f"ssl-run: {text}", file=sys.stderr)
    return code


def dispatch(argv: list[str]) -> int:
    if "--shell-completion" in argv[1:] or "-sc" in argv[1:]:
        return _complete(argv)
    # another rank of a run gets the argv that was rewritten below
    verb = argv[1].removeprefix("--config-name=") if len(argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if verb == "--version":
        from ssl_runner import __version__

        print(__version__)
        return 0
    if verb == "list":
        return _list(argv[2:])
    if verb == "resume":
        return _resume(argv[2:])
    if verb == "compare":
        return _compare(argv[2:])
    if verb == "pack":
        return _pack(argv[2:])
    if verb not in VERBS:
        raise RequestError(f"{verb}: no such verb{nearest(verb, (*VERBS, *PLAIN))}")
    if {"-h", "--help"} & set(argv[2:]):
        print(HELP, end="")
        return 0
    argv[1] = f"--config-name={verb}"
    argv[2:] = _rewritten(verb, argv[2:])
    return _hydra(argv)


# -- the verbs that compose a config ---------------------------------------------------------------------------


def _hydra(argv: list[str]) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to `answer`, instead of being printed and lost in exit code 1
    import hydra
    from hydra.core.plugins import Plugins

    from hydra_plugins.ssl_runner import Sweep

    Plugins.instance().register(Sweep)  # an editable checkout's plugins are not found by looking for them
    codes: list[int] = []

    def job(cfg: Any) -> dict[str, float] | None:
        """Hydra would print its own words about a failed job, so failures end here."""
        try:
            return _job(cfg)
        except Exception as error:
            codes.append(failed(error))
        return None

    before, sys.argv = sys.argv, argv
    try:
        hydra.main(version_base="1.3", config_path="pkg://ssl_runner.conf")(job)()
    except OSError as error:  # of Hydra, which makes the run's folder before `job` is called
        if error.errno is None:
            raise  # its own error for a missing choice, which is of this kind
        told = f"{error.filename}: can't be written to ({error.strerror}); name another hydra.run.dir"
        raise RequestError(told) from None
    finally:
        sys.argv = before
    return next(iter(codes), 0)


def _job(cfg: Any) -> dict[str, float]:
    """One composed config: checked, its folder claimed, its stage run."""
    from hydra.core.hydra_config import HydraConfig

    from ssl_runner import jobs, runs

    config, notes = checked(cfg)
    for note in notes:
        print(note)
    if config.pop("hparams_search"):
        raise RequestError("hparams_search: is for sweeps; add -m")
    typed = next((o for o in HydraConfig.get().overrides.task if re.match(r"\+*launcher\b", o)), None)
    if config.pop("launcher") and typed is not None:
        raise RequestError(f"{typed.lstrip('+')}: is for sweeps; add -m")
    folder = Path(HydraConfig.get().runtime.output_dir)
    if runs.started_together() and not any(o.startswith("hydra.run.dir=") for o in HydraConfig.get().overrides.hydra):
        raise RequestError("hydra.run.dir: processes that torchrun or SLURM starts need one folder for all; name it")
    later = stages_of(config, folder)
    if config["stage"] == "plan":
        from ssl_runner.plan import plan

        return plan(config, folder)
    if runs.is_main():
        runs.claim(folder, config)
        if _in_a_row(config):
            for name, stage_config in later.items():
                runs.claim(folder / name, stage_config)
    try:
        with jobs.attended(folder):
            return _stage(config["stage"])(config, folder)
    except RequestError:
        if runs.is_main():
            runs.release(folder)
        raise


def checked(cfg: Any) -> tuple[dict[str, Any], list[str]]:
    """A composed config as plain values, without what has no place in it, and what is to be said about that. Raises
    RequestError with all its faults."""
    from hydra.core.hydra_config import HydraConfig

    from ssl_runner.config import check, plain
    from ssl_runner.trust import check_secrets

    config = plain(cfg)
    check_secrets(config)
    notes = list(_left_behind(config, HydraConfig.get()))
    check(config)
    return config, notes


def stages_of(config: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of the stages of a run of several, by their folder's name."""
    return _later(config, folder) if config["stage"] == "pretrain" or _in_a_row(config) else {}


def _in_a_row(config: dict[str, Any]) -> bool:
    """Whether all three stages are run: what a recipe promises may be a figure of its finetuning."""
    promised = (config.get("contract") or {}).get("metric", "")
    return config["stage"] == "run" or (config["stage"] == "verify" and promised.startswith("finetune/"))


def _stage(name: str) -> Any:
    """A stage, and with it Lightning. A torchvision built for another torch would break that import, so it is
    looked at first and named."""
    from ssl_runner.datasets.torchvision import torchvision_datasets

    torchvision_datasets()
    from ssl_runner.stages import STAGES

    return STAGES[name]


def _later(config: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of a run's three stages. A pretraining's finetuning is composed too, so that a wrong `finetune` key
    is found now, unless its data has nothing to finetune on."""
    from hydra.utils import get_class

    from ssl_runner.compose import following
    from ssl_runner.config import check

    if config["stage"] == "pretrain" and getattr(get_class(config["data"]["_target_"]), "labelled", None) is False:
        return {}
    backbone = str((folder / "pretrain").absolute())
    finetune = _of_run(following("finetune", config, backbone))
    check(finetune, prefix="finetune.")
    if config["stage"] == "pretrain":
        return {}
    evaluate = _of_run(following("evaluate", config, backbone))
    return {
        "pretrain": {**config, "stage": "pretrain", "evaluators": {}},
        "finetune": finetune,
        "evaluate": evaluate,
    }


def _of_run(config: dict[str, Any]) -> dict[str, Any]:
    """Without what is for sweeps."""
    return {key: value for key, value in config.items() if key not in ("launcher", "hparams_search")}


def _left_behind(config: dict[str, Any], hydra: Any) -> Iterator[str]:
    """Notes on what a recipe set for its own choice of a group, where the command line has another one: it now applies
    to that as well, to nothing where that is a run's, and is taken out of the config where that has no place for it."""
    from ssl_runner.compose import FROM_RUN, key_of, without

    task = hydra.runtime.choices.get("task")
    typed = {key_of(each) for each in hydra.overrides.task}
    for root in (_conf(), *_config_dirs(sys.argv)):
        stated = _stated(root / "task", task)
        for group in sorted(typed & set(stated) & set(GROUPS)):
            if not (isinstance(stated[group], dict) and isinstance(config[group], dict)):
                continue  # one of them is nothing at all, as logger=none is
            says = f"note: the recipe {task} sets"
            if hydra.runtime.choices.get(group) == FROM_RUN:
                yield f"{says} {group}: {stated[group]}, but {group} is now the run's"
                continue
            config[group], left, gone = without(stated[group], config[group], group, typed)
            for path in gone:
                yield f"{says} {path}, for which your choice of {group} has no place: it is left out"
            if left:
                yield f"{says} {group}: {left}, which now applies to your choice of {group}"


def _stated(folder: Path, task: str) -> dict[str, Any]:
    """What a recipe and the base recipes in its defaults say, by key."""
    import yaml

    path = folder / f"{task}.yaml"
    own = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    bases = [each for each in own.get("defaults", []) if isinstance(each, str) and each != "_self_"]
    found: dict[str, Any] = {}
    for each in (*(_stated(folder, base) for base in bases), own):
        found = _merged(found, each)
    return found


def _merged(one: Any, other: Any) -> Any:
    """The other, over the one."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return {**one, **{key: _merged(one.get(key), value) for key, value in other.items()}}


def _resume(args: Sequence[str]) -> int:
    from ssl_runner import runs
    from ssl_runner.config import check
    from ssl_runner.trust import check_trust

    moved = {a.partition("=")[0]: a.partition("=")[2] for a in args if re.match(r"(device\.\w+|workers)=", a)}
    folders = [a for a in args if not a.startswith("trust=") and a.partition("=")[0] not in moved]
    if len(folders) != 1:
        raise RequestError(
            "resume takes one run folder, and beside it trust=[your_package], device.KEY=VALUE and workers=N alone: "
            "all else is as the run began"
        )
    folder = Path(folders[0].rstrip("/"))
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such run folder")

    def judged(path: Path) -> dict[str, Any]:
        stored = runs.read_config(path)
        check_trust({k: v for k, v in stored.items() if k != "trust"}, str(path / runs.CONFIG), _trusted(args))
        check(stored)
        for key, value in moved.items():
            node, name = (stored["device"], key.partition(".")[2]) if "." in key else (stored, key)
            node[name] = runs.parse(value)
        check(stored)
        return stored

    config = judged(folder)
    parts = ("pretrain", "finetune", "evaluate") if _in_a_row(config) else ()
    configs = {folder: config} | {folder / name: judged(folder / name) for name in parts}
    done = runs.read_metrics(folder)
    if done is not None:
        print(f"{folder}: finished already; its figures are in {folder / runs.METRICS}")
        return 0
    runs.writable(folder)
    from ssl_runner import jobs

    with jobs.attended(folder):
        if moved and runs.is_main():
            for path, stored in configs.items():
                runs.write(path / runs.CONFIG, runs.dump(stored))
        _stage(config["stage"])(config, folder)
    return 0


def _compare(args: Sequence[str]) -> int:
    from ssl_runner import compare

    options = dict(a.split("=", 1) for a in args if re.match(r"(metric|format)=", a))
    folders = [Path(a) for a in args if not re.match(r"(metric|format)=", a)]
    form = options.get("format", "terminal")
    if form not in compare.FORMATS:
        raise RequestError(f"format={form}: no such format{nearest(form, compare.FORMATS)}")
    if not folders:
        raise RequestError("compare takes one folder or more with runs in them")
    told = compare.compare(folders, options.get("metric"), form)
    if told is not None:
        print(told, end="")
    return 0


def _pack(args: Sequence[str]) -> int:
    from ssl_runner import pack

    print(pack.run(args), end="")
    return 0


def _rewritten(verb: str, args: Sequence[str]) -> list[str]:
    """What a person types -> what Hydra takes.

    task=X gets its +, a plain key gets ++ (whether it exists is for `check` to say, which knows the signatures and
    the nearest names), finetune.GROUP=X becomes a choice within the `finetune` mapping. finetune and evaluate inherit
    from the run that `from` names.
    """
    flags, typed = _flags_first(args)
    groups = set(GROUPS) | _own_groups(args)
    found = [_override(arg, groups) for arg in typed]
    if verb in ("finetune", "evaluate"):
        found = _inherit(verb, found)
    elif any(each.startswith("++from=") for each in found):
        found = _go_on(found, [_conf(), *_config_dirs(args)])
    return [*flags, *found]


def overriding(key: str, value: Any) -> str:
    """A value, or a group's choice, as Hydra takes it."""
    from ssl_runner.compose import quoted

    return _override(f"{key}={quoted(value)}", set(GROUPS) | _own_groups(sys.argv))


def _flags_first(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags with their values, overrides): argparse wants the overrides in one piece."""
    valued = {
        "--config-dir",
        "-cd",
        "--cfg",
        "-c",
        "--package",
        "-p",
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
    }
    flags: list[str] = []
    typed: list[str] = []
    for n, arg in enumerate(args):
        behind = n > 0 and args[n - 1] in valued
        (flags if arg.startswith("-") or behind else typed).append(arg)
    return flags, typed


def _override(arg: str, groups: set[str]) -> str:
    match = re.match(r"(\++)?([A-Za-z_][\w.]*)=", arg)
    if match is None or match[2].split(".")[0] == "hydra":
        return arg
    key, rest = match[2], arg[match.end() :]
    if key == "task":
        return f"+task={rest}"
    if key in groups:
        return f"{key}=" + re.sub(r"(?<![\w\"'.-])(\d+)(?![\w\"'.-])", r'"\1"', rest)  # precision=32 is a name
    if match[1]:
        return arg
    head, _, tail = key.partition(".")
    if head == "finetune" and tail in groups:
        return f"++finetune.{tail}._name_={rest}"
    return f"++{key}={rest}"


def _inherit(verb: str, args: list[str]) -> list[str]:
    from ssl_runner import compose

    if not any(compose.key_of(a) == "from" for a in args):
        raise RequestError(f"{verb} needs from=RUN: a run folder, a .safetensors, a .ckpt or `latest`")
    name, rest = _named(args)
    if name is None:
        if verb == "evaluate":
            raise RequestError("evaluate from=null: there is nothing to evaluate")
        chosen = {compose.key_of(a) for a in rest}
        defaults = [f"{group}={choice}" for group, choice in _defaults().items() if group not in chosen]
        return ["++from=null", *defaults, *rest]
    config, _, start = _origin(name, compose.INHERITED, args)
    inherited = [f"++{key}={compose.quoted(config[key])}" for key in ("name", "seed") if key in config]
    if verb == "finetune":
        inherited += compose.overrides(config.get("finetune") or {}, name)
    return [start, *compose.not_restated(inherited, rest), *rest]


def _go_on(args: list[str], roots: Sequence[Path]) -> list[str]:
    """A pretraining that starts from a run's weights has that run's data and backbone, and all else from its recipe.

    roots: where recipes are.
    """
    from ssl_runner import compose

    name, rest = _named(args)
    if name is None:
        return ["++from=null", *rest]
    task = next((a.partition("=")[2] for a in rest if compose.key_of(a) == "task"), "")
    if "," in task:
        raise RequestError(f"task={task}: with from=, one recipe at a time; several recipes are several commands")
    _, nodes, start = _origin(name, compose.KEPT, args)
    stated: dict[str, Any] = {}
    for root in roots:
        stated = _merged(stated, _stated(root / "task", task))
    return [start, *compose.not_restated(compose.kept(nodes, stated), rest), *rest]


def _named(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """What `from` names, None for nothing; and the other overrides."""
    from ssl_runner import compose

    given = [a for a in args if compose.key_of(a) == "from"]
    name = given[-1].partition("=")[2].strip("'\"")
    if "," in name and not Path(name).exists():
        raise RequestError(f"from={name}: one run at a time; several runs are several commands")
    return None if name in ("null", "None") else name, [a for a in args if a not in given]


def _origin(name: str, parts: Sequence[str], args: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The config of the run of this name, its nodes as they are offered, and the override that says where it is.

    Raises RequestError where there is no such run, and where these parts of it may not be built.
    """
    from ssl_runner import compose, runs
    from ssl_runner.trust import check_trust

    origin = runs.find(name)
    handed_on = ("name", "seed")
    check_trust({key: origin.config.get(key) for key in (*parts, *handed_on)}, name, _trusted(args))
    if not re.fullmatch(r"\w[\w .+-]*", str(origin.config.get("name", "x"))):
        raise RequestError(f"{name}: its config has a name that can't be one of a folder, {origin.config['name']!r}")
    nodes = compose.offer(origin.config)
    path = origin.weights if origin.weights.name != runs.BACKBONE else origin.weights.parent
    return origin.config, nodes, f"++from={compose.quoted(str(path.absolute()))}"


def _trusted(args: Sequence[str]) -> list[str]:
    """The packages of trust=[...] on the command line; a stored config can't add to them."""
    given = [a.partition("=")[2] for a in args if a.lstrip("+").startswith("trust=")]
    return [package.strip(" '\"") for value in given for package in value.strip("[]").split(",")]


def _defaults() -> dict[str, str]:
    """What training from scratch uses where nothing is said: pretraining's own data and backbone."""
    text = (_conf() / "pretrain.yaml").read_text(encoding="utf-8")
    found = {g: re.search(rf"^\s*- {g}: (\w+)", text, re.MULTILINE) for g in ("data", "backbone")}
    return {"views": "plain", **{group: match[1] for group, match in found.items() if match}}


# -- lists, completion, errors ---------------------------------------------------------------------------------


def _conf() -> Path:
    """The installed config tree: beside the package in a wheel, above it in an editable checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def _config_dirs(args: Sequence[str]) -> list[Path]:
    """The folders after --config-dir or -cd."""
    found = [a.partition("=")[2] for a in args if a.startswith(("--config-dir=", "-cd="))]
    found += [b for a, b in zip(args, args[1:], strict=False) if a in ("--config-dir", "-cd")]
    return [Path(f) for f in found]


def _own_groups(args: Sequence[str]) -> set[str]:
    return {d.name for root in _config_dirs(args) if root.is_dir() for d in root.iterdir() if d.is_dir()}


def _list(args: Sequence[str]) -> int:
    wanted = [
        a for n, a in enumerate(args) if not a.startswith("-") and args[n - 1 : n] not in (["--config-dir"], ["-cd"])
    ]
    unknown = [w for w in wanted if w not in GROUPS]
    if unknown:
        raise RequestError(f"list {unknown[0]}: no such group{nearest(unknown[0], GROUPS)}")
    for group in wanted or GROUPS:
        print(f"{group}:")
        choices = sorted(_choices(group, args))
        width = max((len(name) for name, _ in choices), default=0)
        for name, text in choices:
            print(f"  {name:<{width}}  {text}")
    return 0


def _choices(group: str, args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for root in (_conf(), *_config_dirs(args)):
        for path in (root / group).glob("[!_]*.yaml"):
            lines = path.read_text(encoding="utf-8").splitlines()
            first = next((line for line in lines if not line.startswith("# @")), "")  # Hydra wants its header on top
            yield path.stem, first.removeprefix("#").strip() if first.startswith("#") else ""


def _complete(argv: list[str]) -> int:
    """Shell completion: verbs by this file, everything behind a verb by Hydra."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    verb = words[1] if len(words) > 1 else ""
    if line and (len(words) < 2 or (len(words) == 2 and not line.endswith(" "))):
        print(" ".join(v for v in (*VERBS, *PLAIN) if v.startswith(verb)))
        return 0
    if line and verb in PLAIN:
        print(" ".join(GROUPS) if verb == "list" else "")
        return 0
    if line:
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]]) + (" " if line.endswith(" ") else "")
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    verb = verb if verb in VERBS else "pretrain"
    flags = [a for a in argv[1:] if a != verb]
    return _hydra([argv[0], f"--config-name={verb}", *flags])


def _hydra_fault(error: BaseException) -> str | None:
    """A wrong override or choice in a person's words; None if the error is something else."""
    if type(error).__module__.split(".")[0] not in ("hydra", "omegaconf"):
        return None
    options = getattr(error, "options", None)
    missing = getattr(error, "missing_cfg_file", None)
    text = str(error)
    if missing is not None and options is not None:
        group, _, name = str(missing).rpartition("/")
        return f"{group}={name}: no such choice{nearest(name, [o for o in options if not o.startswith('_')])}"
    from hydra.errors import InstantiationException

    if isinstance(error, InstantiationException):
        return None
    override = getattr(error, "override", None)
    if override is not None:
        return f"{override}: can't be read as KEY=VALUE ({text.splitlines()[0]}); quote it, as in 'key=\"a value\"'"
    return text.replace("To append to your config use", "To add it, say").splitlines()[0] + (
        "" if len(text.splitlines()) < 2 else "\n  " + "\n  ".join(text.splitlines()[1:4])
    )


if __name__ == "__main__":
    main()
