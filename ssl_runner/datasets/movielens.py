"""MovieLens 100K: Harper and Konstan, The MovieLens Datasets: History and Context, 2015.

https://doi.org/10.1145/2827872
"""

from __future__ import annotations

import os
import shlex
from typing import Annotated

from annotated_types import Ge, Gt, Le

from ssl_runner.datasets.interactions import Sequences, read
from ssl_runner.datasets.published import home
from ssl_runner.errors import RequestError

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
OFFICIAL = ("user", "item", "rating", "time")  # the columns of u.data, which has no header
RECBOLE = ("user_id:token", "item_id:token", "timestamp:float")


class MovieLens100K(Sequences):
    """100,000 ratings of 1,682 films by 943 users, each of whom gave 20 or more. A rating counts as an interaction,
    whatever it is.

    root: holds u.data as published, or ml-100k.inter as RecBole has it, or ml-100k/ with one of them.
    min_count: 1 keeps every film, as the published figures do. The rest is told at Sequences.
    Raises RequestError where neither file is there.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        min_count: Annotated[int, Gt(0)] = 1,
        length: Annotated[int, Gt(1)] = 50,
        step: Annotated[int, Gt(0)] | None = None,
        last: Annotated[float, Ge(0), Le(1)] = 0.0,
    ):
        file = published(home(root))
        log = read(file, *RECBOLE) if file.endswith(".inter") else read(file, "user", "item", "time", OFFICIAL)
        super().__init__(log, file, min_count=min_count, length=length, step=step, last=last)


def published(root: str) -> str:
    """The path of the file with the ratings. Raises RequestError where there is none."""
    places = [os.path.join(root, a, b) for a in ("ml-100k", "") for b in ("u.data", "ml-100k.inter")]
    found = next((place for place in places if os.path.isfile(place)), None)
    if found is None:
        folder, archive = shlex.quote(root), shlex.quote(os.path.join(root, "ml-100k.zip"))
        command = f"mkdir -p {folder} && curl -L {URL} -o {archive} && python3 -m zipfile -e {archive} {folder}"
        raise RequestError(
            f"data.root={root!r}: MovieLens 100K is not there ('ml-100k/u.data' is missing); run `{command}`, or set "
            "data.root to the folder that has it"
        )
    return found
