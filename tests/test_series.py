"""Time series: files in their real layouts, parts that share nothing, samples, and views of them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_runner.data import DataModule
from ssl_runner.datasets import watch
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.series import Series
from ssl_runner.datasets.stretches import Stretches, Track, Tracks, divided, statistics
from ssl_runner.datasets.ts_format import parse
from ssl_runner.datasets.ucr import UCR
from ssl_runner.datasets.watch import Watch
from ssl_runner.errors import RequestError
from ssl_runner.types import Samples, View
from ssl_runner.views.base import Branch, Views
from ssl_runner.views.normalise import Normalize
from ssl_runner.views.series import Fill, Jitter, MaskChannels, Permutation, Scaling, TimeWarp
from ssl_runner.views.window import RandomWindow, Window

PARTS = ("train", "val", "test")


def fetched(dataset: Stretches) -> Samples:
    return dataset.__getitems__([(n, 0) for n in range(len(dataset))])


def values(dataset: Stretches) -> list[float]:
    x, pad = fetched(dataset)["inputs"][0]["x"], fetched(dataset)["inputs"][0].get("pad")
    return (x if pad is None else x[~pad[:, None].expand_as(x)]).flatten().tolist()


def table(path: Path, rows: int, **columns: Callable[[int], Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(columns), *(",".join(str(make(row)) for make in columns.values()) for row in range(rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


# --- the .ts format ---------------------------------------------------------------------------------------------


HEADER = ["# about it", "%too", "@problemName Odd", "@timeStamps false", "@missing true", "@classLabel true a b"]


def test_a_ts_file_as_the_archive_has_it() -> None:
    lines = [*HEADER, "@data", "1.0,?,-2e1:4,5,6:a", "", "7,8:9,NaN:b"]
    (one, a), (two, b) = parse(lines, "f.ts")
    assert (a, b) == ("a", "b")
    np.testing.assert_array_equal(one, np.array([[1, np.nan, -20], [4, 5, 6]], np.float32))
    np.testing.assert_array_equal(two, np.array([[7, 8], [9, np.nan]], np.float32))


def test_a_ts_file_with_times_that_hold_colons() -> None:
    lines = ["@timeStamps true", "@classLabel true 1 2", "@data", "(2007-01-01 00:00:00,4),(2007-01-01 00:01:00,5):2"]
    ((one, label),) = parse(lines, "f.ts")
    assert one.tolist() == [[4, 5]]
    assert label == "2"
    ((two, none),) = parse(["@timestamps true", "@classlabel false", "@data", "(0,1),(1,2):(0,3),(1,4)"], "f.ts")
    assert two.tolist() == [[1, 2], [3, 4]]
    assert none is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,2:3,x:a", "f.ts:8: 'x' is no number"),
        ("1,2:3,4:c", "f.ts:8: the class 'c'"),
        ("1,2::a", "f.ts:8: has a channel without values"),
        ("a", "f.ts:8: has a channel"),
        ("1,inf:a", "infinite"),
    ],
)
def test_a_broken_line_is_named(line: str, said: str) -> None:
    with pytest.raises(BrokenSample, match=said):
        parse([*HEADER, "@data", line], "f.ts")


def test_files_that_are_no_ts_files_are_refused() -> None:
    for lines, said in (([], "no recording"), (["1,2,3"], "f.ts:1"), (["@targetLabel true", "@data", "1:2"], "values")):
        with pytest.raises(BrokenSample, match=said):
            parse(lines, "f.ts")


@settings(max_examples=25)
@given(st.data())
def test_what_is_written_as_ts_is_read_again(data: st.DataObject) -> None:
    channels = data.draw(st.integers(1, 3))
    number = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))
    row = st.lists(number, min_size=1, max_size=6)
    told = data.draw(st.lists(st.tuples(st.lists(row, min_size=channels, max_size=channels), st.sampled_from("ab"))))
    lines = [*HEADER, "@data"]
    for rows, label in told:
        cells = [",".join("?" if v != v else repr(v) for v in row) for row in rows]
        lines.append(":".join([*cells, label]))
    if not told:
        return
    for (found, label), (rows, wanted) in zip(parse(lines, "f"), told, strict=True):
        assert label == wanted
        assert found.shape == (channels, max(map(len, rows)))
        for into, row in zip(found, rows, strict=True):
            np.testing.assert_array_equal(into[: len(row)], np.array(row, np.float32))
            assert np.isnan(into[len(row) :]).all()


@settings(max_examples=60)
@given(st.text(alphabet="@#?%:,()0123456789.eE-ab \ndaclstrue", max_size=120))
def test_any_text_is_read_or_refused_as_broken(text: str) -> None:
    try:
        parse(["@classLabel true", "@data", *text.splitlines()], "f.ts")
    except BrokenSample as error:
        assert "f.ts" in str(error)


# --- parts ------------------------------------------------------------------------------------------------------


def long_table(tmp_path: Path, rows: int = 100) -> str:
    return table(
        tmp_path / "long.csv", rows, moment=lambda r: f"2021-01-01 {r:03d}", value=lambda r: r, odd=lambda _: 0
    )


def test_one_long_table_is_divided_by_time_and_windows_stay_in_their_part(tmp_path: Path) -> None:
    source = Series(root=long_table(tmp_path), channels=("value",), window=7, stride=3, horizon=4)
    seen = {part: set(values(source.split(part))) for part in PARTS}
    told = {part: set(fetched(source.split(part))["target"].flatten().tolist()) for part in PARTS}
    assert max(seen["train"] | told["train"]) < 60 <= min(seen["val"])
    assert max(seen["val"] | told["val"]) < 80 <= min(seen["test"])
    first = fetched(source.split("val"))
    assert first["inputs"][0]["x"][:2, 0].tolist() == [[*range(60, 67)], [*range(63, 70)]]
    assert first["target"][:2, 0].tolist() == [[*range(67, 71)], [*range(70, 74)]]
    assert source.split("train").__getitems__([(2, 0)])["target"].tolist() == [[[13, 14, 15, 16]]]


def test_means_and_deviations_are_those_of_the_train_part_alone(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", 10, a=lambda r: "" if r == 1 else r if r < 6 else 1000, b=lambda _: 7)
    facts = Series(root=path, window=2).facts
    train = np.array([0, 2, 3, 4, 5])
    assert facts["mean"] == pytest.approx((train.mean(), 7))
    assert facts["std"] == pytest.approx((train.std(), 1))


def test_rows_are_put_in_order_by_their_time(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", 30, t=lambda r: 30 - r, value=lambda r: r)
    assert values(Series(root=path, time="t", window=3).split("train"))[:3] == [29, 28, 27]


def tracks(lengths: list[int], labels: str | None = None, subjects: str | None = None) -> list[Track]:
    """Each holds its own number, over and over."""
    return [
        Track(
            np.full((2, n), k, np.float32),
            f"track {k}",
            labels[k] if labels else None,
            subjects[k] if subjects else None,
        )
        for k, n in enumerate(lengths)
    ]


def source_of(given: dict[str, list[Track]], **choices: Any) -> Tracks:
    return Tracks(given, **{"where": "made up", "window": None, "stride": None, "val": 0.2, "test": 0.2, **choices})


def test_windows_never_hold_values_of_two_recordings() -> None:
    source = source_of({"train": tracks([9, 5, 12, 4, 7, 8, 10, 30, 6, 5])}, window=4, stride=3)
    for part in PARTS:
        x = fetched(source.split(part))["inputs"][0]["x"]
        assert (x == x[:, :, :1]).all()


def test_subjects_are_held_out_whole() -> None:
    source = source_of({"train": tracks([6] * 20, "ab" * 10, "aabbccddeeffgghhiijj")}, window=3, stride=1)
    whose = {part: {int(v) // 2 for v in values(source.split(part))} for part in PARTS}
    assert [len(whose[part]) for part in PARTS] == [6, 2, 2]
    assert not whose["train"] & whose["val"]
    assert not (whose["train"] | whose["val"]) & whose["test"]
    with pytest.raises(RequestError, match="2 subjects for 3 parts"):
        source_of({"train": tracks([6] * 4, None, "aabb")})


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 6),
)
def test_no_two_parts_share_a_value_whatever_the_lengths(
    lengths: list[int], window: int, stride: int, horizon: int
) -> None:
    """Values are unique, so a shared one is a leak."""
    start = np.cumsum([0, *lengths])
    given_tracks = [
        Track(np.arange(a, b, dtype=np.float32)[None], f"{a}") for a, b in zip(start, start[1:], strict=False)
    ]
    try:
        source = source_of({"train": given_tracks}, window=window, stride=stride, horizon=horizon or None)
    except RequestError:
        return
    seen: dict[str, set[float]] = {}
    for part in PARTS:
        samples = fetched(source.split(part))
        view = samples["inputs"][0]
        assert view["x"].shape[1:] == (1, window)
        told = set(samples["target"].flatten().tolist()) if horizon else set()
        seen[part] = set(values(source.split(part))) | told
        steps = view["x"][:, 0].diff()
        real = torch.ones_like(steps, dtype=torch.bool) if "pad" not in view else ~view["pad"][:, 1:]
        assert (steps[real] == 1).all()
    assert not seen["train"] & seen["val"]
    assert not (seen["train"] | seen["val"]) & seen["test"]


def test_a_class_with_a_single_recording_is_trained_on() -> None:
    parts = divided({"train": tracks([3] * 11, "aaaaabbbbbc")}, {"val": 0.2, "test": 0.2})
    assert [sorted({each.label for each in parts[part]}) for part in PARTS] == [["a", "b", "c"], ["a", "b"], ["a", "b"]]


def test_recordings_without_a_label_are_in_pretrain_alone() -> None:
    some = tracks([3] * 12, "aaaaabbbbb__")
    given_tracks = [t if t.label != "_" else Track(t.values, t.name) for t in some]
    source = source_of({"train": given_tracks}, val=0.0, test=0.0)
    assert (len(source.split("pretrain")), len(source.split("train"))) == (12, 10)
    assert source.split("pretrain").label is None
    assert source.split("train").label is not None


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"val": 0.7, "test": 0.4}, "leave some for training"),
        ({"window": 50, "horizon": 10}, "two are the least"),
        ({"window": 12, "horizon": 2, "val": 0.1}, "val part is too small"),
    ],
)
def test_choices_that_leave_nothing_are_refused(tmp_path: Path, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Series(root=long_table(tmp_path), channels=("value",), **choices)


# --- samples ----------------------------------------------------------------------------------------------------


def test_short_recordings_are_filled_up_and_say_so() -> None:
    source = source_of({"train": tracks([3, 5, 4, 5]), "val": tracks([2]), "test": tracks([6])}, window=5)
    samples = fetched(source.split("train"))["inputs"][0]
    assert samples["pad"].sum(1).tolist() == [2, 0, 1, 0]
    assert samples["x"][2, 0].tolist() == [2, 2, 2, 2, 0]
    assert "pad" in fetched(source.split("test"))["inputs"][0]
    whole = source_of({"train": tracks([6, 6]), "val": tracks([6]), "test": tracks([6])})
    assert "pad" not in fetched(whole.split("val"))["inputs"][0]


def test_windows_that_overlap_take_no_more_memory() -> None:
    one = source_of({"train": tracks([5000])}, window=1000, stride=1, val=0.0, test=0.0).split("train")
    assert len(one) == 4001
    assert one.values.numel() == 2 * 5000
    assert one.x.numel() == 2 * 4001


def test_a_recording_of_nothing_is_left_out_and_a_tail_of_nothing_is_cut_off(capsys: pytest.CaptureFixture) -> None:
    some = tracks([6] * 6)
    some[0].values[:] = np.nan
    some[1].values[:, 4:] = np.nan
    some[2].values[0] = np.nan
    source = source_of({"train": some}, val=0.0, test=0.0)
    assert "track 0 holds no value" in capsys.readouterr().err
    assert fetched(source.split("train"))["inputs"][0]["pad"].sum(1).tolist() == [2, 0, 0, 0, 0]


def test_raw_features_leave_padding_out_and_keep_places_that_mean_something() -> None:
    x = torch.tensor([[[1.0, 2.0, 4.0, 99.0]], [[0.0, 0.0, 0.0, 0.0]]])
    pad = torch.tensor([[False, False, False, True], [False] * 4])
    found = statistics(x, pad)
    mean, std = 7 / 3, np.std([1, 2, 4])
    expected = torch.tensor([mean, std, 1, 4, 1.5, 2, 3, 1.5, 0.5], dtype=torch.float32)
    torch.testing.assert_close(found[0], expected)
    assert found[1].abs().sum() == 0
    whole = source_of({"train": tracks([6] * 6)})
    assert whole.raw({"x": torch.arange(12.0).view(1, 2, 6)}).tolist() == [[*range(12)]]
    cut = source_of({"train": tracks([6] * 6)}, window=3)
    assert cut.raw({"x": torch.zeros(4, 2, 3)}).shape == (4, 18)


def test_what_objectives_show_is_written_as_a_table(tmp_path: Path) -> None:
    source = source_of({"train": tracks([3] * 6)})
    file = source.write(
        [torch.arange(6.0).view(1, 2, 3), torch.full((1, 2, 3), float("nan"))], tmp_path / "s" / "shown"
    )
    assert file is not None
    assert file.read_text().splitlines() == [
        "sample,view,place,channel1,channel2",
        *("1,1,1,0,3", "1,1,2,1,4", "1,1,3,2,5"),
        *(f"1,2,{n},," for n in (1, 2, 3)),
    ]
    assert source.write([torch.zeros(1, 3, 8, 8)], tmp_path / "x") is None


# --- a user's files ---------------------------------------------------------------------------------------------


def test_groups_of_a_table_are_recordings(tmp_path: Path) -> None:
    path = table(
        tmp_path / "a.csv",
        60,
        who=lambda r: f"p{r % 10}",
        kind=lambda r: "ab"[r % 2],
        x=lambda r: r % 10,
        y=lambda r: r,
    )
    source = Series(root=path, group="who", label="kind", val=0.2, test=0.2)
    assert source.classes == ("a", "b")
    assert source.facts["shape"] == (2, 6)
    samples = fetched(source.split("train"))
    x = samples["inputs"][0]["x"]
    assert (x[:, 0] == x[:, 0, :1]).all()
    assert (x[:, 1].diff() == 10).all()
    assert (x[:, 0, 0] % 2).tolist() == samples["label"].tolist()
    with pytest.raises(RequestError, match="several values in 'kind'"):
        Series(root=path, label="kind", channels=("x",))


def test_samples_with_an_odd_row_are_anomalies(tmp_path: Path) -> None:
    table(tmp_path / "X_TRAIN.csv", 40, v=lambda r: r, odd=lambda _: 0)
    table(tmp_path / "X_TEST.csv", 20, v=lambda r: r, odd=lambda r: int(r in (7, 8)))
    source = Series(root=str(tmp_path), anomaly="odd", window=4)
    assert source.classes == ("normal", "anomaly")
    assert source.split("test").label.tolist() == [0, 1, 1, 0, 0]


def test_arrays_and_folders_of_classes(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 2)):
        for kind in ("läufer", "geher"):
            (tmp_path / part / kind).mkdir(parents=True)
            for n in range(count):
                np.save(tmp_path / part / kind / f"{n}.npy", np.random.rand(3, 5 + n).astype(np.float32))
    source = Series(root=str(tmp_path))
    assert source.classes == ("geher", "läufer")
    assert source.facts["shape"] == (3, 8)
    assert [len(source.split(part)) for part in PARTS] == [8, 4, 4]
    np.savez(tmp_path / "all.npz", x=np.random.rand(20, 2, 6), y=np.arange(20) % 2)
    packed = Series(root=str(tmp_path / "all.npz"))
    assert packed.classes == ("0", "1")
    assert packed.facts["shape"] == (2, 6)


def test_parquet_and_ts_files_of_a_user(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.table({"v": [float(n) if n != 3 else None for n in range(50)], "t": [*range(50)]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    source = Series(root=str(tmp_path / "a.parquet"), time="t", window=5)
    x = fetched(source.split("train"))["inputs"][0]["x"]
    assert x[0, 0].isnan().tolist() == [False, False, False, True, False]
    archive(tmp_path, "Made", 20, 7)
    user = Series(root=str(tmp_path / "Made"))
    assert user.classes == ("1", "2")
    assert [len(user.split(part)) for part in PARTS] == [16, 4, 7]


def test_a_run_keeps_its_channels_and_the_size_of_its_samples(tmp_path: Path) -> None:
    first = Series(root=table(tmp_path / "a.csv", 50, x=lambda r: r, y=lambda r: -r), window=5)
    other = table(tmp_path / "b.csv", 80, y=lambda r: -r, new=lambda r: 0, x=lambda r: r)
    again = Series(root=other, **first.pinned())
    assert again.facts["shape"] == (2, 5)
    x = fetched(again.split("train"))["inputs"][0]["x"]
    assert x[0].tolist() == [[0, 1, 2, 3, 4], [0, -1, -2, -3, -4]]


def hostile(root: Path) -> Path:
    """Odd lengths, an empty file, broken ones, names in unicode, a class with a single sample, values missing."""
    rng = np.random.RandomState(0)
    for kind, count in (("größe ✓", 12), ("b c", 12), ("einzeln", 1)):
        for n in range(count):
            length = 5 + (n * 7) % 23
            beat = 1 + len(kind)
            rows = [f"{np.sin(i / beat) + 0.1 * rng.randn():.4f},{'' if i % 5 == n % 5 else i}" for i in range(length)]
            path = root / kind / f"aufnahme {n} é.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(["wert,zähler", *rows]), encoding="utf-8")
    (root / "b c" / "empty.csv").write_text("")
    (root / "b c" / "only a header.csv").write_text("wert,zähler\n")
    (root / "b c" / "text.csv").write_text("wert,zähler\n1,zwei\n", encoding="utf-8")
    (root / "b c" / "other columns.csv").write_text("a,b\n1,2\n")
    (root / "b c" / "cut off.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
    (root / "b c" / "pickle.npy").write_bytes(pickle.dumps({"a": 1}))
    (root / "b c" / "notes.txt").write_text("not a series")
    return root


def test_a_hostile_folder_is_pretrained_on_and_evaluated(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    root = hostile(tmp_path / "daten ü")
    code, _, err = ssl_run(
        "pretrain",
        "data=series",
        f"data.root='{root}'",
        "views=two_series",
        "backbone=dilated",
        "backbone.dim=8",
        "backbone.hidden=4",
        "backbone.depth=2",
        "objective.hidden=8",
        "objective.dim=4",
        "batch_size=8",
        "duration=4 steps",
        "precision=32",
        "evaluators=[knn,linear]",
        "hydra.run.dir=r",
    )
    assert code == 0, err
    assert "left out 6 broken samples" in err
    for name in ("empty.csv", "only a header.csv", "text.csv", "other columns.csv", "cut off.npy", "pickle.npy"):
        assert name in err
    scores = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert all(np.isfinite(value) for value in scores.values())
    assert {"knn/accuracy", "knn/accuracy/untrained", "knn/accuracy/raw"} <= set(scores)
    code, _, err = ssl_run("evaluate", "from=r", "hydra.run.dir=e")
    assert code == 0, err
    again = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert again["knn/accuracy"] == scores["knn/accuracy"]
    with pytest.raises(Exception, match=r"data\.on_broken=skip"):
        Series(root=str(root), on_broken="stop")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        ("a,b\n1\n", ":2: has 1 cells"),
        ("a,a\n1,2\n", "two columns"),
        ("a\n1\ninf\n3\n", "infinite"),
        ("a\n1\nx\n", "no number"),
    ],
)
def test_a_single_file_that_can_not_be_used_is_a_wrong_request(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(RequestError, match=said):
        Series(root=str(tmp_path / "a.csv"), window=2)


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    path = long_table(tmp_path)
    for choices, said in (
        ({"root": str(tmp_path / "none")}, "there is no such file"),
        ({"root": path, "label": "odd", "anomaly": "odd"}, "leave one out"),
        ({"root": path, "channels": ("valeu",), "window": 4}, "did you mean 'value'"),
        ({"root": path, "window": 4}, "data.channels"),
    ):
        with pytest.raises(RequestError, match=said):
            Series(**choices)
    np.save(tmp_path / "a.npy", np.zeros((2, 9)))
    with pytest.raises(RequestError, match=r"data\.group: names a column"):
        Series(root=str(tmp_path / "a.npy"), group="x")
    (tmp_path / "two").mkdir()
    for name in ("A_TRAIN.csv", "B_TRAIN.csv"):
        table(tmp_path / "two" / name, 4, v=lambda r: r)
    with pytest.raises(RequestError, match="both say train"):
        Series(root=str(tmp_path / "two"))


# --- published sets ---------------------------------------------------------------------------------------------


def archive(root: Path, name: str, train: int, test: int) -> None:
    (root / name).mkdir(parents=True)
    for part, count in (("TRAIN", train), ("TEST", test)):
        lines = [f"@problemName {name}", "@timeStamps false", "@classLabel true 1 2", "@data"]
        lines += [f"{n},{n + 1},{n + 2}:{n % 2 + 1}" for n in range(count)]
        (root / name / f"{name}_{part}.ts").write_text("\n".join(lines))


def test_the_archive_keeps_its_official_test_part(tmp_path: Path) -> None:
    archive(tmp_path, "Made", 20, 7)
    source = UCR(name="Made", root=str(tmp_path))
    assert [len(source.split(part)) for part in PARTS] == [16, 4, 7]
    assert values(source.split("test"))[:3] == [0, 1, 2]
    assert source.classes == ("1", "2")
    with pytest.raises(RequestError, match=r"timeseriesclassification\.com"):
        UCR(name="Nowhere", root=str(tmp_path))
    (tmp_path / "Made" / "Made_TEST.ts").write_text("@data\n1,x\n")
    with pytest.raises(RequestError, match=r"Made_TEST.ts:2: 'x' is no number"):
        UCR(name="Made", root=str(tmp_path))


def exercises(path: Path, **more: Any) -> None:
    rng = np.random.RandomState(0)
    told = {
        "X": [rng.randn(30 + n, 6) for n in range(20)],
        "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
        "y": np.arange(20) % 2,
        "y_labels": ["PEN", "ABD"],
        "subject": np.arange(20) // 2 + 1,
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(told), allow_pickle=True)


def test_the_watch_data_holds_out_subjects(tmp_path: Path) -> None:
    exercises(tmp_path / "seglearn" / "data" / watch.FILE)
    source = Watch(root=str(tmp_path), window=10)
    assert source.classes == ("ABD", "PEN")
    assert source.facts["shape"] == (6, 10)
    assert source.facts["rate"] == 50
    bounds = {part: len(source.split(part)) for part in PARTS}
    assert bounds["train"] > bounds["test"] > bounds["val"] > 0
    with pytest.raises(RequestError, match="pip install --no-deps"):
        Watch(root=str(tmp_path / "none"))


class Command:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_the_watch_file_can_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exercises(tmp_path / watch.FILE, subject=Command())
    with pytest.raises(RequestError, match="not the watch data as it was published: it names"):
        Watch(root=str(tmp_path))
    assert not (tmp_path / "touched").exists()
    (tmp_path / watch.FILE).write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(RequestError, match="not the watch data"):
        Watch(root=str(tmp_path))
    buffer = io.BytesIO()
    np.save(buffer, np.array({"X": []}), allow_pickle=True)
    (tmp_path / watch.FILE).write_bytes(buffer.getvalue())
    with pytest.raises(RequestError, match="lacks some of"):
        Watch(root=str(tmp_path))


# --- views ------------------------------------------------------------------------------------------------------


def test_a_window_is_the_middle_and_says_what_it_filled() -> None:
    x = torch.arange(14.0).view(2, 1, 7)
    assert Window(size=3)({"x": x})["x"].tolist() == [[[2, 3, 4]], [[9, 10, 11]]]
    short = Window(size=9, padded=True)({"x": x})
    assert short["x"][0, 0].tolist() == [*range(7), 0, 0]
    assert short["pad"].tolist() == [[False] * 7 + [True] * 2] * 2
    assert set(Window(size=9)({"x": x, "pad": x[:, 0] > 5})) == {"x"}
    assert Window(size=4, padded=True).one({"x": x[0]})["pad"].tolist() == [False] * 4


@settings(max_examples=60)
@given(st.sampled_from([Window, RandomWindow]), st.integers(1, 14), st.integers(1, 14), st.booleans(), st.booleans())
def test_a_window_of_one_is_that_of_a_batch(
    cls: type[Window], length: int, size: int, padded: bool, filled: bool
) -> None:
    view: View = {"x": torch.randn(2, length)}
    if filled:
        view["pad"] = torch.arange(length) >= max(1, length - 2)
    window = cls(size=size, padded=padded)
    torch.manual_seed(0)
    one = window.one(view)
    torch.manual_seed(0)
    batch = window({name: tensor[None] for name, tensor in view.items()})
    assert one.keys() == batch.keys()
    assert all(tensor.equal(batch[name][0]) for name, tensor in one.items())


@settings(max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 14))
def test_a_random_window_is_a_stretch_of_what_is_there(lengths: list[int], size: int) -> None:
    longest = max(lengths)
    pad = torch.arange(longest) >= torch.tensor(lengths)[:, None]
    x = torch.arange(1.0, 1 + longest).expand(len(lengths), 2, -1).masked_fill(pad[:, None], 0.0)
    view = RandomWindow(size=size, padded=True)({"x": x, "pad": pad})
    assert view["x"].shape == (len(lengths), 2, size)
    kept = (~view["pad"]).sum(1).tolist()
    assert kept == [min(size, length) for length in lengths]
    for row, length, n in zip(view["x"][:, 0].tolist(), lengths, kept, strict=True):
        assert row[:n] == [row[0] + k for k in range(n)]
        assert 1 <= row[0] <= row[n - 1] <= length


def test_random_windows_reach_both_ends_and_differ() -> None:
    torch.manual_seed(0)
    x = torch.arange(10.0).expand(300, 1, 10)
    start = RandomWindow(size=4)({"x": x})["x"][:, 0, 0]
    assert start.unique().tolist() == [*range(7)]


def test_noise_and_scale_are_in_units_of_each_channel() -> None:
    torch.manual_seed(0)
    x = torch.zeros(64, 2, 500)
    noise = Jitter(std=(1.0, 100.0), sigma=0.1)({"x": x})["x"]
    assert noise[:, 0].std() == pytest.approx(0.1, rel=0.02)
    assert noise[:, 1].std() == pytest.approx(10, rel=0.02)
    assert not noise[0].equal(noise[1])
    scaled = Scaling(mean=(0.0, 5.0), sigma=0.5)({"x": x + 5 + torch.arange(500.0)})["x"]
    factor = (scaled[:, 1] - 5) / torch.arange(500.0)
    torch.testing.assert_close(factor[:, 1], factor[:, -1], rtol=1e-4, atol=1e-4)
    assert factor[:, 1].std() == pytest.approx(0.5, rel=0.3)
    with pytest.raises(RequestError, match="Jitter: std has 3 values"):
        Jitter(std=(1.0,) * 3)({"x": x})


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 8), st.integers(0, 2**31))
def test_pieces_change_places_and_none_is_lost(batch: int, length: int, most: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.arange(float(length)).expand(batch, 2, -1)
    pad = (x[:, 0] > length / 2).clone()
    view = Permutation(most=most)({"x": x, "pad": pad})
    for row, gone in zip(view["x"], view["pad"], strict=True):
        assert row[0].equal(row[1])
        assert row[0].sort().values.equal(x[0, 0])
        assert (row[0] > length / 2).equal(gone)
        assert int((row[0].diff() != 1).sum()) < most


def test_pieces_do_change_places() -> None:
    torch.manual_seed(0)
    x = torch.arange(40.0).expand(50, 1, -1)
    breaks = (Permutation(most=5)({"x": x})["x"].diff() != 1).sum(2)
    assert breaks.max() >= 3
    assert breaks.unique().numel() > 2


def test_time_is_warped_between_ends_that_stay() -> None:
    torch.manual_seed(0)
    x = torch.arange(50.0).expand(20, 3, -1)
    warped = TimeWarp(sigma=0.5)({"x": x})["x"]
    assert (warped.diff() > 0).all()
    torch.testing.assert_close(warped[..., [0, -1]], x[..., [0, -1]])
    assert (warped - x).abs().amax((1, 2)).min() > 0.1
    assert warped[:, 0].equal(warped[:, 2])
    torch.testing.assert_close(TimeWarp(sigma=0.0)({"x": x})["x"], x, rtol=1e-4, atol=1e-4)
    missing = x.clone()
    missing[..., 10] = float("nan")
    assert TimeWarp(sigma=0.5)({"x": missing})["x"].isnan().sum(2).max() <= 5


def test_hidden_channels_are_missing_and_filled_in_behind_the_normalisation() -> None:
    torch.manual_seed(0)
    x = 5 + torch.rand(200, 4, 6)
    hidden = MaskChannels(p=0.5)({"x": x})["x"].isnan()
    assert hidden.equal(hidden[..., :1].expand_as(hidden))
    share = hidden[..., 0].float().mean()
    assert 0.4 < share < 0.5
    assert hidden[..., 0].sum(1).max() == 3
    assert MaskChannels(p=1.0)({"x": x})["x"][..., 0].isnan().sum(1).eq(3).all()
    views = Views(
        branches={"one": Branch(transforms={"mask": MaskChannels(p=0.5)})},
        last={"normalise": Normalize(mean=(5.0,), std=(2.0,)), "fill": Fill()},
    )
    pad = torch.arange(6).expand(200, -1) > 3
    (view,) = views({"inputs": [{"x": x, "pad": pad}]})
    assert (view["x"][..., 4:] == 0).all()
    seen = view["x"][..., 0]
    assert ((seen == 0) | (seen - (x[..., 0] - 5) / 2 < 1e-6)).all()
    assert (seen == 0).float().mean() > 0.3


def test_an_epoch_of_training_meets_every_sample_once_and_goes_on_from_any_batch() -> None:
    source = source_of({"train": tracks([4] * 30)}, val=0.0, test=0.0)
    views = Views(branches={"one": Branch(transforms={})})
    data = DataModule(source, views, split="pretrain", plain_val=False, per_rank=6, batches=10, seed=0)
    batches = [batch["index"].tolist() for batch in data.train_dataloader()]
    assert sorted(sum(batches[:5], [])) == [*range(30)]
    data.start = 4
    assert [batch["index"].tolist() for batch in data.train_dataloader()] == batches[4:]
