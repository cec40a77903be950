"""Pairs in tar archives as WebDataset lays them out (https://github.com/webdataset/webdataset): members of one stem
are a sample."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import Literal

from ssl_runner.datasets.columns import Column, File, Row
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.pairs import Paired, Shares
from ssl_runner.datasets.published import home
from ssl_runner.errors import RequestError


class Shards(Paired):
    """Pairs in .tar files that are not compressed.

    root: a .tar, a folder of them, or a folder with train, val and test, or train alone, which hold them.
    A sample is what of one archive has the same name up to the first dot behind the last slash; its columns are what
    comes behind that dot: `000017.jpg` and `000017.txt` give `000017` the columns jpg and txt. first, second: how they
    are read (ssl_runner.datasets.columns): text, pictures, or sounds (wav, flac, ogg, mp3). label_column:
    holds classes, as cls does.

    Archives are read where they lie, by the places of their members, which are looked up at each start; nothing is
    unpacked. Links and other members that are no plain files are passed over, and so are hidden files.
    The rest is told at Paired. Raises RequestError for what is no such archive.
    """

    def __init__(
        self,
        *,
        root: str,
        first: Column,
        second: Column,
        label_column: str | None = None,
        val: Shares = 0.1,
        test: Shares = 0.1,
        on_broken: Literal["skip", "stop"] = "skip",
    ):
        rows = [
            Row(cells, f"{path}:{stem}", "", part)
            for part, path in archives(home(root), root)
            for stem, cells in samples_of(path)
        ]
        super().__init__(
            rows,
            root=root,
            first=first,
            second=second,
            label=label_column,
            val=val,
            test=test,
            on_broken=on_broken,
        )


def archives(root: str, given: str) -> list[tuple[Literal["train", "val", "test"], str]]:
    """(part, file) of every archive, in order. Raises RequestError where there are none to train on."""
    if os.path.isfile(root):
        return [("train", root)]
    folders = {part: os.path.join(root, part) for part in PARTS}
    if not os.path.isdir(folders["train"]):
        folders = {"train": root}
    found = [(part, path) for part, folder in folders.items() for path in _tars(folder)]
    if not any(part == "train" for part, _ in found):
        raise RequestError(f"data.root={given!r}: no .tar in it to train on; give a .tar, or a folder of them")
    return found


def _tars(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.lower().endswith(".tar")]


def samples_of(path: str) -> Iterator[tuple[str, dict[str, File]]]:
    """(stem, extension -> member) of each sample of an archive, in order. Raises RequestError for what is none."""
    found: dict[str, dict[str, File]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if member.isreg() and stem and extension:
                    cells = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
                    cells[extension.lower()] = File(path, member.offset_data, member.size, member.name)
    except (tarfile.TarError, OSError) as error:
        raise RequestError(
            f"data.root: {path!r} is no .tar that can be read ({error}); unpack a compressed one"
        ) from error
    yield from found.items()
