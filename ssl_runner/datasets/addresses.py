"""Files on this machine, or at an fsspec address (s3://, https://, hf://): listed, and read piece by piece."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO

from ssl_runner.datasets import published
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.errors import RequestError, RunError

ASKED = 16  # files of a store that are asked for at a time
TRIES, PAUSE = 3, 2.0  # how often a piece is asked for, and seconds between


def is_address(path: str) -> bool:
    """Whether it is for fsspec to read."""
    return "://" in path


def home(root: str) -> str:
    """root, with ~ spelled out where it is a path."""
    return root if is_address(root) else published.home(root)


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else os.path.join(folder, name)


def is_folder(path: str) -> bool:
    return os.path.isdir(path) if not is_address(path) else bool(_of(path, "isdir"))


def is_file(path: str) -> bool:
    return os.path.isfile(path) if not is_address(path) else bool(_of(path, "isfile"))


def names_in(folder: str) -> list[str]:
    """The names in a folder, sorted, hidden ones left out; none where there is no such folder."""
    if not is_folder(folder):
        return []
    if is_address(folder):
        found = [each.rstrip("/").rpartition("/")[2] for each in _of(folder, "ls", detail=False)]
    else:
        found = os.listdir(folder)
    return sorted(name for name in found if name and not name.startswith("."))


def sizes_of(folder: str, names: Sequence[str]) -> list[int]:
    """Bytes of each file in a folder; -1 for one that is not there."""
    paths = [join(folder, name) for name in names]
    if not is_address(folder):
        return [os.path.getsize(path) if os.path.isfile(path) else -1 for path in paths]
    system, inside = _system(folder)
    with ThreadPoolExecutor(ASKED) as pool:  # a store answers slowly, and many at a time
        return list(pool.map(partial(_size, system), [f"{inside.rstrip('/')}/{name}" for name in names]))


def _size(system: Any, inside: str) -> int:
    try:
        return int(system.size(inside))
    except FileNotFoundError:
        return -1
    except Exception as error:  # each kind of store has errors of its own
        raise RequestError(f"{inside!r} can't be reached ({error or type(error).__name__})") from error


def identity(path: str) -> str:
    """Another when the file is another: of its address, its size, and its time or whatever a store says of it."""
    if is_address(path):
        return repr(sorted((key, str(value)) for key, value in _of(path, "info").items()))
    found = os.stat(path)
    return f"{os.path.abspath(path)} {found.st_size} {found.st_mtime_ns}"


def opened(path: str) -> BinaryIO:
    """For reading from beginning to end. Raises OSError, or RequestError of an address."""
    return open(path, "rb") if not is_address(path) else _of(path, "open", "rb")


def content(path: str, start: int, size: int, name: str = "") -> bytes:
    """So many bytes of a file from `start` on; all that follow, where `size` is -1. name: what to call them. Nothing
    else of the file is read. Raises BrokenSample where they are not there, RunError where a store does not answer."""
    told = name or path
    try:
        if is_address(path):
            found = _fetched(path, start, None if size < 0 else start + size)
        else:
            with open(path, "rb") as file:
                file.seek(start)
                found = file.read(size)
    except OSError as error:
        raise BrokenSample(f"{told!r} can't be read: {error}") from error
    if 0 <= size != len(found):
        raise BrokenSample(f"{told!r} can't be read: {path!r} ends {size - len(found)} bytes too early")
    return found


def _fetched(path: str, start: int, end: int | None) -> bytes:
    """Raises FileNotFoundError, and RunError where a store does not answer: its samples are not broken, and others in
    their place would make it another run."""
    system, inside = _system(path)
    for left in reversed(range(TRIES)):
        try:
            return system.cat_file(inside, start=start, end=end)
        except FileNotFoundError:
            raise
        except Exception as error:  # as above
            if not left:
                told = error or type(error).__name__
                raise RunError(f"{path!r} can't be reached ({told}); see to that, and resume the run") from error
            time.sleep(PAUSE)
    raise AssertionError


def _of(path: str, what: str, *args: Any, **named: Any) -> Any:
    """What a store says of a path. Raises RequestError where it can't be asked."""
    system, inside = _system(path)
    try:
        return getattr(system, what)(inside, *args, **named)
    except Exception as error:  # as above
        raise RequestError(f"{path!r} can't be reached ({error or type(error).__name__})") from error


def _system(path: str) -> tuple[Any, str]:
    """The file system of an address, and what the path is called there. It is looked up anew for each use: fsspec keeps
    it, and makes another in another process, as its connections can't be taken there."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise RequestError(
            f"{path!r}: addresses need the package fsspec; run `pip install 'ssl-runner[remote]'`"
        ) from error
    try:
        return url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise RequestError(f"{path!r}: can't be opened ({error}); give an address that fsspec knows") from error
