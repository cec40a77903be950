"""The UCR and UEA archives of time series: Dau et al., 2019, https://arxiv.org/abs/1810.07758; Bagnall et al., 2018,
https://arxiv.org/abs/1811.00075."""

from __future__ import annotations

import importlib.util
import os
from typing import Annotated

from annotated_types import Ge, Gt

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.published import home
from ssl_runner.datasets.stretches import Track, Tracks
from ssl_runner.datasets.ts_format import parse
from ssl_runner.errors import RequestError, nearest

PACKAGE = "aeon"
FILES = {"train": "{}_TRAIN.ts", "test": "{}_TEST.ts"}


class UCR(Tracks):
    """One data set of the archives, with its official train and test parts; `val` is a share of train.

    name: as in the archive, e.g. ItalyPowerDemand. root: a folder with <name>/<name>_TRAIN.ts and _TEST.ts; sets that
    are not there are looked for among those that come with the package aeon, which is not imported.
    The rest is told at Tracks. Raises RequestError where files are missing or broken.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str = "data",
        window: Annotated[int, Gt(0)] | None = None,
        stride: Annotated[int, Gt(0)] | None = None,
        val: Annotated[float, Ge(0)] = 0.2,
    ):
        folder = _folder(name, home(root))
        given = {part: _read(os.path.join(folder, file.format(name))) for part, file in FILES.items()}
        super().__init__(given, where=name, window=window, stride=stride, val=val, test=0.0)


def _folder(name: str, root: str) -> str:
    bundled = _bundled()
    places = [os.path.join(root, name), *([os.path.join(bundled, name)] if bundled else [])]
    for place in places:
        if all(os.path.isfile(os.path.join(place, file.format(name))) for file in FILES.values()):
            return place
    if bundled is None:
        how = "run `pip install 'ssl-runner[series]'`, which brings a few sets"
    else:
        there = [each for each in os.listdir(bundled) if os.path.isfile(os.path.join(bundled, each, f"{each}_TEST.ts"))]
        how = f"the package {PACKAGE} does not bring it{nearest(name, there)}"
    url = f"https://www.timeseriesclassification.com/aeon-toolkit/{name}.zip"
    raise RequestError(
        f"data.name={name!r}: there is no {os.path.join(root, name, FILES['train'].format(name))!r} with its _TEST.ts; "
        f"{how}; or fetch it: `curl -LO {url} && unzip {name}.zip -d {os.path.join(root, name)}`"
    )


def _bundled() -> str | None:
    """The folder of the sets that the package brings, found without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    return os.path.join(found.submodule_search_locations[0], "datasets", "data")


def _read(path: str) -> list[Track]:
    try:
        with open(path, encoding="utf-8") as file:
            entries = parse(file, path)
    except (BrokenSample, UnicodeDecodeError) as error:
        raise RequestError(f"data.name: {error}; fetch the file anew") from error
    return [Track(values, f"recording {n} of {path}", label) for n, (values, label) in enumerate(entries, 1)]
