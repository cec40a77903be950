"""The two ways in which a run ends early on purpose. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
import errno
import os
import traceback
from collections.abc import Iterable, Iterator


class RequestError(Exception):
    """The request was wrong: a key, a value, a file or a device. Exit code 2, no traceback.

    The message names the key or file, says what is wrong and what to do about it.
    """


class RunError(Exception):
    """The request was right and the run failed: a broken sample, a non-finite loss. Exit code 1, no traceback."""


class Pruned(Exception):
    """A search gave up on this run because the others were better by then. Exit code 0: it is a result."""


class Stopped(BaseException):
    """A signal asked the run to stop, and last.ckpt holds the step it was at. Exit code 128 + signum.

    Like KeyboardInterrupt no Exception, so that it ends a sweep and not just one of its runs.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them.

    Returns "; did you mean 'temperature'?" or "; there are: a, b, c".
    """
    names = sorted({str(k) for k in known})
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(names)}" if names else ""


# -- failures that are no bug ----------------------------------------------------------------------------------------

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MEMORY = ("out of memory", "can't allocate memory", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
RANKS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting"),
    *("Application timeout caused pair closure", "wait timeout after", "Socket Timeout", "communicator was aborted"),
)
NAMES = {"DistBackendError", "DistNetworkError", "DistStoreError"}  # of torch.distributed
RESUME = "The last checkpoint stays; go on by `ssl-run resume RUN`"


def explained(error: BaseException) -> str | None:
    """A failure of memory, of a disk, of a data worker or of another rank in words, with what to do; None for a bug."""
    chain = list(_chain(error))
    text = "\n".join(map(str, chain))
    first = next((line for line in text.splitlines() if line), type(error).__name__)
    if (why := no_room(error)) is not None:
        return f"a file of the run can't be written ({why}): make room on that disk. {RESUME}"
    if "DataLoader worker (pid" in text or any(_cut_off(e) for e in chain):
        return (
            f"a data worker ended ({first[:200]}): most often the system took its memory. "
            f"Use fewer workers=..., or free memory (in a container, its shared memory too). {RESUME}"
        )
    if any(isinstance(e, MemoryError) for e in chain) or any(sign in text for sign in MEMORY):
        return (
            f"out of memory ({first[:200]}): start again with a larger accumulate=..., which keeps the batch and cuts "
            f"it into micro-batches, a smaller batch_size=..., or precision=bf16-mixed. If something else took the "
            f"memory: {RESUME[0].lower()}{RESUME[1:]}"
        )
    if any(type(e).__name__ in NAMES for e in chain) or any(sign in text for sign in RANKS):
        return (
            f"another rank of this run ended, or did not answer within device.timeout minutes ({first[:200]}): "
            f"its own output says why. {RESUME}"
        )
    return None


def no_room(error: BaseException) -> str | None:
    """What the system says of a disk or quota that is full, where an error comes from that."""
    return next((e.strerror for e in _chain(error) if isinstance(e, OSError) and e.errno in FULL), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _cut_off(error: BaseException) -> bool:
    """Whether it comes of the pipe from a data worker, which ends with that."""
    loading = os.path.join("torch", "utils", "data")
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, (ConnectionError, EOFError)) and any(loading in name for name in frames)
