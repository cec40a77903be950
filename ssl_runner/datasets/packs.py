"""What `ssl-run pack` writes beside the data: an index with every file's size and checksum, as it is read again."""

from __future__ import annotations

import hashlib
from dataclasses import field
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ssl_runner.datasets import addresses, tar
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.errors import RequestError

INDEX = "index.json"
VERSION = 1
LARGEST = 1 << 28  # bytes of an index
BLOCK = 1 << 20
Count = Annotated[int, Field(ge=0)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Packed:
    """A file, by its name within the folder. sha256: of its bytes. index: of the bytes of the file with a shard's
    members; None where there is none."""

    file: Annotated[str, Field(pattern=r"^(pretrain|train|val|test)/[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    samples: Count
    size: Count
    sha256: Checksum
    index: Checksum | None = None

    @property
    def part(self) -> str:
        return self.file.partition("/")[0]


@dataclass(frozen=True)
class Pack:
    """left_out: what could not be read, and why."""

    version: Literal[1]
    format: Literal["shards", "memmap"]
    samples: dict[Literal["pretrain", "train", "val", "test"], Count]
    files: list[Packed]
    classes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def about(root: str, wanted: str) -> Pack | None:
    """What is packed in a folder; None for one that `ssl-run pack` did not write. The files are there at their sizes.

    wanted: the format that can be read here. Raises RequestError for another, an index that is none, and for a file
    that is missing or of another size.
    """
    path = addresses.join(root, INDEX)
    if not addresses.is_file(path):
        return None
    try:
        content = addresses.content(path, 0, min(LARGEST, addresses.sizes_of(root, [INDEX])[0]))
        pack: Pack = TypeAdapter(Pack).validate_json(content)
    except (BrokenSample, ValidationError) as error:
        first = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
        raise RequestError(f"data.root: {path!r} is no index of packed data ({first})") from error
    if pack.format != wanted:
        raise RequestError(f"data.root={root!r}: holds {pack.format}, not {wanted}; choose the data that reads these")
    for packed, size in zip(pack.files, addresses.sizes_of(root, [each.file for each in pack.files]), strict=True):
        if size != packed.size:
            state = "is missing" if size < 0 else f"has {size} bytes, not {packed.size}"
            raise RequestError(f"{addresses.join(root, packed.file)!r} {state}; copy it again, or pack anew")
    return pack


def verify(root: str, pack: Pack) -> None:
    """Reads all files. Raises RequestError for the first that is not what was packed."""
    for packed in pack.files:
        path = addresses.join(root, packed.file)
        if checksum(path) != packed.sha256:
            raise RequestError(f"{path!r} is not what was packed: its checksum is another; copy it again, or pack anew")


def checksum(path: str) -> str:
    known = hashlib.sha256()
    with addresses.opened(path) as file:
        while block := file.read(BLOCK):
            known.update(block)
    return known.hexdigest()


def members_of(root: str, packed: Packed) -> tar.Blocks:
    """The index of a shard's members, as it was packed. Raises RequestError where it is not."""
    path = addresses.join(root, packed.file) + tar.INDEX
    try:
        content = addresses.content(path, 0, -1)
    except BrokenSample as error:
        raise RequestError(f"{error}; copy it again, or pack anew") from error
    found = tar.loaded(BytesIO(content)) if hashlib.sha256(content).hexdigest() == packed.index else None
    if found is None:
        raise RequestError(f"{path!r} is not what was packed: its checksum is another; copy it again, or pack anew")
    return found


def local(root: str) -> Path:
    """Raises RequestError for an address."""
    if addresses.is_address(root):
        raise RequestError(f"data.root={root!r}: memory maps are files of this machine; copy them here, or pack shards")
    return Path(root)
