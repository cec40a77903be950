"""How a fault is written down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """what: in words. edits: (file below ROOT, text found once, text in its place). tests: node ids below tests/."""

    what: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Promise:
    title: str
    faults: list[Fault]


def fault(what: str, tests: str, file: str, old: str, new: str, *more: str) -> Fault:
    """tests: node ids, a line each. more: file, old and new of further edits."""
    texts = [file, old, new, *more]
    edits = tuple((texts[n], texts[n + 1], texts[n + 2]) for n in range(0, len(texts), 3))
    return Fault(what, edits, tuple(line.strip() for line in tests.strip().splitlines()))


PARTS, OBJECTIVES, VIEWS = "ssl_runner/parts", "ssl_runner/objectives", "ssl_runner/views"


def ranks(case: str) -> str:
    """The contract's test of two processes against one, for one objective on one backbone."""
    return f"test_contract.py::test_two_ranks_learn_what_one_learns_from_the_joined_batch[{case}]"


def resumed(case: str) -> str:
    return f"test_contract.py::test_a_resumed_objective_goes_on_bit_identically[{case}]"
