"""`ssl-run pack`: what is packed is what was in the folder, whatever happened on the way."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_runner import build, pack
from ssl_runner.datasets import packs, tar
from ssl_runner.datasets.archives import Archives
from ssl_runner.datasets.audio_folder import AudioFolder
from ssl_runner.datasets.columns import AudioColumn, ImageColumn
from ssl_runner.datasets.digits import Digits
from ssl_runner.datasets.folder import Folder
from ssl_runner.datasets.memmap import Memmap
from ssl_runner.errors import RequestError
from tests.conftest import TINY, command, environment

COLUMN = "jpg;jpeg;png;webp;bmp;gif;pgm;ppm;tif;tiff"


def picture(path: Path, seed: int, size: tuple[int, int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    height, width = size or rng.integers(8, 14, 2).tolist()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)


def pictures(root: Path, count: int = 24, size: tuple[int, int] | None = None) -> None:
    for n in range(count):
        picture(root / ("кошки", "dogs & co")[n % 2] / f"фото {n}.v1.png", n, size)


def packed(root: Path, target: Path, *options: str) -> None:
    pack.run([str(root), str(target), *options])


def content(root: Path) -> dict[str, bytes]:
    """What a person would copy elsewhere."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def shards(root: Any, **more: Any) -> Archives:
    return Archives(root=str(root), input=ImageColumn(column=COLUMN, size=8), **more)


def same_samples(one: Any, other: Any) -> None:
    for part in ("pretrain", "train", "val", "test"):
        a, b = one.split(part), other.split(part)
        assert len(a) == len(b) > 0
        assert torch.equal(a.label, b.label)
        assert all(torch.equal(a.inputs(n)[0]["x"], b.inputs(n)[0]["x"]) for n in range(len(a)))
    assert one.classes == other.classes


# -- what comes out is what went in ----------------------------------------------------------------------------


def test_shards_give_the_samples_of_the_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "src")
    packed(tmp_path / "src", tmp_path / "dst")
    same_samples(Folder(root=str(tmp_path / "src"), size=8, cache="no"), shards(tmp_path / "dst", verify=True))
    with tarfile.open(tmp_path / "dst" / "train" / "000000.tar") as archive:
        first = archive.next()
        assert first is not None
        assert (first.name, first.mtime, first.uid, first.mode) == ("000000000.png", 0, 0, 0o644)
        told = json.loads(archive.extractfile("000000000.json").read())  # type: ignore[union-attr]
        inside = archive.extractfile(first).read()  # type: ignore[union-attr]
    assert (tmp_path / "src" / told["file"]).read_bytes() == inside, "the file's own bytes, under its own name"
    assert "фото" in told["file"]


def test_parts_of_the_folder_stay_parts_and_an_empty_one_stays_empty(tmp_path: Path) -> None:
    for part in ("train", "val"):
        pictures(tmp_path / "src" / part, 6)
    packed(tmp_path / "src", tmp_path / "dst", "data.test=0")
    source = shards(tmp_path / "dst", val=0.4, test=0.4)
    assert [len(source.split(part)) for part in ("train", "val", "test")] == [6, 6, 0]
    assert source.classes == ("dogs & co", "кошки")


def test_shards_in_a_store_bring_their_index_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "src")
    packed(tmp_path / "src", tmp_path / "dst")
    system = fsspec.filesystem("memory")
    for name, each in content(tmp_path / "dst").items():
        system.pipe(f"/packed/{name}", each)
    monkeypatch.setattr(tar, "scan", None)
    try:
        same_samples(shards(tmp_path / "dst"), shards("memory://packed", verify=True))
        with pytest.raises(RequestError, match="files of this machine"):
            Memmap(root="memory://packed")
    finally:
        system.store.clear()


def test_a_memory_map_of_a_folder_has_its_images_as_squares(tmp_path: Path) -> None:
    pictures(tmp_path / "src", size=(9, 9))
    packed(tmp_path / "src", tmp_path / "dst", "format=memmap", "size=9", "data.mean=[0.1,0.2,0.3]")
    folder, mapped = Folder(root=str(tmp_path / "src"), size=9), Memmap(root=str(tmp_path / "dst"), verify=True)
    for part in ("train", "val", "test"):
        a, b = folder.split(part), mapped.split(part)  # type: ignore[arg-type]
        keys = [(n, 0) for n in reversed(range(len(a)))]
        one, other = a.__getitems__(keys), b.__getitems__(keys)  # type: ignore[union-attr]
        assert torch.equal(one["inputs"][0]["x"], other["inputs"][0]["x"])
        assert torch.equal(one["label"], other["label"])
    assert mapped.classes == folder.classes
    assert mapped.facts == {**folder.facts, "mean": (0.1, 0.2, 0.3)}


def test_a_square_is_the_middle_at_the_size_asked_for() -> None:
    x = torch.zeros(3, 10, 30, dtype=torch.uint8)
    x[:, :, 10:20] = 200
    assert torch.equal(pack.square(x, 5)[:, :, 1:4], torch.full((3, 5, 3), 200, dtype=torch.uint8))
    assert pack.square(x, 10) is not x
    assert torch.equal(pack.square(x, 10), x[:, :, 10:20])
    assert pack.square(x.transpose(1, 2), 7).shape == (3, 7, 7)


def test_a_memory_map_of_arrays(tmp_path: Path) -> None:
    pack.run(["data=digits", str(tmp_path / "dst"), "format=memmap"])
    digits, mapped = Digits(), Memmap(root=str(tmp_path / "dst"))
    assert mapped.facts == digits.facts
    for part in ("pretrain", "train", "val", "test"):
        keys = [(n, 0) for n in range(len(digits.split(part)))]  # type: ignore[arg-type]
        one, other = digits.split(part).__getitems__(keys), mapped.split(part).__getitems__(keys)  # type: ignore[arg-type]
        assert torch.equal(one["inputs"][0]["x"], other["inputs"][0]["x"])
        assert torch.equal(one["label"], other["label"])


def test_recordings_in_shards(tmp_path: Path) -> None:
    for n in range(12):
        path = tmp_path / "src" / f"class{n % 2}" / f"{n}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(n).uniform(-0.5, 0.5, 1000 + 300 * n), 8000)
    pack.run(["data=audio", str(tmp_path / "src"), str(tmp_path / "dst"), "data.val=0.3", "data.test=0.2"])
    folder = AudioFolder(root=str(tmp_path / "src"), rate=8000, seconds=0.1, val=0.3, test=0.2)
    column = AudioColumn(column="wav", rate=8000, seconds=0.1)
    same_samples(folder, Archives(root=str(tmp_path / "dst"), input=column, verify=True))


def losses(folder: Path) -> list[str]:
    with open(folder / "metrics.csv") as table:
        return [row["train/loss"] for row in csv.DictReader(table)]


def test_training_on_what_is_packed_is_training_on_the_folder(tmp_path: Path, ssl_run: Callable[..., tuple]) -> None:
    pictures(tmp_path / "src", 40)
    tiny = [a for a in TINY if not a.startswith(("data", "views"))]
    code, out, err = ssl_run("pack", "src", "dst")
    assert code == 0, err
    assert "data=tar data.root=dst" in out
    general = ["task=simclr", *tiny, "views=simclr", "evaluators=none"]
    runs = {"folder": ["data=folder", "data.root=src", "data.cache=no", "data.size=8"]}
    runs["shards"] = ["data=tar", "data.root=dst", "data.input.size=8"]
    for name, data in runs.items():
        code, _, err = ssl_run("pretrain", *general, *data, f"hydra.run.dir={name}")
        assert code == 0, err
    assert losses(tmp_path / "folder") == losses(tmp_path / "shards")
    assert len(losses(tmp_path / "shards")) > 5


# -- nothing lost on the way -----------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("options", [["shard=1"], ["format=memmap", "size=8"]])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "src", 14)
    (tmp_path / "src" / "dogs & co" / "bad.png").write_bytes(b"no picture")
    monkeypatch.setattr(pack, "AT_ONCE", 4)
    monkeypatch.setattr(pack, "MB", 2500)  # a few pictures make a shard
    node, _ = pack.parse([str(tmp_path / "src"), "dst", *options])
    source = build.make(node.data)
    pack.pack(node, source, tmp_path / "whole")
    whole = content(tmp_path / "whole")
    assert sum(name.endswith((".tar", ".npy")) for name in whole) > 5
    replace, fsync = os.replace, os.fsync
    left = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return call(*args)

        return one

    monkeypatch.setattr(os, "replace", counted(replace))
    monkeypatch.setattr(os, "fsync", counted(fsync))
    moments = 0
    while True:
        shutil.rmtree(tmp_path / "dst", ignore_errors=True)
        moments += 1
        left[0] = moments
        try:
            pack.pack(node, source, tmp_path / "dst")
            break
        except Killed:
            left[0] = 3  # and once more, soon after it went on
            with pytest.raises(Killed):
                pack.pack(node, source, tmp_path / "dst")
            left[0] = 0
            pack.pack(node, source, tmp_path / "dst")
        assert content(tmp_path / "dst") == whole
    assert moments > 20


def test_killed_and_called_again(tmp_path: Path) -> None:
    pictures(tmp_path / "src", 600)
    args = command("pack", "src", "dst", "shard=1", "data.val=0.3")
    whole = command("pack", "src", "again", "shard=1", "data.val=0.3")
    child = subprocess.Popen(args, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (tmp_path / "dst" / "train").is_dir() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "dst" / "index.json").is_file()
    for each in (args, whole):
        assert subprocess.run(each, cwd=tmp_path, env=environment(), check=False).returncode == 0
    assert content(tmp_path / "dst") == content(tmp_path / "again")


def test_files_that_cannot_be_read_are_told_and_left_out(tmp_path: Path, ssl_run: Callable[..., tuple]) -> None:
    pictures(tmp_path / "src", 10)
    (tmp_path / "src" / "кошки" / "битый.png").write_bytes(b"no picture")
    cut = tmp_path / "src" / "dogs & co" / "cut.png"
    picture(cut, 99)
    cut.write_bytes(cut.read_bytes()[:150])
    (tmp_path / "src" / "dogs & co" / "nowhere.png").symlink_to("gone.png")
    code, out, err = ssl_run("pack", "src", "dst", "data.val=0", "data.test=0")
    assert code == 0, err
    assert "left out 3 that can't be read" in out
    assert all(name in out for name in ("битый.png", "cut.png", "nowhere.png"))
    assert len(shards(tmp_path / "dst", verify=True).split("train")) == 10
    again = ssl_run("pack", "src", "dst", "data.val=0", "data.test=0")
    assert again == (0, out, "")
    code, out, _ = ssl_run("pack", "src", "map", "format=memmap", "size=8", "data.val=0", "data.test=0")
    assert (code, "left out 3" in out) == (0, True)
    assert len(Memmap(root="map").split("train")) == 10
    for name in ("кошки", "dogs & co"):
        for path in (tmp_path / "src" / name).iterdir():
            path.unlink()
            path.write_bytes(b"no picture")
    code, _, err = ssl_run("pack", "src", "none")
    assert code == 2
    assert "nothing of it to train on can be read" in err


# -- what is not what was packed -------------------------------------------------------------------------------


def flip(path: Path, place: int = 700) -> None:
    spoiled = bytearray(path.read_bytes())
    spoiled[place % len(spoiled)] ^= 1
    path.write_bytes(bytes(spoiled))


def test_spoiled_packs_are_told_by_their_file(tmp_path: Path) -> None:
    pictures(tmp_path / "src")
    packed(tmp_path / "src", tmp_path / "whole")
    packed(tmp_path / "src", tmp_path / "map", "format=memmap", "size=8")

    def fresh(kind: str) -> Path:
        shutil.rmtree(tmp_path / "dst", ignore_errors=True)
        return Path(shutil.copytree(tmp_path / kind, tmp_path / "dst"))

    flip(fresh("whole") / "train" / "000000.tar")
    shards(tmp_path / "dst")  # sizes are right
    with pytest.raises(RequestError, match=r"train/000000\.tar' is not what was packed"):
        shards(tmp_path / "dst", verify=True)
    flip(fresh("whole") / "val" / "000000.tar.index.npz")
    with pytest.raises(RequestError, match=r"val/000000\.tar\.index\.npz' is not what was packed"):
        shards(tmp_path / "dst")
    shard = fresh("whole") / "test" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(RequestError, match=r"test/000000\.tar' has \d+ bytes, not \d+"):
        shards(tmp_path / "dst")
    shard.unlink()
    with pytest.raises(RequestError, match=r"test/000000\.tar' is missing"):
        shards(tmp_path / "dst")
    flip(fresh("map") / "train" / "x.npy")
    Memmap(root=str(tmp_path / "dst"))
    with pytest.raises(RequestError, match=r"train/x\.npy' is not what was packed"):
        Memmap(root=str(tmp_path / "dst"), verify=True)
    with pytest.raises(RequestError, match="holds memmap, not shards"):
        shards(tmp_path / "map")


def test_an_index_of_a_stranger_leads_nowhere(tmp_path: Path) -> None:
    pictures(tmp_path / "src")
    packed(tmp_path / "src", tmp_path / "dst")
    path = tmp_path / "dst" / packs.INDEX
    about = json.loads(path.read_text())
    for key, value in (("file", "train/../../secret.tar"), ("file", "/etc/passwd"), ("size", -1), ("sha256", "x")):
        path.write_text(json.dumps({**about, "files": [{**about["files"][0], key: value}]}))
        with pytest.raises(RequestError, match="is no index of packed data"):
            shards(tmp_path / "dst")
    for text in ("", "[]", "{}", json.dumps({**about, "format": "pickle"}), json.dumps({**about, "version": 2})):
        path.write_text(text)
        with pytest.raises(RequestError, match="is no index of packed data"):
            shards(tmp_path / "dst")
    path.write_text(json.dumps({**about, "classes": ["one"]}))
    with pytest.raises(RequestError, match="which is none of those packed"):
        shards(tmp_path / "dst")


# -- wrong requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "pack takes the folder to pack"),
        (["src"], "pack takes the folder to pack"),
        (["src", "dst", "more"], "pack takes the folder to pack"),
        (["nowhere", "dst"], "nowhere"),
        (["src", "dst", "format=zip"], "format=zip: no such format; there are: memmap, shards"),
        (["src", "dst", "shard=0"], "shard=0: give a whole number above 0"),
        (["fromat=shards", "src", "dst"], "no such option"),
        (["src", "dst", "data.sise=8"], "did you mean 'size'"),
        (["src", "dst", "format=memmap"], "say size=PIXELS"),
        (["data=digits", "dst"], "use format=memmap"),
        (["data=digits", "dst", "format=memmap", "size=4"], "without size"),
        (["data=nothing", "dst"], "data=nothing: no such choice"),
        (["src", "full"], "is not empty"),
        (["data=text", "texts", "dst", "format=memmap"], "Text needs no packing"),
    ],
)
def test_a_wrong_request_says_what_to_do(
    args: list[str], message: str, tmp_path: Path, ssl_run: Callable[..., tuple]
) -> None:
    pictures(tmp_path / "src", 6)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.txt").write_text("precious")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words " * 400)
    if "data=text" in args:
        args = [*args, "data.tokenizer=bytes", "data.cache=cache", "data.val=0", "data.test=0"]
    code, _, err = ssl_run("pack", *args)
    assert (code, message in err) == (2, True), err
    assert not (tmp_path / "dst").exists()
    assert (tmp_path / "full" / "other.txt").read_text() == "precious"


def test_a_folder_is_gone_on_with_only_by_what_began_it(tmp_path: Path) -> None:
    pictures(tmp_path / "src", 8)
    packed(tmp_path / "src", tmp_path / "dst")
    before = content(tmp_path / "dst")
    with pytest.raises(RequestError, match="begun with other options"):
        packed(tmp_path / "src", tmp_path / "dst", "shard=5")
    picture(tmp_path / "src" / "кошки" / "new.png", 5)
    with pytest.raises(RequestError, match="or other files"):
        packed(tmp_path / "src", tmp_path / "dst")
    assert content(tmp_path / "dst") == before


def test_two_do_not_pack_into_one_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "src", 8)
    node, _ = pack.parse([str(tmp_path / "src"), "dst"])
    with pack.claimed(tmp_path / "dst", "about"), pytest.raises(RequestError, match="another process packs into it"):
        pack.pack(node, build.make(node.data), tmp_path / "dst")
