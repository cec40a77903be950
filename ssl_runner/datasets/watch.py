"""Shoulder exercises seen by a watch: Burns, Leung, Hardisty, Whyne, Henry, McLachlin, Shoulder physiotherapy exercise
recognition: machine learning the inertial signals from a smartwatch, Physiological Measurement, 2018.
https://arxiv.org/abs/1802.01489"""

from __future__ import annotations

import codecs
import os
import pickle
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt

from ssl_runner.datasets.published import folder_of, home
from ssl_runner.datasets.series import DAMAGE
from ssl_runner.datasets.stretches import Track, Tracks
from ssl_runner.errors import RequestError

FILE = "watch_dataset.npy"
PLACES = ["seglearn/data", "seglearn/seglearn/data", "data", ""]  # below data.root


class Watch(Tracks):
    """140 recordings of 7 exercises by 10 subjects: 3 axes of acceleration and 3 of rotation, 50 values a second.

    They are cut into samples of `window` values, every `stride` (2 seconds, and half of them, if unset). val, test:
    shares of the subjects; whole subjects are held out, always the same. pretrain, train: the same subjects.
    root: holds watch_dataset.npy, or the folders of the package seglearn, which is not imported. The file is a
    pickle; only arrays, lists and text are read from it, so it can run no code.
    The rest is told at Tracks. Raises RequestError where the file is missing or holds anything else.
    """

    def __init__(
        self,
        *,
        root: str = "data",
        window: Annotated[int, Gt(0)] = 100,
        stride: Annotated[int, Gt(0)] | None = None,
        val: Annotated[float, Ge(0)] = 0.2,
        test: Annotated[float, Ge(0)] = 0.3,
    ):
        root = home(root)
        command = f"pip install --no-deps --target {os.path.join(root, 'seglearn')} seglearn==1.2.5"
        path = os.path.join(folder_of("the watch data", root, PLACES, [FILE], command), FILE)
        told = read(path)
        recordings = [
            Track(
                np.ascontiguousarray(values.T, np.float32),
                f"recording {n} of {path}",
                str(told["y_labels"][told["y"][n]]),
                str(told["subject"][n]),
            )
            for n, values in enumerate(told["X"])
        ]
        super().__init__(
            {"train": recordings},
            where=path,
            channels=told["X_labels"],
            window=window,
            stride=stride or max(1, window // 2),
            val=val,
            test=test,
        )
        self.facts["rate"] = 50


def read(path: str) -> dict[str, Any]:
    """The dictionary in an .npy file of one object. Raises RequestError where it is not what it should be."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"is of version {version}")
            np.lib.format.read_array_header_1_0(file)
            told = _Plain(file).load().item()
        if {"X", "X_labels", "y", "y_labels", "subject"} - set(told):
            raise ValueError("lacks some of X, X_labels, y, y_labels and subject")
    except (*DAMAGE, AttributeError, SystemError, pickle.UnpicklingError) as error:
        raise RequestError(f"data.root: {path!r} is not the watch data as it was published: {error}") from error
    return told


class _Plain(pickle.Unpickler):
    """Reads arrays; any other name in the file is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _reconstruct
        raise pickle.UnpicklingError(f"it names {module}.{name}, which arrays do not need")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An empty array, which the pickle then fills: numpy's own, whose place differs between versions."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"it makes an array of {kind!r}")
    return np.ndarray(shape, code.decode())
