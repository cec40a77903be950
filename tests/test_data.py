"""Batches: every sample once an epoch, the same global batches on any number of ranks, resumable anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_runner.data import DataModule, EvalBatches, TrainBatches
from ssl_runner.datasets.digits import Digits
from ssl_runner.datasets.splits import by_group, few_labels, stratified
from ssl_runner.errors import RequestError
from ssl_runner.types import View
from ssl_runner.views.base import Branch, Views

PINNED = [2, 19, 33, 36, 38, 52, 66, 69]

sizes = st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(0, 40)).map(
    lambda t: (t[0], t[1], t[0] * t[1] + t[2])
)


def ids(batches: object) -> list[list[int]]:
    return [[i for i, _ in batch] for batch in batches]  # type: ignore[attr-defined]


@given(sizes, st.integers(1, 12), st.integers(0, 5))
def test_ranks_share_the_global_batches_of_one_process(size: tuple[int, int, int], batches: int, seed: int) -> None:
    per_rank, ranks, samples = size
    alone = ids(TrainBatches(samples, per_rank * ranks, batches=batches, seed=seed))
    shared = [
        ids(TrainBatches(samples, per_rank, batches=batches, rank=r, ranks=ranks, seed=seed)) for r in range(ranks)
    ]
    assert alone == [sum(parts, []) for parts in zip(*shared, strict=True)]


@given(sizes, st.integers(0, 5))
def test_an_epoch_has_no_sample_twice_and_each_epoch_its_own_order(size: tuple[int, int, int], seed: int) -> None:
    per_batch, _, samples = size
    per_epoch = samples // per_batch
    found = ids(TrainBatches(samples, per_batch, batches=2 * per_epoch, seed=seed))
    first, second = sum(found[:per_epoch], []), sum(found[per_epoch:], [])
    assert len(set(first)) == len(first) == per_epoch * per_batch
    assert len(set(second)) == len(second)
    if samples > 10:
        assert first != second


@given(sizes, st.integers(1, 12), st.integers(0, 12))
def test_a_run_goes_on_from_any_batch(size: tuple[int, int, int], batches: int, start: int) -> None:
    whole = list(TrainBatches(size[2], size[0], batches=batches))
    rest = TrainBatches(size[2], size[0], batches=batches)
    rest.start = start
    assert list(rest) == whole[start:]  # ids and the seeds of their random draws


def test_draws_differ_from_epoch_to_epoch() -> None:
    found = sum(TrainBatches(4, 2, batches=4), [])
    assert len({seed for _, seed in found}) == 8


@given(st.integers(1, 50), st.integers(1, 7), st.integers(1, 4))
def test_evaluation_sees_each_sample_at_most_once_and_alone_all_of_them(
    samples: int, per_rank: int, ranks: int
) -> None:
    parts = [ids(EvalBatches(samples, per_rank, rank=r, ranks=ranks)) for r in range(ranks)]
    flat = [i for part in parts for batch in part for i in batch]
    assert len(set(flat)) == len(flat) == samples - samples % ranks
    assert len({tuple(map(len, part)) for part in parts}) == 1  # ranks take the same number of equal batches


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200))
def test_stratified_parts_are_disjoint_complete_and_fixed(labels: list[int]) -> None:
    label = torch.tensor(labels)
    parts = stratified(label, (0.6, 0.2, 0.2))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))
    assert all(torch.equal(a, b) for a, b in zip(parts, stratified(label, (0.6, 0.2, 0.2)), strict=True))
    assert set(label[parts[0]].tolist()) == set(labels)


def test_few_label_lists_are_pinned() -> None:
    label = Digits().split("train").label
    assert label is not None
    chosen = few_labels(label, "10 per class")
    assert torch.bincount(label[chosen]).tolist() == [10] * 10
    assert chosen[:8].tolist() == PINNED
    assert not torch.equal(chosen, few_labels(label, "10 per class", draw=1))
    assert len(few_labels(label, "10%")) == sum(round(0.1 * n) for n in torch.bincount(label).tolist())


@pytest.mark.parametrize("amount", ["", "10", "ten per class", "0 per class", "0%", "101%", "-1%"])
def test_other_amounts_of_labels_are_refused(amount: str) -> None:
    with pytest.raises(RequestError, match="labels="):
        few_labels(torch.zeros(10, dtype=torch.int64), amount)


class Spy(nn.Module):
    """Counts how often it is asked, and sees what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, view: View) -> Tensor:
        self.calls += 1
        return view["x"].flatten(1)


def test_features_are_of_undisturbed_samples_in_order_and_taken_once() -> None:
    source = Digits()
    views = Views(branches={"plain": Branch(transforms={})})
    data = DataModule(source, views, split="train", plain_val=True, per_rank=64, batches=0, seed=0)
    spy = Spy()
    x, y = data.features(spy, "test")
    calls = spy.calls
    test = source.split("test")
    torch.testing.assert_close(x, test.x.flatten(1).float() / 255)
    assert torch.equal(y, test.label)  # type: ignore[arg-type]
    data.features(spy, "test")
    assert spy.calls == calls
    data.features(Spy(), "test")


SHARES = st.sampled_from([(0.6, 0.15, 0.25), (0.8, 0.2), (0.9, 0.0, 0.1), (0.2, 0.2, 0.6)])


@settings(max_examples=100)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), SHARES)
def test_no_group_is_divided(groups: list[int], shares: tuple[float, ...]) -> None:
    parts = by_group([f"speaker {g}" for g in groups], shares)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(groups)))
    held = [{groups[n] for n in part.tolist()} for part in parts]
    assert sum(map(len, held)) == len(set(groups))
    assert held[0]
    assert all(not part for part, share in zip(held, shares, strict=True) if not share)
    if len(set(groups)) >= len(shares):
        assert all(part for part, share in zip(held, shares, strict=True) if share)


def test_parts_by_group_come_near_to_their_shares_and_are_always_the_same() -> None:
    names = [f"unit{n % 40}" for n in range(200)]
    assert [len(part) for part in by_group(names, (0.6, 0.15, 0.25))] == [120, 30, 50]
    _, val, test = by_group([str(n) for n in range(50)], (0.8, 0.1, 0.1))
    assert (val.tolist(), test.tolist()) == ([12, 18, 41, 44, 46], [1, 7, 19, 20, 28])
    # half of the samples are one group's, which fits in no small part
    sizes = [len(part) for part in by_group(["large"] * 50 + [str(n // 2) for n in range(50)], (0.8, 0.1, 0.1))]
    assert sizes == [80, 10, 10]
    # two groups: one is learned from, one tested on
    assert [len(part) for part in by_group(["a", "a", "b"], (0.8, 0.1, 0.1))] == [2, 0, 1]


def test_the_parts_of_digits_are_disjoint() -> None:
    source = Digits()
    rows = [{bytes(x.flatten().tolist()) for x in source.split(s).x} for s in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sum(map(len, rows)) == len(set.union(*rows))
