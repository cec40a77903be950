"""Run folders on disk: claimed by one run, written atomically, found again by `from=` and `resume`."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from ssl_runner.errors import RESUME, RequestError, RunError, no_room
from ssl_runner.trust import masked

CONFIG, METRICS, ENVIRONMENT = "config.yaml", "metrics.json", "environment.json"
BACKBONE, CHECKPOINTS, SHOWN = "backbone.safetensors", "checkpoints", "shown"
LAST, BEST = "last.ckpt", "best.ckpt"
LARGEST, DEEPEST, VALUES = 16 << 20, 100, 1_000_000  # bytes, levels and values of a config.yaml that is believed


def is_main() -> bool:
    """Whether this process is the one of its run that writes: rank 0, by whatever launched it."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


def started_together() -> bool:
    """Whether torchrun or SLURM started this process as one of several of its run."""
    by_slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    return by_slurm or int(os.environ.get("WORLD_SIZE", 1)) > 1


def write(path: Path, content: str) -> None:
    """Replaces a file in one step: a reader sees the old content or the new, never a part."""
    with replacing(path) as file:
        file.write(content.encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` in one step at the end of the block, when it is on the disk.

    Whoever is killed in between, or cut off from power, leaves the old file whole. Raises RunError where there is no
    room for the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except Exception as error:  # torch's writer tells a full disk as a RuntimeError of another one
        why = no_room(error)
        if why is None:
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        raise RunError(
            f"{path}: can't be written ({why}; {free:.0f} MB are free there); what it held before is whole. Make room "
            f"on that disk. {RESUME}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk: a rename is in it, not in the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tidy(folder: Path) -> None:
    """Removes what a process that was killed in `replacing` left behind."""
    for inner in (folder, folder / CHECKPOINTS):
        for path in inner.glob(".*"):
            if re.fullmatch(r"\..+?(\.\d+)+", path.name):
                path.unlink(missing_ok=True)


def claim(folder: Path, config: Mapping[str, Any]) -> None:
    """Makes a folder this run's own by creating its config.yaml, all of it in one step. Raises RequestError if a run
    is there already, and where nothing can be written."""
    temporary = folder / f".{CONFIG}.{os.getpid()}.{threading.get_ident()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(dump(config), encoding="utf-8")
            os.link(temporary, folder / CONFIG)  # unlike a rename it refuses what is there
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise RequestError(
            f"{folder}: holds a run already; go on with it by `ssl-run resume {folder}`, or name another hydra.run.dir"
        ) from None
    except OSError as error:
        raise RequestError(f"{folder}: can't be written to ({error.strerror}); name another hydra.run.dir") from None


def writable(folder: Path) -> None:
    """Raises RequestError where a run can't go on in a folder, since nothing can be written there."""
    try:
        probe = folder / f".{CONFIG}.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"{folder}: can't be written to ({error.strerror}); mend that, or copy the run") from None


def release(folder: Path) -> None:
    """Gives back a folder whose run was refused before it trained: takes away what `claim` and the start wrote, so
    that the mended command can use it. Anything else in it stays, and so does a folder with a checkpoint."""
    if any(folder.rglob(LAST)):
        return
    for inner in (folder / "pretrain", folder / "finetune", folder / "evaluate", folder):
        for name in (CONFIG, ENVIRONMENT):
            (inner / name).unlink(missing_ok=True)
        if inner.is_dir() and not any(inner.iterdir()):
            inner.rmdir()


def dump(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def read_config(folder: Path) -> dict[str, Any]:
    """A run folder's config.yaml as plain data. Raises RequestError naming the file if it is none."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > LARGEST:
            raise RequestError(f"{path}: no config of a run, for it is larger than {LARGEST >> 20} MiB")
        config = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{folder}: no run folder, for it holds no {CONFIG}") from None
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        raise RequestError(f"{path}: can't be read as a config ({_first_line(error)})") from None
    return _as_config(config, path)


def parse(text: str) -> Any:
    """YAML as plain data. Raises ValueError or YAMLError; no text makes it recurse without end, or crash.

    libyaml's loader calls itself for each level and ends the process at some ten thousand of them, so levels are
    counted first, by its parser, which does not.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} levels deep")
    return yaml.load(text, Loader=loader)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _small(config: Any) -> bool:
    """Whether it has no more values than any config needs, written out. By aliases a few lines can stand for billions,
    or for themselves."""
    left, level = VALUES, [config]
    for _ in range(DEEPEST):
        inside = (each for node in level if isinstance(node, (dict, list)) for each in _inside(node))
        level = list(islice(inside, left + 1))
        left -= len(level)
        if left < 0:
            return False
    return not level


def _inside(node: dict[Any, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def _as_config(config: Any, path: Path) -> dict[str, Any]:
    if not _small(config):
        raise RequestError(f"{path}: no config of a run; it is larger or deeper than one can be")
    if not isinstance(config, dict) or not isinstance(config.get("backbone"), dict) or "stage" not in config:
        raise RequestError(f"{path}: no config of a run; it needs at least `stage` and `backbone`")
    for group in ("data", "views", "evaluators", "finetune"):
        if not isinstance(config.get(group, {}), (dict, type(None))):
            raise RequestError(f"{path}: no config of a run; its {group} must be a mapping")
    return {str(key): value for key, value in config.items()}


@dataclass(frozen=True)
class Origin:
    """What `from=` led to: a config, and the file with the weights that belong to it."""

    config: dict[str, Any]
    weights: Path


def find(name: str) -> Origin:
    """Resolves `from=`: a run folder, a .safetensors, a .ckpt, or `latest` (the newest pretraining in outputs/).

    Raises RequestError that names what is wrong with it. Runs nothing of what it reads.
    """
    path = latest() if name == "latest" else Path(name)
    if path.is_dir():
        for inner in (path, path / "pretrain"):  # a `run` folder hands on its pretraining
            if (inner / BACKBONE).is_file():
                return Origin(read_config(inner), inner / BACKBONE)
        if (path / CONFIG).is_file():
            raise RequestError(f"{path}: has no {BACKBONE} yet; finish it first by `ssl-run resume {path}`")
        raise RequestError(f"{path}: no run folder, for it holds neither {CONFIG} nor {BACKBONE}")
    if not path.exists():
        raise RequestError(f"from={name}: no such run folder or file; give one, or `latest`, or null")
    if path.suffix == ".safetensors":
        return Origin(_as_config(_safetensors_config(path), path), path)
    if path.suffix == ".ckpt":
        from ssl_runner.checkpoint import load_checkpoint

        stored = load_checkpoint(path).get("config")
        return Origin(_as_config(_parse(stored, path), path), path)
    raise RequestError(f"from={name}: give a run folder, a .safetensors, a .ckpt, `latest` or null")


def latest(root: Path = Path("outputs")) -> Path:
    """The newest finished pretraining below outputs/."""
    found = [p for p in root.rglob(BACKBONE) if p.parent.name != "finetune" and "finetune" not in p.parts[1:2]]
    if not found:
        raise RequestError(f"from=latest: there is no finished pretraining below {root}/")
    return max(found, key=lambda p: p.stat().st_mtime).parent


def _safetensors_config(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            stored = (file.metadata() or {}).get("config")
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{path}: can't be read as safetensors ({error})") from None
    return _parse(stored, path)


def _parse(stored: Any, path: Path) -> Any:
    if not isinstance(stored, str):
        raise RequestError(f"{path}: carries no config; it was not written by ssl-run")
    try:
        return json.loads(stored)
    except (ValueError, RecursionError):
        raise RequestError(f"{path}: carries a config that is no JSON") from None


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    write(folder / METRICS, json.dumps(dict(metrics), indent=2) + "\n")


def read_metrics(folder: Path) -> dict[str, float] | None:
    """The figures of a finished run, None if it has not finished."""
    path = folder / METRICS
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError, RecursionError):
        raise RequestError(f"{path}: can't be read; remove it and resume the run") from None


def write_environment(folder: Path) -> None:
    """Versions, hardware and git state, so that a figure can be traced to what made it."""
    import torch

    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "timm", "torchmetrics", "numpy")
    content = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [masked(each) for each in sys.argv],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("ssl-runner", *packages)},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "git": _git(),
    }
    write(folder / ENVIRONMENT, json.dumps(content, indent=2) + "\n")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _git() -> dict[str, Any] | None:
    """The commit of the folder the run was started in, and whether it had uncommitted changes."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return {"commit": commit.stdout.strip(), "uncommitted": bool(dirty.stdout.strip())}
