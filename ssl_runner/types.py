"""The words the parts share: what flows between data, views, backbone, objective and evaluators.

Plain torch, nothing else. A modality is a matter of stems, datasets and views; no type here names one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

View = dict[str, Tensor]
"""What a backbone is called with, as ``backbone(**view)``: {"x": (B, ...)} and, where lengths differ, "pad", True at
padding: (B, n) bool along the last axis of x, which ``seen_by`` turns into (B, L), a backbone's tokens."""


class Samples(TypedDict, total=False):
    """What a data loader gives: undisturbed samples, collated, on the host."""

    inputs: list[View]  # one per kind of input (two for image and caption); uint8 means intensities 0..255
    label: Tensor  # (B,) int64 classes, or float32 values
    target: Tensor  # (B, U) int64 ids to be told, -1 behind the last; or (B, ...) float32 values, NaN where unknown
    index: Tensor  # (B,) int64, the sample's place in its source
    unit: Tensor  # (B, L) int64, where ids make larger wholes, as pieces make words: the number of each id's; -1: none
    tag: Tensor  # (B, L) int64, the class of each token; -100: not labelled
    cropped: bool  # True: sizes differed, so a worker cropped already and `inputs` has one entry per view
    views: list[View]  # where a worker made them already, in place of `inputs`
    drawn: Tensor  # the state of the CPU's random generator behind these views


class Batch(TypedDict, total=False):
    """What reaches an objective."""

    views: list[View]
    label: Tensor  # these as in Samples
    target: Tensor
    index: Tensor
    unit: Tensor
    tag: Tensor


class Loss(NamedTuple):
    value: Tensor  # scalar, to be minimised
    log: Mapping[str, Tensor] = {}  # scalars, detached


class Backbone(nn.Module):
    """Anything that embeds."""

    dim: int

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, ...) -> (B, dim)."""
        raise NotImplementedError

    def padding(self, pad: Tensor) -> Tensor:
        """(B, n) bool along the input's last axis -> (B, L), which tokens are nothing but padding. Here: as it is."""
        return pad


class TokenBackbone(Backbone):
    """What masked, causal and dense objectives ask for: the steps between input and embedding, one by one."""

    grid: tuple[int, ...] | None = None  # how many tokens lie along each axis of the input, where they form a grid

    def patchify(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, L, P) values, or (B, L) ids."""
        raise NotImplementedError

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of patchify."""
        raise NotImplementedError

    def embed(self, patches: Tensor) -> Tensor:
        """Patches -> (B, L, dim) tokens, positions added."""
        raise NotImplementedError

    def encode(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Tensor:
        """(B, L, dim) -> (B, L, dim). What sees what: see ssl_runner.parts.attention.visible."""
        raise NotImplementedError

    def tokens(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, ...) -> (B, L, dim): all steps, undisturbed. pad: (B, L)."""
        return self.encode(self.embed(self.patchify(x)), pad)

    def layers(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, L, dim) -> the (B, L, dim) behind each block; the last one alone, where a backbone can't tell them."""
        yield self.encode(tokens, pad, causal, part)

    def vocabulary(self) -> Tensor | None:
        """(V, dim), the embedding of each id, which may also score them; None where patches are values."""
        return None


class FrameBackbone(TokenBackbone):
    """A TokenBackbone whose patches are learned: what convolutions along time make of a signal, one frame every `hop`
    values, of `reach` values each.

    `embed` is ``project(normalise(frames))``, without positions: `encode` adds these. `unpatchify` has no answer.
    """

    hop: int
    reach: int
    frame_dim: int  # P

    def normalise(self, frames: Tensor) -> Tensor:
        """(B, L, P) of patchify -> the same, as they are projected, and quantised where a paper does so."""
        raise NotImplementedError

    def project(self, frames: Tensor) -> Tensor:
        """(B, L, P), normalised -> (B, L, dim), without positions."""
        raise NotImplementedError

    def embed(self, patches: Tensor) -> Tensor:
        """(B, L, P) -> (B, L, dim), without positions."""
        return self.project(self.normalise(patches))


class MapBackbone(Backbone):
    """What objectives on feature maps ask for: the last map, before it is pooled."""

    def map_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of a sample's map.

        Raises RequestError where this backbone makes no map, or embeds by layers of weights behind it.
        """
        raise NotImplementedError

    def maps(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, h, w)."""
        raise NotImplementedError


COUNTS = "its loss is a mean over what it predicts, of which micro-batches hold different numbers"
"""Why many objectives on tokens are indivisible."""


class Objective(nn.Module):
    """One paper: a backbone, its heads and a loss. Knows no trainer.

    All state is a parameter or a persistent buffer made in ``__init__`` and changes only in ``forward`` or
    ``after_step``, so a checkpoint is complete by construction. The annotation of ``backbone`` says what kind
    of backbone is asked for.
    """

    views: ClassVar[int | None] = None  # how many views a batch must hold; None: any number
    labelled: ClassVar[bool] = False  # whether the loss reads batch["label"]
    valued: ClassVar[bool] = False  # whether it reads labels that are values, not classes
    monitor: ClassVar[str] = "-val/loss"  # which epoch of a finetuning is the best: the highest, or with - the lowest
    contrasts: ClassVar[bool] = False  # whether the batch's other samples are the negatives
    indivisible: ClassVar[str | None] = None  # why else a step's micro-batches are not the same as its whole batch
    backbone: Backbone

    def forward(self, batch: Batch) -> Loss:
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each real optimiser step; progress in [0, 1]. Momentum teachers, centres."""

    def show(self, batch: Batch) -> Mapping[str, list[Tensor]]:
        """What it makes of a batch, to look at: reconstructions, samples, puzzles.

        name -> columns, each (n, ...) in the units of the views, a row for each sample. Called in evaluation mode
        without gradients. Nothing, where there is nothing to see.
        """
        return {}


class Predictor(Objective):
    """An objective that learns from labels or targets, and is scored by them: what finetuning trains."""

    labelled = True

    def scores(self, part: Iterable[Batch]) -> dict[str, float]:
        """Figures of what it says of a whole part: batches of undisturbed samples, one view of each. Called in
        evaluation mode without gradients."""
        raise NotImplementedError


class NextId(Objective):
    """An objective on ids that can say what comes next."""

    def following(self, ids: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L) ids, padding on either side -> (B, V): the scores of the id behind the last that is not padding."""
        raise NotImplementedError


class Likelihood(NextId):
    """An objective that says how likely a sequence is, id by id."""

    def nats(self, ids: Tensor, pad: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, L) ids -> (B, L): -log p of each given those before it, and whether it is predicted at all (bool)."""
        raise NotImplementedError


class Matching(Objective):
    """An objective on pairs that brings both inputs into one space, where a dot product says how well they match."""

    def first(self, view: View) -> Tensor:
        """A view of first inputs, as views make it -> (B, D), rows of unit length, in fp32."""
        raise NotImplementedError

    def second(self, view: View) -> Tensor:
        """The same of second inputs."""
        raise NotImplementedError


class Transform(nn.Module):
    """One step of a view, batched and random per sample: View -> View of the same batch size.

    Random draws come from torch's global CPU generator, which the learner seeds from (seed, rank, step).
    Most transforms change ``x`` alone and override ``transform``; one that changes lengths overrides ``forward``.
    """

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of a sample's shape. Overridden by those that change it for good, such as a spectrogram."""
        return shape

    def forward(self, view: View) -> View:
        return {**view, "x": self.transform(view["x"])}

    def transform(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        raise NotImplementedError


class Sizer(Transform):
    """A transform that brings samples to one size. Always the first of its branch: where samples differ in size
    a data worker calls ``one`` on each, and the batched form is skipped."""

    def one(self, view: View) -> View:
        """One sample of any size, {"x": (C, ...)} -> the same at its size, same dtype. One that fills samples up
        gives "pad" with all of them, or with none."""
        made = self({name: tensor[None] for name, tensor in view.items()})
        return {name: tensor[0] for name, tensor in made.items()}


class Embed:
    """What an evaluator scores, frozen. Called with a view, it gives the view's (B, dim) features.

    tokens: View -> (B, L, dim), where a backbone has tokens; None for others and for the raw input.
    objective: what was pretrained, with its heads; None for the raw input, and where no evaluator asks for it.
    """

    def __init__(
        self,
        features: Callable[[View], Tensor],
        *,
        tokens: Callable[[View], Tensor] | None = None,
        objective: Objective | None = None,
    ):
        self.features, self.tokens, self.objective = features, tokens, objective

    def __call__(self, view: View) -> Tensor:
        return self.features(view)


class Evaluator:
    """Scores what was pretrained: called with an ``Embed`` and a data module, gives {metric: value}.

    Knows nothing of training. It is called three times under the same protocol: with the backbone, with the
    same backbone untrained and with the raw input, for which it gives the plain baselines of its figures.
    """

    asks: ClassVar[type[Backbone] | type[Objective]] = Backbone  # what it can score
    labelled: ClassVar[bool] = True  # whether it needs classes
    parts: ClassVar[tuple[str, ...]] = ("test",)  # of the data, that may not be empty

    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        raise NotImplementedError

    def refusal(self, source: Any) -> str | None:
        """Why this source can't be scored; None if it can. Asked before training."""
        if self.labelled and not source.classes:
            return "needs labels, and this data has none; use evaluators=none"
        return None


def seen_by(backbone: Backbone, view: View) -> View:
    """A view as it is handed to a backbone, or to what is around it: padding told by tokens."""
    return {**view, "pad": backbone.padding(view["pad"])} if "pad" in view else view


def as_batch(samples: Samples, views: list[View], backbone: Backbone) -> Batch:
    """The views as the backbone sees them, with what else an objective may read of their samples."""
    batch: Batch = {"views": [seen_by(backbone, view) for view in views], "index": samples["index"]}
    for name in ("label", "target", "unit", "tag"):
        if name in samples:
            batch[name] = samples[name]
    return batch


def as_float(x: Tensor) -> Tensor:
    """uint8 intensities to float32 in [0, 1]; anything else unchanged."""
    return x.to(torch.float32).mul_(1 / 255) if x.dtype == torch.uint8 else x
