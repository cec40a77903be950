"""Arrays on disk as samples: .npy files, of which only what is fetched is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_runner.datasets import packs
from ssl_runner.datasets.addresses import home
from ssl_runner.datasets.base import Source, Split
from ssl_runner.datasets.inputs import held_out
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.mapped import Mapped, Rows, npy
from ssl_runner.datasets.pairs import Shares
from ssl_runner.errors import RequestError
from ssl_runner.types import as_float

LOOKED_AT = 4096  # samples from which mean and std are taken
VALUES = (np.uint8, np.float16, np.float32, np.float64)


class Memmap(Source):
    """Samples of one shape in .npy files, at any size. They are:

      <root>.npy, or <root>/x.npy                     split here, each class alike
      <root>/{train,val,test}/x.npy                   where there is no val or test folder, it is split off from train
      a folder that `ssl-run pack ... format=memmap` wrote

    x.npy is (N, C, ...), samples along the first axis and channels along the second, uint8 for intensities or
    floating-point for values. Beside it there may be label.npy, (N,) whole numbers of classes from 0 up, or
    floating-point values to be predicted, and target.npy, (N, ...).

    mean, std: one for each channel, of what is stored, uint8 on the scale 0..1; None takes them from packed data's
    index, or else from up to 4,096 samples of train, evenly spread. verify: look at packed files' checksums before
    the run, which reads all of them; their sizes are looked at always.
    Raises RequestError for files that don't go together.
    """

    labelled: bool | None = None  # type: ignore[misc]  # set by what is found

    def __init__(
        self,
        *,
        root: str,
        val: Shares = 0.1,
        test: Shares = 0.1,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        verify: bool = False,
    ):
        folder = packs.local(home(root))
        pack = packs.about(str(folder), "memmap") if folder.is_dir() else None
        if verify and pack is None:
            raise RequestError(
                f"data.verify: {root!r} has no {packs.INDEX} with checksums, which `ssl-run pack` writes"
            )
        if pack is not None and verify:
            packs.verify(str(folder), pack)
        self._parts = _parts(folder, root)
        given = list(PARTS) if pack is not None else list(self._parts)
        if "val" not in given or "test" not in given:
            whole = self._parts["train"]
            shares = {"val": val, "test": test}
            by = None if whole.label is None or whole.label.is_floating_point() else whole.label
            here = held_out(np.full(len(whole), "train"), by, shares, given)
            for name in ("train", *(name for name in shares if name not in given)):
                self._parts[name] = whole.part(here[name])
        train = self._parts["train"]
        if not len(train):
            raise RequestError(f"data.root={root!r}: there is nothing to train on")
        labels = [part.label for part in self._parts.values() if part.label is not None]
        self.labelled = bool(labels)
        self.valued = self.labelled and labels[0].is_floating_point()
        count = 0
        if self.labelled and not self.valued:
            if min(int(each.min()) for each in labels if len(each)) < 0:
                raise RequestError(f"data.root={root!r}: label.npy holds numbers below 0, which are no classes")
            count = 1 + max(int(each.max()) for each in labels if len(each))
        named = list(pack.classes) if pack is not None else []
        if named and count > len(named):
            raise RequestError(f"data.root={root!r}: label.npy tells of {count} classes, and {len(named)} were packed")
        self.classes = () if not count else tuple(named or map(str, range(count)))
        shape = train.x.shape[1:]
        self.facts = {"shape": shape, "size": shape[-1], "num_classes": len(self.classes)}
        if pack is not None:
            self.facts |= {name: tuple(v) if isinstance(v, list) else v for name, v in pack.facts.items()}
        if not {"mean", "std"} <= self.facts.keys() and None in (mean, std):
            self.facts |= dict(zip(("mean", "std"), _spread(train), strict=True))
        for key, chosen in (("mean", mean), ("std", std)):
            if chosen is not None and (len(chosen) != shape[0] or (key == "std" and min(chosen) <= 0)):
                raise RequestError(f"data.{key}={list(chosen)}: give {shape[0]}, one for each channel, std above 0")
            self.facts |= {} if chosen is None else {key: tuple(chosen)}
        if self.valued and "label_mean" not in self.facts:
            label = labels[0].double()
            self.facts |= {"label_mean": label.mean().item(), "label_std": label.std().item()}

    def split(self, name: Split) -> Mapped:
        return self._parts[name if name in self._parts else "train"]


def _parts(folder: Path, given: str) -> dict[str, Mapped]:
    """Raises RequestError where there is nothing to train on."""
    if folder.suffix == ".npy" and folder.is_file():
        return {"train": Mapped(_values(folder))}
    if (folder / "x.npy").is_file():
        return {"train": _samples(folder)}
    found = {name: _samples(folder / name) for name in ("pretrain", *PARTS) if (folder / name / "x.npy").is_file()}
    if "train" not in found:
        raise RequestError(f"data.root={given!r}: no x.npy or train/x.npy in it; give a .npy, or a folder with such")
    shapes = {name: part.x.shape[1:] for name, part in found.items()}
    kinds = {name: part.label is not None and part.label.dtype for name, part in found.items() if name != "pretrain"}
    if len(set(shapes.values())) > 1:
        raise RequestError(f"data.root={given!r}: its parts' samples are of the shapes {shapes}; make them the same")
    if len(set(kinds.values())) > 1:
        raise RequestError(f"data.root={given!r}: its parts' labels are {kinds}; give all of one kind, or none")
    return found


def _samples(folder: Path) -> Mapped:
    """x.npy, label.npy and target.npy of a folder. Raises RequestError where their lengths differ."""
    x = _values(folder / "x.npy")
    label = npy(folder / "label.npy") if (folder / "label.npy").is_file() else None
    target = npy(folder / "target.npy") if (folder / "target.npy").is_file() else None
    for name, rows in (("label", label), ("target", target)):
        if rows is not None and (len(rows) != len(x) or (name == "label" and len(rows.shape) > 1)):
            raise RequestError(f"{str(folder / name)!r}.npy is of shape {rows.shape}, and there are {len(x)} samples")
    return Mapped(x, None if label is None else _whole(label), target)


def _whole(label: Rows) -> Tensor:
    found = label.whole()
    return found.float() if found.is_floating_point() else found.long()


def _values(file: Path) -> Rows:
    rows = npy(file)
    if rows.kind not in VALUES or len(rows.shape) < 3 or 0 in rows.shape[1:]:
        raise RequestError(
            f"{str(file)!r}: holds {rows.kind} of shape {rows.shape}; give (N, C, ...), channels along the second "
            "axis, as uint8 for intensities or floating-point numbers for values"
        )
    return rows


def _spread(train: Mapped) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel."""
    some = torch.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).long()
    total = squares = torch.zeros(train.x.shape[1], dtype=torch.float64)
    count = 0
    for index in some.split(64):
        x = as_float(train.x[index]).double().transpose(0, 1).flatten(1)
        total, squares, count = total + x.sum(1), squares + x.square().sum(1), count + x.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    return tuple(round(m, 4) for m in mean.tolist()), tuple(max(round(s, 4), 1e-4) for s in std.tolist())
