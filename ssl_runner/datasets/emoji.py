"""Emoji: the pictures of Google's Noto Emoji with their names, as the npm package emoji-datasource-google has them."""

from __future__ import annotations

import json
import os
from typing import Annotated

from annotated_types import Gt

from ssl_runner.datasets.captioned import Captioned
from ssl_runner.datasets.columns import Row
from ssl_runner.datasets.pairs import Shares
from ssl_runner.datasets.published import folder_of, home, pack_and_unpack
from ssl_runner.datasets.text import CACHE
from ssl_runner.datasets.tokenizer import Kind

PACKAGE = "emoji-datasource-google@16.0.0"
TITLE, FOLDER = "the emoji data set", "emoji-datasource-google"
PLACES = [os.path.join(a, b) for a in (FOLDER, "emoji", "") for b in ("package", "")]  # below data.root
TABLE, PICTURES = "emoji.json", os.path.join("img", "google", "64")


class Emoji(Captioned):
    """1,911 emoji: a picture of 64 x 64 pixels on white, and its name in lower case; classes are Unicode's ten groups.

    Emoji that differ in the colour of skin alone are there once. There is no official split: `val` and `test` are
    shares of the pairs, and those of the same name are in one part.
    root: holds emoji.json and img/google/64, or emoji-datasource-google/ or package/ with them, as the archive unpacks.
    size: the side that pictures are brought to. length, tokenizer, vocab_size, cache: as in columns.TextColumn.
    Raises RequestError where files are missing.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        size: Annotated[int, Gt(0)] = 64,
        length: Annotated[int, Gt(1)] = 16,
        tokenizer: Kind | str = "wordpiece",
        vocab_size: Annotated[int, Gt(0)] | None = None,
        val: Shares = 0.1,
        test: Shares = 0.2,
        cache: str = CACHE,
    ):
        where = home(root)
        command = pack_and_unpack(PACKAGE, os.path.join(where, FOLDER))
        folder = folder_of(TITLE, where, PLACES, [TABLE], command)
        with open(os.path.join(folder, TABLE), encoding="utf-8") as file:
            listed = sorted((each for each in json.load(file) if each["has_img_google"]), key=lambda e: e["unified"])
        pictures = os.path.join(folder, PICTURES)
        folder_of(TITLE, pictures, [""], [each["image"] for each in listed], command)
        super().__init__(
            [
                Row({"image": e["image"], "text": e["name"].lower(), "group": e["category"]}, e["unified"], pictures)
                for e in listed
            ],
            root=root,
            size=size,
            length=length,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            val=val,
            test=test,
            cache=cache,
        )
