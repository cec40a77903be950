"""How a user's files lie in folders: parts, classes, or neither."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ssl_runner.errors import RequestError, nearest

PARTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


def layouts(kind: str) -> str:
    """What to do, at the end of a message."""
    return f"put {kind} in <root>/<class>/, <root>/{{train,val,test}}/<class>/ or, without classes, <root> itself"


def find_files(root: str, extensions: Sequence[str], kind: str = "files") -> Iterator[str]:
    """The paths, relative to root, of all files with these extensions, each folder's in sorted order.

    Links are followed, but not into a folder that they are in. kind: what the files are, for messages. Raises
    RequestError for a folder that can't be read.
    """
    yield from _walk(root, "", frozenset(e.lower() for e in extensions), kind, ())


def _walk(
    root: str, inside: str, extensions: frozenset[str], kind: str, above: tuple[tuple[int, int], ...]
) -> Iterator[str]:
    folder = os.path.join(root, inside)
    try:
        found = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise RequestError(f"data.root: {folder!r} can't be read ({error.strerror}); {layouts(kind)}") from error
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    for entry in entries:
        path = os.path.join(inside, entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(root, path, extensions, kind, (*above, here))
        elif os.path.splitext(path)[1].lower() in extensions and (entry.is_file() or entry.is_symlink()):
            yield path  # a link to nothing as well: it is a broken sample, not an absent one


def top(path: str) -> str | None:
    """The first folder of a relative path; None for a file that is in no folder."""
    first, rest, _ = path.partition(os.sep)
    return first if rest else None


def lay_out(
    root: str, files: Sequence[str], extensions: Sequence[str], kind: str = "files"
) -> dict[str, tuple[str, list[str]]]:
    """The files below root -> for each part of the layout, its folder within root and its files within that.

    Raises RequestError where there are no files, or where it can't be told parts from classes.
    """
    if not files:
        raise RequestError(f"data.root={root!r}: no {kind} ({', '.join(extensions)}) in it; {layouts(kind)}")
    tops = {top(f) for f in files}
    parts, others = tops & set(PARTS), {str(t) for t in tops - set(PARTS) - {None}}
    if "train" not in parts:
        if parts and not others:
            raise RequestError(f"data.root={root!r}: there is {', '.join(sorted(map(str, parts)))} but no train folder")
        return {"train": ("", list(files))}
    # "train" may also be the name of a class: then it holds files itself and stands among other classes.
    holds_classes = not any(top(f) == "train" and f.count(os.sep) == 1 for f in files)
    if others and (holds_classes or len(parts) > 1):
        odd = min(others)
        raise RequestError(
            f"data.root={root!r}: beside train there is {odd!r}, which is no part of a data set"
            f"{nearest(odd, PARTS)}; rename it or move it away"
        )
    if others:
        return {"train": ("", list(files))}
    if None in tops:
        raise RequestError(f"data.root={root!r}: {_loose(files)!r} is in none of the parts; move it into one, or away")
    return {part: (part, [f[len(part) + 1 :] for f in files if top(f) == part]) for part in PARTS if part in parts}


def _loose(files: Sequence[str]) -> str:
    return next(f for f in files if top(f) is None)


def class_names(root: str, found: dict[str, tuple[str, list[str]]], kind: str = "files") -> tuple[str, ...]:
    """The class folders of train, sorted; none where its files are in no folder.

    Raises RequestError where some are and some are not, or where another part has a class that train has not.
    """
    tops = {part: {top(f) for f in files} for part, (_, files) in found.items()}
    for part, (folder, files) in found.items():
        where = os.path.join(root, folder)
        if None in tops[part] and len(tops[part]) > 1:
            raise RequestError(
                f"data.root: {os.path.join(where, _loose(files))!r} stands beside class folders; "
                "move it into one, or away"
            )
        unknown = tops[part] - tops["train"]
        if unknown:
            kind = f"{kind} without classes" if None in unknown else f"the class {min(map(str, unknown))!r}"
            raise RequestError(f"data.root: {where!r} has {kind}, which {os.path.join(root, 'train')!r} has not")
    return tuple(sorted(t for t in tops["train"] if t is not None))


def label_of(files: Sequence[str], classes: Sequence[str]) -> Tensor | None:
    """(N,) int64, each file's class by its top folder; None where there are no classes."""
    number = {name: n for n, name in enumerate(classes)}
    return torch.tensor([number[str(top(f))] for f in files], dtype=torch.int64) if classes else None
