"""Words that become synonyms: WordNet's files as they are laid out, the tokenizers' ways to write words, the view."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.datasets.text import Text
from ssl_runner.datasets.tokenizer import read, train
from ssl_runner.errors import RequestError
from ssl_runner.views.synonyms import FILES, Synonyms, members, pieces, synonyms

Call = Callable[..., tuple[int, str, str]]

# --- WordNet ----------------------------------------------------------------------------------------------------

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n  2 Princeton University  \n"
LINES = {  # as WordNet 3.1 has them, glosses cut short
    "data.noun": [
        "02961779 06 n 02 car 1 auto 0 001 @ 03796768 n 0000 | a motor vehicle with four wheels; `we had a car'  ",
        "02963378 06 n 02 car 2 railcar 0 001 @ 04583497 n 0000 | a wheeled vehicle adapted to the rails  ",
        "00002684 03 n 02 object 0 physical_object 0 001 @ 00001930 n 0000 | a tangible and visible entity  ",
    ],
    "data.verb": [
        "00001740 29 v 03 breathe 0 take_a_breath 0 respire 0 001 * 00005041 v 0000 02 + 02 00 + 08 00 | "
        "draw air into, and expel out of, the lungs  ",
    ],
    "data.adj": [
        "01385255 00 a 02 large 0 big 0 001 = 05097645 n 0000 | above average in size  ",
        "00014377 00 s 02 abounding 0 galore(ip) 0 001 & 00013906 a 0000 | existing in abundance  ",
        "01114658 00 s 0a " + "".join(f"word{n} 0 " for n in range(10)) + "001 & 01114000 a 0000 | ten of them  ",
    ],
    "data.adv": ["00001837 02 r 01 automatically 0 001 \\ 00001740 a 0101 | in a mechanical manner  "],
}


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wordnet")
    for name, lines in LINES.items():
        (folder / name).write_text(LICENCE + "".join(f"{line}\n" for line in lines))
    return folder


def test_synonyms_are_the_other_words_of_all_sets_of_a_word(wordnet: Path) -> None:
    found = synonyms(str(wordnet))
    assert found["car"] == ["auto", "railcar"]
    assert found["auto"] == ["car"], "not what is in another set of a synonym's"
    assert found["galore"] == ["abounding"], "without the place of an adjective"
    assert found["object"] == ["physical_object"]
    assert len(found["word3"]) == 9, "the count is in hexadecimal"
    assert "automatically" not in found
    assert not {"This", "02", "software"} & set(found), "the licence is none of it"


names = st.text("abcdefghijklmnopqrstuvwxyzABCDEF_-'.0123456789", min_size=1, max_size=12)


@settings(max_examples=100, derandomize=True)
@given(
    words=st.lists(st.tuples(names, st.sampled_from(["", "(a)", "(p)", "(ip)"])), min_size=1, max_size=40),
    pointers=st.integers(0, 3),
    gloss=st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs", "Zl", "Zp", "Cc"])),
)
def test_a_line_gives_back_the_words_it_was_made_of(words: list[tuple[str, str]], pointers: int, gloss: str) -> None:
    told = " ".join(f"{word}{place} {n % 16:x}" for n, (word, place) in enumerate(words))
    links = "".join(" & 00013906 a 0000" for _ in range(pointers))
    line = f"00014377 00 s {len(words):02x} {told} {pointers:03d}{links} | {gloss}  "
    assert members(line) == [word for word, _ in words]


@settings(max_examples=100, derandomize=True)
@given(st.text(max_size=60))
def test_what_is_no_line_is_refused_or_read_and_nothing_else(line: str) -> None:
    try:
        found = members(line)
    except ValueError:
        return
    assert line.startswith(" ") or all(word in line for word in found)


@pytest.mark.parametrize("cut", [8, 14, 18, 24])
def test_a_line_that_is_cut_off_is_named(cut: int, wordnet: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text((wordnet / name).read_text())
    lines = (tmp_path / "data.adj").read_text().splitlines()
    lines[2] = lines[2][:cut]
    (tmp_path / "data.adj").write_text("\n".join(lines))
    with pytest.raises(RequestError, match=r"data\.adj', line 3"):
        synonyms(str(tmp_path))


# --- tokenizers -------------------------------------------------------------------------------------------------

TEXT = "we had a big car. a large car, an auto! railcars are no cars; a car-park: the automatic BIG Car"


def made(kind: str, folder: Path, size: int = 400) -> tuple[Any, str]:
    path = folder / f"{kind}.json"
    if kind == "unigram":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        # of so little text it would learn no words
        words = [f"\u2581{word}" for word in ("we", "had", "a", "big", "large", "car", "auto", "an")]
        special = [(name, 0.0) for name in NAMES[:4]]
        vocab = [*special, *((piece, -1.0) for piece in [*words, ".", ",", "!"])]
        library = Tokenizer(models.Unigram(vocab, unk_id=3))
        library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        library.decoder = decoders.Metaspace()
        library.save(str(path))
    else:
        train(kind, size, lambda: iter([TEXT] * 50), path)
    return read(path), str(path)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_whole_words_become_their_synonyms_whatever_the_tokenizer(kind: str, wordnet: Path, tmp_path: Path) -> None:
    tokenizer, path = made(kind, tmp_path)
    known = pieces(json.loads(Path(path).read_text())["model"]["vocab"]).word
    assert {"big", "large", "car", "auto"} <= set(known)
    view = Synonyms(words=path, vocab=tokenizer.vocab, folder=str(wordnet), rate=1.0)
    ids = torch.tensor([tokenizer.encode(["we had a big car. a large car, an auto!"])[0].tolist()])
    torch.manual_seed(0)
    text = tokenizer.decode(view({"x": ids})["x"][0].tolist()).replace(" .", ".").replace(" ,", ",").replace(" !", "!")
    assert text.strip() == "we had a large auto. a big auto, an car!", "railcar is no word of one id"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_word_of_several_ids_is_left_as_it_is(kind: str, wordnet: Path, tmp_path: Path) -> None:
    tokenizer, path = made(kind, tmp_path, size=320 if kind == "bpe" else 60)
    view = Synonyms(words=path, vocab=tokenizer.vocab, folder=str(wordnet), rate=1.0)
    car = pieces(json.loads(Path(path).read_text())["model"]["vocab"]).word["car"]
    (ids,) = tokenizer.encode(["a card and care, a car"])
    assert (ids == car).sum() == 3, "the others begin with it"
    after = view({"x": torch.from_numpy(ids)[None]})["x"][0]
    assert (after == car).sum() == 2
    assert after[-1] != car


def test_words_are_told_by_how_each_tokenizer_writes_them() -> None:
    piece = pieces({"[PAD]": 0, ".": 1, "car": 2, "##d": 3, "Car": 4, "1st": 5, "caf\u00e9": 6})
    assert (piece.word, piece.goes_on) == ({"car": 2}, [3])
    byte = pieces(
        {"[PAD]": 0, ".": 1, "\u0120car": 2, "car": 3, "d": 4, "\u0120.": 5, "'s": 6, "\u00c3\u00a9": 7, "1": 8}
    )
    assert (byte.word, byte.goes_on) == ({"car": 2}, [3, 4, 7, 8]), "without a space it may be the end of a word"
    scored = pieces([["[PAD]", 0.0], ["\u2581car", -1.0], ["d", -2.0], ["!", -3.0], ["\u2581", -4.0]])
    assert (scored.word, scored.goes_on) == ({"car": 1}, [2])


# --- the view ---------------------------------------------------------------------------------------------------

NAMES = ["[PAD]", "[SEP]", "[MASK]", "[UNK]", "car", "auto", "railcar", "big", "large", "the", "##s"]
CAR, AUTO, RAILCAR, BIG, LARGE, THE, S = range(4, 11)


def view(folder: Path, wordnet: Path, rate: float) -> Synonyms:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": {name: n for n, name in enumerate(NAMES)}}}))
    return Synonyms(words=str(path), vocab=len(NAMES) + 2, folder=str(wordnet), rate=rate)


def after(step: Synonyms, ids: Sequence[Sequence[int]], pad: Tensor | None = None) -> list[list[int]]:
    given = {"x": torch.tensor(ids, dtype=torch.int32)}
    found = step(given if pad is None else {**given, "pad": pad})
    assert found["x"].dtype == torch.int32
    assert ("pad" in found) == (pad is not None)
    return found["x"].tolist()


def test_each_synonym_is_as_likely_and_the_rate_is_kept(wordnet: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = torch.tensor(after(view(tmp_path, wordnet, 0.3), [[CAR, BIG, THE]] * 20000))
    assert (found[:, 0] == AUTO).float().mean() == pytest.approx(0.15, abs=0.01)
    assert (found[:, 0] == RAILCAR).float().mean() == pytest.approx(0.15, abs=0.01)
    assert (found[:, 1] == LARGE).float().mean() == pytest.approx(0.3, abs=0.01)
    assert (found[:, 2] == THE).all()
    both = ((found[:, 0] != CAR) & (found[:, 1] != BIG)).float().mean()
    assert both == pytest.approx(0.09, abs=0.01), "each is drawn alone"


def test_padding_special_ids_and_what_the_model_does_not_know_stay(wordnet: Path, tmp_path: Path) -> None:
    ids = [[CAR, S, 1, 2, 11, 12], [CAR, CAR, CAR, S, 0, 0]]
    pad = torch.tensor([[False] * 6, [False, False, False, True, True, True]])
    found = after(view(tmp_path, wordnet, 1.0), ids, pad)
    assert found[0] == ids[0], "cars is a word of two ids"
    assert CAR not in found[1][:3], "padding goes on with nothing"
    assert found[1][3:] == ids[1][3:]
    pad = torch.tensor([[True, True, False, False, False, False]])
    assert after(view(tmp_path, wordnet, 1.0), [[CAR, BIG, BIG, THE, THE, THE]], pad) == [
        [CAR, BIG, LARGE, THE, THE, THE]
    ]


def test_a_rate_of_nothing_changes_nothing(wordnet: Path, tmp_path: Path) -> None:
    ids = [[CAR, BIG, THE, AUTO]] * 50
    assert after(view(tmp_path, wordnet, 0.0), ids) == ids


@settings(max_examples=50, derandomize=True)
@given(
    rows=st.lists(st.lists(st.integers(0, len(NAMES) + 1), min_size=5, max_size=5), min_size=1, max_size=5),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_what_changes_is_a_whole_word_and_becomes_a_synonym(
    rows: list[list[int]], rate: float, seed: int, wordnet: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(seed)
    known = synonyms(str(wordnet))
    for before, found in zip(rows, after(view(tmp_path_factory.mktemp("v"), wordnet, rate), rows), strict=True):
        for n, (a, b) in enumerate(zip(before, found, strict=True)):
            cut = n + 1 < len(before) and before[n + 1] == S
            if a != b:
                assert NAMES[b] in known[NAMES[a]]
                assert not cut
            elif rate == 1 and a in (CAR, AUTO, RAILCAR, BIG, LARGE):
                assert cut


# --- asked for ----------------------------------------------------------------------------------------------------


def test_without_wordnet_it_is_told_how_to_have_it(tmp_path: Path, wordnet: Path) -> None:
    with pytest.raises(
        RequestError, match=r"no WordNet \('data.noun' is missing\); run `apt-get install wordnet-base`"
    ):
        view(tmp_path, tmp_path / "nowhere", 0.1)
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": {"Haus": 0, "haus": 1}}}))
    with pytest.raises(RequestError, match="no synonym for any word of"):
        Synonyms(words=str(path), vocab=2, folder=str(wordnet))


def text(folder: Path) -> list[str]:
    (folder / "text").mkdir()
    (folder / "text" / "all.txt").write_text("\n".join([TEXT] * 30))
    return ["data=text", "data.root=text", "data.cache=cache", "data.val=0", "data.test=0", "data.length=16"]


def test_text_tells_where_its_words_are(tmp_path: Path) -> None:
    text(tmp_path)
    common = {"root": str(tmp_path / "text"), "cache": str(tmp_path / "cache"), "val": 0.0, "test": 0.0, "length": 16}
    trained = Text(tokenizer="wordpiece", vocab_size=60, **common)
    assert trained.facts["words"] == trained.pinned()["tokenizer"]
    assert Text(tokenizer=trained.facts["words"], **common).facts["words"] == trained.facts["words"]
    assert "words" not in Text(tokenizer="bytes", **common).facts


def test_a_run_takes_synonyms_of_its_own_tokenizer(wordnet: Path, ssl_run: Call, tmp_path: Path) -> None:
    data = [*text(tmp_path), "data.pretrain=lines", "evaluators=none", "views=synonyms", "hydra.run.dir=r"]
    where = f"views.branches.both.transforms.synonyms.folder={wordnet}"
    small = ["backbone.depth=1", "backbone.heads=2", "backbone.stem.dim=16", "batch_size=8", "duration=2 steps"]
    own = ["data.tokenizer=wordpiece", "data.vocab_size=60", "precision=32", "+task=simcse", *small]
    code, _, err = ssl_run("pretrain", *own, *data)
    assert code == 2
    assert "Synonyms: folder='/usr/share/wordnet' has no WordNet" in err or Path("/usr/share/wordnet").is_dir()
    code, _, err = ssl_run("pretrain", *own, *data, where)
    assert code == 0, err
    config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    step = config["views"]["branches"]["both"]["transforms"]["synonyms"]
    assert step["words"] == config["data"]["tokenizer"]
    code, _, err = ssl_run(
        "pretrain", "+task=simcse", *small, *[each for each in data if "run.dir" not in each], where,
        "data.tokenizer=bytes", "data.vocab_size=null",
    )  # fmt: skip
    assert code == 2
    assert "synonyms.words: Synonyms needs it, and the data, Text, does not tell it" in err
