"""From samples to views: branches of batched transforms, on whatever device the batch is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_runner.types import Samples, Sizer, Transform, View, as_float


class Branch(nn.Module):
    """One way of disturbing a sample, drawn `copies` times.

    transforms: name -> Transform, applied in order; a Sizer, if there is one, comes first.
    input: which of the samples' inputs it reads (0, but for paired data).
    """

    def __init__(self, *, transforms: Mapping[str, Transform], copies: int = 1, input: int = 0):
        super().__init__()
        self.transforms = nn.ModuleDict(dict(transforms))
        self.copies, self.input = copies, input

    @property
    def sizer(self) -> Sizer | None:
        first = next(iter(self.transforms.values()), None)
        return first if isinstance(first, Sizer) else None

    def forward(self, view: View, sized: bool = False) -> View:
        for transform in self.transforms.values():
            if not (sized and isinstance(transform, Sizer)):
                view = transform(view)
        return view


class Views(nn.Module):
    """Samples -> the views an objective asks for, and the plain view that evaluators see.

    branches: name -> Branch, the random views.
    fit: what brings an undisturbed sample to the backbone's size (None: it is already).
    last: name -> Transform, the end of every view, random or plain: normalisation.
    """

    def __init__(
        self,
        *,
        branches: Mapping[str, Branch],
        fit: Sizer | None = None,
        last: Mapping[str, Transform] | None = None,
    ):
        super().__init__()
        self.branches = nn.ModuleDict(dict(branches))
        self.fit = fit
        self.last = nn.ModuleDict(dict(last or {}))

    @torch.no_grad()
    def forward(self, samples: Samples) -> list[View]:
        """The random views, branch by branch, copy by copy."""
        sized = samples.get("cropped", False)
        inputs = [{**view, "x": as_float(view["x"])} for view in samples["inputs"]]
        views: list[View] = []
        for branch in self._copies():
            view = inputs[len(views)] if sized else inputs[branch.input]
            views.append(self._finish(branch(view, sized)))
        return views

    @torch.no_grad()
    def plain(self, samples: Samples) -> View:
        """The undisturbed first input, sized and normalised: what evaluation, finetuning scores and users see."""
        view = samples["inputs"][0]
        view = {**view, "x": as_float(view["x"])}
        if self.fit is not None and not samples.get("cropped", False):
            view = self.fit(view)
        return self._finish(view)

    def crops(self, x: Tensor) -> list[Tensor]:
        """In a data worker: one sample of any size -> its crop for each view."""
        sizers = [branch.sizer or self.fit for branch in self._copies()]
        return [x if sizer is None else sizer.one(x) for sizer in sizers]

    def fitted(self, x: Tensor) -> list[Tensor]:
        """In a data worker: one sample of any size -> it alone, at the size of the plain view."""
        return [x if self.fit is None else self.fit.one(x)]

    def _copies(self) -> list[Branch]:
        return [b for b in self.branches.values() if isinstance(b, Branch) for _ in range(b.copies)]

    def _finish(self, view: View) -> View:
        for transform in self.last.values():
            view = transform(view)
        return view
