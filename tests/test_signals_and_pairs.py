"""What signals of many lengths and pairs of inputs ask of the parts between data and objectives."""

import pytest
import torch

from ssl_runner import build
from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.datasets.base import Arrays, Ragged
from ssl_runner.datasets.reading import Reading
from ssl_runner.types import Sizer, Transform, View, as_batch, seen_by
from ssl_runner.views.base import Branch, Views


class Filled(Sizer):
    """The first 6 values, or all with zeros behind them."""

    def forward(self, view: View) -> View:
        x = view["x"][..., :6]
        pad = (torch.arange(6) >= x.shape[-1]).expand(len(x), -1)
        return {"x": torch.nn.functional.pad(x, (0, 6 - x.shape[-1])), "pad": pad}


class Halved(Transform):
    """Every other value: half as many."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] // 2)

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., ::2]


class Shifted(Transform):
    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by


class Pairs(Ragged):
    """A signal of n + 4 times the value n, and three ids; a target, in which -1 ends what is told."""

    label = None
    target = torch.tensor([[1, 2, -1], [3, -1, -1], [4, 5, 6]])

    def __len__(self) -> int:
        return 3

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> torch.Tensor:
        return torch.full((1, index + 4), float(index))

    def inputs(self, index: int) -> list[View]:
        return [*super().inputs(index), {"x": torch.randint(9, (3,))}]


KEYS = [(n, 50 + n) for n in range(3)]


def of_signals(second: Views | None = None) -> Views:
    step = {"crop": Filled(), "shift": Shifted(1.0)}
    return Views(branches={"two": Branch(transforms=step, copies=2)}, fit=Filled(), second=second)


def test_short_samples_are_filled_up_and_their_padding_goes_with_them() -> None:
    samples = Reading(Pairs(), of_signals().crops, "stop", True).__getitems__(KEYS)
    assert [tuple(view["x"].shape) for view in samples["inputs"]] == [(3, 1, 6)] * 2
    assert samples["inputs"][0]["pad"].sum(1).tolist() == [2, 1, 0]
    assert samples["target"].equal(Pairs.target)
    views = of_signals()(samples)
    assert views[1]["x"][1, 0].tolist() == [2.0] * 5 + [1.0]
    assert views[1]["pad"].sum(1).tolist() == [2, 1, 0]


def test_the_second_input_has_views_of_its_own() -> None:
    ids = Views(branches={"plain": Branch(transforms={})})
    views = of_signals(ids)
    samples = Reading(Pairs(), views.crops, "stop", True).__getitems__(KEYS)
    assert len(samples["inputs"]) == 3
    first, again, second = views(samples)
    assert first["x"].equal(again["x"])
    assert second["x"].shape == (3, 3)
    assert second["x"].dtype == torch.int64
    plain = Reading(Pairs(), views.fitted, "stop", True).__getitems__(KEYS)
    one, two = views.plain_pair(plain)
    assert one["x"][2].eq(2).all()
    assert two["x"].equal(second["x"])  # drawn by read, which the key seeds


def test_the_second_input_of_samples_in_memory() -> None:
    views = of_signals(Views(branches={"one": Branch(transforms={"shift": Shifted(-1.0)})}))
    samples = {"inputs": [{"x": torch.ones(2, 1, 6)}, {"x": torch.zeros(2, 4)}]}
    first, again, second = views(samples)  # type: ignore[arg-type]
    assert first["x"].equal(again["x"])
    assert first["x"].eq(2).all()
    assert second["x"].eq(-1).all()


def test_what_stands_under_second_gets_the_facts_of_the_second_input() -> None:
    node = {"_target_": "ssl_runner.backbones.stems.Discrete", "dim": 4}
    signal = {"_target_": "ssl_runner.backbones.stems.Continuous", "dim": 4, "block": [2]}
    filled = build.fill(
        {"first": signal, "second": {"inner": node}}, {"shape": (1, 6), "second": {"vocab": 9, "length": 3}}
    )
    assert filled["first"]["shape"] == [1, 6]
    assert filled["second"]["inner"]["vocab"] == 9


def test_a_backbone_is_told_the_shape_that_views_make() -> None:
    inner = Views(branches={}, last={"thin": Halved()})
    views = Views(branches={}, last={"thin": Halved(), "again": Halved()}, second=inner)
    facts = build._seen({"shape": (1, 8), "vocab": 3, "second": {"shape": (2, 8)}}, views)
    assert facts == {"shape": (1, 2), "vocab": 3, "second": {"shape": (2, 4)}}


def test_a_token_is_padding_if_all_of_its_block_is() -> None:
    stem = Continuous(shape=(1, 2, 6), block=(1, 2), dim=4)
    pad = torch.tensor([[False, False, False, True, True, True], [False] * 6])
    expected = torch.tensor([[False, False, True] * 2, [False] * 6])
    assert stem.padding(pad).equal(expected)
    assert Discrete(vocab=3, length=6, dim=4).padding(pad).equal(pad)


@pytest.mark.parametrize("filler", [0.0, 7.0])
def test_padding_does_not_reach_the_embedding(filler: float) -> None:
    torch.manual_seed(0)
    backbone = Encoder(stem=Continuous(shape=(1, 8), block=(2,), dim=8), depth=2, heads=2).eval()
    x = torch.randn(2, 1, 8)
    pad = torch.zeros(2, 8, dtype=torch.bool)
    pad[0, 4:] = True
    view = {"x": x.masked_fill(pad[:, None], filler), "pad": pad}
    (seen,) = as_batch({"index": torch.arange(2)}, [view], backbone)["views"]
    assert seen["pad"].shape == (2, 4)
    bare = {"x": x.masked_fill(pad[:, None], 3.0), "pad": pad}
    assert torch.allclose(backbone(**seen), backbone(**seen_by(backbone, bare)), atol=1e-6)


def test_targets_of_samples_in_memory() -> None:
    samples = Arrays(torch.zeros(4, 2), None, torch.arange(8.0).view(4, 2)).__getitems__([(2, 0), (0, 0)])
    assert samples["target"].tolist() == [[4, 5], [0, 1]]
    backbone = Encoder(stem=Continuous(shape=(1, 8), block=(2,), dim=8), depth=1, heads=2)
    assert as_batch(samples, [], backbone)["target"].tolist() == [[4, 5], [0, 1]]
