"""Samples in tar shards, of one input each, with or without classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from ssl_runner.datasets import addresses, packs
from ssl_runner.datasets.columns import File, FileColumn, FileList
from ssl_runner.datasets.inputs import Labels, Listing, held_out, leave_out
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.pairs import Shares
from ssl_runner.datasets.tar import Member, archives, listed, members, samples_of, text_of
from ssl_runner.datasets.text import CACHE
from ssl_runner.errors import RequestError, nearest


class Archives(Listing):
    """Pictures or sounds in .tar files that are not compressed, as WebDataset has them and `ssl-run pack` writes them.

    root: a .tar, a folder of them, or a folder with train, val and test, or train alone, which hold them; here, or at
    an address that fsspec knows (s3://bucket/photos, https://, hf://). With `simplecache::` before an address each
    shard is fetched whole when it is first needed, and read from this machine from then on.
    A sample is what of one archive has the same name up to the first dot behind the last slash; what comes behind that
    dot says which member it is. input: how samples are read (ssl_runner.datasets.columns), by extension. label: the
    extension of the members that hold classes.
    val, test: shares of the train part that are split off from it, each class alike, where there is no such part.

    Each sample is read by its place in its archive, so that any order costs the same and memory holds places alone.
    Where the members of foreign archives are is looked up once and kept in `cache`; packed ones bring it along.
    The sizes of packed shards are looked at on opening; with verify, their checksums too, which reads all of them.
    Links and other members that are no plain files are passed over; nothing is unpacked.
    Raises RequestError for what is no such archive, or not what was packed.
    """

    def __init__(
        self,
        *,
        root: str,
        input: FileColumn,
        label: str = "cls",
        val: Shares = 0.1,
        test: Shares = 0.1,
        on_broken: Literal["skip", "stop"] = "skip",
        verify: bool = False,
        cache: str = CACHE,
    ):
        given, root = root, addresses.home(root)
        pack = packs.about(root, "shards")
        if pack is not None and verify:
            packs.verify(root, pack)
        elif verify:
            raise RequestError(
                f"data.verify: {given!r} has no {packs.INDEX} with checksums, which `ssl-run pack` writes"
            )
        shards: list[tuple[str, str, Iterator[Member]]] = []
        if pack is None:
            shards = [(part, path, members(path, cache)) for part, path in archives(root, given)]
        else:
            for packed in pack.files:
                found = listed(packs.members_of(root, packed))
                shards.append((packed.part, addresses.join(root, packed.file), found))
        files: list[FileList] = []
        labels = Labels()
        part: list[np.ndarray] = []
        broken: list[str] = []
        others: set[str] = set()
        for belongs, path, found in shards:
            here: list[File] = []
            for stem, cells in samples_of(found):
                member = input.chosen(cells)
                if member is None:
                    broken.append(f"{path}:{stem} has no {input.column!r}")
                    others |= set(cells)
                    continue
                here.append(File(path, member.start, member.size, member.name))
                labels.add(text_of(path, cells[label]) if label in cells else None)
            files.append(FileList(here))
            part.append(np.full(len(here), PARTS.index(belongs), np.int8))
        items = FileList.joined(files)
        if not len(items):
            raise RequestError(f"data.input.column={input.column!r}: nothing in {given!r} has it{nearest('', others)}")
        leave_out(broken, on_broken)
        classes, numbers = labels.told(given, pack.classes if pack is not None and pack.classes else None)
        of = np.array(PARTS)[np.concatenate(part)]
        here_already = PARTS if pack is not None else tuple({belongs for belongs, _, _ in shards})
        parts = held_out(of, numbers, {"val": val, "test": test}, here_already)
        opened = input.open(items, ())
        super().__init__(opened, parts, classes=classes, label=numbers, on_broken=on_broken)
