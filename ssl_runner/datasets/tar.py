"""Tar archives as WebDataset lays them out (https://github.com/webdataset/webdataset), read where they lie: their
members are looked up once, and then each is read by its place. Nothing is ever unpacked."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from ssl_runner.datasets import addresses
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.published import home
from ssl_runner.errors import RequestError

FORMAT = 1  # of the index; raise it when what is written changes
INDEX = ".index.npz"  # behind an archive's name: its index, in a folder that `ssl-run pack` wrote
SPELLED = ("cls",)  # extensions whose content is kept in the index
LONGEST = 256  # bytes of such content
Blocks = dict[str, np.ndarray]
DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError, EOFError, RecursionError)


class Member(NamedTuple):
    """start, size: where its bytes are in the archive. text: what they are, for SPELLED extensions; None for others."""

    name: str
    start: int
    size: int
    text: str | None


def members(path: str, cache: str) -> Iterator[Member]:
    """The plain files of an archive, in order; links and the like, and hidden files, are passed over.

    path: may be an address. cache: a folder for what was found in an archive, by its address, size and time.
    Raises RequestError for what is no archive that is not compressed, and where the cache can't be written.
    """
    store = Path(home(cache))
    key = hashlib.blake2b(f"{FORMAT} {addresses.identity(path)}".encode(), digest_size=16).hexdigest()
    kept = store / f"tar-{key}.npz"
    found = loaded(kept) if kept.is_file() else None
    if found is None:
        found = scan(path)
        try:
            store.mkdir(parents=True, exist_ok=True)
            save(found, kept)
        except OSError as error:
            raise RequestError(
                f"data.cache={cache!r}: can't be written ({error.strerror or error}); set it to a folder that can"
            ) from error
    yield from listed(found)


def scan(path: str) -> Blocks:
    """The index of an archive, by reading its headers. Raises RequestError for what is none."""
    found: list[Member] = []
    before = -1
    try:
        with addresses.opened(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # they would all be kept
                if member.size < 0 or member.offset <= before:
                    raise tarfile.ReadError("a header leads backwards")
                before = member.offset
                stem, _, extension = member.name.rpartition("/")[2].partition(".")
                if not member.isreg() or member.issparse() or not stem or not extension:
                    continue
                text = None
                if extension.lower() in SPELLED and member.size <= LONGEST:
                    inside = archive.extractfile(member)
                    text = inside.read().decode("utf-8", "replace") if inside is not None else None
                found.append(Member(member.name, member.offset_data, member.size, text))
    except DAMAGE as error:
        raise RequestError(
            f"data.root: {path!r} is no .tar that can be read ({error}); unpack a compressed one"
        ) from error
    return blocks(found)


def blocks(found: Sequence[Member]) -> Blocks:
    """The index as it is kept in a file: a few arrays."""
    names = [member.name.encode("utf-8", "surrogateescape") for member in found]
    texts = [(member.text or "").encode() for member in found]
    return {
        "place": np.array([(m.start, m.size) for m in found], np.int64).reshape(-1, 2),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(each) for each in names], dtype=np.int64),
        "texts": np.frombuffer(b"".join(texts), np.uint8),
        "text_ends": np.cumsum([len(each) for each in texts], dtype=np.int64),
        "spelled": np.array([member.text is not None for member in found], bool),
    }


def listed(index: Blocks) -> Iterator[Member]:
    names, texts = index["names"].tobytes(), index["texts"].tobytes()
    rows = zip(index["place"].tolist(), index["name_ends"].tolist(), index["text_ends"].tolist(), strict=True)
    name_begin = text_begin = 0
    for ((start, size), name_end, text_end), spelled in zip(rows, index["spelled"].tolist(), strict=True):
        name = names[name_begin:name_end].decode("utf-8", "surrogateescape")
        yield Member(name, start, size, texts[text_begin:text_end].decode("utf-8", "replace") if spelled else None)
        name_begin, text_begin = name_end, text_end


def save(index: Blocks, file: Path) -> None:
    """Written in one step. The same index gives the same bytes."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".tar-", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as opened:
            np.savez(opened, **index)  # type: ignore[arg-type]
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def loaded(file: Path | BinaryIO) -> Blocks | None:
    """None for what is no such index."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            found = {name: stored[name] for name in ("place", "names", "name_ends", "texts", "text_ends", "spelled")}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None  # RuntimeError: parts that claim to be encrypted, or packed in ways that Python does not know
    count = len(found["spelled"])
    lengths = {len(found[name]) for name in ("place", "name_ends", "text_ends")}
    return found if lengths == {count} and found["place"].shape == (count, 2) else None


def text_of(path: str, member: Member) -> str:
    """What a member says, such as a class. Raises RequestError where it is no text."""
    if member.text is not None:
        return member.text.strip()
    try:
        return addresses.content(path, member.start, member.size).decode().strip()
    except (BrokenSample, UnicodeDecodeError) as error:
        raise RequestError(f"{path}:{member.name}: is no text ({error})") from error


def samples_of(found: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """(stem, extension -> member) of each sample, in the order in which their first members come. What of one archive
    has the same name up to the first dot behind the last slash is a sample."""
    grouped: dict[str, dict[str, Member]] = {}
    for member in found:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        grouped.setdefault(f"{folder}/{stem}" if folder else stem, {})[extension.lower()] = member
    yield from grouped.items()


def archives(root: str, given: str) -> list[tuple[Literal["train", "val", "test"], str]]:
    """(part, file) of every archive, in order. Raises RequestError where there are none to train on."""
    if addresses.is_file(root):
        return [("train", root)]
    folders = {part: addresses.join(root, part) for part in PARTS}
    if not addresses.is_folder(folders["train"]):
        folders = {"train": root}
    found = [
        (part, addresses.join(folder, name))
        for part, folder in folders.items()
        for name in addresses.names_in(folder)
        if name.lower().endswith(".tar")
    ]
    if not any(part == "train" for part, _ in found):
        raise RequestError(f"data.root={given!r}: no .tar in it to train on; give a .tar, or a folder of them")
    return found
