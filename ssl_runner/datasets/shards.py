"""Pairs in tar archives as WebDataset lays them out (https://github.com/webdataset/webdataset): members of one stem
are a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ssl_runner.datasets import addresses
from ssl_runner.datasets.columns import Column, File, Row
from ssl_runner.datasets.pairs import Paired, Shares
from ssl_runner.datasets.tar import archives, listed, samples_of, scan, text_of


class Shards(Paired):
    """Pairs in .tar files that are not compressed.

    root: a .tar, a folder of them, or a folder with train, val and test, or train alone, which hold them; here, or at
    an address that fsspec knows.
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
            for part, path in archives(addresses.home(root), root)
            for stem, cells in cells_of(path, label_column)
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


def cells_of(path: str, label: str | None) -> Iterator[tuple[str, dict[str, File | str]]]:
    """(stem, extension -> member) of each sample of an archive, in order; of the label the text. Raises RequestError
    for what is no archive."""
    for stem, found in samples_of(listed(scan(path))):
        cells: dict[str, File | str] = {
            extension: File(path, member.start, member.size, member.name) for extension, member in found.items()
        }
        if label in found:
            cells[label] = text_of(path, found[label])
        yield stem, cells
