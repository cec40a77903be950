"""What a stranger may have written ends in one clear error, soon and in little memory; no secret is written down."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import resource
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_runner import runs
from ssl_runner.checkpoint import load_checkpoint, read_backbone
from ssl_runner.datasets import documents, interactions, series, table, tar, text_pairs, ts_format
from ssl_runner.datasets.audio import read_audio
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.fashion_mnist import read_idx
from ssl_runner.datasets.images import read_image
from ssl_runner.errors import RequestError
from ssl_runner.trust import check_trust
from tests.conftest import TINY
from tests.test_trust import run_folder

Call = Callable[..., tuple[int, str, str]]
MEMORY = 1 << 30  # bytes that a reader may ask for


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Asking for much fails, whether it would be touched or not."""
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# -- larger than they are --------------------------------------------------------------------------------------


def packed(path: Path, *, method: int, size: int = 4 << 30) -> None:
    """A checkpoint whose one weight unpacks to 4 GiB of zeros."""
    good = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(8)}}, good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w", method) as out:
        for name in source.namelist():
            if not name.endswith("data/0"):
                out.writestr(name, source.read(name))
                continue
            with out.open(name, "w", force_zip64=True) as member:
                for _ in range(size >> 24 if method != zipfile.ZIP_STORED else 1):
                    member.write(bytes(1 << 24))


def claiming(path: Path) -> None:
    """A checkpoint whose directory claims that a part of it has 4 GiB."""
    good = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(8)}}, good)
    content = bytearray(good.getvalue())
    place = content.rindex(b"PK\x01\x02")
    content[place + 20 : place + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(bytes(content))


def legacy(path: Path) -> None:
    """The format of before 2020, whose reader allocates what a file claims."""
    torch.save({"state_dict": {"w": torch.zeros(8)}}, path, _use_new_zipfile_serialization=False)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("write", [lambda p: packed(p, method=zipfile.ZIP_DEFLATED, size=1 << 28), claiming, legacy])
def test_a_checkpoint_is_as_large_as_its_file(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write(path)
    with pytest.raises(RequestError, match=r"x\.ckpt: can't be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}},
        {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"__metadata__": {"config": "[" * 100_000}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    ],
    ids=["10 GB", "overflow", "backwards", "nested"],
)
def test_a_header_may_not_claim_more_than_there_is(header: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(RequestError, match=r"x\.safetensors"):
        runs.find(str(path))
    if "__metadata__" not in header:
        with pytest.raises(RequestError, match=r"x\.safetensors"):
            read_backbone(path)


def png(path: Path, width: int, height: int) -> None:
    """One whose header claims a size, with all its zeros behind it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compressobj(9)
    line = bytes(min(1 + width, 60_001))
    content = b"".join(rows.compress(line) for _ in range(min(height, 200))) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (2**31 - 1, 1), (60_000, 60_000)])
def test_a_picture_of_a_hundred_megapixels_is_a_broken_sample(width: int, height: int, tmp_path: Path) -> None:
    png(tmp_path / "x.png", width, height)
    with pytest.raises(BrokenSample, match=r"x\.png.*limit|x\.png.*read"):
        read_image(str(tmp_path / "x.png"))


@pytest.mark.usefixtures("little_memory")
def test_text_in_a_picture_is_not_unpacked_without_end(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    note = PngImagePlugin.PngInfo()
    note.add_text("a", "x" * (200 << 20), zip=True)
    Image.new("L", (2, 2)).save(tmp_path / "x.png", pnginfo=note)
    with pytest.raises(BrokenSample, match=r"x\.png"):
        read_image(str(tmp_path / "x.png"))


def wav(*, channels: int = 1, rate: int = 8000, bits: int = 16, data: int = 0x7FFFFFF0) -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * bits // 8 % 2**32, 2, bits)
    head = b"RIFF" + struct.pack("<I", 0xFFFFFFF0) + b"WAVEfmt " + struct.pack("<I", 16)
    return head + form + b"data" + struct.pack("<I", data)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "content",
    [
        wav() + bytes(64),
        wav(data=0xFFFFFFFE) + bytes(64),
        wav(rate=0xFFFFFFFF, data=64) + bytes(64),
        wav(rate=0, data=64) + bytes(64),
        wav(channels=65535, data=64) + bytes(64),
        wav(channels=0, data=64) + bytes(64),
        wav(bits=65535, data=64) + bytes(64),
        b".snd" + struct.pack(">IIIII", 24, 0x7FFFFFF0, 3, 8000, 1) + bytes(64),
    ],
    ids=["2 GB", "4 GB", "rate", "no rate", "channels", "no channels", "bits", "au"],
)
def test_an_absurd_header_of_a_recording(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    try:
        found = read_audio(str(path), 16000)
    except BrokenSample as error:
        assert "x.wav" in str(error)
    else:
        assert found.numel() <= 1000, "what is really there"


@pytest.mark.usefixtures("little_memory")
def test_what_is_packed_is_unpacked_as_far_as_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    head = struct.pack(">4B3I", 0, 0, 8, 3, 1, 2, 2) + bytes(4)
    path.write_bytes(gzip.compress(head) + gzip.compress(bytes(1 << 20)) * 4000)
    with pytest.raises(RequestError, match=r"x\.gz.*does not hold the 4 values"):
        read_idx(str(path), dims=3)


# -- arrays and tables -----------------------------------------------------------------------------------------


def npy(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


class Malicious:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n") + bytes(80),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2000000000,)}\n") + bytes(80),
        npy("{'descr': '<U999999999', 'fortran_order': False, 'shape': (3,)}\n"),
        npy("__import__('os').system('touch ran')\n"),
        npy("{'descr': [('a', (" * 300),
        npy("{"),
        b"",
    ],
    ids=["8 TB", "16 GB", "text", "code", "nested", "cut", "empty"],
)
def test_an_array_that_is_none(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(RequestError, match=r"x\.npy"):
        series.Series(root=str(tmp_path / "x.npy"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_objects_in_an_array_run_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.array([Malicious()], object)
    if name == "x.npy":
        np.save(tmp_path / name, array, allow_pickle=True)
    else:
        np.savez(tmp_path / name, x=array)
    with pytest.raises(RequestError, match=name):
        series.Series(root=str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("little_memory")
def test_arrays_that_unpack_to_more_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out, out.open("x.npy", "w", force_zip64=True) as member:
        member.write(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3000000000,)}\n"))
        for _ in range(64):
            member.write(bytes(1 << 20))
    with pytest.raises(RequestError, match=r"x\.npz"):
        series.Series(root=str(path))


@pytest.mark.usefixtures("little_memory")
def test_one_long_channel_among_many_short_ones() -> None:
    line = ":".join(["1"] * 50_000) + ":" + ",".join(["1"] * 50_000) + ":a"
    with pytest.raises(BrokenSample, match=r"x\.ts:3: .*differ too much in length"):
        ts_format.parse(["@classLabel true a", "@data", line], "x.ts")


@pytest.mark.parametrize(
    "read",
    [
        lambda path: table.read_frame(path, set(), ",", "utf-8"),
        lambda path: interactions.read(path, "user", "item", "time"),
        lambda path: list(text_pairs.rows_of(path)),
    ],
    ids=["table", "interactions", "pairs"],
)
def test_a_table_of_few_bytes_and_many_rows(
    read: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr("ssl_runner.datasets.parquet.CELLS", 1_000_000)
    path = tmp_path / "x.parquet"
    zeros = pyarrow.array(np.zeros(1_000_000, np.int64))
    parquet.write_table(pyarrow.table(dict.fromkeys(("user", "item", "time"), zeros)), path)
    assert path.stat().st_size < 100_000
    request.getfixturevalue("little_memory")
    with pytest.raises(RequestError, match=r"x\.parquet.*claims 3000000 cells"):
        read(str(path))


def test_lines_nested_without_end_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[" * 100_000 + '\n{"text": "one"}\n' + '{"a":' * 100_000 + "\n")
    corpus = documents.folder(
        str(tmp_path), extension="auto", text_column="text", label_column="y", encoding="utf-8", on_broken="skip"
    )
    assert [each.text for part in corpus.parts for each in corpus.documents(part)] == ["one"]


# -- archives --------------------------------------------------------------------------------------------------


def test_links_and_paths_of_an_archive_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is unpacked: a name is a name, and a link is passed over."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("../../evil.txt", "/etc/evil.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("link.txt")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    found = dict(tar.samples_of(tar.listed(tar.scan(str(tmp_path / "x.tar")))))
    assert sorted(found) == ["../../evil", "/etc/evil"]
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent.parent / "evil.txt").exists()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_member_that_claims_terabytes(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.txt")
    member.size, member.type = 8 << 40, kind
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"x" * 2048)
    with pytest.raises(RequestError, match=r"x\.tar"):
        list(tar.samples_of(tar.listed(tar.scan(str(tmp_path / "x.tar")))))


# -- configs ---------------------------------------------------------------------------------------------------


def refuses(call: Callable[[], object]) -> bool:
    """Whether it raises RequestError, found out in a process of its own."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            call()
        except RequestError:
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


LAUGHS = "\n".join(["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)])


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "data: &a [*a]",
        "data: " + "[" * 50_000,
        "data:\n " + "- " * 50_000 + "a",
        "data: " + "{a: " * 20_000,
        "data: !!python/name:os.system",
        "data: !!python/object/new:os.system [touch ran]",
        "data: !!int x",
        "data: 2020-99-99",
        "data: \x00",
    ],
    ids=["laughs", "itself", "lists", "blocks", "mappings", "name", "object", "int", "date", "zero"],
)
def test_a_config_that_is_a_trap(text: str, ssl_run: Call, tmp_path: Path) -> None:
    """Some ten thousand levels end the process inside libyaml, and aliases stand for more than any memory."""
    folder = run_folder(tmp_path / "evil")
    (folder / runs.CONFIG).write_text("stage: pretrain\nbackbone: {}\n" + text + "\n")
    assert refuses(lambda: runs.read_config(folder)), "it would end this process too"
    for verb in (["resume", str(folder)], ["finetune", f"from={folder}"]):
        code, _, err = ssl_run(*verb)
        assert code == 2
        assert "config.yaml" in err
        assert "Traceback" not in err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["${oc.env:HOME}", "../../../elsewhere", "a/b", ""])
def test_the_name_of_a_strangers_run_is_a_name(name: str, ssl_run: Call, tmp_path: Path) -> None:
    """It becomes a part of the new run's folder."""
    folder = run_folder(tmp_path / "evil", name=name)
    code, _, err = ssl_run("finetune", f"from={folder}")
    assert code == 2
    assert ("interpolation" if "$" in name else "has a name that can't be one of a folder") in err


@pytest.mark.parametrize("key", ["data", "contract", "evaluators", "finetune", "device", "stage"])
@pytest.mark.parametrize("value", [3, ["x"], {"x": "y"}], ids=str)
def test_a_config_of_wrong_shapes_is_refused_in_words(key: str, value: Any, ssl_run: Call, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "odd", **{key: value})
    for verb in (["resume", str(folder)], ["finetune", f"from={folder}"]):
        code, _, err = ssl_run(*verb)
        assert code == 2, err
        assert "Traceback" not in err


@pytest.mark.parametrize("target", ["ssl_runner.\x00", "ssl_runner.a b", "ssl_runner." + "a." * 5000, "torch.nn. "])
def test_names_that_no_module_can_have_are_refused(target: str) -> None:
    with pytest.raises(RequestError, match="origin"):
        check_trust({"_target_": target}, "origin.yaml")


# -- secrets ---------------------------------------------------------------------------------------------------

KEY = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "override",
    [
        "name=${oc.env:WANDB_API_KEY}",
        f"name=a{KEY}b",
        f"data.root=s3://me:{KEY}@store/data",
        "data.root=https://me:hunter2@store/data",
        f"+logger.api_key={KEY[:9]}",
        f"++finetune.logger.password={KEY[:9]}",
    ],
    ids=["resolver", "value", "variable in an address", "address", "key", "nested key"],
)
def test_a_secret_is_refused_and_not_repeated(
    override: str, ssl_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    code, out, err = ssl_run("pretrain", "task=simclr", *TINY, override)
    assert code == 2, err
    assert "secret" in err
    assert KEY[:9] not in out + err
    assert "hunter2" not in out + err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing was written"


def test_no_file_of_a_run_has_a_secret_of_the_environment(
    ssl_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", KEY[::-1])
    monkeypatch.setattr(sys, "argv", ["ssl-run", "pretrain", f"hydra.job.env_set.X={KEY}", "a=s3://me:hunter2@x/y"])
    args = [*TINY, "evaluators=none", "hydra.run.dir=r", "duration=2 steps"]
    code, out, err = ssl_run("pretrain", "task=simclr", *args)
    assert code == 0, err
    files = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {runs.CONFIG, runs.ENVIRONMENT, runs.METRICS, runs.LAST}
    for content in (out.encode(), err.encode(), *(path.read_bytes() for path in files)):
        assert KEY.encode() not in content
        assert KEY[::-1].encode() not in content
    runs.write_environment(tmp_path)
    command = json.loads((tmp_path / runs.ENVIRONMENT).read_text())["command"]
    assert command[2:] == ["hydra.job.env_set.X=***", "a=s3://me:***@x/y"]


# -- fuzzed ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    found = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent.parent / "scripts" / "fuzz.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["fuzz"] = module
    found.loader.exec_module(module)
    return module


def test_damaged_input_of_every_kind_is_told_in_words(fuzzer: ModuleType, tmp_path: Path) -> None:
    """A few of the inputs of scripts/fuzz.py to every reader."""
    counts = {name: 15 if name == "check" else 40 for name in fuzzer.READERS}
    faults = list(fuzzer.fuzz(counts, 0, tmp_path))
    assert not faults, "\n\n".join(f"{each.reader}: {each.what}" for each in faults)


def test_the_fuzzer_sees_what_it_should(fuzzer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no clear one, and an end of the process."""
    for name, read in (("raises", lambda p: 1 / 0), ("dies", lambda p: os.abort()), ("passes", lambda p: None)):
        monkeypatch.setitem(fuzzer.READERS, name, fuzzer.Reader("x", read, lambda: [b"x"]))
    found = list(fuzzer.fuzz({"raises": 2, "dies": 2, "passes": 2}, 0, tmp_path))
    assert [each.reader for each in found] == ["raises", "raises", "dies", "dies"]
    assert "ZeroDivisionError" in found[0].what
    assert "ended the process: -6" in found[2].what
