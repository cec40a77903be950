"""Pairs: tables and shards as users have them, what is read of them and which part it is in; finding partners."""

from __future__ import annotations

import csv
import io
import json
import math
import tarfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from ssl_runner.data import DataModule
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.columns import AudioColumn, File, ImageColumn, Row, TextColumn, boxed, content_of
from ssl_runner.datasets.emoji import Emoji
from ssl_runner.datasets.pairs import Held, Paired, Pairs, Read, linked, parts_of
from ssl_runner.datasets.shards import Shards, cells_of
from ssl_runner.datasets.stamps import SpokenStamps, Stamps, sentences
from ssl_runner.errors import RequestError, RunError
from ssl_runner.evaluators.retrieval import Retrieval, distinct, ranks
from ssl_runner.evaluators.zero_shot import ZeroShot, figures
from ssl_runner.types import Embed, Matching, View
from ssl_runner.views import Normalize, RandomResizedCrop, Resize
from ssl_runner.views.base import Branch, Views

COLOURS = ["red", "green", "blue", "yellow", "magenta", "cyan", "black", "white"]
WORDS = TextColumn(column="caption", length=8, tokenizer="bytes")


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (9, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def table(root: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("file", "caption")) -> Path:
    path = root / "pairs.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def coloured(root: Path, count: int = 20) -> Path:
    """A table of pictures of one colour each, whose captions name it; sizes differ."""
    rows = []
    for n in range(count):
        name = f"bilder/n°{n} é.png"
        picture(root / name, COLOURS[n % 8], (8 + n % 3, 8))
        rows.append((name, f"{COLOURS[n % 8]} no. {n}"))
    return table(root, rows)


def pairs(path: Path, first: Any = None, second: Any = WORDS, **more: Any) -> Pairs:
    first = ImageColumn(column="file", size=8) if first is None else first
    return Pairs(root=str(path), first=first, second=second, **more)


def spelled(view: View) -> list[str]:
    return [bytes(n - 3 for n in ids if n > 2).decode() for ids in view["x"].tolist()]


# -- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_row_gives_its_picture_and_its_caption(tmp_path: Path, kind: str) -> None:
    for n in range(12):
        picture(tmp_path / f"é{n}.png", COLOURS[n % 8])
    rows = [{"file": f"é{n}.png", "caption": f"ŵ{n}"} for n in range(12)]
    lines = {
        "csv": ["file,caption", *(f'"{r["file"]}",{r["caption"]}' for r in rows)],
        "tsv": ["file\tcaption", *(f"{r['file']}\t{r['caption']}" for r in rows)],
        "jsonl": [json.dumps(r) for r in rows],
    }
    (tmp_path / f"pairs.{kind}").write_text("\n".join(lines[kind]) + "\n", encoding="utf-8")
    source = pairs(tmp_path / f"pairs.{kind}")
    seen = {}
    for part in ("train", "val", "test"):
        dataset = source.split(part)
        for n in range(len(dataset)):
            image, text = dataset.inputs(n)
            assert image["x"].shape == (3, 6, 9)
            seen[spelled({"x": text["x"][None]})[0]] = tuple(image["x"][:, 0, 0].tolist())
    rgb = {name: Image.new("RGB", (1, 1), name).getpixel((0, 0)) for name in COLOURS}
    assert seen == {f"ŵ{n}": rgb[COLOURS[n % 8]] for n in range(12)}
    assert [len(source.split(part)) for part in ("train", "val", "test")] == [10, 1, 1]


def test_what_parts_ask_for_is_told_of_both_inputs(tmp_path: Path) -> None:
    facts = pairs(coloured(tmp_path)).facts
    assert facts["shape"] == (3, 8, 8)
    assert facts["num_classes"] == 0
    assert facts["second"]["vocab"] == 259
    assert facts["second"]["length"] == 8
    assert facts["second"]["shape"] == (8,)


def test_captions_are_ended_cut_off_and_padded(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = [("a.png", "abc"), ("a.png", "0123456789"), ("a.png", "  abcdefg ")]
    source = pairs(table(tmp_path, rows), val=0, test=0)
    texts = [source.split("train").inputs(n)[1] for n in range(3)]
    assert texts[0]["x"].tolist() == [100, 101, 102, 1, 0, 0, 0, 0]
    assert texts[0]["pad"].tolist() == [False] * 4 + [True] * 4
    assert spelled({"x": texts[1]["x"][None]}) == ["01234567"]
    assert texts[2]["x"][-1] == 1


def test_the_tokenizer_learns_from_the_train_part_alone_and_is_kept(tmp_path: Path) -> None:
    rows = [(f"{n}.png", f"word{n} caption{n}") for n in range(20)]
    for name, _ in rows:
        picture(tmp_path / name)
    column = TextColumn(column="caption", vocab_size=400, cache=str(tmp_path / "cache"))
    source = pairs(table(tmp_path, rows), second=column)
    (kept,) = (tmp_path / "cache").iterdir()
    assert source.pinned() == {"first": {}, "second": {"tokenizer": str(kept), "vocab_size": None}}
    known = json.loads(kept.read_text())["model"]["vocab"]
    train = set(source.split("train").items[:, 1].tolist())
    whole = {n: f"caption{n}" in known for n in range(20)}
    assert whole == {n: n in train for n in range(20)}
    again = TextColumn(column="caption", tokenizer=str(kept))
    ids = pairs(tmp_path / "pairs.csv", second=again).split("test").inputs(0)[1]["x"]
    assert ids.equal(source.split("test").inputs(0)[1]["x"])


def test_a_folder_with_parts_of_its_own(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("test", 3)):
        for n in range(count):
            picture(tmp_path / f"{part}{n}.png")
        lines = "".join(f"{part}{n}.png,{part} {n}\n" for n in range(count))
        (tmp_path / f"{part}.csv").write_text("file,caption\n" + lines)
    source = pairs(tmp_path)
    assert [len(source.split(part)) for part in ("train", "val", "test")] == [9, 1, 3]
    assert source.split("test").name(0).endswith("test0.png and test 0")
    (tmp_path / "train.csv").unlink()
    with pytest.raises(RequestError, match=r"holds no train\.csv"):
        pairs(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: pairs(root / "no.csv"), "there is no such file or folder"),
        (lambda root: pairs(root / "a.txt"), r"no \.csv, \.tsv"),
        (lambda root: pairs(root / "pairs.csv", first=ImageColumn(column="fil")), "did you mean 'file'"),
        (lambda root: pairs(root / "pairs.csv", label_column="kind"), "data.label_column='kind': nothing in"),
        (lambda root: pairs(root / "pairs.csv", val=0.5, test=0.5), "give shares from 0"),
        (lambda root: pairs(root / "empty.csv"), "no pair in it"),
        (lambda root: pairs(root / "latin.csv"), "can't be read"),
    ],
)
def test_a_wrong_request_says_what_to_do(tmp_path: Path, make: Callable[[Path], Pairs], message: str) -> None:
    coloured(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty.csv").write_text("file,caption\n")
    (tmp_path / "latin.csv").write_bytes("file,caption\na.png,é\n".encode("latin-1"))
    with pytest.raises(RequestError, match=message):
        make(tmp_path)


def hostile(root: Path) -> Path:
    """Unicode names; a file that is missing, one that is no picture, a caption that is empty, a row cut short, and a
    class with a single sample."""
    path = coloured(root)
    (root / "kaputt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    with open(path, encoding="utf-8", newline="") as file:
        rows = [[*row, "färbig" if n else "kind"] for n, row in enumerate(csv.reader(file))]
    rows[3][2] = "einzeln"
    rows += [["fehlt.png", "gone", "färbig"], ["kaputt.png", "broken", "färbig"]]
    rows += [["bilder/n°1 é.png", " ", "färbig"], ["bilder/n°2 é.png"]]
    return table(root, rows[1:], tuple(rows[0]))


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = ImageColumn(column="file", size=8, whole=True)
    source = pairs(hostile(tmp_path), first=whole, label_column="kind")
    told = capsys.readouterr().err
    assert "left out 3 broken samples" in told
    assert "there is no file" in told
    assert "fehlt.png" in told
    assert "holds no text" in told
    assert "has no 'caption'" in told
    counts = [len(source.split(part)) for part in ("train", "val", "test")]
    assert sum(counts) == 20
    assert "kaputt.png" in capsys.readouterr().err
    assert source.classes == ("einzeln", "färbig")
    with pytest.raises(RunError, match=r"set data\.on_broken=skip"):
        pairs(tmp_path / "pairs.csv", on_broken="stop")


def test_a_row_without_a_class_beside_others(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = table(tmp_path, [("a.png", "x", "k"), ("a.png", "y", "")], ("file", "caption", "kind"))
    with pytest.raises(RequestError, match="label all pairs or none"):
        pairs(path, label_column="kind", val=0, test=0)


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(max_examples=60)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_any_cells_come_back_or_are_told_to_be_empty(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = table(tmp_path_factory.mktemp("cells"), rows, ("one", "two"))
    columns = [TextColumn(column=name, length=64, tokenizer="bytes") for name in ("one", "two")]
    good = [(a.strip(), b.strip()) for a, b in rows if a.strip() and b.strip()]
    if not good:
        with pytest.raises((RunError, RequestError)):
            pairs(path, *columns, val=0, test=0)
        return
    source = pairs(path, *columns, val=0, test=0)
    train = source.split("train")
    assert isinstance(train, Held)
    samples = train.__getitems__([(n, 0) for n in range(len(train))])
    assert list(zip(*(spelled(view) for view in samples["inputs"]), strict=True)) == good


# -- parts -------------------------------------------------------------------------------------------------------


def test_pairs_with_an_input_in_common_are_linked() -> None:
    items = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 2], [3, 3], [4, 2]])
    group = linked(items)
    assert len(set(group[:3])) == 1
    assert group[3] == group[5]
    assert len({group[0], group[3], group[4]}) == 3


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=40))
def test_no_item_is_in_two_parts_and_every_pair_is_in_one(items: list[tuple[int, int]]) -> None:
    rows = [Row({}, "", "")] * len(items)
    found = torch.tensor(items)
    try:
        parts = parts_of(rows, linked(found), {"val": 0.2, "test": 0.2})
    except RequestError:
        return
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(len(items)))
    for side, (one, other) in product((0, 1), (("train", "val"), ("train", "test"), ("val", "test"))):
        assert not set(found[parts[one], side].tolist()) & set(found[parts[other], side].tolist())
    assert all(len(part) for part in parts.values())


def test_where_all_pairs_hang_together_nothing_can_be_split_off(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(RequestError, match="no pairs can be split off"):
        pairs(table(tmp_path, [("a.png", f"{n}") for n in range(9)]))


# -- pictures and shards -----------------------------------------------------------------------------------------


def test_a_whole_picture_is_boxed_on_white() -> None:
    x = torch.zeros(3, 4, 8, dtype=torch.uint8)
    square = boxed(x, 16)
    assert square.shape == (3, 16, 16)
    assert square[:, 4:12].eq(0).all()
    assert square[:, :4].eq(255).all()
    assert square[:, 12:].eq(255).all()
    assert boxed(x[:, :, :4] + 7, 4).equal(x[:, :, :4] + 7)
    assert boxed(torch.zeros(1, 1, 100, dtype=torch.uint8), 4).shape == (1, 4, 4)


def test_whole_pictures_are_held_and_others_are_read(tmp_path: Path) -> None:
    path = coloured(tmp_path)
    held = pairs(path, first=ImageColumn(column="file", size=8, whole=True)).split("train")
    read = pairs(path).split("train")
    assert isinstance(held, Held)
    assert isinstance(read, Read)
    assert held.items.equal(read.items)
    (image, text), index = held.__getitems__([(2, 0), (0, 0)])["inputs"], [2, 0]
    for row, n in enumerate(index):
        assert boxed(read.inputs(n)[0]["x"], 8).equal(image["x"][row])
        assert read.inputs(n)[1]["x"].equal(text["x"][row])


def png(colour: str, size: tuple[int, int] = (5, 4)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def shards(root: Path, **more: Any) -> Shards:
    first = ImageColumn(column="jpg;png", size=4, whole=True)
    return Shards(root=str(root), first=first, second=TextColumn(column="txt", length=16, tokenizer="bytes"), **more)


def test_members_of_one_stem_are_a_sample(tmp_path: Path) -> None:
    for s in range(2):
        members = []
        for n in range(6):
            stem = f"./some.dir/{s}{n}"
            members += [(f"{stem}.PNG", png(COLOURS[n])), (f"{stem}.txt", f"{COLOURS[n]} {s}".encode())]
            members += [(f"{stem}.cls", str(n % 2).encode()), (f"{stem}.meta.json", b"{}")]
        shard(tmp_path / f"{s}.tar", members)
    source = shards(tmp_path)
    seen = {}
    for part in ("train", "val", "test"):
        dataset = source.split(part)
        samples = dataset.__getitems__([(n, 0) for n in range(len(dataset))])
        for text, x in zip(spelled(samples["inputs"][1]), samples["inputs"][0]["x"], strict=True):
            seen[text] = tuple(x[:, 2, 2].tolist())
    rgb = {name: Image.new("RGB", (1, 1), name).getpixel((0, 0)) for name in COLOURS}
    assert seen == {f"{COLOURS[n]} {s}": rgb[COLOURS[n]] for n in range(6) for s in range(2)}


def test_nothing_leaves_an_archive_and_links_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("1.txt", tarfile.SYMTYPE, str(outside)),
            ("2.txt", tarfile.LNKTYPE, "../secret.txt"),
            ("3.txt", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name, content in (("../../evil.txt", b"evil"), ("../../evil.png", png("red")), ("/abs.txt", b"abs")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    found = dict(cells_of(str(path), None))
    assert set(found) == {"../../evil", "/abs"} or set(found) == {"../../evil", "abs"}
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    source = shards(tmp_path / "in", val=0, test=0)
    assert len(source.split("train")) == 1
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


def test_shards_in_parts_with_classes_and_what_is_no_archive(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 2), ("test", 3)):
        (tmp_path / part).mkdir()
        members = []
        for n in range(count):
            members += [(f"{n}.png", png("red")), (f"{n}.txt", f"{part} {n}".encode())]
        shard(tmp_path / part / "0.tar", members)
    source = shards(tmp_path)
    assert [len(source.split(part)) for part in ("train", "val", "test")] == [8, 2, 3]
    (tmp_path / "train" / "1.tar").write_bytes(b"\x1f\x8b no tar")
    with pytest.raises(RequestError, match=r"is no \.tar that can be read"):
        shards(tmp_path)
    with pytest.raises(RequestError, match=r"no \.tar in it"):
        shards(tmp_path / "nowhere")


def test_a_broken_member_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = []
    for n in range(6):
        members += [
            (f"{n}.png", png("red") if n else b"no picture"),
            (f"{n}.txt", f"t{n}".encode() if n < 5 else b"\xff"),
        ]
    shard(tmp_path / "a.tar", members)
    source = shards(tmp_path, val=0, test=0)
    assert len(source.split("train")) == 4
    told = capsys.readouterr().err
    assert "0.png' can't be read" in told
    assert "is no text" in told


def test_a_stretch_of_a_file_is_read_alone(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    assert content_of(File(str(tmp_path / "f"), 3, 4)) == b"3456"
    assert content_of(File(str(tmp_path / "f"))) == b"0123456789"


def sounding(kind: str, values: list[float]) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, values, 8000, format=kind.upper())
    return content.getvalue()


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("held", [True, False])
def test_sounds_are_read_out_of_archives(
    tmp_path: Path, kind: str, held: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with the text beside it, decoded once where there is room; what is cut short or no sound is left out."""
    members = []
    for n in range(10):
        sound = sounding(kind, [0.05 * n] * (1600 + 80 * n))
        members += [(f"a/{n}.{kind}", sound[: len(sound) // 2] if n == 8 else sound), (f"a/{n}.txt", f"{n}".encode())]
    members += [("a/x.txt", b"x"), (f"a/x.{kind}", b"no sound"), ("a/y.txt", b"y")]
    shard(tmp_path / "0.tar", members)
    if not held:
        monkeypatch.setattr("ssl_runner.datasets.recordings.CACHE", 1)
    column = AudioColumn(column="flac;wav;ogg", rate=8000, seconds=0.2, longest=0.25)
    text = TextColumn(column="txt", length=4, tokenizer="bytes")
    source = Shards(root=str(tmp_path), first=column, second=text, val=0, test=0)
    train = source.split("train")
    assert isinstance(train, Read)
    broken, seen = [], {}
    for n in range(len(train)):
        try:
            sound, words = train.inputs(n)
        except BrokenSample as error:
            broken.append(str(error))
            continue
        seen[int(spelled({"x": words["x"][None]})[0])] = sound["x"]
    told = capsys.readouterr().err + "".join(broken)
    assert f"0.tar:a/x.{kind}' can't be read" in told
    assert f"0.tar:a/8.{kind}' can't be read" in told or kind == "ogg"  # which ends where it is cut
    assert bool(broken) is not held
    assert seen.keys() - {8} == {*range(8), 9}
    for n in seen.keys() - {8}:
        assert seen[n].shape == (1, min(1600 + 80 * n, 2000))
        assert seen[n][:, 200:-200].mean().item() == pytest.approx(0.05 * n, abs=0.01)


def test_pictures_beside_sounds_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = []
    for n in range(4):
        members += [(f"{n}.png", png(COLOURS[n])), (f"{n}.wav", sounding("wav", [0.1 * n] * 800))]
    shard(tmp_path / "0.tar", members)
    first, second = ImageColumn(column="png", size=4, whole=True), AudioColumn(column="wav", rate=8000, seconds=0.1)
    train = Shards(root=str(tmp_path), first=first, second=second, val=0, test=0).split("train")
    (tmp_path / "0.tar").unlink()
    rgb = [Image.new("RGB", (1, 1), name).getpixel((0, 0)) for name in COLOURS]
    for n in range(4):
        image, sound = train.inputs(n)
        assert tuple(image["x"][:, 2, 2].tolist()) == rgb[n]
        assert sound["x"].mean().item() == pytest.approx(0.1 * n, abs=1e-3)


def test_sounds_of_a_table_are_waveforms(tmp_path: Path) -> None:
    for n in range(6):
        soundfile.write(tmp_path / f"{n}.wav", [0.5] * (800 + 100 * n), 8000)
    rows = [(f"{n}.wav", f"text {n}") for n in range(6)]
    column = AudioColumn(column="file", rate=8000, seconds=0.1, longest=0.12)
    source = pairs(table(tmp_path, rows), first=column)
    assert source.facts["shape"] == (1, 800)
    assert source.facts["rate"] == 8000
    lengths = sorted(source.split("train").inputs(n)[0]["x"].shape[1] for n in range(4))
    assert set(lengths) <= {800, 900, 960}
    assert max(lengths) == 960


# -- named sets --------------------------------------------------------------------------------------------------


def emoji(root: Path, count: int = 12) -> Path:
    """The layout of the npm package, in which names are upper-case, and more is told than is used."""
    folder = root / "package"
    (folder / "img" / "google" / "64").mkdir(parents=True)
    listed = []
    for n in range(count):
        code = f"1F{600 + n}"
        listed.append({"name": f"FACE {n // 2}", "unified": code, "image": f"{code.lower()}.png", "sheet_x": n})
        listed[-1] |= {"category": "Smileys & Emotion" if n % 3 else "Flags", "has_img_google": n != 3}
        if n != 3:
            Image.new("RGBA", (64, 64), (*((n, 2, 3)), 255)).save(
                folder / "img" / "google" / "64" / f"{code.lower()}.png"
            )
    (folder / "emoji.json").write_text(json.dumps(listed), encoding="utf-8")
    return root


def test_emoji_with_their_names_and_groups(tmp_path: Path) -> None:
    source = Emoji(root=str(emoji(tmp_path)), tokenizer="bytes", val=0.2, test=0.2)
    assert source.classes == ("Flags", "Smileys & Emotion")
    found = []
    for part in ("train", "val", "test"):
        dataset = source.split(part)
        samples = dataset.__getitems__([(n, 0) for n in range(len(dataset))])
        names = spelled(samples["inputs"][1])
        numbers = samples["inputs"][0]["x"][:, 0, 9, 9].tolist()
        found += zip(numbers, names, samples["label"].tolist(), strict=True)
    assert sorted(found) == [(n, f"face {n // 2}", 1 if n % 3 else 0) for n in range(12) if n != 3]
    assert source.pinned() == {}


def test_emoji_that_are_not_there_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"npm pack --silent emoji-datasource-google@16\.0\.0"):
        Emoji(root=str(tmp_path))
    emoji(tmp_path)
    next((tmp_path / "package" / "img" / "google" / "64").iterdir()).unlink()
    with pytest.raises(RequestError, match="is not whole"):
        Emoji(root=str(tmp_path))


def stamps(root: Path) -> Path:
    """The layout of the Debian package: a picture, its sentence in many languages, and files that are none of these."""
    folder = root / "tuxpaint-stamps-default" / "usr" / "share" / "tuxpaint" / "stamps"
    names = ["food/fruit/banana", "food/fruit/strawberry", *(f"animals/birds/bird{n}" for n in range(8))]
    for n, name in enumerate(names):
        picture(folder / f"{name}.png", COLOURS[n % 8], (12, 6))
        (folder / f"{name}.txt").write_text(f"A thing {n}.\nde.utf8=Ein Ding {n}.\npt_BR.utf8=\n", encoding="utf-8")
        (folder / f"{name}.dat").write_text("noflip")
        (folder / f"{name}_desc_fr.ogg").write_bytes(b"OggS")
    picture(folder / "food" / "fruit" / "banana_mirror.png")
    (folder / "animals" / "birds" / "bird0.txt").write_text("A bird.\n", encoding="utf-8")
    return root


def test_stamps_with_their_sentences_and_groups(tmp_path: Path) -> None:
    source = Stamps(root=str(stamps(tmp_path)), size=12, tokenizer="bytes")
    assert source.classes == ("animals", "food")
    assert source.facts["shape"] == (3, 12, 12)
    texts = []
    for part in ("train", "val", "test"):
        dataset = source.split(part)
        samples = dataset.__getitems__([(n, 0) for n in range(len(dataset))])
        texts += spelled(samples["inputs"][1])
        assert samples["inputs"][0]["x"][:, :, :3].eq(255).all()
    assert sorted(texts) == sorted(["A bird.", *(f"A thing {n}." for n in (0, 1, *range(3, 10)))])
    german = Stamps(root=str(tmp_path), language="de", tokenizer="bytes")
    assert sum(len(german.split(part)) for part in ("train", "val", "test")) == 9
    with pytest.raises(RequestError, match="no stamp has it; there are: de, en"):
        Stamps(root=str(tmp_path), language="pt_BR")
    with pytest.raises(RequestError, match="apt-get download tuxpaint-stamps-default"):
        Stamps(root=str(tmp_path / "elsewhere"))


def test_stamps_read_aloud_keep_all_that_is_said_of_a_picture_in_one_part(tmp_path: Path) -> None:
    root = stamps(tmp_path)
    said = {}
    for n, file in enumerate(sorted(root.rglob("*_desc_fr.ogg"))):
        for language in ("fr", "pt_BR", "en"):
            suffix = "_desc.wav" if language == "en" else f"_desc_{language}.ogg"
            soundfile.write(str(file).replace("_desc_fr.ogg", suffix), [0.01 * n] * 1600, 8000)
        said[file.name.removesuffix("_desc_fr.ogg")] = n
    source = SpokenStamps(root=str(root), size=8, rate=8000, seconds=0.1, val=0.2, test=0.2)
    assert source.facts["second"]["shape"] == (1, 800)
    pictures: list[set[int]] = []
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        dataset = source.split(part)
        assert isinstance(dataset, Read)
        assert len(dataset) == 3 * count
        for n in range(len(dataset)):
            image, sound = dataset.inputs(n)
            assert image["x"].shape == (3, 8, 8)
            name = Path(dataset.name(n).split(" and ")[0]).stem
            assert sound["x"].mean().item() == pytest.approx(0.01 * said[name], abs=0.004)
        pictures.append(set(dataset.items[:, 0].tolist()))
    assert not pictures[0] & pictures[1] | pictures[0] & pictures[2] | pictures[1] & pictures[2]
    french = SpokenStamps(root=str(root), languages=["fr"])
    assert sum(len(french.split(part)) for part in ("train", "val", "test")) == 10
    with pytest.raises(RequestError, match="read aloud in 'de'; there are: en, fr, pt_BR"):
        SpokenStamps(root=str(root), languages=["fr", "de"])


def test_lines_of_a_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"A = b.\nde.utf8=1 = eins\nca@valencia.utf8= Un \nodd line\nfr.utf8=\n" + b"x.utf8=\xff\n")
    assert sentences(str(path)) == {"en": "A = b.", "de": "1 = eins", "ca@valencia": "Un", "x": "\ufffd"}
    path.write_bytes(b"")
    assert sentences(str(path)) == {"en": ""}


# -- evaluators --------------------------------------------------------------------------------------------------


def test_the_place_of_the_best_partner_among_what_is_no_partner() -> None:
    """Against loops; equals stand before a partner."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randint(-2, 3, (7, 3), generator=generator).float()
    candidate = torch.randint(-2, 3, (9, 3), generator=generator).float()
    pairs_ = torch.tensor([[n % 7, n] for n in range(9)] + [[3, 0], [3, 1]])
    expected = []
    for q in range(7):
        mine = {int(c) for a, c in pairs_.tolist() if a == q}
        scores = [sum(x * y for x, y in zip(query[q].tolist(), row, strict=True)) for row in candidate.tolist()]
        best = max(scores[c] for c in mine)
        expected.append(1 + sum(score >= best for c, score in enumerate(scores) if c not in mine))
    assert ranks(query, candidate, pairs_).tolist() == expected
    assert ranks(torch.zeros(3, 2), torch.zeros(5, 2), torch.tensor([[0, 0], [1, 1], [2, 2]])).tolist() == [5, 5, 5]
    with pytest.raises(RunError, match="diverged"):
        ranks(torch.full((2, 2), float("nan")), torch.zeros(2, 2), torch.tensor([[0, 0], [1, 1]]))


def test_the_place_is_the_same_however_many_are_scored_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    query, candidate = torch.randn(2, 11, 4)
    pairs_ = torch.stack([torch.arange(11), torch.arange(11)], 1)
    whole = ranks(query, candidate, pairs_)
    monkeypatch.setattr("ssl_runner.evaluators.retrieval.AT_ONCE", 30)
    assert ranks(query, candidate, pairs_).equal(whole)


def test_distinct_items_and_their_pairs() -> None:
    items = torch.tensor([[7, 3], [7, 5], [2, 3]])
    (first, second), found = distinct(items)
    assert items[first, 0].tolist() == [2, 7]
    assert items[second, 1].tolist() == [3, 5]
    assert found.tolist() == [[1, 0], [1, 1], [0, 0]]


def test_chance_is_what_random_orders_give() -> None:
    pairs_ = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 3], [2, 4], [3, 5], [3, 6]])
    found = Retrieval(k=(1, 2, 20)).chance(pairs_)
    hits: dict[int, float] = dict.fromkeys((1, 2), 0.0)
    for partners in (3, 1, 1, 2):
        for k in hits:
            missed = math.comb(7 - partners, k) / math.comb(7, k)
            hits[k] += (1 - missed) / 4
    assert found["recall_1"] == pytest.approx(hits[1])
    assert found["recall_2"] == pytest.approx(hits[2])
    assert found["recall_20"] == 1
    drawn = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        drawn.append(ranks(torch.randn(4, 50, generator=generator), torch.randn(7, 50, generator=generator), pairs_))
    places = torch.cat(drawn)
    assert (places <= 2).double().mean().item() == pytest.approx(found["recall_2"], abs=0.03)
    assert places.double().median().item() == pytest.approx(found["median_rank"], abs=1)


def test_intervals_hold_their_figures_and_narrow_with_more_queries() -> None:
    def width(count: int) -> float:
        found = Retrieval(k=(5,)).figures(1 + torch.arange(count) % 10)
        assert found["recall_5"] == 0.5
        assert found["recall_5_low"] < 0.5 < found["recall_5_high"]
        assert found["median_rank_low"] <= found["median_rank"] == 5.5 <= found["median_rank_high"]
        return found["recall_5_high"] - found["recall_5_low"]

    assert width(100) == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    assert width(1600) == pytest.approx(width(100) / 4, rel=0.15)


class Known(Matching):
    """Knows the colours of pictures and the words that name them."""

    def __init__(self, source: Paired):
        super().__init__()
        self.backbone, self.source, self.seen = nn.Identity(), source, 0  # type: ignore[assignment]

    def first(self, view: View) -> Tensor:
        self.seen += len(view["x"])
        return F.normalize(view["x"][:, :, 4, 4] - 0.5, dim=1)

    def second(self, view: View) -> Tensor:
        rgb = {name: Image.new("RGB", (1, 1), name).getpixel((0, 0)) for name in COLOURS}
        words = [text.split(" ")[0].strip() for text in spelled(view)]
        return F.normalize(torch.tensor([rgb.get(word, (0, 0, 0)) for word in words]) / 255 - 0.5, dim=1)


def module(source: Paired, normalise: bool = False) -> DataModule:
    end = {"normalize": Normalize(mean=(0.5,), std=(0.5,))} if normalise else {}
    second = Views(branches={"text": Branch(transforms={})})
    crop = Branch(transforms={"crop": RandomResizedCrop(size=8)})
    views = Views(branches={"image": crop}, fit=Resize(size=8), last=end, second=second)
    return DataModule(source, views, split="pretrain", plain_val=False, per_rank=4, batches=1, seed=0)


def named(root: Path, whole: bool) -> Pairs:
    """Eight colours; three pictures of each, with two captions each, none of them the same."""
    rows = []
    for n in range(24):
        picture(root / f"{n}.png", COLOURS[n % 8], (8 + n % 2, 8))
        rows += [(f"{n}.png", f"{COLOURS[n % 8]} {n} {m}", COLOURS[n % 8]) for m in range(2)]
    path = table(root, rows, ("file", "caption", "colour"))
    (root / "parts").mkdir()
    content = path.read_text().replace("\r\n", "\n").replace("\n", "\n../").removesuffix("../")
    for part in ("train", "val", "test"):
        (root / "parts" / f"{part}.csv").write_text(content)
    image = ImageColumn(column="file", size=8, whole=whole)
    return pairs(
        root / "parts", image, TextColumn(column="caption", length=24, tokenizer="bytes"), label_column="colour"
    )


@pytest.mark.parametrize("whole", [True, False])
def test_partners_are_found_among_distinct_pictures_and_captions(tmp_path: Path, whole: bool) -> None:
    source = named(tmp_path, whole)
    objective = Known(source)
    found = Retrieval()(Embed(lambda view: view["x"], objective=objective), module(source))
    # of 24 pictures, the other two of a colour score as high; of 48 captions, the four of these
    assert found["to_second_median_rank"] == 5
    assert found["to_second_recall_5"] == 1
    assert found["to_second_recall_1"] == 0
    assert found["to_first_median_rank"] == 3
    assert found["to_first_recall_5_low"] == 1
    raw = Retrieval()(Embed(source.raw), module(source))
    assert raw["to_second_recall_1"] == pytest.approx(2 / 48)
    assert raw["to_first_recall_1"] == pytest.approx(1 / 24)


@pytest.mark.parametrize("whole", [True, False])
def test_a_class_is_told_by_its_name(tmp_path: Path, whole: bool) -> None:
    source = named(tmp_path, whole)
    evaluator = ZeroShot(templates=("{} thing",))
    assert evaluator.refusal(source) is None
    found = evaluator(Embed(lambda view: view["x"], objective=Known(source)), module(source))
    assert found["accuracy"] == found["class_mean"] == found["class/red"] == 1
    assert sum(name.startswith("class/") for name in found) == 8
    swapped = ZeroShot(templates=("{}",), names={"red": ["green"], "green": ["red"]})
    other = swapped(Embed(lambda view: view["x"], objective=Known(source)), module(source))
    assert other["class/red"] == other["class/green"] == 0
    assert other["accuracy"] == 0.75
    raw = evaluator(Embed(source.raw), module(source))
    assert raw["accuracy"] == raw["class/red"] == 1 / 8


def test_a_class_is_the_mean_of_its_prompts_unit_rows(tmp_path: Path) -> None:
    """Red has prompts along x, x and y, blue two between x and y, and all pictures lie along x: red is nearer, by its
    mean and by no other rule, such as the first prompt or the sum."""
    source = named(tmp_path, True)
    objective = Known(source)
    asked: list[str] = []

    def second(view: View) -> Tensor:
        asked.extend(spelled(view))
        rows = {"x": (1.0, 0.0), "y": (0.0, 1.0), "z": (0.8, 0.6)}
        return torch.tensor([rows.get(text[-1], (-1.0, 0.0)) for text in asked])

    objective.second = second  # type: ignore[method-assign]
    objective.first = lambda view: torch.tensor([[1.0, 0.0]]).expand(len(view["x"]), -1)  # type: ignore[method-assign]
    evaluator = ZeroShot(templates=("a {}",), names={"red": ["x", "x", "y"], "blue": ["z", "y"]})
    found = evaluator(Embed(lambda view: view["x"], objective=objective), module(source))
    assert [text for text in asked if len(text) == 3] == ["a z", "a y", "a x", "a x", "a y"]
    assert found["class/red"] == 1
    assert found["accuracy"] == 1 / 8


def test_figures_of_each_class() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [9.0, 0.0, 1.0]])
    found = figures(scores, torch.tensor([0, 0, 1, 1]), ("a", "b", "c"))
    assert found["class/a"] == 1
    assert found["class/b"] == 0.5
    assert "class/c" not in found
    assert found["class_mean"] == 0.75
    assert found["accuracy"] == 0.75


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    from ssl_runner.datasets.fake import Fake

    fake = Fake()
    assert "this data has none" in str(Retrieval().refusal(fake))
    assert "this data has none" in str(ZeroShot().refusal(fake))
    source = named(tmp_path, True)
    assert Retrieval().refusal(source) is None
    assert "no class" in str(ZeroShot(names={"rot": ["red"]}).refusal(source))
    with pytest.raises(RequestError, match=r"has no \{\}"):
        ZeroShot(templates=("a picture",))
    images = ImageColumn(column="file", size=8)
    both = pairs(tmp_path / "pairs.csv", images, images, label_column="colour")
    assert "second input is text" in str(ZeroShot().refusal(both))


# -- a run -------------------------------------------------------------------------------------------------------

TINY = [
    "backbone@backbone.first=encoder_nano",
    "backbone.second.depth=1",
    "backbone.second.stem.dim=16",
    "objective.dim=8",
]
TINY += ["batch_size=4", "duration=2 epochs", "precision=32", "workers=0", "evaluators=[retrieval,knn]"]


def test_a_users_own_table_from_pretraining_to_evaluation(tmp_path: Path, ssl_run: Callable[..., tuple]) -> None:
    given = [f"data.root={hostile(tmp_path)}", "data.first.column=file", "data.second.column=caption", "data.test=0.3"]
    given += ["data.label_column=kind", "data.first.size=8", f"data.second.cache={tmp_path}/cache"]
    fixed = ["data=pairs", "views=image_text", "backbone=towers_image_text", "objective=clip", *TINY]
    code, _, err = ssl_run("pretrain", *fixed, *given, "hydra.run.dir=run")
    assert code == 0, err
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert 0 <= metrics["retrieval/to_second_recall_5"] <= 1
    assert metrics["retrieval/to_first_recall_1/raw"] == pytest.approx(1 / 6, abs=0.1)
    assert "skipped a broken sample" in err
    shown = Path("run/shown/matches.txt").read_text(encoding="utf-8")
    assert shown.startswith("1.\n")
    code, _, err = ssl_run("evaluate", "from=run", "evaluators=[retrieval,zero_shot]", "hydra.run.dir=again")
    assert code == 0, err
    again = json.loads(Path("again/metrics.json").read_text())
    assert again["retrieval/to_first_median_rank"] == metrics["retrieval/to_first_median_rank"]
    assert again["zero_shot/accuracy/raw"] == 0.5
    code, _, err = ssl_run("finetune", "from=run", "duration=2 steps", "batch_size=4", "hydra.run.dir=tuned")
    assert code == 0, err


def test_partners_are_asked_of_objectives_that_match(ssl_run: Callable[..., tuple]) -> None:
    code, out, err = ssl_run("pretrain", "evaluators=retrieval")
    assert code == 2
    assert "Retrieval scores a Matching, and SimCLR is none" in err + out
    code, out, err = ssl_run("pretrain", "objective=clip")
    assert code == 2
    assert "CLIP needs a Towers" in err + out
    code, out, err = ssl_run("pretrain", "objective=clip", "backbone=towers_image_text", "evaluators=none")
    assert code == 2
    assert "CLIP needs a view of each input of pairs" in err + out
    code, out, err = ssl_run("pretrain", "views=image_text", "objective=clip", "backbone=towers_image_text")
    assert code == 2
    assert "this data has one input alone" in err + out
