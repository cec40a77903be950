"""Data of any size: read by the piece from disk or from an address, in one order that ranks and workers share."""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ssl_runner import runs
from ssl_runner.checkpoint import load_checkpoint
from ssl_runner.data import DataModule, TrainBatches
from ssl_runner.datasets import addresses, mapped, row_groups, tar
from ssl_runner.datasets.archives import Archives
from ssl_runner.datasets.base import MIXED, BrokenSample, Source
from ssl_runner.datasets.columns import ImageColumn, TextColumn
from ssl_runner.datasets.memmap import Memmap
from ssl_runner.datasets.reading import shuffled
from ssl_runner.datasets.row_groups import NumbersColumn, Parquet
from ssl_runner.datasets.shards import Shards
from ssl_runner.errors import RequestError, RunError
from ssl_runner.views.base import Branch, Views
from tests.conftest import TINY, command, environment, process
from tests.test_resume import same_result, wait_for_step

SIDE = 5


def png(value: int, side: int = SIDE) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), (value % 256, value // 256, 7)).save(content, "PNG")
    return content.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def numbered_shards(root: Path, count: int, per_shard: int = 10, classes: int = 3) -> None:
    """Each picture's red is its number."""
    for begin in range(0, count, per_shard):
        members: list[tuple[str, bytes]] = []
        for n in range(begin, min(begin + per_shard, count)):
            members += [(f"{n:05}.png", png(n)), (f"{n:05}.cls", str(n % classes).encode())]
        shard(root / f"{begin // per_shard:03}.tar", members)


def archives(root: Any, cache: Path, **more: Any) -> Archives:
    return Archives(root=str(root), input=ImageColumn(column="jpg;png", size=SIDE), cache=str(cache), **more)


def red(x: Tensor) -> int:
    return int(x[0, 0, 0]) + 256 * int(x[1, 0, 0])


def seen(source: Source, part: Any = "train") -> list[int]:
    """The numbers of a part's pictures."""
    found = source.split(part)
    return [red(found.inputs(n)[0]["x"]) for n in range(len(found))]  # type: ignore[union-attr]


def loaded(
    source: Source, *, ranks: int = 1, rank: int = 0, workers: int = 0, start: int = 0, batches: int = 6, size: int = 8
) -> list[Any]:
    """What training gets: batches from `start` on."""
    views = Views(branches={"plain": Branch(transforms={})})
    data = DataModule(
        source,
        views,
        split="pretrain",
        plain_val=False,
        per_rank=size // ranks,
        batches=batches,
        seed=3,
        workers=workers,
    )
    data._ranks = lambda: (ranks, rank)  # type: ignore[method-assign]
    data.start = start
    return list(data.train_dataloader())


# -- one order for any number of ranks and workers -------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 99))
def test_blocks_are_mixed_a_few_at_a_time_and_no_sample_is_lost(sizes: list[int], seed: int) -> None:
    block = torch.repeat_interleave(torch.arange(len(sizes)) * 2, torch.tensor(sizes))
    order = shuffled(len(block), block, torch.Generator().manual_seed(seed))
    assert order.sort().values.tolist() == list(range(sum(sizes)))
    # cut at the places where a window ends, the order falls into windows of MIXED blocks, each in one of them
    windows: list[set[int]] = [set()]
    for number in block[order].tolist():
        if number not in windows[-1] and len(windows[-1]) == MIXED:
            windows.append(set())
        windows[-1].add(number)
    assert sum(map(len, windows)) == len(sizes)


def test_each_epoch_mixes_other_blocks_and_within_them_in_another_order() -> None:
    block = torch.arange(400) // 10
    first, second = (shuffled(400, block, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert set((first[:40] // 10).tolist()) != set((second[:40] // 10).tolist())
    runs = [len(set((first[n : n + 10] // 10).tolist())) for n in range(0, 400, 10)]
    assert np.mean(runs) > 2, "blocks are mixed, and not read one after the other"


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=25),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 5),
    st.booleans(),
)
def test_ranks_share_out_every_epoch_without_a_double_and_go_on_anywhere(
    sizes: list[int], ranks: int, per_rank: int, seed: int, blocked: bool
) -> None:
    block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)) if blocked else None
    samples, size = sum(sizes), ranks * per_rank
    per_epoch = samples // size
    every = [
        list(TrainBatches(samples, per_rank, batches=2 * per_epoch, rank=r, ranks=ranks, seed=seed, block=block))
        for r in range(ranks)
    ]
    for epoch in range(2):
        ids = [
            i for batches in every for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i, _ in batch
        ]
        assert len(set(ids)) == len(ids) == per_epoch * size  # all but an incomplete last batch
    rest = TrainBatches(samples, per_rank, batches=2 * per_epoch, rank=ranks - 1, ranks=ranks, seed=seed, block=block)
    rest.start = per_epoch
    assert list(rest) == every[-1][per_epoch:]


def of_parquet(root: Path) -> Source:
    table = pa.table({"image": [png(n) for n in range(60)], "label": [n % 3 for n in range(60)]})
    pq.write_table(table, root / "train.parquet", row_group_size=7)
    return Parquet(root=str(root), input=ImageColumn(column="image", size=SIDE))


def of_shards(root: Path) -> Source:
    numbered_shards(root / "shards", 60)
    return archives(root / "shards", root / "cache")


def of_memmap(root: Path) -> Source:
    np.save(root / "x.npy", np.arange(60 * 12, dtype=np.float32).reshape(60, 3, 4))
    np.save(root / "label.npy", np.arange(60) % 3)
    return Memmap(root=str(root))


@pytest.mark.parametrize("made", [of_parquet, of_shards, of_memmap])
def test_ranks_and_workers_read_what_one_process_reads_and_go_on_in_mid_epoch(
    made: Callable[[Path], Source], tmp_path: Path
) -> None:
    source = made(tmp_path)
    alone = loaded(source, batches=10)
    whole = len(source.split("pretrain")) // 8
    first = torch.cat([batch["index"] for batch in alone[:whole]]).tolist()
    assert len(set(first)) == len(first) == whole * 8
    for ranks, workers, start in ((1, 2, 0), (2, 0, 0), (2, 3, 4), (4, 1, 7)):
        parts = [
            loaded(source, ranks=ranks, rank=rank, workers=workers, start=start, batches=10) for rank in range(ranks)
        ]
        for batch, shared in zip(alone[start:], zip(*parts, strict=True), strict=True):
            for name in ("index", "label"):
                assert torch.equal(batch[name], torch.cat([each[name] for each in shared]))
            assert torch.equal(batch["inputs"][0]["x"], torch.cat([each["inputs"][0]["x"] for each in shared]))


# -- tar shards ------------------------------------------------------------------------------------------------


def test_pictures_by_class_in_shards(tmp_path: Path) -> None:
    numbered_shards(tmp_path / "s", 30, classes=12)
    source = archives(tmp_path / "s", tmp_path / "cache")
    assert source.classes == tuple(str(n) for n in range(12))  # as numbers: 2 before 10
    found = sorted(n for part in ("train", "val", "test") for n in seen(source, part))
    assert found == list(range(30))
    for part in ("train", "val", "test"):
        label = source.split(part).label
        assert label is not None
        assert label.tolist() == [n % 12 for n in seen(source, part)]


def test_parts_of_their_own_and_no_classes(tmp_path: Path) -> None:
    for part, first in (("train", 0), ("val", 10)):
        shard(tmp_path / "s" / part / "a.tar", [(f"d/{first + n}.png", png(first + n)) for n in range(5)])
    source = archives(tmp_path / "s", tmp_path / "cache", test=0.0)
    assert (seen(source), seen(source, "val"), seen(source, "test")) == ([*range(5)], [*range(10, 15)], [])
    assert not source.labelled
    assert source.split("train").label is None


def test_some_labels_missing_columns_and_broken_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [(f"{n}.png", png(n)) for n in range(9)] + [("9.txt", b"no picture"), ("10.png", b"broken")]
    shard(tmp_path / "s" / "a.tar", members)
    source = archives(tmp_path / "s", tmp_path / "cache", val=0, test=0)
    assert "a.tar:9 has no 'jpg;png'" in capsys.readouterr().err
    with pytest.raises(BrokenSample, match=r"a\.tar:10\.png"):
        source.split("train").inputs(9)  # type: ignore[union-attr]
    with pytest.raises(RunError, match="has no 'jpg;png'"):
        archives(tmp_path / "s", tmp_path / "cache", on_broken="stop")
    shard(tmp_path / "s" / "b.tar", [("20.png", png(20)), ("20.cls", b"3")])
    with pytest.raises(RequestError, match="label all or none"):
        archives(tmp_path / "s", tmp_path / "cache")
    with pytest.raises(RequestError, match=r"nothing in .* has it; there are: cls, png, txt"):
        Archives(root=str(tmp_path / "s"), input=ImageColumn(column="jpeg"), cache=str(tmp_path / "cache"))
    with pytest.raises(RequestError, match=r"index\.json with checksums"):
        archives(tmp_path / "s", tmp_path / "cache", verify=True)


def test_members_are_looked_up_once_and_again_when_the_archive_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered_shards(tmp_path / "s", 12)
    archives(tmp_path / "s", tmp_path / "cache", val=0, test=0)
    scanned: list[str] = []
    scan = tar.scan
    monkeypatch.setattr(tar, "scan", lambda path: scanned.append(path) or scan(path))
    assert seen(archives(tmp_path / "s", tmp_path / "cache", val=0, test=0)) == [*range(12)]
    assert not scanned
    shard(tmp_path / "s" / "001.tar", [("x.png", png(77)), ("x.cls", b"1")])
    assert seen(archives(tmp_path / "s", tmp_path / "cache", val=0, test=0)) == [*range(10), 77]
    assert [Path(path).name for path in scanned] == ["001.tar"]
    for kept in (tmp_path / "cache").iterdir():
        kept.write_bytes(kept.read_bytes()[:100])  # a damaged index is made anew
    assert seen(archives(tmp_path / "s", tmp_path / "cache", val=0, test=0)) == [*range(10), 77]


def test_nothing_leaves_a_hostile_archive(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(200))
    path = tmp_path / "s" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        kinds = ((tarfile.SYMTYPE, str(tmp_path / "secret.png")), (tarfile.LNKTYPE, "../secret.png"))
        for n, (kind, target) in enumerate((*kinds, (tarfile.CHRTYPE, ""), (tarfile.DIRTYPE, ""))):
            info = tarfile.TarInfo(f"{n}.png")
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name in ("../../evil.png", "/abs/evil.png", ".hidden.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png(1))
            archive.addfile(info, io.BytesIO(png(1)))
    before = sorted(tmp_path.rglob("*"))
    source = archives(tmp_path / "s", tmp_path / "cache", val=0, test=0)
    assert seen(source) == [1, 1]
    assert [p for p in sorted(tmp_path.rglob("*")) if "cache" not in p.parts] == before


def test_headers_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "s" / "a.tar"
    shard(path, [("0.png", png(0)), ("1.png", png(1))])
    whole = bytearray(path.read_bytes())

    def with_size(field: bytes) -> None:
        content = whole.copy()
        content[124:136] = field
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
        path.write_bytes(bytes(content))

    for field in (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0", b"\xff" * 10 + b"\xfe\x00"):
        with_size(field)
        with pytest.raises(RequestError, match=r"is no \.tar that can be read"):
            archives(tmp_path / "s", tmp_path / "cache")
    path.write_bytes(bytes(whole[: 512 + 100]))  # cut short within a member
    with pytest.raises(RequestError, match=r"is no \.tar that can be read"):
        archives(tmp_path / "s", tmp_path / "cache")


@settings(max_examples=150)
@given(st.binary(max_size=1500), st.integers(0, 3000), st.booleans())
def test_any_bytes_are_an_archive_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, inside: bool
) -> None:
    root = tmp_path_factory.mktemp("noise")
    shard(root / "a.tar", [("0.png", png(0)), ("0.cls", b"1")])
    if inside:
        content = bytearray((root / "a.tar").read_bytes())
        content[place : place + len(noise)] = noise
        noise = bytes(content)
    (root / "a.tar").write_bytes(noise)
    try:
        for member in tar.listed(tar.scan(str(root / "a.tar"))):
            addresses.content(str(root / "a.tar"), member.start, member.size)
    except (RequestError, BrokenSample):
        pass


@settings(max_examples=60)
@given(st.binary(max_size=400), st.integers(0, 2500))
def test_any_index_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int) -> None:
    file = tmp_path_factory.mktemp("index") / "i.npz"
    tar.save(tar.blocks([tar.Member("0.png", 512, 90, None), tar.Member("ф.cls", 1536, 1, "1")]), file)
    assert [m.name for m in tar.listed(tar.loaded(file) or {})] == ["0.png", "ф.cls"]
    content = bytearray(file.read_bytes())
    content[place : place + len(noise)] = noise
    file.write_bytes(bytes(content))
    found = tar.loaded(file)
    if found is not None:
        list(tar.listed(found))


# -- addresses -------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def upload(system: Any, root: Path, address: str) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            system.pipe(f"{address}/{path.relative_to(root)}", path.read_bytes())


@pytest.mark.parametrize("chain", ["", "simplecache::"])
def test_shards_in_a_store(store: Any, tmp_path: Path, chain: str) -> None:
    numbered_shards(tmp_path / "s", 24)
    upload(store, tmp_path / "s", "/bucket/pictures")
    here = archives(tmp_path / "s", tmp_path / "cache")
    there = archives(f"{chain}memory://bucket/pictures", tmp_path / "cache")
    for part in ("train", "val", "test"):
        assert seen(there, part) == seen(here, part)
        assert torch.equal(there.split(part).label, here.split(part).label)  # type: ignore[arg-type]
    one = archives(f"{chain}memory://bucket/pictures/000.tar", tmp_path / "cache", val=0, test=0)
    assert seen(one) == [*range(10)]
    with pytest.raises(RequestError, match=r"no \.tar in it"):
        archives("memory://bucket/elsewhere", tmp_path / "cache")


def test_pairs_in_a_store_with_classes(store: Any, tmp_path: Path) -> None:
    members = [(f"{n}.{e}", c) for n in range(8) for e, c in (("png", png(n)), ("txt", b"t%d" % n), ("cls", b"%d" % n))]
    shard(tmp_path / "s" / "a.tar", members)
    upload(store, tmp_path / "s", "/pairs")
    text = TextColumn(column="txt", length=8, tokenizer="bytes")
    source = Shards(
        root="memory://pairs", first=ImageColumn(column="png"), second=text, label_column="cls", val=0, test=0
    )
    part = source.split("train")
    assert source.classes == tuple("01234567")
    assert [red(part.inputs(n)[0]["x"]) for n in range(8)] == [*range(8)]  # type: ignore[union-attr]
    assert part.label is not None
    assert part.label.tolist() == [*range(8)]


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Answers requests for a range of bytes, as stores do."""

    served: Counter[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not asked or not path.is_file():
            return super().do_GET()
        content = path.read_bytes()
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        self.served[path.name] += last + 1 - first
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(content[first : last + 1])
        return None


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Counter[str]]]:
    served: Counter[str] = Counter()
    handler = type("Handler", (Ranges,), {"served": served})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(tmp_path)))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", served
    server.shutdown()


def test_workers_read_a_shard_of_the_web_by_the_piece(web: tuple[str, Counter[str]], tmp_path: Path) -> None:
    address, served = web
    members: list[tuple[str, bytes]] = [("large.bin", bytes(3_000_000))]
    for n in range(24):
        members += [(f"{n:02}.png", png(n)), (f"{n:02}.cls", b"0")]
    shard(tmp_path / "a.tar", members)
    source = archives(f"{address}/a.tar", tmp_path / "cache", val=0, test=0)
    scanned = served["a.tar"]
    here = loaded(archives(tmp_path / "a.tar", tmp_path / "cache", val=0, test=0), batches=3)
    there = loaded(source, batches=3, workers=2)
    assert [red(x) for batch in there for x in batch["inputs"][0]["x"]] == [
        red(x) for batch in here for x in batch["inputs"][0]["x"]
    ]
    assert 0 < served["a.tar"] - scanned < 24 * 2 * len(png(0)), "the pictures alone, nothing around them"


def test_a_store_that_does_not_answer_stops_the_run_and_breaks_no_sample(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered_shards(tmp_path / "s", 10)
    upload(store, tmp_path / "s", "/bucket")
    source = archives("memory://bucket", tmp_path / "cache", val=0, test=0)
    monkeypatch.setattr(addresses, "PAUSE", 0.0)
    answer, left = type(store).cat_file, [2]

    def refused(self: Any, *args: Any, **named: Any) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("reset by peer")
        return answer(self, *args, **named)

    monkeypatch.setattr(type(store), "cat_file", refused)
    assert red(source.split("train").inputs(3)[0]["x"]) == 3  # type: ignore[union-attr]
    left[0] = 1000
    with pytest.raises(RunError, match=r"can't be reached \(reset by peer\).* resume the run"):
        loaded(source, batches=1)
    left[0] = 0
    store.rm("/bucket", recursive=True)
    with pytest.raises(BrokenSample, match=r"000\.tar"):
        source.split("train").inputs(3)  # type: ignore[union-attr]


def test_addresses_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root, message in (
        ("nonsense://x", "Protocol not known"),
        ("http://127.0.0.1:9/a.tar", "can't be reached"),
    ):
        with pytest.raises(RequestError, match=message):
            archives(root, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(RequestError, match="need the package fsspec"):
        archives("memory://x", tmp_path / "cache")


# -- Parquet ---------------------------------------------------------------------------------------------------


def test_rows_of_parquet_files_named_as_on_the_hub(store: Any, tmp_path: Path) -> None:
    def rows(numbers: range) -> pa.Table:
        image = [{"bytes": png(n), "path": None} for n in numbers]
        return pa.table({"image": image, "label": [f"c{n % 2}" for n in numbers]})

    (tmp_path / "p").mkdir()
    for name, numbers in (
        ("train-00000-of-00002", range(10)),
        ("train-00001-of-00002", range(10, 15)),
        ("validation-00000-of-00001", range(20, 24)),
        ("test-00000-of-00001", range(30, 32)),
    ):
        pq.write_table(rows(numbers), tmp_path / "p" / f"{name}.parquet", row_group_size=3)
    upload(store, tmp_path / "p", "/hub")
    for root in (str(tmp_path / "p"), "memory://hub"):
        source = Parquet(root=root, input=ImageColumn(column="image", size=SIDE))
        assert (seen(source), seen(source, "val"), seen(source, "test")) == ([*range(15)], [*range(20, 24)], [30, 31])
        assert source.classes == ("c0", "c1")
        part = source.split("train")
        assert part.label is not None
        assert part.label.tolist() == [n % 2 for n in range(15)]
        assert part.block is not None  # type: ignore[union-attr]
        assert part.block.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] + [4] * 3 + [5] * 2  # type: ignore[union-attr]
        assert part.name(12).endswith("train-00001-of-00002.parquet, row 3")  # type: ignore[union-attr]


def test_numbers_in_lists_and_what_is_none(tmp_path: Path) -> None:
    values = [[float(n), 1.0, 2.0, 3.0] for n in range(6)]
    values[4] = [1.0]
    values[5] = [float("nan"), 0.0, 0.0, 0.0]
    pq.write_table(pa.table({"x": values, "y": [-1] * 6}), tmp_path / "a.parquet")
    source = Parquet(root=str(tmp_path / "a.parquet"), input=NumbersColumn(column="x", shape=(2, 2)), val=0, test=0)
    part = source.split("train")
    assert part.inputs(3)[0]["x"].tolist() == [[3.0, 1.0], [2.0, 3.0]]  # type: ignore[union-attr]
    assert source.facts["shape"] == (2, 2)
    for n in (4, 5):
        with pytest.raises(BrokenSample, match=rf"a\.parquet, row {n + 1}"):
            part.inputs(n)  # type: ignore[union-attr]
    column = NumbersColumn(column="x", shape=(4,))
    for more, message in (
        ({"input": NumbersColumn(column="z", shape=(4,))}, "no such column; did you mean 'x'|no such column"),
        ({"input": column, "label": "y"}, "holds -1; classes are numbers from 0 up"),
        ({"input": column, "label": "nowhere"}, "no row of"),
        ({"input": column, "val": 0.6, "test": 0.4}, "leave some for training"),
    ):
        with pytest.raises(RequestError, match=message):
            Parquet(root=str(tmp_path / "a.parquet"), **more)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(RequestError, match="is no Parquet file"):
        Parquet(root=str(tmp_path / "b.parquet"), input=column)


def test_a_row_group_is_read_once_while_its_rows_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"image": [png(n) for n in range(200)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    source = Parquet(root=str(tmp_path / "a.parquet"), input=ImageColumn(column="image", size=SIDE), val=0, test=0)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **named: read.append(i) or original(self, i, **named)
    )
    numbers = [red(x) for batch in loaded(source, batches=25) for x in batch["inputs"][0]["x"]]
    assert sorted(numbers) == [*range(200)]
    assert sorted(read) == [*range(20)], "each once in an epoch"
    assert len(source.split("train").input._files._read) == MIXED  # type: ignore[union-attr]
    assert not pickle.loads(pickle.dumps(source.split("train"))).input._files._read  # type: ignore[union-attr]
    monkeypatch.setattr(row_groups, "LARGEST", 500)
    with pytest.raises(RequestError, match="write it anew with smaller ones"):
        Parquet(root=str(tmp_path / "a.parquet"), input=ImageColumn(column="image"))


# -- memory maps -----------------------------------------------------------------------------------------------


def test_arrays_on_disk_in_every_layout(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4), np.uint8)
    label = np.arange(40) % 4
    np.save(tmp_path / "only.npy", x)
    alone = Memmap(root=str(tmp_path / "only.npy"), val=0, test=0)
    assert not alone.labelled
    assert torch.equal(alone.split("train").__getitems__([(3, 0), (1, 0)])["inputs"][0]["x"], torch.tensor(x[[3, 1]]))
    (tmp_path / "whole").mkdir()
    np.save(tmp_path / "whole" / "x.npy", x)
    np.save(tmp_path / "whole" / "label.npy", label)
    source = Memmap(root=str(tmp_path / "whole"))
    rows = []
    for part in ("train", "val", "test"):
        found = source.split(part)
        batch = found.__getitems__([(n, 0) for n in range(len(found))])
        rows += [
            (int(y), bytes(v.flatten().tolist())) for y, v in zip(batch["label"], batch["inputs"][0]["x"], strict=True)
        ]
    assert sorted(rows) == sorted((int(y), v.tobytes()) for y, v in zip(label, x, strict=True))
    assert [len(source.split(part)) for part in ("train", "val", "test")] == [32, 4, 4]
    assert source.classes == ("0", "1", "2", "3")
    for part, some in (("train", slice(0, 30)), ("test", slice(30, 40))):
        (tmp_path / "parts" / part).mkdir(parents=True)
        np.save(tmp_path / "parts" / part / "x.npy", x[some].astype(np.float16) / 255)
        np.save(tmp_path / "parts" / part / "label.npy", label[some].astype(np.float64) / 2)
    valued = Memmap(root=str(tmp_path / "parts"), val=0.2)
    assert (valued.valued, valued.classes) == (True, ())
    assert [len(valued.split(part)) for part in ("train", "val", "test")] == [24, 6, 10]
    batch = valued.split("test").__getitems__([(2, 0)])
    assert batch["inputs"][0]["x"].dtype == batch["label"].dtype == torch.float32
    assert batch["label"].tolist() == [0.0]


def test_the_mean_and_spread_of_what_is_stored(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (50, 2, 3, 3), np.uint8)
    np.save(tmp_path / "x.npy", x)
    facts = Memmap(root=str(tmp_path), val=0, test=0).facts
    assert facts["mean"] == pytest.approx(x.mean((0, 2, 3)) / 255, abs=1e-4)
    assert facts["std"] == pytest.approx(x.std((0, 2, 3)) / 255, abs=1e-4)
    assert Memmap(root=str(tmp_path), mean=(0.1, 0.2), std=(1.0, 2.0)).facts["mean"] == (0.1, 0.2)
    with pytest.raises(RequestError, match="one for each channel"):
        Memmap(root=str(tmp_path), mean=(0.1,))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, x: np.save(root / "x.npy", np.asfortranarray(x)), "by columns"),
        (lambda root, x: np.save(root / "x.npy", x.astype(">f4")), "numbers of this machine"),
        (lambda root, x: np.save(root / "x.npy", x.astype(np.int32)), "uint8 for intensities"),
        (lambda root, x: np.save(root / "x.npy", np.array([{}] * 9), allow_pickle=True), "holds object"),
        (lambda root, x: np.save(root / "x.npy", x[:, 0, 0]), "channels along the second"),
        (lambda root, x: np.save(root / "label.npy", np.arange(8)), "and there are 9 samples"),
        (lambda root, x: np.save(root / "label.npy", -np.arange(9)), "below 0"),
        (lambda root, x: (root / "x.npy").write_bytes((root / "x.npy").read_bytes()[:-1]), "is cut short"),
        (lambda root, x: (root / "x.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': 1}"), "no .npy file"),
        (lambda root, x: (root / "x.npy").write_bytes(b"nothing"), "no .npy file"),
        (lambda root, x: (root / "x.npy").unlink(), r"no x\.npy or train/x\.npy"),
    ],
)
def test_files_that_cannot_be_mapped_say_what_to_do(
    tmp_path: Path, spoil: Callable[[Path, np.ndarray], Any], message: str
) -> None:
    x = np.zeros((9, 1, 2), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "label.npy", np.arange(9))
    assert len(Memmap(root=str(tmp_path)).split("train")) == 9
    spoil(tmp_path, x)
    with pytest.raises(RequestError, match=message):
        Memmap(root=str(tmp_path))


def test_few_labels_stay_in_their_file_and_nothing_is_written_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 1, 3)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "label.npy", np.arange(10) % 2)
    monkeypatch.setattr(mapped, "KEPT", 1)  # mapped anew each time
    whole = Memmap(root=str(tmp_path), val=0, test=0).split("train")
    part = whole.part(torch.tensor([7, 2, 9])).part(torch.tensor([2, 0]))
    assert isinstance(part.x, mapped.Rows)
    batch = part.__getitems__([(1, 0), (0, 0)])
    assert batch["inputs"][0]["x"].tolist() == x[[7, 9]].tolist()
    assert batch["label"].tolist() == [1, 1]
    batch["inputs"][0]["x"].zero_()
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)
    copied = pickle.dumps(part)
    assert b"x.npy" in copied
    assert len(copied) < 4000
    assert torch.equal(pickle.loads(copied).x[torch.tensor([0])], part.x[torch.tensor([0])])


def test_rows_of_a_large_file_are_let_go_by_the_largest_page_around_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, size, maps = 2 << 20, 64 << 20, []
    with open(tmp_path / "x", "wb") as file:
        file.truncate(size)  # with no bytes on the disk
    rows = mapped.Rows(tmp_path / "x", np.dtype(np.uint8), (size // 1024, 1024))
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args: maps.append(args) or memmap(*args))
    assert rows[torch.randperm(len(rows))[:64]].shape == (64, 1024)
    assert len(maps) >= 64 * page / mapped.KEPT
    maps.clear()
    few = mapped.Rows(tmp_path / "x", np.dtype(np.uint8), (size // 1024, 1024))
    few[torch.arange(4)], few[torch.arange(4)]
    assert len(maps) == 1


# -- memory ----------------------------------------------------------------------------------------------------

MEASURE = '''
import json, os, sys
import numpy as np, torch, pyarrow.parquet, PIL.Image
from ssl_runner.datasets.archives import Archives
from ssl_runner.datasets.base import Ragged
from ssl_runner.datasets.columns import ImageColumn
from ssl_runner.datasets.memmap import Memmap
from ssl_runner.datasets.reading import Reading, shuffled
from ssl_runner.datasets.row_groups import Parquet
from ssl_runner.datasets.text import Text

OPEN = {
    "memmap": lambda root: Memmap(root=root, val=0, test=0),
    "shards": lambda root: Archives(root=root, input=ImageColumn(column="png"), cache=root + "/cache", val=0, test=0),
    "parquet": lambda root: Parquet(root=root, input=ImageColumn(column="image"), val=0, test=0),
    "text": lambda root: Text(root=root, tokenizer="bytes", length=512, cache=root + "/cache", val=0, test=0),
}

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

def epoch(kind, root):
    """Reads every sample once, as training does, and gives how much memory that took at its peak."""
    before = status("VmRSS")
    source = OPEN[kind](root)
    dataset = source.split("pretrain")
    block = dataset.block if isinstance(dataset, Ragged) else None
    order = shuffled(len(dataset), block, torch.Generator().manual_seed(0))
    reading = Reading(dataset, lambda views: views, "stop", True) if isinstance(dataset, Ragged) else dataset
    for batch in order.split(64):
        reading.__getitems__([(n, 0) for n in batch.tolist()])
    return status("VmHWM") - before, len(dataset)

found = {}
for kind in sys.argv[2:]:
    for size in ("small", "large"):
        end, begin = os.pipe()
        if not os.fork():  # each in a process of its own, with what is imported already
            torch.set_num_threads(1)
            os.write(begin, json.dumps(epoch(kind, f"{sys.argv[1]}/{kind}/{size}")).encode())
            os._exit(0)
        os.close(begin)
        with os.fdopen(end) as pipe:
            found[f"{kind}/{size}"] = json.loads(pipe.read())
        os.wait()
print(json.dumps(found))
'''
SMALL = 400  # samples; ten times as many in the large one
EACH = 24_000  # bytes of one


def noise(n: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(n).integers(0, 256, (90, 89, 3), np.uint8)
    Image.fromarray(pixels).save(content, "PNG", compress_level=0)
    return content.getvalue()


def write_memmap(root: Path, count: int) -> None:
    x = np.lib.format.open_memmap(root / "x.npy", "w+", np.uint8, (count, 3, 100, 80))
    x[:, 0, 0, 0] = 1
    x.flush()
    del x
    with open(root / "x.npy", "rb") as file:  # anew from the disk, so that it is in pages as large as the system's are
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 16):
            pass


def write_shards(root: Path, count: int) -> None:
    for begin in range(0, count, 400):
        shard(root / f"{begin:05}.tar", [(f"{n}.png", noise(n % 20)) for n in range(begin, begin + 400)])


def write_parquet(root: Path, count: int) -> None:
    some = [noise(n) for n in range(20)]
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(root / "train.parquet", schema, compression="none", use_dictionary=False) as writer:
        for _ in range(count // 20):
            writer.write_table(pa.table({"image": some}, schema=schema))


def write_text(root: Path, count: int) -> None:
    with open(root / "train.jsonl", "w") as file:
        for n in range(count // 2):
            file.write(json.dumps({"text": f"{n} " + "some words and more of them " * 410}) + "\n")  # 4 bytes an id


WRITERS = {"memmap": write_memmap, "shards": write_shards, "parquet": write_parquet, "text": write_text}


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, int]]]:
    root = tmp_path_factory.mktemp("sizes")
    for kind, write in WRITERS.items():
        for size, count in (("small", SMALL), ("large", 10 * SMALL)):
            (root / kind / size).mkdir(parents=True)
            write(root / kind / size, count)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(root), *WRITERS],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)
    for path in root.rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("kind", list(WRITERS))
def test_memory_is_flat_at_ten_times_the_data(kind: str, peaks: dict[str, tuple[int, int]]) -> None:
    small, large = peaks[f"{kind}/small"], peaks[f"{kind}/large"]
    assert large[1] > 9 * small[1] > 0
    more = 9 * SMALL * EACH  # bytes that the large one has over the small one
    assert large[0] - small[0] < 0.5 * more, f"{(large[0] - small[0]) / 1e6:.0f} of {more / 1e6:.0f} MB more data"


# -- a whole run -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_run_on_files_killed_in_mid_epoch_goes_on_to_the_same_weights(kind: str, tmp_path: Path) -> None:
    if kind == "tar":
        numbered_shards(tmp_path / "data", 90)
        data = ["data=tar", "data.root=data", "data.input.size=8", "data.cache=cache"]
    else:
        table = pa.table({"image": [png(n) for n in range(90)], "label": [n % 3 for n in range(90)]})
        pq.write_table(table, tmp_path / "data.parquet", row_group_size=7)
        data = ["data=parquet", "data.root=data.parquet", "data.input.size=8"]
    general = [a for a in TINY if not a.startswith(("data", "views", "duration"))]
    args = ["pretrain", "task=simclr", *general, *data, "views=simclr", "workers=2", "evaluators=none"]
    args += ["duration=60 steps", "checkpoint_every=4 steps"]
    assert process(*args, "hydra.run.dir=whole", cwd=tmp_path).returncode == 0
    folder = tmp_path / "stopped"
    child = subprocess.Popen(command(*args, "hydra.run.dir=stopped"), cwd=tmp_path, env=environment())
    wait_for_step(folder, 7, child)
    child.kill()
    child.wait()
    stopped = load_checkpoint(folder / runs.CHECKPOINTS / runs.LAST)["global_step"]
    assert 0 < stopped < 60
    done = process("resume", "stopped", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    same_result(tmp_path / "whole", folder)
