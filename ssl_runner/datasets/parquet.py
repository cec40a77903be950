"""Parquet files need a package that is not always there."""

from __future__ import annotations

from typing import Any

from ssl_runner.errors import RequestError

CELLS = 200_000_000  # of a table that is read as a whole; by repetition a small file may claim any number


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


def whole(path: str, key: str, columns: list[str] | None = None) -> Any:
    """A table, or some of its columns. Raises RequestError for a file that is none, or too large to be held."""
    pyarrow = arrow(path, key)
    try:
        about = pyarrow.parquet.read_metadata(path)
        count = about.num_rows * (about.num_columns if columns is None else len(columns))
        if count <= CELLS:
            return pyarrow.parquet.read_table(path, columns=columns)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise RequestError(f"{key}: {path!r} is no Parquet file that can be read: {error}") from error
    raise RequestError(f"{key}: {path!r} claims {count} cells, and no more than {CELLS} are read at once; divide it")
