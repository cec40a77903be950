"""Random streams as pure functions of what they are for, so that there is no random state to lose.

Every training step, drawn sample and epoch order takes its seed from (run seed, purpose, counters). A resumed
run therefore draws what the uninterrupted one would have drawn, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed from the run's seed and what it is for; other keys give an unrelated one."""
    text = "/".join(map(str, (seed, *keys))).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


def derive_each(seed: int, *keys: int | str, last: Iterable[int]) -> list[int]:
    """derive(seed, *keys, n) for each n of `last`; what they share is hashed once."""
    shared = blake2b("/".join(map(str, (seed, *keys, ""))).encode(), digest_size=8)
    found = []
    for n in last:
        one = shared.copy()
        one.update(b"%d" % n)
        found.append(int.from_bytes(one.digest(), "big") >> 1)
    return found


def of_step(seed: int, rank: int, batch: int) -> int:
    """What is drawn for a micro-batch: first its views, then what its objective draws."""
    return derive(seed, "step", rank, batch)
