"""SimCLR's and Supervised's losses against the papers' equations, written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ssl_runner.objectives.regression import Regression
from ssl_runner.objectives.simclr import SimCLR, nt_xent
from ssl_runner.objectives.supervised import Supervised
from ssl_runner.types import Backbone, Batch


class Flat(Backbone):
    """Any input, flattened and projected; with BatchNorm, so that modes matter."""

    def __init__(self, inputs: int = 12, dim: int = 8):
        super().__init__()
        self.dim = dim
        self.layer, self.norm = nn.Linear(inputs, dim), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.norm(self.layer(x.flatten(1)))


def equation_1(a: Tensor, b: Tensor, temperature: float) -> float:
    """Chen et al., 2020, Equation 1 and Algorithm 1: z_{2k-1}, z_{2k} are a_k, b_k."""
    z = [row for pair in zip(a.double().tolist(), b.double().tolist(), strict=True) for row in pair]

    def s(i: int, j: int) -> float:
        dot = sum(p * q for p, q in zip(z[i], z[j], strict=True))
        return dot / (math.hypot(*z[i]) * math.hypot(*z[j]))

    def ell(i: int, j: int) -> float:
        others = sum(math.exp(s(i, k) / temperature) for k in range(len(z)) if k != i)
        return -math.log(math.exp(s(i, j) / temperature) / others)

    n = len(z) // 2
    return sum(ell(2 * k, 2 * k + 1) + ell(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_nt_xent_is_equation_1(n: int, temperature: float) -> None:
    torch.manual_seed(n)
    a, b = torch.randn(n, 5), torch.randn(n, 5)
    assert nt_xent(a, b, temperature).item() == pytest.approx(equation_1(a, b, temperature), abs=1e-5)


def test_nt_xent_stays_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(32, 16), torch.randn(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = nt_xent(a, b, 0.05)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, nt_xent(a, b, 0.05))


def test_simclr_takes_its_gradient_through_both_views_and_all_parameters() -> None:
    torch.manual_seed(0)
    objective = SimCLR(Flat(), hidden=8, dim=4)
    views = [{"x": torch.randn(6, 12, requires_grad=True)} for _ in range(2)]
    objective({"views": views}).value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    assert all(v["x"].grad.abs().sum() > 0 for v in views)  # type: ignore[union-attr]


def test_supervised_is_cross_entropy_of_the_head() -> None:
    torch.manual_seed(0)
    objective = Supervised(Flat(), num_classes=3).eval()
    x, label = torch.randn(5, 12), torch.tensor([0, 2, 1, 1, 0])
    loss, log = objective({"views": [{"x": x}], "label": label})
    scores = objective.predict({"x": x}).double().tolist()
    wanted = [math.log(sum(map(math.exp, row))) - row[y] for row, y in zip(scores, label.tolist(), strict=True)]
    assert loss.item() == pytest.approx(sum(wanted) / 5, abs=1e-5)
    right = sum(max(range(3), key=row.__getitem__) == y for row, y in zip(scores, label.tolist(), strict=True))
    assert log["accuracy"].item() == pytest.approx(right / 5)


@torch.no_grad()
def test_what_learned_from_labels_is_scored_on_the_whole_part_and_not_by_batches() -> None:
    torch.manual_seed(0)
    x, label, value = torch.randn(7, 12), torch.tensor([0, 2, 1, 1, 0, 2, 2]), torch.randn(7)
    supervised, regression = Supervised(Flat(), num_classes=3), Regression(Flat(), label_mean=2.0, label_std=3.0)

    def batches(answer: Tensor) -> list[Batch]:
        parts = zip(x.split([4, 3]), answer.split([4, 3]), strict=True)
        return [{"views": [{"x": each}], "label": known} for each, known in parts]

    scores = supervised.eval().scores(batches(label))
    guess = supervised.predict({"x": x}).argmax(1)
    assert scores["accuracy"] == pytest.approx((guess == label).float().mean().item())
    pairs = [(((guess == c) & (label == c)).sum(), (guess == c).sum() + (label == c).sum()) for c in range(3)]
    f1 = [2 * both.item() / either.item() for both, either in pairs if either]
    assert scores["f1"] == pytest.approx(sum(f1) / len(f1))

    scores = regression.eval().scores(batches(value))
    error = regression.predict({"x": x}) - value
    assert scores["mae"] == pytest.approx(error.abs().mean().item())
    spread = (value - value.mean()).square().sum()
    assert scores["r2"] == pytest.approx(1 - (error.square().sum() / spread).item())


def test_a_frozen_backbone_keeps_its_weights_and_statistics() -> None:
    torch.manual_seed(0)
    objective = Supervised(Flat(), num_classes=3, freeze=True).train()
    before = {k: v.clone() for k, v in objective.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1.0, weight_decay=0.1)
    objective({"views": [{"x": torch.randn(8, 12)}], "label": torch.zeros(8, dtype=torch.int64)}).value.backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in objective.backbone.state_dict().items())
    assert objective.head.weight.grad is not None
