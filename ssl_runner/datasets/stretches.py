"""Series: values of some channels over time, divided into parts, and cut into samples."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_runner.datasets.base import Arrays, Key, Source, Split
from ssl_runner.datasets.layout import PARTS
from ssl_runner.datasets.splits import by_group, stratified
from ssl_runner.errors import RequestError
from ssl_runner.types import Samples, View

QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Track:
    """One recording. values: (C, n) float32, NaN where one is missing. name: for messages. label: its class. subject:
    whose it is; all of one subject's go to one part. odd: (n,) bool, which places are anomalies."""

    values: np.ndarray
    name: str
    label: str | None = None
    subject: str | None = None
    odd: np.ndarray | None = None

    def cut(self, start: int, end: int) -> Track:
        odd = None if self.odd is None else self.odd[start:end]
        return replace(self, values=self.values[:, start:end], odd=odd)


class Stretches(Arrays):
    """Stretches of one long row of values, so that those that overlap are held once.

    values: (C, T) float32. bounds: (N, 2) int64, where each sample begins and ends; it is kept as `x`. size: to which
    samples are filled up. follows: (N,) int64, where the values begin that are to be told, kept as `target`, and
    horizon: how many; or None. padded: whether samples may be short: all of them then have a "pad".
    """

    def __init__(
        self,
        values: Tensor,
        bounds: Tensor,
        size: int,
        *,
        label: Tensor | None,
        follows: Tensor | None,
        horizon: int | None,
        padded: bool,
    ):
        super().__init__(bounds, label, follows)
        self.size, self.horizon, self.padded = size, horizon, padded
        beyond = size if padded else max(0, max(size, horizon or 0) - values.shape[1])
        self.values = F.pad(values, (0, beyond))  # so that every stretch ends in it

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        index = torch.tensor([k for k, _ in keys], dtype=torch.int64)
        start, end = self.x[index].unbind(1)
        view: View = {"x": self._taken(start, self.size)}
        if self.padded:
            view["pad"] = start[:, None] + torch.arange(self.size) >= end[:, None]
            view["x"].masked_fill_(view["pad"][:, None], 0.0)
        samples: Samples = {"inputs": [view], "index": index}
        if self.label is not None:
            samples["label"] = self.label[index]
        if self.target is not None:
            assert self.horizon is not None
            samples["target"] = self._taken(self.target[index], self.horizon)
        return samples

    def _taken(self, start: Tensor, size: int) -> Tensor:
        """(B,) places -> (B, C, size), the values from each on."""
        return self.values.unfold(1, size, 1).transpose(0, 1)[start]


class Tracks(Source):
    """What every source of time series shares.

    A sample is (C, window) float32 in the recordings' own units, NaN where a value is missing. A recording that is
    longer than `window` gives a sample every `stride` values (default: window), and what is left behind the last is
    not used; a shorter one is filled up with zeros, and all samples then have a "pad". window=None: as long as the
    longest recording, so that each is a sample.
    horizon: each sample has the (C, horizon) values behind it as its target; there are no samples without them.

    given: `train`, and `val` and `test` where they are given, else shares are split off: of a single recording by
    time, training first and test last; of several, whole recordings, each class alike; where subjects are told, whole
    subjects. So no sample has values of two parts, nor has a target.
    A recording without a label is in `pretrain` alone, where others have one.

    facts: shape (C, window), size, num_classes, horizon, and mean and std of each channel, over the values of the
    pretrain part that are not missing.
    Raises RequestError for choices that leave a part without a sample.
    """

    labelled: bool | None = None  # type: ignore[misc]  # set by whether there are labels

    def __init__(
        self,
        given: Mapping[str, Sequence[Track]],
        *,
        where: str,
        channels: Sequence[str] | None = None,
        window: int | None,
        stride: int | None,
        horizon: int | None = None,
        val: float,
        test: float,
    ):
        if val < 0 or test < 0 or val + test >= 1:
            raise RequestError(f"data.val={val}, data.test={test}: give shares from 0 that leave some for training")
        kept = {part: _alike(tracks, where) for part, tracks in given.items()}
        self._set_labels(kept, where)
        parts = divided(kept, {"val": val, "test": test})
        every = [each for tracks in parts.values() for each in tracks]
        self._horizon, ahead = horizon, horizon or 0
        self._window = window or max(each.values.shape[1] for each in every) - ahead
        self._stride = stride or self._window
        count = len(every[0].values)
        self._channels = list(channels) if channels is not None else [f"channel{n + 1}" for n in range(count)]
        self._whole = all(each.values.shape[1] == self._window for each in every)
        padded = any(each.values.shape[1] < self._window for each in every)
        self._parts = {part: self._stretches(tracks, padded) for part, tracks in parts.items()}
        if len(self._parts["pretrain"]) < 2:
            raise RequestError(
                f"{where!r}: gives {len(self._parts['pretrain'])} samples to train on, and two are the least; give a "
                f"smaller data.window (it is {self._window}) or data.horizon"
            )
        for part, share in (("val", val), ("test", test)):
            if (part in given or share) and not len(self._parts[part]):
                raise RequestError(
                    f"{where!r}: its {part} part is too small for a sample of {self._window + ahead} values; give a "
                    f"larger data.{part}, a smaller data.window, or data.{part}=0 for none"
                )
        mean, std = _moments([each.values for each in parts["pretrain"]], self._channels, where)
        self.facts = {
            "shape": (count, self._window),
            "size": self._window,
            "mean": mean,
            "std": std,
            "num_classes": len(self.classes),
        }
        if horizon is not None:
            self.facts["horizon"] = horizon

    def split(self, name: Split) -> Arrays:
        return self._parts[name]

    def pinned(self) -> dict[str, Any]:
        """The size of samples: of other recordings, the longest may be another."""
        return {"window": self._window, "stride": self._stride}

    def raw(self, view: View) -> Tensor:
        """(B, D). Where all samples are whole recordings of one length, a place means the same in all of them: the
        values themselves. Else, of each channel: mean, deviation, least, largest, quartiles, and mean and deviation of
        the steps from one value to the next."""
        return view["x"].flatten(1) if self._whole else statistics(view["x"], view.get("pad"))

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        """As CSV: a line for each place of a sample's rows, with the sample's number and the row's. columns:
        (n, C, window) each."""
        if any(tuple(column.shape[1:]) != self.facts["shape"] for column in columns):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".csv")
        with open(file, "w", encoding="utf-8", newline="") as opened:
            lines = csv.writer(opened)
            lines.writerow(["sample", "view", "place", *self._channels])
            for n, rows in enumerate(zip(*columns, strict=True), 1):
                for view, row in enumerate(rows, 1):
                    for place, values in enumerate(row.T.tolist(), 1):
                        cells = ["" if value != value else f"{value:.6g}" for value in values]
                        lines.writerow([n, view, place, *cells])
        return file

    def _set_labels(self, given: Mapping[str, Sequence[Track]], where: str) -> None:
        """What labels mean. Raises RequestError where they mean nothing."""
        if any(each.odd is not None for each in given["train"]):
            self.classes, self.labelled = ("normal", "anomaly"), True
            return
        told = {each.label for tracks in given.values() for each in tracks if each.label is not None}
        self.labelled = bool(told)
        self.classes = tuple(sorted(told, key=_by_number(told)))
        if len(told) == 1:
            raise RequestError(f"{where!r}: all recordings are of one class, {self.classes[0]!r}; leave labels out")
        for part in set(given) - {"train"}:
            if told and any(each.label is None for each in given[part]):
                raise RequestError(f"{where!r}: recordings of its {part} part have no label, and those of train have")

    def _stretches(self, tracks: Sequence[Track], padded: bool) -> Stretches:
        bounds: list[tuple[int, int]] = []
        labels: list[int] = []
        number = {name: n for n, name in enumerate(self.classes)}
        begin, ahead = 0, self._horizon or 0
        for each in tracks:
            length = each.values.shape[1]
            last = length - self._window - ahead  # where the last sample may begin
            for start in range(0, (last if ahead else max(last, 0)) + 1, self._stride):
                end = min(start + self._window, length)
                bounds.append((begin + start, begin + end))
                if each.odd is not None:
                    labels.append(int(each.odd[start:end].any()))
                elif each.label is not None:
                    labels.append(number[each.label])
            begin += length
        row = [torch.from_numpy(each.values) for each in tracks]
        at = torch.tensor(bounds, dtype=torch.int64).view(-1, 2)
        return Stretches(
            torch.cat(row, 1) if row else torch.zeros(0, 1),
            at,
            self._window,
            label=torch.tensor(labels, dtype=torch.int64) if self.classes and len(labels) == len(bounds) else None,
            follows=at[:, 1] if ahead else None,
            horizon=self._horizon,
            padded=padded,
        )


# --- parts ----------------------------------------------------------------------------------------------------


def divided(given: Mapping[str, Sequence[Track]], shares: Mapping[str, float]) -> dict[str, list[Track]]:
    """Part -> recordings; `pretrain` has those of train and, where some have a label, those that have none."""
    whole = list(given["train"])
    wanted = {part: share for part, share in shares.items() if part not in given}
    any_label = any(each.label is not None for each in whole)
    unlabelled = [each for each in whole if any_label and each.label is None]
    whole = [each for each in whole if not any_label or each.label is not None]
    names, amounts = ("train", *wanted), (1 - sum(wanted.values()), *wanted.values())
    if len(whole) == 1:
        cut = _by_time(whole[0], amounts)
    elif any(each.subject is not None for each in whole):
        subjects = [str(each.subject) for each in whole]
        cut = [[whole[n] for n in ids.tolist()] for ids in by_group(subjects, amounts)]
        if not all(some or not share for some, share in zip(cut, amounts, strict=True)):
            raise RequestError(f"data: has {len(set(subjects))} subjects for {len(amounts)} parts; leave subjects out")
    else:
        number = {label: n for n, label in enumerate(sorted({str(each.label) for each in whole}))}
        label = torch.tensor([number[str(each.label)] for each in whole])
        cut = [[whole[n] for n in ids.tolist()] for ids in stratified(label, amounts)]
    parts = {part: list(given.get(part, ())) for part in PARTS} | dict(zip(names, cut, strict=True))
    return {"pretrain": parts["train"] + unlabelled, **parts}


def _by_time(track: Track, shares: Sequence[float]) -> list[list[Track]]:
    cuts = np.round(np.cumsum(shares) * track.values.shape[1]).astype(int)
    return [[track.cut(start, end)] if end > start else [] for start, end in zip([0, *cuts[:-1]], cuts, strict=True)]


def _alike(tracks: Sequence[Track], where: str) -> list[Track]:
    """The recordings without places at the end that hold nothing. Raises RequestError where channels differ."""
    kept = []
    for each in tracks:
        told = np.flatnonzero(~np.isnan(each.values).all(0))
        if len(told):
            kept.append(each.cut(0, int(told[-1]) + 1))
        else:
            print(f"warning: {each.name} holds no value, and is left out", file=sys.stderr)
    if not kept:
        raise RequestError(f"{where!r}: holds no recording with a value in it")
    odd = next((each for each in kept if len(each.values) != len(kept[0].values)), None)
    if odd is not None:
        raise RequestError(
            f"{where!r}: {kept[0].name} has {len(kept[0].values)} channels, and {odd.name} has {len(odd.values)}; all "
            "recordings need the same"
        )
    return kept


def _moments(
    values: Sequence[np.ndarray], channels: Sequence[str], where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each channel's mean and deviation, missing values left out; a deviation of 0 becomes 1."""
    row = np.concatenate(values, 1).astype(np.float64)
    count = (~np.isnan(row)).sum(1)
    if not count.all():
        raise RequestError(f"{where!r}: {channels[int(count.argmin())]!r} has no value in the train part; leave it out")
    mean, std = np.nanmean(row, 1), np.nanstd(row, 1)
    return tuple(mean.tolist()), tuple(np.where(std > 1e-12 * np.abs(mean), std, 1.0).tolist())


# --- figures --------------------------------------------------------------------------------------------------


def statistics(x: Tensor, pad: Tensor | None = None) -> Tensor:
    """(B, C, n) values, and where they are padding, (B, n) -> (B, 9 C)."""
    x = x.float() if pad is None else x.float().masked_fill(pad[:, None], float("nan"))
    steps = x.diff(dim=2) if x.shape[2] > 1 else torch.zeros_like(x)
    low, high = x.nan_to_num(nan=torch.inf).amin(2), x.nan_to_num(-torch.inf).amax(2)
    quantiles = x.nanquantile(torch.tensor(QUANTILES, device=x.device), dim=2)
    told = [*_mean_and_std(x), low, high, *quantiles, *_mean_and_std(steps)]
    return torch.cat(told, 1).nan_to_num(0.0, 0.0, 0.0)


def _mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.nanmean(2)
    return mean, (x - mean[..., None]).square().nanmean(2).sqrt()


def _by_number(names: Iterable[str]) -> Any:
    """How to sort names: as numbers, where all are."""
    try:
        return float if [float(name) for name in names] else None
    except ValueError:
        return None
