"""A job's folder, and what can be read from it: metrics.json of one that finished, failure.json of one that did not, a
checkpoint of one that was cut off. Whatever runs in a folder holds a lock on .lock, which dies with its process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ssl_runner import runs
from ssl_runner.errors import Pruned, RequestError, RunError

JOB, FAILURE, LOCK = "job.json", "failure.json", ".lock"
State = Literal["done", "failed", "killed", "pruned", "stopped", "new"]
STATES = ("done", "pruned", "stopped", "new", "failed", "killed")
"""In the order in which they are run: what is most likely to fail comes last."""
PATIENCE = 10.0
"""Seconds to wait for a process that ends, or only looks whether another one is there."""


def state(folder: Path) -> State:
    """What became of a job, where no process is at it."""
    failure = read_failure(folder)
    if failure is not None:
        return failure["kind"]
    if (folder / runs.METRICS).is_file():
        return "done"
    return "stopped" if any(folder.rglob(runs.LAST)) else "new"


def read_job(folder: Path) -> dict[str, Any] | None:
    return _read(folder / JOB)


def read_failure(folder: Path) -> dict[str, Any] | None:
    """{kind: failed, killed or pruned; error; code}"""
    return _read(folder / FAILURE)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise RequestError(f"{path}: can't be read; remove it") from None


def failed(folder: Path, kind: Literal["failed", "killed", "pruned"], error: str, code: int) -> None:
    runs.write(folder / FAILURE, json.dumps({"kind": kind, "error": error, "code": code}, indent=2) + "\n")


@contextmanager
def attended(folder: Path) -> Iterator[None]:
    """Around a run: no other process may be at it, and how it failed is written down where it is a job of a sweep."""
    if not runs.is_main():
        yield
        return
    with alone(folder, PATIENCE) as free:
        if not free:
            raise RequestError(f"{folder}: another process is at this run; let it end, or stop it first")
        if not (folder / JOB).is_file():
            yield
            return
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            yield
        except Pruned as error:
            failed(folder, "pruned", str(error), 0)
            print(f"{folder}: {error}", flush=True)
        except Exception as error:
            known = isinstance(error, RequestError | RunError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            failed(folder, "failed", text, 2 if isinstance(error, RequestError) else 1)
            raise


@contextmanager
def alone(folder: Path, seconds: float = 0) -> Iterator[bool]:
    """Whether no other process is at this folder; within the block none is if so. Gone with the process, and not handed
    down to those that it forks. seconds: to wait for one that is. A disk that knows no locks is taken to be free."""
    until = time.monotonic() + seconds
    while (handle := _locked(folder / LOCK)) is None and time.monotonic() < until:
        time.sleep(0.1)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)


def _locked(path: Path) -> int | None:
    """A handle of the file, with its lock; None where another process has that."""
    import fcntl

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(handle)
            return None
        except OSError:
            return handle
        try:
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the one before took the file away when it ended: there is a new one, or none
