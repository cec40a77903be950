"""Interaction logs, the sequences out of them, the ranking of the next item, and two papers on objectives for text."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Discrete
from ssl_runner.data import DataModule
from ssl_runner.datasets import interactions
from ssl_runner.datasets.fake import Fake
from ssl_runner.datasets.interactions import FIRST, MASK, PAD, Interactions
from ssl_runner.datasets.movielens import MovieLens100K
from ssl_runner.errors import RequestError, RunError
from ssl_runner.evaluators.ranking import Ranking, rank, ranked
from ssl_runner.objectives.clm import CLM
from ssl_runner.objectives.mlm import MLM
from ssl_runner.seeds import derive
from ssl_runner.types import Backbone, Embed, NextId
from ssl_runner.views.base import Branch, Views

Call = Callable[..., tuple[int, str, str]]
Row = tuple[Any, ...]


def table(rows: Sequence[Row], delimiter: str = ",") -> str:
    told = io.StringIO()
    csv.writer(told, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return told.getvalue()


def put(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def small(tmp_path: Path, sequences: dict[str, list[str]], **given: Any) -> Interactions:
    """A log in which each user's items come in this order; written backwards, so that time decides."""
    rows = [(u, i, n) for u, items in sequences.items() for n, i in enumerate(items)]
    file = put(tmp_path / "log.csv", table([("user", "item", "time"), *rows[::-1]]))
    return Interactions(file=file, **{"min_count": 1, "length": 4, **given})


def names(source: Interactions, ids: Any) -> list[str]:
    return [source.items[int(n) - FIRST] for n in ids]


# -- files -------------------------------------------------------------------------------------------------------

HEADER = ("rating", "time", "user", "item")
ROWS = [
    (5, 30, "b", "x"),
    (1, 10, "a", "y"),
    (2, 20.5, "a", "x"),
    (3, 20.5, "a", "z"),
    (4, 1, "b", "y"),
    (4, 40, "b", "w"),
]
WANTED = {"a": ["y", "x", "z"], "b": ["y", "x", "w"]}


def found(source: Interactions) -> list[list[str]]:
    return [names(source, each) for each in source.sequences]


@pytest.mark.parametrize(("name", "delimiter"), [("log.csv", ","), ("log.tsv", "\t"), ("LOG.CSV", ",")])
def test_a_table_is_read_in_the_order_of_time_and_equals_in_that_of_the_file(
    tmp_path: Path, name: str, delimiter: str
) -> None:
    file = put(tmp_path / name, table([HEADER, *ROWS], delimiter))
    assert found(Interactions(file=file, min_count=1)) == list(WANTED.values())
    swapped = [HEADER, *ROWS[:2], ROWS[3], ROWS[2], *ROWS[4:]]
    assert found(Interactions(file=put(tmp_path / name, table(swapped, delimiter)), min_count=1))[0] == ["y", "z", "x"]


def test_columns_may_have_other_names_and_ids_any_letters(tmp_path: Path) -> None:
    rows = [("когда", "кто", "что"), (3, "Иван", "🍎"), (1, "Иван", "a,b"), (2, "Иван", '"q"'), (1, "李", "🍎")]
    rows += [(2, "李", "a,b"), (3, "李", '"q"')]
    file = put(tmp_path / "log.csv", "\ufeff" + table(rows))
    source = Interactions(file=file, user="кто", item="что", time="когда", min_count=1)
    assert found(source) == [["a,b", '"q"', "🍎"], ["🍎", "a,b", '"q"']]


@pytest.mark.parametrize("kind", ["numbers", "timestamps"])
def test_a_parquet_file_is_read_like_a_table(tmp_path: Path, kind: str) -> None:
    import pyarrow
    from pyarrow import parquet

    rating, time, user, item = zip(*ROWS, strict=True)
    times = pyarrow.array([int(10 * t) for t in time])
    times = times.cast(pyarrow.timestamp("s")) if kind == "timestamps" else times
    columns = {"rating": rating, "time": times, "user": user, "item": item}
    parquet.write_table(pyarrow.table(columns), tmp_path / "log.parquet")
    assert found(Interactions(file=str(tmp_path / "log.parquet"), min_count=1)) == list(WANTED.values())


def test_the_order_of_rows_decides_no_id(tmp_path: Path) -> None:
    rows = [(5, n, u, i) for u in ("10", "9") for n, i in enumerate(("30", "4", "200"))]
    orders = [rows, rows[::-1]]
    sources = [Interactions(file=put(tmp_path / "l.csv", table([HEADER, *r])), min_count=1) for r in orders]
    assert sources[0].items == sources[1].items == ["4", "30", "200"]
    assert found(sources[0]) == found(sources[1])


GOOD = table([HEADER, *ROWS])
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "a missing column": (GOOD.replace("item", "items", 1), "data.item='item': .* did you mean 'items'"),
    "nothing": ("", "data.user='user': .*no such column"),
    "no rows": (table([HEADER]), "of 0 interactions .* none are left"),
    "too few": (table([HEADER, *ROWS[:3]]), "none are left.*data.min_count|data.min_count=1: of 3"),
    "a time that is no number": (GOOD.replace("20.5", "noon", 1), "log.csv:4: time is 'noon', which is no number"),
    "a time that is not finite": (GOOD.replace("20.5", "nan", 1), "log.csv:4: time is 'nan', which is no number"),
    "a short row": (GOOD + "5,1\n", "log.csv:8: has 2 columns"),
    "a row without user": (GOOD + "5,1,,x\n", "log.csv:8: names no user"),
    "a row without item": (GOOD + "5,1,a,\n", "log.csv:8: names no item"),
    "latin-1": (GOOD.replace("y", "ü").encode("latin-1"), "no UTF-8 table"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_table_is_refused_by_file_and_line(tmp_path: Path, case: str) -> None:
    content, told = BROKEN[case]
    file = put(tmp_path / "log.csv", content)
    with pytest.raises(RequestError, match=told):
        Interactions(file=file, min_count=1)


def test_a_file_of_another_kind_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no such file"):
        Interactions(file=str(tmp_path / "log.csv"))
    with pytest.raises(RequestError, match=r"\.csv, \.tsv and \.parquet"):
        Interactions(file=put(tmp_path / "log.xlsx", "user"))


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "log.parquet"
    with pytest.raises(RequestError, match="no Parquet file"):
        Interactions(file=put(path, "PAR1 nonsense"))
    columns: dict[str, list[Any]] = {"user": ["a"] * 3, "item": ["x", "y", "z"], "time": [1, 2, 3]}
    for change, told in (
        ({"item": ["x", None, "z"]}, "1 rows have no item"),
        ({"time": ["1", "2", "3"]}, "data.time='time': holds string"),
        ({"time": [1.0, math.inf, 2.0]}, "times that are no numbers"),
    ):
        parquet.write_table(pyarrow.table({**columns, **change}), path)
        with pytest.raises(RequestError, match=told):
            Interactions(file=str(path))
    parquet.write_table(pyarrow.table({"user": ["a"], "item": ["x"]}), path)
    with pytest.raises(RequestError, match=r"data.time='time': .*no such column"):
        Interactions(file=str(path))


# -- who and what is left out ------------------------------------------------------------------------------------


@settings(max_examples=60, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60),
    of_user=st.integers(1, 5),
    of_item=st.integers(1, 5),
)
def test_users_and_items_with_too_few_are_left_out_until_there_are_none(
    pairs: list[tuple[int, int]], of_user: int, of_item: int
) -> None:
    left = list(enumerate(pairs))
    changed = True
    while changed:  # one at a time: the order makes no difference to what remains
        changed = False
        for n, (user, item) in left:
            by_user = sum(u == user for _, (u, _) in left)
            by_item = sum(i == item for _, (_, i) in left)
            if by_user < of_user or by_item < of_item:
                left = [each for each in left if each[0] != n]
                changed = True
                break
    users, items = (np.array([pair[n] for pair in pairs], np.int64) for n in (0, 1))
    kept = interactions.core(users, items, of_user, of_item)
    assert np.flatnonzero(kept).tolist() == [n for n, _ in left]


def test_a_user_of_fewer_than_three_is_left_out_always(tmp_path: Path) -> None:
    source = small(tmp_path, {"a": ["x", "y"], "b": ["x", "y", "z"]})
    assert found(source) == [["x", "y", "z"]]


# -- parts -------------------------------------------------------------------------------------------------------


def reference(sequence: list[str], length: int) -> list[str]:
    """The last `length`, padded on the left."""
    last = sequence[-length:] if sequence else []
    return ["-"] * (length - len(last)) + last


def shown(source: Interactions, dataset: Any) -> list[list[str]]:
    (view,) = dataset.__getitems__([(n, 0) for n in range(len(dataset))])["inputs"]
    assert torch.equal(view["pad"], view["x"] == PAD)
    return [["-" if n == PAD else source.items[n - FIRST] for n in row] for row in view["x"].tolist()]


@settings(max_examples=25, derandomize=True)
@given(
    lengths=st.lists(st.integers(3, 14), min_size=1, max_size=4),
    length=st.integers(2, 6),
    step=st.none() | st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_the_last_item_is_for_test_and_the_one_before_for_validation(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, step: int | None, seed: int
) -> None:
    rng = np.random.RandomState(seed)
    users = {f"u{n}": [f"i{k}" for k in rng.randint(0, 9, size)] for n, size in enumerate(lengths)}
    step = None if step is None else min(step, length)
    source = small(tmp_path_factory.mktemp("log"), users, length=length, step=step)
    sequences = list(users.values())
    for split, out in (("test", 1), ("val", 2), ("train", 3)):
        part = source.split(split)  # type: ignore[arg-type]
        assert shown(source, part) == [reference(s[:-out], length) for s in sequences]
        samples = part.__getitems__([(n, 0) for n in range(len(part))])
        assert names(source, samples["label"]) == [s[-out] for s in sequences]
        assert [names(source, p) for p in source.past(split)] == [s[:-out] for s in sequences]  # type: ignore[arg-type]
    wanted = []
    for s in sequences:
        rest = s[:-2]
        wanted.append(reference(rest, length))
        while step is not None and len(rest) > length:
            rest = rest[:-step]
            wanted.append(reference(rest, length))
    assert shown(source, source.split("pretrain")) == wanted
    assert shown(source, source.pretext("val")) == [reference(s[:-1], length) for s in sequences]
    assert shown(source, source.pretext("test")) == [reference(s, length) for s in sequences]


def test_a_step_that_leaves_items_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"data.step=5: .*data\.length=4"):
        small(tmp_path, {"a": ["x", "y", "z"]}, step=5)


def test_the_facts_are_those_of_ids(tmp_path: Path) -> None:
    source = small(tmp_path, {"a": ["x", "y", "z"]}, length=6)
    assert source.facts == {
        "shape": (6,),
        "size": 6,
        "vocab": 5,
        "length": 6,
        "mask": MASK,
        "special": (PAD, MASK),
        "separator": None,
        "num_classes": 0,
    }
    assert source.labelled is False
    assert source.classes == ()


def test_what_an_objective_shows_is_written_by_name(tmp_path: Path) -> None:
    source = small(tmp_path, {"a": ["x", "y", "z"]})
    file = source.write([torch.tensor([[0, 2, 4]]), torch.tensor([[0, 2, 1]])], tmp_path / "shown" / "filled")
    assert file is not None
    assert file.read_text().splitlines() == ["1. x z", "2. x [MASK]"]


# -- MovieLens ---------------------------------------------------------------------------------------------------

RATINGS = [("196", "242", "3", "881250949"), ("196", "9", "5", "881250950"), ("196", "51", "1", "881250949")]
RATINGS += [("22", "242", "3", "5"), ("22", "51", "4", "4"), ("22", "9", "4", "6")]


@pytest.mark.parametrize("name", ["ml-100k/u.data", "u.data", "ml-100k/ml-100k.inter", "ml-100k.inter"])
def test_movielens_is_read_as_published_and_as_recbole_has_it(tmp_path: Path, name: str) -> None:
    first = [("user_id:token", "item_id:token", "rating:float", "timestamp:float")] if name.endswith("inter") else []
    put(tmp_path / name, table([*first, *RATINGS], "\t"))
    assert found(MovieLens100K(root=str(tmp_path))) == [["51", "242", "9"], ["242", "51", "9"]]


def test_movielens_says_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"u\.data' is missing\); run `mkdir -p .*curl -L https://files\.grouplens"):
        MovieLens100K(root=str(tmp_path / "no where"))


# -- samples of which the last item alone is hidden ----------------------------------------------------------------


def masked(vocab: int, length: int, **given: Any) -> MLM:
    torch.manual_seed(0)
    backbone = Encoder(stem=Discrete(vocab=vocab, length=length, dim=8), depth=1, heads=2)
    return MLM(backbone, vocab=vocab, mask=MASK, special=(PAD, MASK), separator=None, mask_share=1.0, **given)


def test_in_a_share_of_the_samples_the_last_item_alone_is_hidden_drawn_anew(tmp_path: Path) -> None:
    users = {f"u{n}": [f"i{k}" for k in range(3 + n % 20)] for n in range(300)}
    source = small(tmp_path, users, length=12, last=0.3)
    part = source.split("pretrain")
    objective = masked(source.facts["vocab"], 12, ratio=0.4, random_share=0.0, whole=True)
    alone = []
    for epoch in (0, 1):
        samples = part.__getitems__([(n, derive(epoch, n)) for n in range(len(part))])
        (view,) = samples["inputs"]
        ids, pad, unit = view["x"].long(), view["pad"], samples["unit"]
        place, told = objective.hiding.choose(ids, pad, unit)
        hidden = objective.hiding.corrupted(ids, place, told) == MASK
        several = (~pad).sum(1) > 3
        lone = unit[:, 0].eq(0) | ((unit == 0).any(1))
        alone.append(lone)
        assert lone.float().mean() == pytest.approx(0.3, abs=0.08)
        for row, mine, padded in zip(hidden[several], lone[several], pad[several], strict=True):
            count = int((~padded).sum())
            assert not row[padded].any()
            if mine:
                assert row.nonzero().flatten().tolist() == [11]
            else:
                assert int(row.sum()) == round(0.4 * count)
    assert not torch.equal(*alone)
    samples = source.pretext("val").__getitems__([(n, derive(2, n)) for n in range(len(users))])
    assert (samples["unit"][:, -1] == 1).all()
    assert ((samples["unit"] == 0).sum(1) == (samples["inputs"][0]["pad"].logical_not().sum(1) - 1)).all()


def test_without_that_share_no_units_are_told(tmp_path: Path) -> None:
    source = small(tmp_path, {"a": ["x", "y", "z"]})
    assert "unit" not in source.split("pretrain").__getitems__([(0, 0)])


# -- what comes next, by two papers' models ------------------------------------------------------------------------


class Spy(Encoder):
    """Keeps what it is given."""

    def embed(self, patches: Tensor) -> Tensor:
        self.given = patches.clone()
        return super().embed(patches)

    def encode(self, tokens: Tensor, pad: Tensor | None = None, *rest: Any, **more: Any) -> Tensor:
        self.padding = None if pad is None else pad.clone()
        return super().encode(tokens, pad, *rest, **more)


def spy() -> Spy:
    torch.manual_seed(0)
    return Spy(stem=Discrete(vocab=9, length=4, dim=8), depth=2, heads=2).eval()


def test_bert4rec_asks_with_a_mask_behind_the_latest_items(tmp_path: Path) -> None:
    backbone = spy()
    objective = MLM(backbone, vocab=9, mask=MASK, special=(PAD, MASK), separator=None).eval()
    ids = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]])
    scores = objective.following(ids, ids == PAD)
    assert backbone.given.tolist() == [[0, 5, 6, MASK], [4, 5, 6, MASK]]
    assert backbone.padding is not None
    assert backbone.padding.tolist() == [[True, False, False, False], [False] * 4]
    tokens = backbone.encode(backbone.embed(backbone.given), backbone.padding)
    torch.testing.assert_close(scores, objective.head(tokens[:, 3], backbone.stem.table.weight))  # type: ignore[arg-type,union-attr]


@torch.no_grad()
def test_sasrec_sees_neither_padding_nor_what_comes_later() -> None:
    objective = CLM(spy(), separator=None).eval()
    ids = torch.tensor([[0, 0, 5, 6]])
    pad = ids == PAD
    scores = objective.following(ids, pad)
    moved = torch.tensor([[0, 5, 6, 0]])  # the last place never told what follows it
    torch.testing.assert_close(scores, objective.logits(moved, moved == PAD)[:, 2])
    torch.testing.assert_close(objective.following(ids.masked_fill(pad, 7), pad), scores)
    earlier = objective.logits(ids, pad)[:, 2]
    torch.testing.assert_close(objective.logits(torch.tensor([[0, 0, 5, 8]]), pad)[:, 2], earlier)
    assert not torch.allclose(objective.following(torch.tensor([[0, 0, 8, 6]]), pad), scores)


# -- ranks ---------------------------------------------------------------------------------------------------------


class Fixed(NextId):
    """Scores that a test chose, by the last id of a sequence."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.backbone, self.table = Backbone(), table

    def following(self, ids: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.table[ids[:, -1].long()]


def module(source: Interactions) -> DataModule:
    views = Views(branches={"plain": Branch(transforms={})})
    return DataModule(source, views, split="pretrain", plain_val=False, per_rank=4, batches=0, seed=0)


def by_hand(scores: Tensor, sequences: list[list[int]], seen: str) -> list[int]:
    ranks = []
    for sequence in sequences:
        *before, target = sequence
        row = scores[before[-1]].tolist()
        place = 1
        for item in range(FIRST, len(row)):
            if item == target or (seen == "removed" and item in before):
                continue
            place += row[item] >= row[target]
        ranks.append(place)
    return ranks


@settings(max_examples=25, derandomize=True)
@given(seed=st.integers(0, 999), seen=st.sampled_from(["removed", "kept"]))
def test_ranks_are_those_among_all_items(tmp_path_factory: pytest.TempPathFactory, seed: int, seen: str) -> None:
    rng = np.random.RandomState(seed)
    users = {f"u{n}": [f"i{k}" for k in rng.randint(0, 12, rng.randint(3, 12))] for n in range(9)}
    source = small(tmp_path_factory.mktemp("log"), users)
    vocab = source.facts["vocab"]
    scores = torch.from_numpy(rng.randint(0, 4, (vocab, vocab))).float()  # with many equals
    scores[:, [PAD, MASK]] = 99.0  # would win, if they could be chosen
    objective = Fixed(scores)
    evaluator = Ranking(special=(PAD, MASK), k=(1, 3), seen=seen)  # type: ignore[arg-type]
    figures = evaluator(Embed(lambda view: view["x"], objective=objective), module(source))
    ranks = by_hand(scores, [each.tolist() for each in source.sequences], seen)
    for k in (1, 3):
        gains = [1 / math.log2(1 + r) if r <= k else 0.0 for r in ranks]
        mean = sum(gains) / len(gains)
        spread = math.sqrt(sum((g - mean) ** 2 for g in gains) / len(gains))
        assert figures[f"hr_{k}"] == pytest.approx(sum(r <= k for r in ranks) / len(ranks))
        assert figures[f"ndcg_{k}"] == pytest.approx(mean)
        assert figures[f"ndcg_{k}_interval"] == pytest.approx(1.96 * spread / math.sqrt(len(gains)))
    assert figures["mrr"] == pytest.approx(sum(1 / r for r in ranks) / len(ranks))


def test_scores_that_are_all_the_same_find_nothing(tmp_path: Path) -> None:
    source = small(tmp_path, {"a": [f"i{n}" for n in range(20)], "b": ["i3", "i4", "i5"]})
    objective = Fixed(torch.zeros(22, 22))
    figures = Ranking(special=(PAD, MASK), k=(10,), seen="kept")(
        Embed(lambda view: view["x"], objective=objective), module(source)
    )
    assert figures["hr_10"] == 0
    assert figures["mrr"] == pytest.approx(1 / 20)


def test_what_was_had_before_the_sample_begins_is_no_candidate_and_a_repeated_target_is(tmp_path: Path) -> None:
    source = small(tmp_path, {"a": ["p", "q", "r", "s", "t", "u", "q"]}, length=2)
    assert shown(source, source.split("test")) == [["t", "u"]]
    may = Ranking(special=(PAD, MASK)).candidates(
        source.past("test"), source.split("test").label, source.facts["vocab"]
    )  # type: ignore[arg-type]
    assert names(source, may[0].nonzero().flatten()) == ["q"]
    may = Ranking(special=(PAD, MASK), seen="kept").candidates(
        source.past("test"), source.split("test").label, source.facts["vocab"]
    )  # type: ignore[arg-type]
    assert names(source, may[0].nonzero().flatten()) == ["p", "q", "r", "s", "t", "u"]


def test_the_raw_input_is_ranked_by_popularity_and_by_what_followed_in_what_was_learned_from(tmp_path: Path) -> None:
    users = {
        "a": ["p", "q", "p", "q", "p", "s", "t"],
        "b": ["p", "r", "r", "r", "p", "q"],
        "c": ["r", "s", "u", "r", "p"],
    }
    source = small(tmp_path, users)
    # learned from: p q p q p, p r r r, r s u
    figures = Ranking(special=(PAD, MASK), k=(1, 2, 3), seen="kept")(Embed(source.raw), module(source))
    count = {"p": 4, "q": 2, "r": 4, "s": 1, "u": 1, "t": 0}
    pairs = [("p", "q"), ("q", "p"), ("p", "q"), ("q", "p"), ("p", "r"), ("r", "r"), ("r", "r"), ("r", "s"), ("s", "u")]
    popular, chain = [], []
    for items in users.values():
        last, target = items[-2:]
        popular.append(1 + sum(count[i] >= count[target] for i in count if i != target))
        key = {i: (pairs.count((last, i)), count[i]) for i in count}
        chain.append(1 + sum(key[i] >= key[target] for i in key if i != target))
    for suffix, ranks in (("", popular), ("_markov", chain)):
        wanted = ranked(torch.tensor(ranks), (1, 2, 3))
        assert {k.removesuffix(suffix): v for k, v in figures.items() if k.endswith("_markov") == bool(suffix)} == (
            pytest.approx(wanted)
        )
    assert popular != chain


def test_scores_that_are_nan_are_a_failure_and_infinite_ones_are_ranked() -> None:
    may = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(RunError, match="NaN"):
        rank(torch.tensor([[0.0, float("nan"), 1.0, 2.0]]), torch.tensor([2]), may)
    assert rank(torch.tensor([[-math.inf, 3.0, 1.0, 2.0]]), torch.tensor([2]), may).tolist() == [3]


def test_only_a_log_of_interactions_is_ranked(tmp_path: Path) -> None:
    assert Ranking(special=()).refusal(small(tmp_path, {"a": ["x", "y", "z"]})) is None
    told = Ranking(special=()).refusal(Fake(samples=8, shape=(1, 4, 4), num_classes=2))
    assert told is not None
    assert "no log of users and items" in told


# -- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Every item is followed by the next of a circle of 12: popularity can't tell it."""
    rng = np.random.RandomState(0)
    rows: list[Row] = [("user", "item", "time")]
    for user in range(60):
        first = rng.randint(12)
        rows += [(f"u{user}", f"i{(first + n) % 12}", n) for n in range(8 + user % 4)]
    return put(tmp_path / "log.csv", table(rows))


TINY = ["data=interactions", "views=ids", "backbone=encoder_ids", "backbone.depth=1", "backbone.heads=2"]
TINY += [
    "backbone.stem.dim=16",
    "evaluators=ranking",
    "batch_size=20",
    "optim.lr=0.05",
    "precision=32",
    "data.length=6",
]


METHODS = {
    "sasrec": ["objective=clm", "backbone.causal=true"],
    "bert4rec": ["objective=mlm", "objective.whole=true", "objective.mask_share=1.0", "objective.random_share=0.0"],
}
METHODS["bert4rec"] += ["data.last=0.3"]


@pytest.mark.parametrize("method", METHODS)
def test_the_objectives_of_text_learn_what_comes_next(ssl_run: Call, tmp_path: Path, log: str, method: str) -> None:
    args = [*TINY, *METHODS[method], f"data.file={log}", "evaluators=[ranking,ranking_kept]"]
    args += ["evaluators.ranking.k=[1]", "evaluators.ranking_kept.k=[1]"]
    code, _, err = ssl_run("pretrain", *args, "duration=60 epochs", "hydra.run.dir=r")
    assert code == 0, err
    scores = json.loads((tmp_path / "r" / "metrics.json").read_text())
    for name in ("ranking", "ranking_kept"):
        assert scores[f"{name}/hr_1"] > 0.9
        assert scores[f"{name}/hr_1/untrained"] < 0.5
        assert scores[f"{name}/hr_1/raw"] < 0.5
        assert scores[f"{name}/hr_1_markov/raw"] == 1.0
    # of 12 items a user had 7 to 10 before: popularity does far worse where these are candidates
    assert scores["ranking_kept/mrr/raw"] < scores["ranking/mrr/raw"] / 2


def test_an_objective_that_tells_no_next_item_is_refused_before_training(ssl_run: Call, log: str) -> None:
    code, _, err = ssl_run("pretrain", *TINY, f"data.file={log}", "objective=simclr", "views=dropout_ids")
    assert code == 2
    assert "evaluators.ranking: Ranking scores a NextId, and SimCLR is none" in err
