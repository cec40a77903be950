"""CLIP, SigLIP and the two towers they stand on, against loops written out from the papers."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from ssl_runner import build
from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.backbones.towers import Towers
from ssl_runner.objectives.clip import CLIP, symmetric
from ssl_runner.objectives.siglip import SigLIP, sigmoid
from ssl_runner.types import Backbone, View, as_batch


def rows(n: int = 5, dim: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, dim, generator=generator)
    return F.normalize(a, dim=1), F.normalize(b, dim=1)


def towers() -> Towers:
    torch.manual_seed(0)
    image = Encoder(stem=Continuous(shape=(1, 8), block=(2,), dim=8), depth=1, heads=2)
    text = Encoder(stem=Discrete(vocab=9, length=6, dim=12), depth=1, heads=2)
    return Towers(first=image, second=text)


def views(n: int = 4) -> list[View]:
    generator = torch.Generator().manual_seed(1)
    pad = torch.arange(6) >= 6 - torch.arange(n)[:, None] % 3
    ids = torch.randint(1, 9, (n, 6), generator=generator).masked_fill(pad, 0)
    return [{"x": torch.randn(n, 1, 8, generator=generator)}, {"x": ids, "pad": pad}]


def test_clip_is_the_mean_of_both_directions_cross_entropies() -> None:
    a, b = rows()
    expected = 0.0
    for i in range(5):
        forth = [math.exp(7 * float(a[i] @ b[j])) for j in range(5)]
        back = [math.exp(7 * float(a[j] @ b[i])) for j in range(5)]
        expected -= (math.log(forth[i] / sum(forth)) + math.log(back[i] / sum(back))) / 2 / 5
    assert float(symmetric(a, b, torch.tensor(7.0))) == pytest.approx(expected, rel=1e-5)


def test_siglip_sums_over_second_inputs_and_averages_over_first() -> None:
    a, b = rows()
    expected = 0.0
    for i in range(5):
        for j in range(5):
            z = 1 if i == j else -1
            expected += math.log1p(math.exp(-z * (9 * float(a[i] @ b[j]) - 4))) / 5
    assert float(sigmoid(a, b, torch.tensor(9.0), torch.tensor(-4.0))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_gradients_are_those_of_the_loops(kind: str) -> None:
    a, b = (each.requires_grad_() for each in rows())
    scale, bias = torch.tensor(6.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    terms = []
    for i, j in product(range(5), range(5)):
        logit = scale * (a[i] * b[j]).sum()
        if kind == "siglip":
            terms.append(torch.log1p(torch.exp(-(1 if i == j else -1) * (logit + bias))) / 5)
        elif i == j:
            forth = torch.stack([torch.exp(scale * (a[i] * b[k]).sum() - logit) for k in range(5)])
            back = torch.stack([torch.exp(scale * (a[k] * b[i]).sum() - logit) for k in range(5)])
            terms.append((forth.sum().log() + back.sum().log()) / 10)
    inputs = [a, b, scale] + ([bias] if kind == "siglip" else [])
    expected = torch.autograd.grad(torch.stack(terms).sum(), inputs)
    loss = symmetric(a, b, scale) if kind == "clip" else sigmoid(a, b, scale, bias)
    for found, wanted in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_the_papers_starting_points() -> None:
    clip, siglip = CLIP(towers(), dim=8), SigLIP(towers(), dim=8)
    assert clip.log_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert siglip.log_scale.item() == pytest.approx(math.log(10))
    assert siglip.bias.item() == -10


def test_clips_scale_never_exceeds_a_hundred_and_is_learned() -> None:
    objective = CLIP(towers(), dim=8)
    optimizer = torch.optim.SGD([objective.log_scale], lr=1e4)
    before = objective.log_scale.item()
    (objective.forward({"views": views()}).value * 0 - objective.log_scale).backward()
    optimizer.step()
    objective.after_step(0.5)
    assert objective.log_scale.item() == pytest.approx(math.log(100))
    assert before < objective.log_scale.item()
    optimizer.zero_grad()
    loss = objective.forward({"views": views()})
    loss.value.backward()
    assert objective.log_scale.grad is not None
    assert objective.log_scale.grad.abs() > 0
    assert loss.log["scale"].item() == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("kind", [CLIP, SigLIP])
def test_both_inputs_come_into_one_space_as_unit_rows(kind: type) -> None:
    objective = kind(towers(), dim=5).eval()
    first, second = views()
    a, b = objective.first(first), objective.second(second)
    assert a.shape == b.shape == (4, 5)
    assert torch.allclose(torch.stack([a, b]).norm(dim=2), torch.ones(2, 4), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert objective.first(first).dtype == torch.float32


@pytest.mark.parametrize("kind", [CLIP, SigLIP])
def test_the_loss_is_that_of_the_rows(kind: type) -> None:
    objective = kind(towers(), dim=5).eval()
    first, second = views()
    a, b = objective.first(first), objective.second(second)
    scale = objective.log_scale.exp()
    expected = symmetric(a, b, scale) if kind is CLIP else sigmoid(a, b, scale, objective.bias)
    assert torch.allclose(objective({"views": [first, second]}).value, expected)


class Padded(Backbone):
    """Remembers what padding it is told."""

    dim = 2

    def __init__(self, factor: int):
        super().__init__()
        self.factor, self.told = factor, torch.zeros(0)

    def padding(self, pad: torch.Tensor) -> torch.Tensor:
        return pad[:, :: self.factor]

    def forward(self, x: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        assert pad is not None
        self.told = pad
        return x[:, :2].float()


def test_each_tower_is_told_padding_by_its_own_tokens_and_once() -> None:
    both = Towers(first=Padded(2), second=Padded(3))
    pad = torch.rand(4, 6) < 0.5
    view = {"x": torch.randn(4, 6), "pad": pad}
    batch = as_batch({"index": torch.arange(4)}, [view, view], both)
    both(**batch["views"][0])
    both.other(**batch["views"][1])
    assert both.first.told.equal(pad[:, ::2])
    assert both.second.told.equal(pad[:, ::3])


def test_as_a_backbone_towers_are_the_first() -> None:
    both, (first, second) = towers().eval(), views()
    assert both.dim == both.first.dim == 8
    assert both(**first).equal(both.first(**first))
    assert both.other(**second).equal(both.second(**second))


def test_what_matches_best_is_shown_beside_what_belongs() -> None:
    objective = CLIP(towers(), dim=5).eval()
    first, second = views()
    objective.first = lambda view: torch.eye(4, 5)  # type: ignore[method-assign]
    objective.second = lambda view: torch.eye(4, 5)[[1, 0, 3, 2]]  # type: ignore[method-assign]
    x, best, own = objective.show({"views": [first, second]})["matches"]
    assert x.equal(first["x"])
    assert own.equal(second["x"])
    assert best.equal(second["x"][[1, 0, 3, 2]])


def test_what_the_parts_of_a_part_pin_goes_into_their_own_nodes() -> None:
    node = {
        "_target_": "a",
        "x": 1,
        "second": {"_target_": "b", "tokenizer": "bpe", "vocab_size": 9},
        "plain": {"k": 1},
    }
    pinned = {"first": {}, "second": {"tokenizer": "f.json", "vocab_size": None}, "plain": {"n": 2}}
    assert build.merged(node, pinned) == {
        "_target_": "a",
        "x": 1,
        "first": {},
        "second": {"_target_": "b", "tokenizer": "f.json", "vocab_size": None},
        "plain": {"n": 2},
    }
