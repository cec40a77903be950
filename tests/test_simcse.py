"""SimCSE: its loss as the paper writes it, and what it learns from two passes through dropout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Discrete
from ssl_runner.objectives.simcse import SimCSE, across
from ssl_runner.types import Batch, View


def cosine(x: Tensor, y: Tensor) -> float:
    dot = sum(float(p) * float(q) for p, q in zip(x, y, strict=True))
    return dot / math.sqrt(sum(float(p) ** 2 for p in x)) / math.sqrt(sum(float(q) ** 2 for q in y))


def as_in_the_paper(h: Tensor, other: Tensor, tau: float) -> float:
    """-log of exp(sim(h_i, h'_i) / tau) over the sum of exp(sim(h_i, h'_j) / tau) for j = 1 .. N, averaged."""
    total = 0.0
    for i in range(len(h)):
        below = sum(math.exp(cosine(h[i], other[j]) / tau) for j in range(len(h)))
        total -= math.log(math.exp(cosine(h[i], other[i]) / tau) / below)
    return total / len(h)


@settings(max_examples=30, derandomize=True)
@given(n=st.integers(1, 6), dim=st.integers(1, 5), tau=st.sampled_from([0.05, 0.5, 2.0]), seed=st.integers(0, 99))
def test_the_loss_is_the_papers(n: int, dim: int, tau: float, seed: int) -> None:
    torch.manual_seed(seed)
    h, other = torch.randn(n, dim), torch.randn(n, dim)
    assert across(h, other, tau).item() == pytest.approx(as_in_the_paper(h, other, tau), rel=1e-4, abs=1e-5)


def test_it_is_taken_one_way_and_the_own_pass_gives_no_negatives() -> None:
    torch.manual_seed(0)
    h, other = torch.randn(4, 3), torch.randn(4, 3)
    assert across(h, other, 0.5).item() != pytest.approx(across(other, h, 0.5).item(), abs=1e-3)
    # two sentences that are one in the own pass, and far from each other in the other one: a negative would cost
    h, other = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    first = -math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(-1.0)))
    assert across(h, other, 1.0).item() == pytest.approx((first + first + 2) / 2, rel=1e-5)


def test_where_no_temperature_is_stated_it_is_the_papers() -> None:
    assert SimCSE(encoder(0.1)).temperature == 0.05


def encoder(dropout: float) -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Discrete(vocab=30, length=8, dim=16), depth=2, heads=2, dropout=dropout)


def sentences(n: int) -> View:
    x = torch.randint(3, 30, (n, 8), generator=torch.Generator().manual_seed(1))
    pad = torch.arange(8) >= 8 - torch.arange(n)[:, None] % 4
    return {"x": x.masked_fill(pad, 0), "pad": pad}


def batch(n: int) -> Batch:
    return {"views": [sentences(n), sentences(n)], "index": torch.arange(n)}


def test_the_two_passes_are_the_head_of_the_backbone_each_with_its_own_dropout() -> None:
    objective = SimCSE(encoder(0.2), temperature=0.1)
    torch.manual_seed(5)
    found = objective(batch(6)).value.item()
    torch.manual_seed(5)
    one, other = (objective.head(objective.backbone(**sentences(6))) for _ in range(2))
    assert not torch.equal(one, other)
    assert found == pytest.approx(as_in_the_paper(one.detach(), other.detach(), 0.1), rel=1e-4)


def test_the_head_is_no_part_of_what_is_scored() -> None:
    objective = SimCSE(encoder(0.1)).eval()
    assert objective.backbone(**sentences(3)).shape == (3, 16)
    kept = {name for name, _ in objective.named_parameters() if not name.startswith("backbone.")}
    assert kept == {"head.0.weight", "head.0.bias"}


def test_in_half_precision_the_loss_is_made_in_fp32() -> None:
    """Cosines that differ by less than bf16 can tell, over so low a temperature."""
    h = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[1.0, 0.998], [0.998, 1.0]])
    wanted = as_in_the_paper(h, other, 0.001)
    with torch.autocast("cpu", torch.bfloat16):
        found = across(h, other, 0.001)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted, rel=1e-3)


def test_training_draws_sentences_apart_that_start_alike() -> None:
    """What the paper calls uniformity."""
    objective = SimCSE(encoder(0.1))
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)

    def alike() -> float:
        with torch.no_grad():
            z = torch.nn.functional.normalize(objective.backbone.eval()(**sentences(32)), dim=1)
        objective.train()
        return float((z @ z.T).sum() - 32) / (32 * 31)

    before = alike()
    for _ in range(40):
        loss = objective(batch(32)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert alike() < before - 0.1
