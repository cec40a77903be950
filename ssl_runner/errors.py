"""The two ways in which a run ends early on purpose. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(Exception):
    """The request was wrong: a key, a value, a file or a device. Exit code 2, no traceback.

    The message names the key or file, says what is wrong and what to do about it.
    """


class RunError(Exception):
    """The request was right and the run failed: a broken sample, a non-finite loss. Exit code 1, no traceback."""


class Stopped(BaseException):
    """A signal asked the run to stop, and a checkpoint was saved first. Exit code 128 + signum.

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
