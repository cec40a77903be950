"""SimCLR's and Supervised's losses against the papers' equations, written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ssl_runner.objectives.simclr import SimCLR, nt_xent
from ssl_runner.objectives.supervised import Supervised
from ssl_runner.types import Backbone


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


def test_a_frozen_backbone_keeps_its_weights_and_statistics() -> None:
    torch.manual_seed(0)
    objective = Supervised(Flat(), num_classes=3, freeze=True).train()
    before = {k: v.clone() for k, v in objective.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1.0, weight_decay=0.1)
    objective({"views": [{"x": torch.randn(8, 12)}], "label": torch.zeros(8, dtype=torch.int64)}).value.backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in objective.backbone.state_dict().items())
    assert objective.head.weight.grad is not None
