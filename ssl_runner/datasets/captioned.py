"""Published sets of small pictures with a text each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssl_runner.datasets.columns import ImageColumn, Row, TextColumn
from ssl_runner.datasets.pairs import Paired
from ssl_runner.datasets.tokenizer import Kind


class Captioned(Paired):
    """Pictures as squares on white, and texts, whose arguments are the source's own.

    rows: with the columns image, text and group, which is the class. size: of the squares. length, tokenizer,
    vocab_size, cache: as in columns.TextColumn. The rest as at Paired; what can't be read stops the run.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        root: str,
        size: int,
        length: int,
        tokenizer: Kind | str,
        vocab_size: int | None,
        val: float,
        test: float,
        cache: str,
    ):
        super().__init__(
            rows,
            root=root,
            first=ImageColumn(column="image", size=size, whole=True),
            second=TextColumn(column="text", length=length, tokenizer=tokenizer, vocab_size=vocab_size, cache=cache),
            label="group",
            val=val,
            test=test,
            on_broken="stop",
        )

    def pinned(self) -> dict[str, Any]:
        return super().pinned()["second"]
