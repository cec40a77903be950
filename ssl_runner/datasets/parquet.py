"""Parquet files need a package that is not always there."""

from __future__ import annotations

from typing import Any

from ssl_runner.errors import RequestError


def arrow(path: str, key: str) -> Any:
    """pyarrow, with pyarrow.parquet. Raises RequestError where it is not installed. path: of the file that needs it.
    key: of the config, that named the file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RequestError(
            f"{key}: {path!r} needs the package pyarrow; run `pip install 'ssl-runner[text]'`"
        ) from error
    return pyarrow
