"""Teachers, queues, masks and balanced assignments against what they are defined to be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssl_runner.parts.masking import random_mask, restore, shown
from ssl_runner.parts.queue import Queue
from ssl_runner.parts.sinkhorn import sinkhorn
from ssl_runner.parts.teacher import Teacher, cosine_momentum


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_momentum_follows_half_a_cosine() -> None:
    assert cosine_momentum(0.9, 1.0, 0.0) == pytest.approx(0.9)
    assert cosine_momentum(0.9, 1.0, 0.5) == pytest.approx(0.95)
    assert cosine_momentum(0.9, 1.0, 1.0) == pytest.approx(1.0)


def test_a_teacher_is_a_copy_that_moves_only_by_update() -> None:
    torch.manual_seed(0)
    online = net()
    teacher = Teacher(online, 0.9)
    before = {k: v.clone() for k, v in teacher.copy.state_dict().items()}
    with torch.no_grad():
        for p in online.parameters():
            p.add_(1.0)
    online[1].num_batches_tracked += 7
    assert all(torch.equal(v, before[k]) for k, v in teacher.copy.state_dict().items())
    teacher.update(online, 0.0)
    for name, value in teacher.copy.state_dict().items():
        new = online.state_dict()[name]
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * new)
        else:
            assert torch.equal(value, new), "a counter is copied, never averaged"


def test_a_teacher_has_no_gradient_and_no_trained_parameter() -> None:
    teacher = Teacher(net(), 0.9)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.randn(5, 3, requires_grad=True)).requires_grad


def test_a_bf16_teacher_is_averaged_in_fp32() -> None:
    online = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    teacher = Teacher(online, 0.5)
    with torch.no_grad():
        teacher.copy.weight.fill_(1.0)
        online.weight.fill_(2.0)
    teacher.update(online, 0.0)
    assert teacher.copy.weight.item() == 1.5


def test_a_queue_holds_unit_rows_from_the_start() -> None:
    rows = Queue(16, 5).rows
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(16))


@given(st.integers(1, 12), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_a_queue_keeps_the_last_rows_in_a_ring(size: int, batches: list[int]) -> None:
    queue = Queue(size, 1)
    start = queue.rows.clone()
    put: list[float] = []
    for n in batches:
        rows = torch.arange(len(put), len(put) + n, dtype=torch.float32)[:, None] + 100
        queue.put(rows)
        put += rows[:, 0].tolist()
    expected = start[:, 0].tolist()
    for n, value in enumerate(put):
        expected[n % size] = value
    assert queue.rows[:, 0].tolist() == expected
    assert queue.place.item() == len(put) % size


def test_a_queue_is_frozen_in_evaluation_and_is_saved() -> None:
    queue = Queue(4, 2).eval()
    before = queue.rows.clone()
    queue.put(torch.ones(2, 2))
    assert torch.equal(queue.rows, before)
    assert set(queue.state_dict()) == {"rows", "place"}


def test_sinkhorn_is_the_alternation_written_out() -> None:
    torch.manual_seed(0)
    scores, epsilon = torch.randn(6, 4, dtype=torch.float64), 0.3
    q = [[math.exp(v / epsilon) for v in row] for row in scores.tolist()]
    for _ in range(3):
        for k in range(4):
            total = sum(row[k] for row in q)
            for row in q:
                row[k] /= total * 4
        q = [[v / sum(row) / 6 for v in row] for row in q]
    torch.testing.assert_close(sinkhorn(scores, epsilon=epsilon), torch.tensor(q) * 6, rtol=1e-5, atol=1e-6)


def test_sinkhorn_balances_and_does_not_overflow() -> None:
    plan = sinkhorn(1000 * torch.randn(64, 8).softmax(1), iterations=50, epsilon=1.0)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(1), torch.ones(64))


@given(st.integers(1, 5), st.integers(2, 40), st.floats(0.0, 1.0))
def test_masks_hide_the_same_number_in_every_row(batch: int, length: int, ratio: float) -> None:
    mask = random_mask(batch, length, ratio, torch.device("cpu"))
    hidden = min(max(round(ratio * length), 1), length - 1)
    assert mask.sum(1).tolist() == [hidden] * batch


def test_masks_differ_from_sample_to_sample() -> None:
    torch.manual_seed(0)
    mask = random_mask(8, 64, 0.75, torch.device("cpu"))
    assert len({tuple(row.tolist()) for row in mask}) == 8


@given(st.integers(1, 4), st.integers(2, 12), st.integers(1, 5))
def test_restore_puts_what_was_shown_back_in_its_place(batch: int, length: int, dim: int) -> None:
    tokens = torch.randn(batch, length, dim)
    mask = random_mask(batch, length, 0.6, tokens.device)
    filler = torch.full((dim,), 9.0)
    full = restore(shown(tokens, mask), mask, filler)
    assert torch.equal(full[~mask], tokens[~mask])
    assert (full[mask] == 9.0).all()
