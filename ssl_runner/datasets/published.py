"""What others have published: where its files are looked for, and the commands that fetch them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ssl_runner.errors import RequestError


def folder_of(title: str, root: str, places: Sequence[str], files: Sequence[str], command: str) -> str:
    """The folder of a data set's files: of the places below root the one with most of them, the first of equals.

    title: its name for a reader. command: a shell command that fetches it. Raises RequestError where a file is missing.
    """
    folders = [os.path.join(root, place) for place in places]
    absent = [[file for file in files if not os.path.isfile(os.path.join(folder, file))] for folder in folders]
    missing, folder = min(zip(absent, folders, strict=True), key=lambda each: len(each[0]))
    if missing:
        state = "is not there" if len(missing) == len(files) else "is not whole"
        more = f", and {len(missing) - 1} more of {len(files)} files" if len(missing) > 1 else ""
        raise RequestError(
            f"data.root={root!r}: {title} {state} ({missing[0]!r} is missing{more}); run `{command}`, or set data.root "
            "to the folder that has it"
        )
    return folder


def fetch_and_unpack(url: str, root: str) -> str:
    """The shell command that puts a .tar.gz from the web into root."""
    folder = shlex.quote(root)
    return f"mkdir -p {folder} && curl -L {url} | tar xz -C {folder}"


def pack_and_unpack(package: str, root: str) -> str:
    """The shell command that puts a package of npm into root."""
    folder = shlex.quote(root)
    return f'mkdir -p {folder} && tar xzf "$(npm pack --silent {package})" -C {folder}'


def debian(packages: Sequence[str], root: str) -> str:
    """The shell command that unpacks packages of Debian into root; nothing is installed."""
    folder, names = shlex.quote(root), " ".join(packages)
    unpack = "for each in *.deb; do dpkg -x $each .; done"
    return f"mkdir -p {folder} && cd {folder} && apt-get download {names} && {unpack}"


def home(root: str) -> str:
    """root, with ~ spelled out."""
    return str(Path(root).expanduser())
