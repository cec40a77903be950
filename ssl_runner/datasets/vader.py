"""VADER's snippets (Hutto & Gilbert, 2014): tweets, reviews and editorials, each rated by 20 people and more."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.documents import Corpus, Document
from ssl_runner.datasets.published import folder_of, home
from ssl_runner.datasets.text import CACHE, Documents, Pretrain
from ssl_runner.datasets.tokenizer import Kind

SDIST = "vaderSentiment-3.3.2"
FOLDER = "hutto_ICWSM_2014"
PLACES = [os.path.join(a, b) for a in ("vader", "") for b in (FOLDER, "")]  # below data.root
SOURCES = {
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}


class Vader(Documents):
    """23,703 snippets of text with their mean ratings, from the PyPI package vaderSentiment.

    Four files of lines `id <tab> mean rating, -4 to 4 <tab> snippet`.
    classes: "sentiment": negative, neutral or positive, by the sign of the mean rating (neutral: exactly 0, which 383
    are); "source": amazon, movies, news or tweets.

    There is no official split: `val` and `test` are shares of the snippets, each class alike. Snippets of one review or
    editorial may come into different parts.
    root: holds the four files, or vader/ or hutto_ICWSM_2014/ with them, as the archive unpacks.
    The rest is told at Documents. Raises RequestError where a file is missing or is none of these.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        classes: Literal["sentiment", "source"] = "sentiment",
        length: Annotated[int, Gt(1)] = 64,
        tokenizer: Kind | str = "bpe",
        vocab_size: Annotated[int, Gt(0)] | None = None,
        val: Annotated[float, Ge(0)] = 0.1,
        test: Annotated[float, Ge(0)] = 0.1,
        pretrain: Pretrain = "packed",
        cache: str = CACHE,
    ):
        corpus = published(home(root), classes)
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


def published(root: str, classes: Literal["sentiment", "source"]) -> Corpus:
    """The snippets, file by file. Raises RequestError where a file is missing."""
    files = list(SOURCES.values())
    folder = folder_of("VADER's ground truth", root, PLACES, files, command(os.path.join(root, "vader")))
    source = {os.path.join(folder, file): name for name, file in SOURCES.items()}

    def read(path: str) -> Iterator[Document | BrokenSample]:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                try:
                    _, rating, text = line.rstrip("\n").split("\t")
                    told = sentiment(float(rating))
                except ValueError:
                    yield BrokenSample(f"{where!r} is no `id <tab> rating <tab> text`: {line!r:.60}")
                    continue
                yield Document(text, told if classes == "sentiment" else source[path], where)

    return Corpus(folder, {"train": files}, read, f"vader {classes}", "stop")


def sentiment(rating: float) -> str:
    return "positive" if rating > 0 else "negative" if rating < 0 else "neutral"


def command(folder: str) -> str:
    """The shell command that fetches the package's sources and unpacks the archive of snippets within them."""
    where = shlex.quote(folder)
    inner = f"{SDIST}/additional_resources/{FOLDER}.tar.gz"
    return (
        f"pip download --no-deps --no-binary :all: -d {where} {SDIST.replace('-', '==')} && "
        f"tar xzOf {where}/{SDIST}.tar.gz {inner} | tar xz -C {where}"
    )
