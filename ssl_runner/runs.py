"""Run folders on disk: claimed by one run, written atomically, found again by `from=` and `resume`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ssl_runner.errors import RequestError

CONFIG, METRICS, ENVIRONMENT = "config.yaml", "metrics.json", "environment.json"
BACKBONE, CHECKPOINTS, SHOWN = "backbone.safetensors", "checkpoints", "shown"
LAST, BEST = "last.ckpt", "best.ckpt"


def is_main() -> bool:
    """Whether this process is the one of its run that writes: rank 0, by whatever launched it."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


def write(path: Path, content: str) -> None:
    """Replaces a file in one step: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def claim(folder: Path, config: Mapping[str, Any]) -> None:
    """Makes a folder this run's own by creating its config.yaml. Raises RequestError if a run is there already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / CONFIG, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise RequestError(
            f"{folder}: holds a run already; go on with it by `ssl-run resume {folder}`, or name another hydra.run.dir"
        ) from None
    except OSError as error:
        raise RequestError(f"{folder}: can't be written to ({error.strerror}); name another hydra.run.dir") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(dump(config))


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
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise RequestError(f"{folder}: no run folder, for it holds no {CONFIG}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{path}: can't be read as a config ({str(error).splitlines()[0]})") from None
    return _as_config(config, path)


def _as_config(config: Any, path: Path) -> dict[str, Any]:
    if not isinstance(config, dict) or not isinstance(config.get("backbone"), dict) or "stage" not in config:
        raise RequestError(f"{path}: no config of a run; it needs at least `stage` and `backbone`")
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
    except ValueError:
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
    except (ValueError, TypeError):
        raise RequestError(f"{path}: can't be read; remove it and resume the run") from None


def write_environment(folder: Path) -> None:
    """Versions, hardware and git state, so that a figure can be traced to what made it."""
    import torch

    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "timm", "torchmetrics", "numpy")
    content = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
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
