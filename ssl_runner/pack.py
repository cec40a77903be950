"""`ssl-run pack`: a folder of files, or any other data of one input, as tar shards or as a memory map.

What is done is written down shard by shard, or piece by piece, so that the same command goes on where it was stopped
and ends with the very bytes of one that never was. A file that is there under its name is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor

from ssl_runner import build, runs
from ssl_runner.compose import quoted
from ssl_runner.config import check_node
from ssl_runner.datasets import packs, tar
from ssl_runner.datasets.base import Arrays, BrokenSample, Ragged, Source
from ssl_runner.datasets.images import Images
from ssl_runner.datasets.layout import PARTS
from ssl_runner.errors import RequestError, nearest
from ssl_runner.seeds import derive

STATE = ".pack"  # a folder within the packed one, for what is done so far
AT_ONCE = 256  # samples of a memory map that are written together
MB = 10**6  # bytes
SHARD = 256  # MB of a shard, where nothing else is asked for
TOLD = 20  # files that could not be read, told by name at the end
FORMATS = ("shards", "memmap")
OPTIONS = ("data", "format", "shard", "size")
OPTION = re.compile(r"(data(\.[\w.]+)?|format|shard|size)=")
Part = Literal["pretrain", "train", "val", "test"]


@dataclass(frozen=True)
class Request:
    """data: the node of the config that opens the source. shard: bytes after which a shard is closed. size: of the
    images of a memory map, which are brought to a square of so many pixels."""

    data: dict[str, Any]
    format: Literal["shards", "memmap"]
    shard: int
    size: int | None


def run(args: Sequence[str]) -> str:
    """What is typed behind `ssl-run pack` -> what to tell. Raises RequestError."""
    request, target = parse(args)
    source = build.make(request.data)
    return told(pack(request, source, target), target, choice(request, source))


def parse(args: Sequence[str]) -> tuple[Request, Path]:
    """What is to be packed, and where. Raises RequestError for what can't be understood."""
    options = dict(arg.split("=", 1) for arg in args if OPTION.match(arg))
    folders = [arg for arg in args if not OPTION.match(arg)]
    for arg in folders:
        if re.match(r"[\w.]+=", arg):
            raise RequestError(f"pack {arg}: no such option{nearest(arg.split('=')[0], OPTIONS)}")
    chosen = options.pop("data", "folder")
    if len(folders) != 2 and not (len(folders) == 1 and chosen != "folder"):
        raise RequestError("pack takes the folder to pack and the folder to write; or data=... and the one to write")
    form = options.pop("format", "shards")
    if form not in FORMATS:
        raise RequestError(f"format={form}: no such format{nearest(form, FORMATS)}")
    shard, size = _number("shard", options.pop("shard", str(SHARD))), options.pop("size", None)
    overrides = [f"++{key}={value}" for key, value in options.items()]
    if len(folders) == 2:
        overrides.append(f"++data.root={quoted(folders[0])}")
    pixels = None if size is None else _number("size", size)
    return Request(_node(chosen, overrides), form, shard * MB, pixels), Path(folders[-1])  # type: ignore[arg-type]


def _number(key: str, given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise RequestError(f"{key}={given}: give a whole number above 0")
    return int(given)


def _node(chosen: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config's node of a source. Files are read one by one, not held in memory. Raises RequestError with what is
    wrong with it."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("pretrain", [f"data={chosen}", *overrides]).data, resolve=True)
    cache = inspect.signature(get_class(node["_target_"])).parameters.get("cache")
    if cache is not None and cache.default == "auto":
        node["cache"] = "no"
    check_node(node, "data")
    return node


def pack(request: Request, source: Source, target: Path) -> packs.Pack:
    """Packs every part of a source, or goes on with that. Raises RequestError for what can't be packed, and for a
    folder that holds something else."""
    parts = _parts(source)
    for name, part in parts.items():
        _refuse(request, name, part)
    about = json.dumps({**vars(request), "of": {name: _listing(part) for name, part in parts.items()}}, sort_keys=True)
    with claimed(target, about) as state:
        done = packs.about(str(target), request.format)
        if done is not None:
            shutil.rmtree(state, ignore_errors=True)  # of a process that was killed when all was done
            return done
        files: list[packs.Packed] = []
        samples: dict[Part, int] = {}
        left_out: list[tuple[str, str]] = []
        for name, part in parts.items():
            write = _shards if request.format == "shards" else _memmap
            made, broken = write(request, part, name, target, state)
            files += made
            left_out += broken
            samples[name] = len(part) - len(broken)
        if not samples["train"]:
            raise RequestError(f"{request.data.get('root')}: nothing of it to train on can be read: {left_out[0][1]}")
        facts = {k: v for k, v in source.facts.items() if isinstance(v, (int, float, str, tuple, list))}
        if request.size is not None:
            facts |= {"shape": (source.facts["shape"][0], request.size, request.size), "size": request.size}
        pack = packs.Pack(
            1, request.format, samples, files, list(source.classes), json.loads(json.dumps(facts)), left_out
        )
        runs.write(target / packs.INDEX, json.dumps(_plain(pack), indent=1) + "\n")
        shutil.rmtree(state)
    return pack


def told(pack: packs.Pack, target: Path, choice: str) -> str:
    """For the terminal: what there is, how it is read, and what could not be."""
    counts = ", ".join(f"{count} {name}" for name, count in pack.samples.items())
    size = sum(packed.size for packed in pack.files)
    lines = [f"{target}: {counts} samples in {len(pack.files)} files, {size / 1e6:.1f} MB"]
    if pack.left_out:
        more = f"\n  and {len(pack.left_out) - TOLD} more, in {packs.INDEX}" if len(pack.left_out) > TOLD else ""
        lines.append(f"left out {len(pack.left_out)} that can't be read:")
        lines += [f"  {why}" for _, why in pack.left_out[:TOLD]]
        lines[-1] += more
    return "\n".join([*lines, f"to use it: data={choice} data.root={target}"]) + "\n"


def choice(request: Request, source: Source) -> str:
    """The choice of data that reads what is packed."""
    part = source.split("train")
    return part.packed_as if request.format == "shards" and isinstance(part, Ragged) else "memmap"


def _parts(source: Source) -> dict[Part, Arrays | Ragged]:
    """`pretrain` only where there is more of it than of train."""
    parts: dict[Part, Arrays | Ragged] = {name: source.split(name) for name in PARTS}
    pretrain = source.split("pretrain")
    return parts if len(pretrain) == len(parts["train"]) else {"pretrain": pretrain, **parts}


def _refuse(request: Request, name: Part, part: Arrays | Ragged) -> None:
    """Raises RequestError for what can't be packed, or could not be read again."""
    what = f"data: its {name} part"
    if isinstance(part, Ragged):
        if not part.packed_as:
            raise RequestError(f"{what} is no list of image or audio files, one a sample, which alone can be packed")
        if part.target is not None:
            raise RequestError(f"{what} has targets beside its files, such as transcripts, which shards do not hold")
        if request.format == "memmap" and not (isinstance(part, Images) and request.size):
            raise RequestError(
                "format=memmap: samples differ in size; say size=PIXELS for images, or use format=shards"
            )
        if name == "pretrain":
            raise RequestError(f"{what} has files that train has not, which shards do not hold; use format=memmap")
        return
    if request.format == "shards" or request.size is not None:
        raise RequestError("format: this data is no files but arrays; use format=memmap, without size")
    samples = part.__getitems__([(0, 0)] if len(part) else [])
    beside = sorted(set(samples) - {"inputs", "index", "label", "target"})
    if type(part) is not Arrays or beside or len(samples["inputs"]) != 1 or set(samples["inputs"][0]) != {"x"}:
        raise RequestError(
            f"{what} is more than one array with labels. Text needs no packing: its ids are in memory maps already, in "
            "data.cache"
        )


def _listing(part: Arrays | Ragged) -> str:
    """A digest of what there is to pack: another for other files, sizes of files, or labels."""
    known = hashlib.blake2b(str(len(part)).encode(), digest_size=16)
    if part.label is not None:
        known.update(part.label.numpy().tobytes())
    if isinstance(part, Ragged):
        for index in range(len(part)):
            name = part.name(index)
            size = os.path.getsize(name) if os.path.exists(name) else -1
            known.update(f"{size} ".encode() + os.fsencode(name) + b"\n")
    return known.hexdigest()


@contextmanager
def claimed(target: Path, about: str) -> Iterator[Path]:
    """The folder for what is done so far, this process's own until the end. Raises RequestError for a folder with
    something else in it, or another process."""
    state = target / STATE
    request = target / "request.json"
    try:
        there = sorted(target.iterdir()) if target.exists() else []
        if not request.is_file() and not all(each.name.startswith(".") for each in there):
            raise RequestError(f"{target}: is not empty; pack into a folder of its own")
        target.mkdir(parents=True, exist_ok=True)
        with open(target / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RequestError(f"{target}: another process packs into it") from None
            if request.is_file() and request.read_text(encoding="utf-8") != about:
                raise RequestError(
                    f"{target}: was begun with other options or other files; remove it, or pack into another folder"
                )
            for each in there:
                if each.name.startswith((".request.json.", f".{packs.INDEX}.")):
                    each.unlink()  # of a process that was killed while it wrote
            runs.write(request, about)
            if not (target / packs.INDEX).is_file():
                state.mkdir(exist_ok=True)
            yield state
    except OSError as error:
        raise RequestError(f"{target}: can't be written ({error.strerror or error})") from error


def _plain(pack: packs.Pack) -> dict[str, Any]:
    return {**vars(pack), "files": [{k: v for k, v in vars(each).items() if v is not None} for each in pack.files]}


def _noted(state: Path, name: str) -> dict[str, Any] | None:
    path = state / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _read(part: Ragged, index: int) -> Tensor:
    """As in evaluation. Raises BrokenSample."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(0, "val", index))
        return part.inputs(index)[0]["x"]


# -- shards ------------------------------------------------------------------------------------------------------


def _shards(
    request: Request, part: Any, name: Part, target: Path, state: Path
) -> tuple[list[packs.Packed], list[tuple[str, str]]]:
    """Samples in their order, KEY.jpg or the like with KEY.cls, the number of its class, and KEY.json, the file's own
    path. Keys are numbers: a stem ends at the first dot, and names may have several."""
    made: list[packs.Packed] = []
    left_out: list[tuple[str, str]] = []
    begin = number = 0
    while begin < len(part):
        note = _noted(state, f"{name}-{number:06}")
        if note is None:
            note = _shard(request, part, begin, target, f"{name}/{number:06}.tar")
            runs.write(state / f"{name}-{number:06}.json", json.dumps(note))
        if note["packed"]["samples"]:
            made.append(packs.Packed(**note["packed"]))
        left_out += [tuple(each) for each in note["left_out"]]
        begin, number = note["next"], number + 1
    return made, left_out


def _shard(request: Request, part: Ragged, begin: int, target: Path, file: str) -> dict[str, Any]:
    """One shard, from this sample on."""
    path, half = target / file, target / f"{file}.half"
    path.parent.mkdir(exist_ok=True)
    left_out: list[tuple[str, str]] = []
    index, count = begin, 0
    with part.reading(), open(half, "wb") as opened, tarfile.open(fileobj=opened, mode="w") as archive:
        while index < len(part) and opened.tell() < request.shard:
            own = part.name(index)
            try:
                _read(part, index)
                content = Path(own).read_bytes()
            except BrokenSample as error:
                left_out.append((_told(own), _told(str(error))))
            else:
                count += 1
                for extension, inside in _members(part, index, content, request):
                    member = tarfile.TarInfo(f"{index:09}.{extension}")
                    member.size = len(inside)
                    archive.addfile(member, io.BytesIO(inside))
            index += 1
    made = {"file": file, "samples": count, "size": half.stat().st_size, "sha256": "", "index": None}
    if count:
        _keep(half, path)
        index_file = path.with_name(path.name + tar.INDEX)
        tar.save(tar.scan(str(path)), index_file)
        made |= {"sha256": packs.checksum(str(path)), "index": packs.checksum(str(index_file))}
    else:
        half.unlink()
    return {"packed": made, "left_out": left_out, "next": index}


def _members(part: Ragged, index: int, content: bytes, request: Request) -> Iterator[tuple[str, bytes]]:
    own, root = part.name(index), request.data.get("root")
    yield os.path.splitext(own)[1].lstrip(".").lower(), content
    if part.label is not None:
        yield "cls", str(int(part.label[index])).encode()
    told = {"file": own if root is None else os.path.relpath(own, Path(root).expanduser())}
    yield "json", json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _told(text: str) -> str:
    """A name may hold bytes that no text has."""
    return text.encode("utf-8", "backslashreplace").decode()


def _keep(half: Path, path: Path) -> None:
    with open(half, "rb") as written:
        os.fsync(written.fileno())
    os.replace(half, path)


# -- a memory map ------------------------------------------------------------------------------------------------


def _memmap(
    request: Request, part: Any, name: Part, target: Path, state: Path
) -> tuple[list[packs.Packed], list[tuple[str, str]]]:
    """x.npy, label.npy and target.npy. The first is written piece by piece; what was done of it is noted."""
    folder = target / name
    folder.mkdir(exist_ok=True)
    half = folder / "x.npy.half"
    first, _ = _piece(request, part, range(min(1, len(part))))
    shape, kind = tuple(first.shape[1:]), first.numpy().dtype
    note = _noted(state, name)
    if note is None:
        with open(half, "wb") as opened:
            _header(opened, kind, (len(part), *shape))
            note = {"next": 0, "bytes": opened.tell(), "left_out": []}
        runs.write(state / f"{name}.json", json.dumps(note))
    begin = note["next"]
    left_out = [(int(index), own, why) for index, own, why in note["left_out"]]
    if half.is_file():
        with open(half, "r+b") as opened:
            opened.truncate(note["bytes"])
            opened.seek(note["bytes"])
            while begin < len(part):
                end = min(begin + AT_ONCE, len(part))
                x, broken = _piece(request, part, range(begin, end))
                left_out += broken
                opened.write(x.numpy().tobytes())
                opened.flush()
                os.fsync(opened.fileno())
                note = {"next": end, "bytes": opened.tell(), "left_out": left_out}
                runs.write(state / f"{name}.json", json.dumps(note))
                begin = end
            opened.seek(0)
            _header(opened, kind, (len(part) - len(left_out), *shape))  # it has room for a number of any length
        _keep(half, folder / "x.npy")
    kept = torch.ones(len(part), dtype=torch.bool)
    kept[[index for index, _, _ in left_out]] = False
    made = [_packed(target, f"{name}/x.npy", int(kept.sum()))]
    for beside in ("label", "target"):
        values = getattr(part, beside)
        if values is not None:
            with open(folder / f"{beside}.npy", "wb") as opened:
                np.save(opened, np.ascontiguousarray(values[kept].numpy()))
            made.append(_packed(target, f"{name}/{beside}.npy", int(kept.sum())))
    return made, [(own, why) for _, own, why in left_out]


def _header(opened: Any, kind: np.dtype, shape: tuple[int, ...]) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, about)


def _piece(request: Request, part: Any, places: Sequence[int]) -> tuple[Tensor, list[tuple[int, str, str]]]:
    """(n, ...), those of these samples that can be read, and what is wrong with the others."""
    if isinstance(part, Arrays):
        return part.__getitems__([(index, 0) for index in places])["inputs"][0]["x"].contiguous(), []
    assert isinstance(part, Images)
    assert request.size is not None
    found: list[Tensor] = []
    broken: list[tuple[int, str, str]] = []
    with part.reading():
        for index in places:
            try:
                found.append(square(_read(part, index), request.size))
            except BrokenSample as error:
                broken.append((index, _told(part.name(index)), _told(str(error))))
    empty = torch.zeros(0, part.channels, request.size, request.size, dtype=torch.uint8)
    return torch.stack(found) if found else empty, broken


def square(x: Tensor, size: int) -> Tensor:
    """(C, h, w) uint8 -> (C, size, size): the shorter side brought to `size`, and the middle of the longer one."""
    height, width = x.shape[1:]
    if (height, width) == (size, size):
        return x
    scale = size / min(height, width)
    sides = max(size, round(height * scale)), max(size, round(width * scale))
    small = F.interpolate(x[None].float(), size=sides, mode="bilinear", antialias=True)[0]
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return small[:, top : top + size, left : left + size].round().clamp(0, 255).to(torch.uint8)


def _packed(target: Path, file: str, samples: int) -> packs.Packed:
    path = target / file
    return packs.Packed(file, samples, path.stat().st_size, packs.checksum(str(path)))
