"""From samples to views: branches of batched transforms, on whatever device the batch is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ssl_runner.errors import RequestError
from ssl_runner.types import Samples, Sizer, Transform, View, as_float


def named(steps: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Raises RequestError for a name that torch keeps for itself."""
    for name in steps:
        if hasattr(nn.ModuleDict, name) or "." in name or not name:
            raise RequestError(f"views: no step can be named {name!r}, which means something else in torch; rename it")
    return nn.ModuleDict(dict(steps))


class Branch(nn.Module):
    """One way of disturbing a sample, drawn `copies` times.

    transforms: name -> Transform, applied in order; a Sizer, if there is one, comes first.
    """

    def __init__(self, *, transforms: Mapping[str, Transform], copies: int = 1):
        super().__init__()
        self.transforms = named(transforms)
        self.copies = copies

    @property
    def sizer(self) -> Sizer | None:
        first = next(iter(self.transforms.values()), None)
        return first if isinstance(first, Sizer) else None

    def forward(self, view: View, sized: bool = False, first: Iterable[nn.Module] = ()) -> View:
        """sized: the view has its size already. first: what comes before the other transforms."""
        sizer = self.sizer
        if sizer is not None and not sized:
            view = sizer(view)
        for transform in (*first, *list(self.transforms.values())[0 if sizer is None else 1 :]):
            view = transform(view)
        return view


class Views(nn.Module):
    """Samples -> the views an objective asks for, and the plain view that evaluators see.

    branches: name -> Branch, the random views.
    fit: what brings an undisturbed sample to the backbone's size (None: it is already).
    first: name -> Transform, the beginning of every view, random or plain, once it has its size: a spectrogram.
    last: name -> Transform, the end of every view, random or plain: normalisation.
    second: the views of the samples' second input, where data comes in pairs; they follow those of the first.
    """

    def __init__(
        self,
        *,
        branches: Mapping[str, Branch],
        fit: Sizer | None = None,
        first: Mapping[str, Transform] | None = None,
        last: Mapping[str, Transform] | None = None,
        second: Views | None = None,
    ):
        super().__init__()
        self.branches = named(branches)
        self.fit = fit
        self.first = named(first or {})
        self.last = named(last or {})
        self.second = second

    @torch.no_grad()
    def forward(self, samples: Samples) -> list[View]:
        """The random views, branch by branch, copy by copy."""
        sized, inputs, branches = samples.get("cropped", False), samples["inputs"], self._copies()
        count = len(branches) if sized else 1
        own = [{**view, "x": as_float(view["x"])} for view in inputs[:count]]
        if not sized:
            own *= len(branches)
        first = list(self.first.values())
        views = [self._finish(branch(view, sized, first)) for branch, view in zip(branches, own, strict=True)]
        return views + (self.second({"inputs": inputs[count:], "cropped": sized}) if self.second is not None else [])

    @torch.no_grad()
    def plain(self, samples: Samples) -> View:
        """The undisturbed first input, sized and normalised: what evaluation, finetuning scores and users see."""
        view = samples["inputs"][0]
        view = {**view, "x": as_float(view["x"])}
        if self.fit is not None and not samples.get("cropped", False):
            view = self.fit(view)
        for transform in self.first.values():
            view = transform(view)
        return self._finish(view)

    def plain_pair(self, samples: Samples) -> tuple[View, View]:
        """Both undisturbed inputs of pairs."""
        assert self.second is not None
        return self.plain(samples), self.second.plain({**samples, "inputs": samples["inputs"][1:]})

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one sample as data gives it, brought to size -> as a backbone sees it."""
        for transform in (*self.first.values(), *self.last.values()):
            assert isinstance(transform, Transform)
            shape = transform.shape(shape)
        return shape

    def crops(self, inputs: list[View]) -> list[View]:
        """In a data worker: the inputs of one sample, of any size -> its crop for each view."""
        sizers = [branch.sizer or self.fit for branch in self._copies()]
        views = [inputs[0] if sizer is None else sizer.one(inputs[0]) for sizer in sizers]
        return views + (self.second.crops(inputs[1:]) if self.second is not None else [])

    def fitted(self, inputs: list[View]) -> list[View]:
        """In a data worker: the inputs of one sample, of any size -> each at the size of its plain view."""
        view = inputs[0] if self.fit is None else self.fit.one(inputs[0])
        return [view] + (self.second.fitted(inputs[1:]) if self.second is not None else [])

    def _copies(self) -> list[Branch]:
        return [b for b in self.branches.values() if isinstance(b, Branch) for _ in range(b.copies)]

    def _finish(self, view: View) -> View:
        for transform in self.last.values():
            view = transform(view)
        return view
