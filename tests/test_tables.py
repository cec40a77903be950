"""Tables: files in their real layouts, columns as tokens, corrupted rows, VIME, and labels that are values."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.columns import MLP, Columns
from ssl_runner.backbones.encoder import Encoder
from ssl_runner.datasets.sklearn_tables import SklearnTable
from ssl_runner.datasets.table import Table
from ssl_runner.errors import RequestError, RunError
from ssl_runner.evaluators import boosting, regression
from ssl_runner.objectives import barlow_twins, byol, data2vec, mae, simclr, simmim, vicreg, vime
from ssl_runner.objectives.regression import Regression
from ssl_runner.parts.columns import joined, of_others, spread, useful, width
from ssl_runner.types import Batch, Embed, Objective
from ssl_runner.views.columns import CorruptColumns

COLUMNS = (0, 3, 0, 2, 0)
NAN = float("nan")


def write(path: Path, rows: list[list[Any]], delimiter: str = ",") -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return str(path)


def people(folder: Path) -> str:
    """train, val and test files: two numbers, a category, a class; values missing here and there."""
    head = ["height", "weight", "city", "ill"]
    write(
        folder / "train.csv",
        [head, [1, 10, "Öl", "no"], [2, "NA", "Bär", "yes"], [3, 30, "Öl", "no"], [6, 20, "?", "yes"]],
    )
    write(folder / "val.csv", [head, [100, 1000, "Nowhere", "no"]])
    write(folder / "test.csv", [head, [3, 20, "Bär", "yes"], ["", 40, "Öl", "no"]])
    return str(folder)


def rows(n: int = 12, seed: int = 0, missing: float = 0.2, columns: tuple[int, ...] = COLUMNS) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    each = [torch.randint(k, (n,), generator=g).float() if k else torch.randn(n, generator=g) for k in columns]
    x = torch.stack(each, 1)
    return x.masked_fill(torch.rand(x.shape, generator=g) < missing, NAN)


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Columns(columns=COLUMNS, dim=16), depth=2, heads=2)


# -- files -------------------------------------------------------------------------------------------------------


def test_numbers_are_standardised_and_categories_known_by_the_train_part_alone(tmp_path: Path) -> None:
    source = Table(root=people(tmp_path), target="ill")
    height, weight = [1, 2, 3, 6], [10, 30, 20]
    mean_h, mean_w = sum(height) / 4, sum(weight) / 3
    std_h = math.sqrt(sum((h - mean_h) ** 2 for h in height) / 4)
    std_w = math.sqrt(sum((w - mean_w) ** 2 for w in weight) / 3)
    train, val, test = (source.split(name) for name in ("train", "val", "test"))  # type: ignore[arg-type]

    def row(h: float, w: float, city: float) -> list[float]:
        return [(h - mean_h) / std_h, (w - mean_w) / std_w, city]

    expected = [row(1, 10, 1), row(2, NAN, 0), row(3, 30, 1), row(6, 20, NAN)]  # Bär comes before Öl
    torch.testing.assert_close(train.x, torch.tensor(expected), equal_nan=True)
    torch.testing.assert_close(val.x, torch.tensor([row(100, 1000, NAN)]), equal_nan=True)  # a city nobody knows
    torch.testing.assert_close(test.x, torch.tensor([row(3, 20, 0), row(NAN, 40, 1)]), equal_nan=True)
    assert train.x.dtype == torch.float32
    assert train.label.tolist() == [0, 1, 0, 1]
    assert (source.classes, source.valued, source.labelled) == (("no", "yes"), False, True)
    assert source.facts == {"shape": (3,), "size": 3, "columns": (0, 0, 2), "num_classes": 2}


def test_the_raw_input_has_flags_where_values_are_missing_and_no_target(tmp_path: Path) -> None:
    source = Table(root=people(tmp_path), target="ill")
    x = source.split("train").x
    found = source.raw({"x": x})
    # height; weight, and whether it is missing; whether the city is missing, and each of the two
    expected = torch.stack(
        [
            x[:, 0],
            x[:, 1].nan_to_num(),
            torch.tensor([0.0, 1, 0, 0]),
            torch.tensor([0.0, 0, 0, 1]),
            torch.tensor([0.0, 1, 0, 0]),
            torch.tensor([1.0, 0, 1, 0]),
        ],
        1,
    )
    assert torch.equal(found, expected)


def test_one_file_is_divided_and_rows_without_a_target_are_for_pretraining_alone(tmp_path: Path) -> None:
    cells = [[n * 1.5, "ab"[n % 2], ["x", "y", ""][n % 3]] for n in range(90)]
    source = Table(root=write(tmp_path / "t.csv", [["a", "b", "y"], *cells]), target="y", val=0.2, test=0.1)
    parts = {name: source.split(name) for name in ("pretrain", "train", "val", "test")}  # type: ignore[arg-type]
    assert {name: len(part) for name, part in parts.items()} == {"pretrain": 72, "train": 42, "val": 12, "test": 6}
    for name in ("train", "val", "test"):
        assert parts[name].label.bincount().tolist() == [len(parts[name]) // 2] * 2
    seen = {tuple(row) for name in ("pretrain", "val", "test") for row in parts[name].x.tolist()}
    assert len(seen) == 90
    again = Table(root=str(tmp_path), target="y", val=0.2, test=0.1)  # the folder of the only file
    assert torch.equal(again.split("val").x, parts["val"].x)


def test_values_keep_the_targets_units(tmp_path: Path) -> None:
    cells = [[n % 7, n % 5, 1000 + 2.5 * n] for n in range(40)]
    source = Table(root=write(tmp_path / "t.csv", [["a", "b", "price"], *cells]), target="price")
    label = source.split("train").label
    assert source.valued
    assert source.classes == ()
    assert label.dtype == torch.float32
    assert set(label.tolist()) <= {1000 + 2.5 * n for n in range(40)}
    assert source.facts["label_mean"] == pytest.approx(float(np.mean(label.tolist())))
    assert source.facts["label_std"] == pytest.approx(float(np.std(label.tolist())))
    as_classes = Table(root=str(tmp_path), target="a", kind="auto")
    assert as_classes.classes == tuple("0123456")
    assert Table(root=str(tmp_path), target="a", kind="regression").valued


def test_columns_that_tell_nothing_are_left_out_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    g = np.random.RandomState(0)
    body = [[n + 1, "same", f"name {n}", 1000 + 7 * n, g.rand(), n % 2] for n in range(50)]
    path = write(tmp_path / "t.csv", [["", "constant", "name", "number", "a", "y"], *body])
    assert Table(root=path, target="y").facts["columns"] == (0, 0)
    told = capsys.readouterr().err
    assert "left out 'constant', the same in all rows" in told
    assert "left out '', 'name', which number or name rows" in told
    assert "'number' hold another whole number in every row" in told
    kept = Table(root=path, target="y", numeric=("",), categorical=("constant",), ignore=("number", "name"))
    assert kept.facts["columns"] == (0, 1, 0)
    assert kept.split("train").x.isfinite().all()


def test_a_column_of_numbers_may_be_named_a_category(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [["zip", "a", "y"], *[[1000 + n % 3, n % 4, "ab"[n % 2]] for n in range(30)]])
    assert Table(root=path, target="y").facts["columns"] == (0, 0)
    assert Table(root=path, target="y", categorical=("zip",)).facts["columns"] == (3, 0)


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    numbers = [1.25, None, 3.5, -4.0, 5.0, 6.0, 0.1, 8.0, 9.0, 10.5]
    words = ["ä", "b", None, "b", "ä", "ä", "b", "ä", "b", "b"]
    target = ["p", "q"] * 5
    rows_ = [
        ["n", "w", "y"],
        *[["" if c is None else c for c in row] for row in zip(numbers, words, target, strict=True)],
    ]
    (tmp_path / "c").mkdir()
    (tmp_path / "p").mkdir()
    one = Table(root=write(tmp_path / "c" / "t.csv", rows_), target="y")
    table = pyarrow.table({"n": numbers, "w": pyarrow.array(words).dictionary_encode(), "y": target})
    parquet.write_table(table, tmp_path / "p" / "t.parquet")
    other = Table(root=str(tmp_path / "p"), target="y")
    assert one.facts == other.facts
    for name in ("train", "val", "test"):
        torch.testing.assert_close(one.split(name).x, other.split(name).x, equal_nan=True, rtol=0, atol=0)
    (tmp_path / "p" / "t.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(RequestError, match="no Parquet file"):
        Table(root=str(tmp_path / "p"), target="y")


HEAD, GOOD = ["a", "b", "y"], [[n % 5, n % 3, "pq"[n % 2]] for n in range(20)]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ([HEAD, *GOOD], {"target": "z"}, "data.target='z': .* has no such column"),
        ([HEAD, *GOOD, [1, 2]], {"target": "y"}, "t.csv:22: has 2 cells, and the first line names 3 columns"),
        ([HEAD, *[["", b, y] for _, b, y in GOOD]], {"target": "y"}, "'a' has no value in the train part; add it"),
        ([["a", "a", "y"], *GOOD], {"target": "y"}, "two columns are called 'a'"),
        ([HEAD, *[[a, b, "p"] for a, b, _ in GOOD]], {"target": "y"}, "of one class, 'p'"),
        ([HEAD, *[[a, b, ""] for a, b, _ in GOOD]], {"target": "y"}, "no row of .* has a value in that column"),
        ([HEAD, *GOOD], {"target": "y", "kind": "regression"}, "the target of .* holds 'p', no number"),
        ([HEAD, *GOOD], {"target": "y", "numeric": ("A",)}, "no column 'A'"),
        ([HEAD, *GOOD], {"target": "y", "ignore": ("y",)}, "'y' is in data.target too"),
        ([HEAD, *GOOD], {"target": "y", "ignore": ("a", "b")}, "no column is left"),
        ([HEAD, ["inf", 1, "p"], *GOOD], {"target": "y"}, "'a' holds 'inf', no finite number"),
        ([HEAD, ["word", 1, "p"], *GOOD], {"target": "y", "numeric": ("a",)}, "'a' holds 'word', no finite"),
        ([HEAD], {"target": "y"}, "holds no rows"),
        ([], {"target": "y"}, "holds no rows"),
        ([HEAD, *GOOD], {"target": "y", "val": 0.6, "test": 0.4}, "leave some for training"),
        ([HEAD, *GOOD], {"encoding": "utf-9"}, "no such encoding"),
        ([HEAD, *GOOD], {"known": [("c", ["x"])]}, "no column 'c', which the run was trained on"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    table: list[list[Any]], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        Table(root=write(tmp_path / "t.csv", table), **options)


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(RequestError, match=message):
            Table(root=str(tmp_path), target="y")

    with pytest.raises(RequestError, match="no such file or folder"):
        Table(root=str(tmp_path / "nowhere"))
    refused("no train.csv")
    write(tmp_path / "val.csv", [HEAD, *GOOD])
    refused("no train.csv")
    write(tmp_path / "train.csv", [HEAD, *GOOD])
    assert len(Table(root=str(tmp_path), target="y").split("val")) == 20
    write(tmp_path / "val.csv", [["a", "y"], *[[a, y] for a, _, y in GOOD]])
    refused("train has a column 'b', and val has none")
    write(tmp_path / "val.csv", [HEAD, [1, 2, "new"]])
    refused("no row of the train part is 'new'")
    write(tmp_path / "val.csv", [HEAD, [1, 2, ""]])
    refused("1 rows of the val and test files .* have none")
    write(tmp_path / "other.csv", [HEAD, *GOOD])
    refused("'other.csv' is one of 3 tables")
    (tmp_path / "latin.csv").write_bytes("a,y\nÖ,1\n".encode("latin-1"))
    with pytest.raises(RequestError, match="is no utf-8 at byte"):
        Table(root=str(tmp_path / "latin.csv"))


def test_a_class_with_a_single_row_is_trained_on_and_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = Table(root=write(tmp_path / "t.csv", [HEAD, [0, 0, "rare"], *GOOD]), target="y")
    assert "'rare' of data.target='y' have a single row" in capsys.readouterr().err
    assert source.split("train").label.bincount().tolist()[source.classes.index("rare")] == 1


cell = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8).map(str.strip)


@settings(max_examples=40, derandomize=True)
@given(
    words=st.lists(cell | st.sampled_from([",", '"', "a\nb", "naïve"]), min_size=5, max_size=30),
    numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=30),
    delimiter=st.sampled_from([",", ";", "\t"]),
)
def test_any_cells_are_read_back(
    words: list[str], numbers: list[float], delimiter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    n = min(len(words), len(numbers))
    words, numbers = words[:n], numbers[:n]
    absent = {"", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"}
    if all(w in absent for w in words):
        words[0] = "word"
    body = [["w", "x"], *zip(words, numbers, strict=True)]
    path = write(tmp_path_factory.mktemp("any") / "t.csv", [list(row) for row in body], delimiter)
    source = Table(root=path, categorical=("w",), numeric=("x",), val=0, test=0, delimiter=delimiter)
    x = source.split("pretrain").x.double()
    (_, names), (_, (mean, std)) = source._known
    assert [None if c != c else names[int(c)] for c in x[:, 0].tolist()] == [None if w in absent else w for w in words]
    torch.testing.assert_close(x[:, 1] * std + mean, torch.tensor(numbers).double(), rtol=1e-4, atol=1e-4 * std)


def test_a_run_keeps_what_columns_mean(tmp_path: Path) -> None:
    first = Table(root=people(tmp_path), target="ill")
    (tmp_path / "new").mkdir()
    body = [[7, 70, "Öl", "no"], [8, 80, "Nord", "yes"], [9, 90, "Öl", "no"]]
    path = write(tmp_path / "new" / "t.csv", [["height", "weight", "city", "ill"], *body])
    pinned = json.loads(json.dumps(first.pinned()))
    again = Table(root=path, target="ill", val=0, test=0, **pinned)
    (_, (mean, std)), _, _ = first._known
    expected = torch.tensor([[(7 - mean) / std, 1], [(8 - mean) / std, NAN], [(9 - mean) / std, 1]])
    torch.testing.assert_close(again.split("train").x[:, [0, 2]], expected, equal_nan=True)
    assert again.facts["columns"] == first.facts["columns"]
    with pytest.raises(RequestError, match=r"data\.known"):
        Table(root=path, target="ill", **{**pinned, "ignore": ["city"]})


def test_what_is_shown_is_written_in_the_tables_units(tmp_path: Path) -> None:
    source = Table(root=people(tmp_path), target="ill")
    x = source.split("train").x
    file = source.write([x, x.flip(0)], tmp_path / "out" / "shown")
    assert file is not None
    with open(file, encoding="utf-8") as opened:
        found = list(csv.reader(opened))
    assert found[:4] == [
        ["sample", "view", "height", "weight", "city"],
        ["1", "1", "1", "10", "Öl"],
        ["1", "2", "6", "20", ""],
        ["2", "1", "2", "", "Bär"],
    ]
    assert source.write([torch.zeros(2, 1, 8, 8)], tmp_path / "picture") is None
    digits = SklearnTable(name="digits")
    first = digits.write([digits.split("test").x[:1]], tmp_path / "digits")
    assert set(first.read_text().splitlines()[1].split(",")) <= {str(n) for n in range(17)}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "columns", "classes", "samples"),
    [
        ("breast_cancer", (0,) * 30, 2, 569),
        ("wine", (0,) * 13, 3, 178),
        ("iris", (0,) * 4, 3, 150),
        ("digits", (0,) * 61, 10, 1797),
        ("diabetes", (0, 2) + (0,) * 8, 0, 442),
    ],
)
def test_the_tables_of_scikit_learn(name: Any, columns: tuple[int, ...], classes: int, samples: int) -> None:
    source = SklearnTable(name=name)
    assert source.facts["columns"] == columns
    assert len(source.classes) == classes
    assert source.valued == (classes == 0)
    parts = [source.split(part) for part in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sum(map(len, parts)) == samples
    x = parts[0].x[:, [k == 0 for k in columns]]
    torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), atol=1e-5, rtol=0)
    assert ((x.std(0, correction=0) - 1).abs().lt(1e-4) | (x.std(0) == 0)).all()


# -- rows as patches -----------------------------------------------------------------------------------------------


@settings(max_examples=50, derandomize=True)
@given(
    columns=st.lists(st.integers(0, 4), min_size=1, max_size=6).map(tuple),
    n=st.integers(1, 5),
    missing=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_rows_are_spread_and_joined_again(columns: tuple[int, ...], n: int, missing: float, seed: int) -> None:
    x = rows(n, seed, missing, columns)
    counts = torch.tensor(columns)
    patches = spread(x, counts, width(columns))
    assert patches.shape == (n, len(columns), 2 + max(columns))
    assert patches.isfinite().all()
    torch.testing.assert_close(joined(patches, counts), x, equal_nan=True, rtol=0, atol=0)
    beside = torch.ones(patches[0].numel(), dtype=torch.bool)
    beside[useful(columns)] = False
    assert not patches.flatten(1)[:, beside].any()
    assert len(useful(columns)) == sum((k or 1) + 1 for k in columns)


def test_a_token_is_what_the_paper_writes() -> None:
    torch.manual_seed(0)
    stem = Columns(columns=COLUMNS, dim=7)
    x = rows()
    tokens = stem(stem.patchify(x))
    for b in range(len(x)):
        for c, count in enumerate(COLUMNS):
            value, weight = x[b, c].item(), stem.weight[c]
            if value != value:
                expected = weight[1]
            elif count:
                expected = weight[2 + int(value)]
            else:
                expected = value * weight[0]
            torch.testing.assert_close(tokens[b, c], expected + stem.pos_embed[0, c])


def test_rows_of_another_table_are_refused() -> None:
    for backbone in (encoder(), MLP(columns=COLUMNS)):
        with pytest.raises(RequestError, match="built for rows of 5 columns"):
            backbone(torch.zeros(2, 4))


@pytest.mark.parametrize("backbone", ["encoder", "mlp"])
def test_an_embedding_knows_a_missing_value_from_the_mean(backbone: str) -> None:
    torch.manual_seed(0)
    model = encoder() if backbone == "encoder" else MLP(columns=COLUMNS, dim=16, depth=2)
    x = torch.tensor([[0.0, 1, 0, 1, 0], [NAN, 1, 0, 1, 0], [0.0, NAN, 0, 1, 0]])
    z = model(x)
    assert z.shape == (3, 16)
    assert z.isfinite().all()
    assert not torch.allclose(z[0], z[1])
    assert not torch.allclose(z[0], z[2])


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "simclr": lambda: simclr.SimCLR(encoder(), hidden=16, dim=8),
    "byol": lambda: byol.BYOL(encoder(), hidden=16, dim=8),
    "barlow_twins": lambda: barlow_twins.BarlowTwins(encoder(), hidden=16, dim=8),
    "vicreg": lambda: vicreg.VICReg(encoder(), hidden=16, dim=8),
    "data2vec": lambda: data2vec.Data2Vec(encoder()),
    "mae": lambda: mae.MAE(encoder(), shape=(5,), dim=16, depth=1, heads=2, normalise=False),
    "simmim": lambda: simmim.SimMIM(encoder(), shape=(5,)),
    "vime": lambda: vime.VIME(encoder(), columns=COLUMNS),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_missing_values_reach_no_loss_and_no_gradient(name: str) -> None:
    objective = OBJECTIVES[name]()
    x = rows(16, missing=0.3)
    views = [{"x": x}, {"x": CorruptColumns()({"x": x})["x"]}][: objective.views]
    loss = objective({"views": views, "index": torch.arange(16)})
    assert loss.value.isfinite()
    loss.value.backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    assert all(v.isfinite() for v in loss.log.values())


def test_a_patch_of_two_values_is_not_seen_relative_to_its_own_mean() -> None:
    objective = mae.MAE(
        Encoder(stem=Columns(columns=(0, 0, 0), dim=8), depth=1, heads=2), shape=(3,), dim=8, depth=1, heads=2
    )
    with pytest.raises(RequestError, match=r"objective\.normalise=true: a patch has 2 values"):
        objective({"views": [{"x": torch.randn(4, 3)}], "index": torch.arange(4)})


# -- corruption ----------------------------------------------------------------------------------------------------


def numbered(n: int, columns: int) -> Tensor:
    """Every value tells its row and column: row + column / 100."""
    return torch.arange(n)[:, None] + torch.arange(columns) / 100


def origin(x: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) that each value of `numbered` came from."""
    return x.floor().long(), ((x - x.floor()) * 100).round().long()


def test_a_new_value_is_another_rows_of_the_same_column_drawn_for_it_alone() -> None:
    torch.manual_seed(0)
    n, columns = 50, 40
    row, column = origin(of_others(numbered(n, columns), numbered(n, columns)))
    assert (column == torch.arange(columns)).all()
    assert (row != torch.arange(n)[:, None]).all()
    # of 40 values, drawn from 49 other rows, about 40 (1 - 1/49)^... come from different rows: never one row's alone
    assert min(len(set(each.tolist())) for each in row) > 15
    assert min(len(set(each.tolist())) for each in row.T) > 20  # nor does a column stay in order
    often = torch.stack([origin(of_others(numbered(4, 2), numbered(4, 2)))[0] for _ in range(3000)])
    for r in range(4):
        share = often[:, r].flatten().bincount(minlength=4) / often[:, r].numel()
        expected = [0.0 if other == r else 1 / 3 for other in range(4)]
        assert share.tolist() == pytest.approx(expected, abs=0.03)


def test_draws_are_from_all_rows_and_leave_out_the_own_wherever_it_is() -> None:
    torch.manual_seed(0)
    everyone = numbered(12, 3)
    for first in (0, 4, 8):
        mine = everyone[first : first + 4]
        row = torch.stack([origin(of_others(mine, everyone, first))[0] for _ in range(400)])
        for r in range(4):
            assert set(row[:, r].flatten().tolist()) == set(range(12)) - {first + r}
    assert torch.equal(of_others(everyone[:1], everyone[:1]), everyone[:1])


@pytest.mark.parametrize(("rate", "count"), [(0.6, 6), (0.25, 2), (0.01, 1), (1.0, 10), (0.0, 0)])
def test_so_many_columns_of_every_row_are_corrupted(rate: float, count: int) -> None:
    torch.manual_seed(0)
    x = numbered(200, 10)
    after = CorruptColumns(rate=rate)({"x": x})["x"]
    changed = after != x
    assert (changed.sum(1) == count).all()
    assert torch.equal(x, numbered(200, 10))
    if 0 < count < 10:
        assert changed.sum(0).tolist() == pytest.approx([20 * count] * 10, abs=45)  # any column as often as another
        assert len({tuple(row) for row in changed.tolist()}) > 5  # others in each row


# -- VIME ----------------------------------------------------------------------------------------------------------


def test_vime_is_what_the_paper_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = vime.VIME(encoder(), columns=COLUMNS, alpha=2.0)
    x = rows(10)
    other = rows(10, seed=5)
    monkeypatch.setattr(vime, "of_others", lambda *_: other)
    torch.manual_seed(3)
    found = objective({"views": [{"x": x}], "index": torch.arange(10)})
    torch.manual_seed(3)
    exchanged = torch.rand(x.shape) < 0.3
    corrupted = torch.where(exchanged, other, x)
    z = objective.backbone(corrupted)
    logits, guess = objective.mask_head(z), objective.value_head(z).view(10, 5, 3)
    mask_terms, value_terms = [], []
    for b in range(10):
        for c, count in enumerate(COLUMNS):
            old, new = x[b, c].item(), corrupted[b, c].item()
            differs = not (old == new or (old != old and new != new))
            p = torch.sigmoid(logits[b, c].double()).item()
            mask_terms.append(-math.log(p if differs else 1 - p))
            if old != old:
                continue
            if count:
                scores = guess[b, c, :count].double()
                value_terms.append((scores.logsumexp(0) - scores[int(old)]).item())
            else:
                value_terms.append((guess[b, c, 0].item() - old) ** 2)
    mask, values = np.mean(mask_terms), np.mean(value_terms)
    assert found.log["mask"].item() == pytest.approx(mask, abs=1e-5)
    assert found.log["values"].item() == pytest.approx(values, abs=1e-5)
    assert found.value.item() == pytest.approx(mask + 2 * values, abs=1e-5)


def test_vime_learns_which_values_were_exchanged() -> None:
    torch.manual_seed(0)
    base = torch.randn(256, 1)
    x = base + 0.05 * torch.randn(256, 6)  # columns that agree: an exchanged value stands out
    objective = vime.VIME(MLP(columns=(0,) * 6, dim=64, depth=2), columns=(0,) * 6)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = objective({"views": [{"x": x}], "index": torch.arange(256)})
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        losses.append([loss.log["mask"].item(), loss.log["values"].item()])
    first, last = np.mean(losses[:5], 0), np.mean(losses[-5:], 0)
    assert last[0] < 0.9 * 0.611  # nats of a coin that falls 3 in 10: what is known without looking
    assert last[1] < 0.4 * first[1]


# -- values --------------------------------------------------------------------------------------------------------


class Parts:
    """A data module with features ready made; it notes which parts were asked for."""

    def __init__(self, parts: dict[str, tuple[Tensor, Tensor]], source: Any = None):
        self.parts, self.source = parts, source
        self.num_classes = len(source.classes) if source is not None else 0
        self.asked: list[str] = []

    def features(self, embed: object, split: str) -> tuple[Tensor, Tensor]:
        self.asked.append(split)
        return self.parts[split]


def linear_parts(noise: float = 0.5) -> dict[str, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(6, generator=g)
    parts = {}
    for name, n in {"train": 60, "val": 30, "test": 50}.items():
        x = torch.randn(n, 6, generator=g) * torch.tensor([1.0, 5, 0.1, 1, 1, 2]) + 3
        parts[name] = x, x @ w * 10 + 200 + noise * torch.randn(n, generator=g)
    return parts


@pytest.mark.parametrize("l2", [10.0, 0.1, 0.0])
def test_ridge_is_the_least_of_its_objective(l2: float) -> None:
    from sklearn.linear_model import Ridge

    x, value = linear_parts()["train"]
    x = (x - x.mean(0)) / x.std(0, correction=0)
    ((weight, bias),) = regression.ridge(x, value, [l2])
    expected = Ridge(alpha=l2 * len(x)).fit(x.double().numpy(), value.double().numpy())
    assert weight.tolist() == pytest.approx(expected.coef_.tolist(), rel=1e-3, abs=1e-3)
    assert bias.item() == pytest.approx(expected.intercept_, rel=1e-5)


def test_the_shortest_solution_where_columns_repeat() -> None:
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean()) / x.std(correction=0)
    ((weight, _),) = regression.ridge(torch.cat([x, x], 1), 3 * x[:, 0], [0.0])
    assert weight.tolist() == pytest.approx([1.5, 1.5], abs=1e-4)


def test_figures_of_values_worked_out_by_hand() -> None:
    found = regression.figures(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 3.0, 5.0]))
    assert found == {
        "r2": pytest.approx(1 - 2 / 8),
        "rmse": pytest.approx(math.sqrt(2 / 3)),
        "mae": pytest.approx(2 / 3),
    }
    with pytest.raises(RunError, match="diverged"):
        regression.figures(torch.tensor([NAN]), torch.tensor([1.0]))
    with pytest.raises(RunError, match="the same"):
        regression.figures(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))


def test_the_penalty_is_chosen_on_validation_and_scores_are_in_the_labels_units() -> None:
    parts = linear_parts()
    data = Parts(parts)
    found = regression.Regression()(None, data)  # type: ignore[arg-type]
    assert found["r2"] > 0.99
    assert 0.3 < found["rmse"] < 1.0
    x, value = parts["val"]
    # validation values that nothing tells: the strongest penalty errs least there
    shuffled = {**parts, "val": (x, value.flip(0))}
    weak = regression.Regression(l2=[1e-4, 1e4])(None, Parts(shuffled))  # type: ignore[arg-type]
    assert weak["r2"] < 0.1
    hidden = {**parts, "test": (parts["test"][0], parts["test"][1].flip(0))}
    assert regression.Regression()(None, Parts(hidden))["r2"] < 0.5  # type: ignore[arg-type]


def test_evaluators_of_values_refuse_classes_and_the_other_way_round() -> None:
    classes, values = SklearnTable(name="iris"), SklearnTable(name="diabetes")
    assert "labels that are values" in str(regression.Regression().refusal(classes))
    assert regression.Regression().refusal(values) is None
    assert boosting.Boosting().refusal(classes) is None
    assert boosting.Boosting().refusal(values) is None
    assert boosting.Boosting().refusal(type("Plain", (), {"classes": (), "valued": False})) is not None


@pytest.mark.parametrize(("name", "metric", "least"), [("iris", "accuracy", 0.85), ("diabetes", "r2", 0.3)])
def test_boosted_trees_on_the_raw_input(name: Any, metric: str, least: float) -> None:
    source = SklearnTable(name=name)
    splits = {part: source.split(part) for part in ("train", "val", "test")}  # type: ignore[arg-type]
    data = Parts({part: (source.raw({"x": s.x}), s.label) for part, s in splits.items()}, source)  # type: ignore[misc]
    evaluator = boosting.Boosting(rounds=8)
    found = evaluator(Embed(source.raw), data)
    assert found[metric] >= least
    assert evaluator(Embed(source.raw), data) == found


def test_regression_loses_in_units_of_the_deviation_and_predicts_in_the_labels() -> None:
    objective = Regression(encoder(), label_mean=150.0, label_std=75.0)
    x, label = rows(8), torch.linspace(20, 300, 8)
    batch: Batch = {"views": [{"x": x}], "label": label, "index": torch.arange(8)}
    predicted = objective.predict({"x": x})
    by_hand = objective.head(objective.backbone(x))[:, 0] * 75 + 150
    torch.testing.assert_close(predicted, by_hand)
    expected = np.mean([((p - v) / 75) ** 2 for p, v in zip(by_hand.tolist(), label.tolist(), strict=True)])
    assert objective(batch).value.item() == pytest.approx(expected, rel=1e-5)
    frozen = Regression(encoder(), label_mean=0.0, label_std=1.0, freeze=True).train()
    assert not frozen.backbone.training
    assert not any(p.requires_grad for p in frozen.backbone.parameters())


# -- end to end ----------------------------------------------------------------------------------------------------

SMALL = [
    "precision=32",
    "batch_size=16",
    "log_every=1",
    "validate_every=5 steps",
    "backbone.depth=1",
    "backbone.stem.dim=16",
    "backbone.heads=2",
]
SHORT = ["precision=32", "batch_size=16", "log_every=1", "validate_every=5 steps", "duration=10 steps"]


def house_prices(folder: Path) -> str:
    g = np.random.RandomState(0)
    body = []
    for n in range(120):
        size, kind = g.rand(), "AB"[g.randint(2)]
        price = 1000 * size + 200 * (kind == "A") + g.randn()
        body.append(["" if n % 9 == 0 else size, kind, g.rand(), price])
    return write(folder / "houses.csv", [["size", "kind", "noise", "price"], *body])


def test_a_table_of_values_is_pretrained_finetuned_and_evaluated(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = house_prices(tmp_path)
    data = ["data=table", f"data.root={path}", "data.target=price"]
    code, _, err = ssl_run(
        "pretrain",
        *data,
        "views=columns",
        "backbone=encoder_columns",
        "objective=vime",
        "evaluators=regression",
        "duration=10 steps",
        *SMALL,
        "hydra.run.dir=p",
    )
    assert code == 0, err
    metrics = json.loads((tmp_path / "p" / "metrics.json").read_text())
    assert metrics["regression/r2/raw"] > 0.7
    assert {"regression/rmse", "regression/mae/untrained"} <= set(metrics)
    kept = yaml.safe_load((tmp_path / "p" / "config.yaml").read_text())
    assert [name for name, _ in kept["data"]["known"]] == ["size", "kind", "noise"]
    assert kept["backbone"]["stem"]["columns"] == [0, 2, 0]

    code, out, err = ssl_run("finetune", "from=p", "objective=regression", *SHORT, "hydra.run.dir=f")
    assert code == 0, err
    assert "100.0% of the backbone's parameters" in out
    tuned = json.loads((tmp_path / "f" / "metrics.json").read_text())
    assert {"finetune/r2", "finetune/rmse", "finetune/mae", "val/loss"} <= set(tuned)
    assert tuned["finetune/rmse"] > 10  # in the price's units

    code, _, err = ssl_run("evaluate", "from=p", "hydra.run.dir=e")
    assert code == 0, err
    again = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert again["regression/r2"] == metrics["regression/r2"]

    code, _, err = ssl_run("finetune", "from=p", *SHORT)
    assert (code, "Supervised learns labels that are classes" in err) == (2, True), err
    code, _, err = ssl_run("finetune", "from=p", "objective=regression", "labels=10%", *SHORT)
    assert (code, "these labels are values" in err) == (2, True), err
    code, _, err = ssl_run("evaluate", "from=p", "evaluators=knn")
    assert (code, "needs labels" in err) == (2, True), err


def test_the_best_epoch_of_values_is_that_of_the_smallest_loss(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    data = ["data=table", f"data.root={house_prices(tmp_path)}", "data.target=price"]
    spoilt = ["optim.lr=0.05", "schedule=constant", "duration=60 steps", "validate_every=5 steps"]
    code, _, err = ssl_run(
        "finetune",
        "from=null",
        *data,
        "views=columns",
        "backbone=mlp",
        "backbone.dim=16",
        "objective=regression",
        *SHORT[:3],
        *spoilt,
        "hydra.run.dir=f",
    )
    assert code == 0, err
    with open(tmp_path / "f" / "metrics.csv") as file:
        losses = {int(row["step"]): float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")}
    from ssl_runner.checkpoint import load_checkpoint

    best = load_checkpoint(tmp_path / "f" / "checkpoints" / "best.ckpt")
    assert losses[best["global_step"]] == min(losses.values())


def test_parts_for_tables_say_so_where_the_data_is_none(ssl_run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = ssl_run("pretrain", "data=fake", "objective=vime", "views=columns", "backbone=mlp")
    assert (code, "backbone.columns: MLP needs it, and the data, Fake, does not tell it" in err) == (2, True), err


def test_values_are_asked_for_where_there_are_classes(ssl_run: Callable[..., tuple[int, str, str]]) -> None:
    scratch = ["from=null", "data=iris", "views=columns", "backbone=mlp"]
    code, _, err = ssl_run("finetune", *scratch, "objective=regression", *SHORT)
    assert (code, "objective.label_mean: Regression needs it" in err) == (2, True), err
    given = ["objective.label_mean=0.0", "objective.label_std=1.0"]
    code, _, err = ssl_run("finetune", *scratch, "objective=regression", *given, *SHORT)
    assert (code, "Regression learns labels that are values" in err) == (2, True), err
