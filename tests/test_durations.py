from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_runner.durations import Clock, parse
from ssl_runner.errors import RequestError
from ssl_runner.seeds import derive, derive_each


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("60 epochs", (60, "epochs")),
        ("60ep", (60, "epochs")),
        ("1 epoch", (1, "epochs")),
        ("0.5 epochs", (0.5, "epochs")),
        ("500 steps", (500, "steps")),
        ("5%", (5, "%")),
        ("1e6 samples", (1e6, "samples")),
        (" 3  Steps ", (3, "steps")),
    ],
)
def test_durations_are_read_as_written(text: str, meant: tuple[float, str]) -> None:
    assert parse(text) == meant


@given(st.text(max_size=12))
def test_any_other_text_is_a_value_error(text: str) -> None:
    try:
        number, unit = parse(text)
    except ValueError as error:
        assert "60 epochs" in str(error)
    else:
        assert number >= 0
        assert unit in ("epochs", "steps", "samples", "%")


def test_everything_becomes_optimiser_steps_in_one_place() -> None:
    clock = Clock(samples=1000, global_batch=128, duration="10 epochs")
    assert (clock.steps_per_epoch, clock.total) == (
        7,
        70,
    )  # 7.8 batches an epoch: the last, incomplete one is dropped
    assert clock.steps("2 epochs") == 14
    assert clock.steps("10%") == 7
    assert clock.steps("1280 samples") == 10
    assert clock.share("35 steps") == 0.5
    assert clock.share("20 epochs") == 1.0


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(RequestError, match="batch_size=128: there are only 100"):
        Clock(samples=100, global_batch=128, duration="1 epoch")


def test_a_run_is_no_share_of_itself() -> None:
    with pytest.raises(RequestError, match="duration=5%"):
        _ = Clock(samples=100, global_batch=10, duration="5%").total


@given(st.integers(), st.lists(st.one_of(st.integers(), st.text()), max_size=3))
def test_derived_seeds_suit_torch_and_depend_on_every_key(seed: int, keys: list[int | str]) -> None:
    assert 0 <= derive(seed, *keys) < 2**63
    assert derive(seed, *keys) == derive(seed, *keys)
    assert derive(seed, *keys, "x") != derive(seed, *keys)
    assert derive(seed + 1, *keys) != derive(seed, *keys)
    assert derive_each(seed, *keys, last=range(3)) == [derive(seed, *keys, n) for n in range(3)]
