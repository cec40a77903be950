"""Feeds damaged and made-up input to everything that reads what a stranger may have written.

    python scripts/fuzz.py                        100,000 inputs over all readers
    python scripts/fuzz.py --inputs 2000 tar ckpt  so many each to some of them
    python scripts/fuzz.py --seed 3               others

Each input is a good one that was changed at random. A reader passes if it succeeds, or raises one of the errors that
end a run with one clear message. It fails if it raises anything else, takes longer than 20 seconds or more than 4 GiB
on top of what it began with, or ends the process; what made it do so is kept and named. Exit status 1: one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import wave
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ssl_runner import runs
from ssl_runner.checkpoint import load_checkpoint, read_backbone
from ssl_runner.config import check
from ssl_runner.datasets import documents, interactions, series, table, tar, text_pairs, watch
from ssl_runner.datasets.audio import read_audio
from ssl_runner.datasets.audio_folder import told
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.fashion_mnist import read_idx
from ssl_runner.datasets.images import read_image
from ssl_runner.errors import RequestError, RunError
from ssl_runner.trust import check_trust

CLEAR = (RequestError, RunError, BrokenSample)
SECONDS, MEMORY = 20, 4 << 30
BLOCK = 500  # inputs to a process
SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**62, 2**63 - 1)
WORDS = (
    *(
        "",
        "-1",
        "0",
        "1e999",
        "nan",
        "inf",
        "9" * 400,
        "1_0",
        "null",
        "true",
        "[]",
        "{}",
        "é",
        "\x00",
        "\ufeff",
        "\udc80",
    ),
    *(
        "[" * 3000,
        "- " * 3000,
        '{"a":' * 3000,
        "(" * 300,
        "${oc.env:HOME}",
        "../../x",
        "&a [*a]",
        "<<: *a",
        "!!binary x",
    ),
    *(
        "os.system",
        "ssl_runner.runs.os.system",
        "ssl_runner.\x00",
        "torch.nn.Linear",
        '"',
        "'",
        ",",
        ":",
        "\t",
        "\n",
        "@",
    ),
)


class Reader(NamedTuple):
    """name: of the file that it reads. seeds: good contents of it."""

    name: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]


# -- good inputs -------------------------------------------------------------------------------------------------


def _written(write: Callable[[Any], object]) -> bytes:
    into = io.BytesIO()
    write(into)
    return into.getvalue()


def _text(rows: list[list[object]], delimiter: str = ",") -> bytes:
    into = io.StringIO()
    csv.writer(into, delimiter=delimiter).writerows(rows)
    return into.getvalue().encode()


def _table() -> list[bytes]:
    draw = random.Random(0)
    rows = [[f"{draw.random():.3f}", draw.choice("abc"), "a, b", draw.randint(0, 1)] for _ in range(12)]
    return [_text([["x", "kind", "text", "y"], *rows])]


def _jsonl(**cells: object) -> Callable[[], list[bytes]]:
    return lambda: [b"\n".join(json.dumps(cells | {"n": n}).encode() for n in range(6))]


def _parquet() -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    cells = {"text": ["a", "b", None], "x": [1.0, 2.0, 3.0], "user": [1, 2, 3], "item": [4, 5, 6], "time": [7, 8, 9]}
    made = pyarrow.table(cells)
    return [_written(lambda f, c=c: parquet.write_table(made, f, compression=c)) for c in ("snappy", "none", "zstd")]


def _tar() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        into = io.BytesIO()
        with tarfile.open(fileobj=into, mode="w", format=form) as archive:
            for n, name in enumerate(["a.txt", "b/c.jpg", "é" * 30 + ".cls", "d.cls"]):
                member = tarfile.TarInfo(name)
                member.size = 20 + n
                archive.addfile(member, io.BytesIO(b"x" * member.size))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member = tarfile.TarInfo("l.txt")
                member.type, member.linkname = kind, "../../etc/passwd"
                archive.addfile(member)
        found.append(into.getvalue())
    return found


def _sound() -> list[bytes]:
    import soundfile

    def riff(into: Any) -> None:
        with wave.open(into, "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(400))

    values = np.sin(np.arange(800) / 9).astype(np.float32)
    kinds = [("WAV", "FLOAT"), ("FLAC", None), ("OGG", "VORBIS"), ("AIFF", None), ("AU", None), ("MP3", None)]
    made = [_written(lambda f, k=k: soundfile.write(f, values, 16000, format=k[0], subtype=k[1])) for k in kinds]
    return [_written(riff), *made]


def _image() -> list[bytes]:
    from PIL import Image

    made = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8))
    grey = Image.fromarray(np.arange(80, dtype=np.uint16).reshape(8, 10))
    kinds = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
    found = [_written(lambda f, k=k: made.save(f, k)) for k in kinds]
    found += [
        _written(lambda f: made.convert("P").save(f, "PNG", transparency=0)),
        _written(lambda f: grey.save(f, "PNG")),
    ]
    return found


def _ts() -> list[bytes]:
    header = "#x\n@problemName a\n@timestamps {}\n@classLabel true a b\n@data\n"
    return [
        (header.format("false") + "1,2,?:3,4,5:a\n6,7:8,9:b\n").encode(),
        (header.format("true") + "(2020-01-01 10:00,1),(1,2):(0,3):a\n(0,1):(0,1):b\n").encode(),
    ]


def _npy() -> list[bytes]:
    arrays: list[Any] = [np.zeros((3, 2, 5)), np.arange(7, dtype=np.int16), np.array([{}, 1], object), np.array(["a"])]
    return [_written(lambda f, a=a: np.save(f, a, allow_pickle=True)) for a in arrays]


def _npz() -> list[bytes]:
    x, y = np.zeros((3, 2, 5)), np.arange(3)
    return [_written(lambda f: np.savez(f, x=x, y=y)), _written(lambda f: np.savez_compressed(f, x=x, y=y))]


def _idx() -> list[bytes]:
    import gzip

    return [gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + bytes(24))]


def _config() -> dict[str, Any]:
    """A whole config, as `ssl-run pretrain` composes it."""
    from hydra import compose, initialize_config_module

    from ssl_runner.config import plain

    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        made = plain(compose("pretrain", ["++name=x"]))
    return {key: value for key, value in made.items() if key not in ("launcher", "hparams_search")}


composed = functools.cache(_config)


def _yaml() -> list[bytes]:
    return [runs.dump(composed()).encode(), b"stage: pretrain\nbackbone: {_target_: x}\na: &a [1, {b: 2}]\nc: *a\n"]


def _ckpt() -> list[bytes]:
    state = {"objective.backbone.w": torch.zeros(3, 2), "objective.head.b": torch.ones(4, dtype=torch.bfloat16)}
    content = {"state_dict": state, "config": json.dumps({"stage": "pretrain", "backbone": {}}), "global_step": 3}
    return [_written(lambda f: torch.save(content, f)), pickle.dumps({"a": 1})]


def _safetensors() -> list[bytes]:
    from safetensors.torch import save

    config = {"config": json.dumps({"stage": "pretrain", "backbone": {"_target_": "x"}})}
    return [save({"w": torch.zeros(3, 2), "b": torch.ones(4, dtype=torch.int64)}, metadata=config)]


def _watch() -> list[bytes]:
    about = {"X": np.zeros((2, 3)), "X_labels": ["a"], "y": np.zeros(2), "y_labels": ["b"], "subject": np.zeros(2)}
    return [_written(lambda f: np.save(f, np.array(about, object), allow_pickle=True))]


# -- what reads them ---------------------------------------------------------------------------------------------


def _checked(path: Path) -> None:
    """A config that is a good one but for some values, as a person mistypes them and a stranger might write them."""
    draw = random.Random(path.read_bytes())
    config = json.loads(json.dumps(composed()))
    for _ in range(draw.randint(1, 4)):
        _spoil(config, draw)
    for judge in (check_trust, check):
        judge(config, "config.yaml")


def _spoil(node: Any, draw: random.Random) -> None:
    """Changes something in it."""
    while isinstance(node, (dict, list)) and node:
        key: Any = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if isinstance(node[key], (dict, list)) and node[key] and draw.random() < 0.7:
            node = node[key]
            continue
        odd: list[Any] = [None, True, -1, 10**30, 1e308, float("nan"), [], {}, [[]], {"_target_": "os.system"}, "???"]
        odd += [{"_target_": draw.choice(WORDS)}, {"_target_": "torch.nn.Linear", "_partial_": True}, *WORDS]
        if isinstance(node, dict) and draw.random() < 0.3:
            node[draw.choice(WORDS)] = draw.choice(odd)
        elif isinstance(node, dict) and draw.random() < 0.2:
            del node[key]
        else:
            node[key] = draw.choice(odd)
        return


def _pairs(path: Path) -> None:
    for _ in text_pairs.rows_of(str(path)):
        pass


def _documents(path: Path) -> None:
    corpus = documents.folder(
        str(path.parent), extension="auto", text_column="text", label_column="kind", encoding="utf-8", on_broken="skip"
    )
    for part in corpus.parts:
        for _ in corpus.documents(part):
            pass


MISSING = {"", "?"}
READERS = {
    "check": Reader("seed", _checked, lambda: [bytes(8)]),
    "config": Reader("config.yaml", lambda p: runs.read_config(p.parent), _yaml),
    "metrics": Reader("metrics.json", lambda p: runs.read_metrics(p.parent), lambda: [b'{"knn/accuracy": 0.5}']),
    "ckpt": Reader("x.ckpt", lambda p: (load_checkpoint(p), read_backbone(p), runs.find(str(p))), _ckpt),
    "safetensors": Reader("x.safetensors", lambda p: (read_backbone(p), runs.find(str(p))), _safetensors),
    "csv": Reader("x.csv", lambda p: table.read_frame(str(p), MISSING, ",", "utf-8"), _table),
    "parquet": Reader("x.parquet", lambda p: table.read_frame(str(p), MISSING, ",", "utf-8"), _parquet),
    "documents csv": Reader("x.csv", _documents, _table),
    "documents jsonl": Reader("x.jsonl", _documents, _jsonl(text="one two", kind="a")),
    "documents parquet": Reader("x.parquet", _documents, _parquet),
    "pairs csv": Reader("x.csv", _pairs, _table),
    "pairs jsonl": Reader("x.jsonl", _pairs, _jsonl(first="a", second="b", score=0.5)),
    "pairs parquet": Reader("x.parquet", _pairs, _parquet),
    "interactions": Reader(
        "x.csv",
        lambda p: interactions.read(str(p), "user", "item", "time"),
        lambda: [_text([["user", "item", "time"], *([f"u{n % 3}", f"i{n}", n * 7] for n in range(9))])],
    ),
    "interactions parquet": Reader("x.parquet", lambda p: interactions.read(str(p), "user", "item", "time"), _parquet),
    "transcripts": Reader("x.jsonl", lambda p: told(str(p), ["a.wav"]), _jsonl(file="a.wav", text="yes no")),
    "tar": Reader("x.tar", lambda p: list(tar.samples_of(tar.listed(tar.scan(str(p))))), _tar),
    "audio": Reader("x.wav", lambda p: read_audio(str(p), 16000, 4000), _sound),
    "image": Reader("x.png", lambda p: read_image(str(p)), _image),
    "ts": Reader("x.ts", lambda p: series._ts(str(p), None), _ts),
    "npy": Reader("x.npy", lambda p: series._arrays(str(p), None), _npy),
    "npz": Reader("x.npz", lambda p: series._arrays(str(p), None), _npz),
    "watch": Reader("x.npy", lambda p: watch.read(str(p)), _watch),
    "idx": Reader("x.gz", lambda p: read_idx(str(p), dims=3), _idx),
}


# -- damage ------------------------------------------------------------------------------------------------------


def mutated(seeds: list[bytes], draw: random.Random) -> bytes:
    content = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        draw.choice(DAMAGES)(content, draw, seeds)
    return bytes(content)


def _flip(content: bytearray, draw: random.Random, _: list[bytes]) -> None:
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _byte(content: bytearray, draw: random.Random, _: list[bytes]) -> None:
    if content:
        content[draw.randrange(len(content))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))


def _cut(content: bytearray, draw: random.Random, _: list[bytes]) -> None:
    begin = draw.randint(0, len(content))
    end = len(content) if draw.random() < 0.4 else begin + draw.randint(0, 64)
    del content[begin:end]


def _double(content: bytearray, draw: random.Random, _: list[bytes]) -> None:
    begin = draw.randint(0, len(content))
    part = content[begin : begin + draw.randint(1, 200)]
    content[begin:begin] = part * draw.choice((1, 1, 2, 50))


def _splice(content: bytearray, draw: random.Random, seeds: list[bytes]) -> None:
    other = draw.choice(seeds)
    begin, place = draw.randint(0, len(other)), draw.randint(0, len(content))
    content[place : place + draw.randint(0, 100)] = other[begin : begin + draw.randint(0, 300)]


def _word(content: bytearray, draw: random.Random, _: list[bytes]) -> None:
    place = draw.randint(0, len(content))
    content[place : place + draw.choice((0, 0, 1, 5))] = draw.choice(WORDS).encode("utf-8", "surrogateescape")


def _size(content: bytearray, draw: random.Random, _: list[bytes]) -> None:
    """A number of a header that is far too large, or next to one."""
    form = draw.choice(("<I", ">I", "<Q", ">Q", "<H", ">H"))
    width = struct.calcsize(form)
    place = draw.randint(0, max(0, min(len(content), draw.choice((64, 4096))) - width))
    content[place : place + width] = struct.pack(form, draw.choice(SIZES) % (1 << 8 * width))


def _digits(content: bytearray, draw: random.Random, _: list[bytes]) -> None:
    """The same, of a number in writing."""
    places = [n for n, byte in enumerate(content) if 48 <= byte < 58]
    if places:
        place = draw.choice(places)
        content[place : place + 1] = str(draw.choice(SIZES)).encode()


DAMAGES = (_flip, _byte, _cut, _double, _splice, _word, _size, _digits)


# -- running -----------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    reader: str
    file: Path
    what: str


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of readers, and what they print to a terminal of their own accord."""
    nothing = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        warnings.simplefilter("ignore")
        yield


def tried(reader: Reader, path: Path) -> str | None:
    """What is wrong with how a file was read; None where nothing is."""
    try:
        with quiet():
            reader.read(path)
    except CLEAR as error:
        return None if str(error).strip() else "an error without a word"
    except Exception:
        return traceback.format_exc()
    return None


def block(name: str, seed: int, count: int, folder: Path, kept: Path) -> Iterator[Fault]:
    """Some inputs to one reader, in a process of their own, which one of them may end."""
    reader = READERS[name]
    seeds = reader.seeds()
    path = folder / reader.name
    done = 0
    while done < count:
        pid = os.fork()
        if not pid:
            os._exit(_inside(name, reader, seeds, seed, done, count, path, kept))
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            done = count
        else:  # it died of the input that still lies there
            done = int((folder / "number").read_text()) + 1
            died = kept / f"{name.replace(' ', '_')}-{seed}-{done}-{reader.name}"
            died.write_bytes(path.read_bytes())
            yield Fault(name, died, f"ended the process: {os.waitstatus_to_exitcode(status)}")
    for note in sorted(kept.glob(f"{name.replace(' ', '_')}-{seed}-*.txt")):
        yield Fault(name, note.with_suffix(""), note.read_text())


def _inside(
    name: str, reader: Reader, seeds: list[bytes], seed: int, first: int, count: int, path: Path, kept: Path
) -> int:
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in range(first, count):
        draw = random.Random(f"{name} {seed} {number}")
        path.write_bytes(draw.randbytes(8) if name == "check" else mutated(seeds, draw))
        (path.parent / "number").write_text(str(number))
        signal.alarm(SECONDS)
        wrong = tried(reader, path)
        signal.alarm(0)
        if wrong is not None:
            file = kept / f"{name.replace(' ', '_')}-{seed}-{number}-{reader.name}"
            file.write_bytes(path.read_bytes())
            file.with_name(file.name + ".txt").write_text(wrong)
    return 0


def fuzz(inputs: Mapping[str, int], seed: int, kept: Path) -> Iterator[Fault]:
    """inputs: how many for each reader."""
    kept.mkdir(parents=True, exist_ok=True)
    for name, count in inputs.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            for first in range(0, count, BLOCK):
                yield from block(name, seed + first, min(BLOCK, count - first), Path(folder), kept)
        print(f"{name}: {count} inputs in {time.monotonic() - started:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="reader", help=", ".join(READERS))
    parser.add_argument("--inputs", type=int, help="for each reader; without it 100,000 over all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, default=Path("outputs/fuzz"), help="where what fails is kept")
    args = parser.parse_args()
    unknown = set(args.readers) - set(READERS)
    if unknown:
        parser.error(f"no such reader: {', '.join(sorted(unknown))}; there are: {', '.join(READERS)}")
    names = args.readers or list(READERS)
    each = args.inputs or -(-100_000 // len(names))
    started, told = time.monotonic(), set()
    count = 0
    for fault in fuzz(dict.fromkeys(names, each), args.seed, args.kept):
        count += 1
        last = fault.what.strip().splitlines()[-1]
        if (fault.reader, last[:60]) not in told:  # one of a kind is enough to read
            told.add((fault.reader, last[:60]))
            print(f"FAILED {fault.reader}: {last}\n  {fault.file}", flush=True)
    print(f"{each * len(names)} inputs in {time.monotonic() - started:.0f} s, {count} failed, {len(told)} of a kind")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
