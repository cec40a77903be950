"""The linear probe: multinomial logistic regression on frozen features.

The protocol is that of SimCLR's transfer experiments (Chen et al., 2020, Appendix B.8,
https://arxiv.org/abs/2002.05709): the exact optimum by L-BFGS in place of SGD with its own schedule, no
augmentation, and the strength of the l2 penalty chosen on validation data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean, stdev
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor

from ssl_runner.datasets.splits import Amount, few_labels
from ssl_runner.errors import RequestError
from ssl_runner.evaluators.scores import classification, features
from ssl_runner.types import Embed, Evaluator

Labelled = tuple[Tensor, Tensor]
"""(N, D) features and (N,) int64 labels."""


class Probe(NamedTuple):
    """A fitted classifier: (N, D) features -> (N, C) logits."""

    l2: float
    centre: Tensor  # (D,)
    scale: Tensor  # (D,)
    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.scale @ self.weight + self.bias


class Linear(Evaluator):
    """Scores of the test part by a linear classifier fitted to the train part.

    labels: how many it may see: "1%", "10%" (of each class, at least one) or "10 per class"; None: all.
    draws: with few labels, over how many fixed lists of samples the figures are averaged.
    l2: penalties to choose from, on the scale of ``path``.
    max_iter: L-BFGS iterations for each penalty; it stops earlier at the optimum.

    Protocol. The features are the backbone's output (pooled, of width ``backbone.dim``) for undisturbed
    samples, in evaluation mode: BatchNorm statistics are frozen, and no gradient reaches the backbone. Each
    feature is standardised by its mean and standard deviation over the whole train part (which takes no
    labels). The penalty with the best accuracy on the validation part is kept, the stronger of equals, and
    scored once on the test part. With few labels the validation labels are as few: the same ``labels`` of the
    validation part, so that the choice does not rest on labels the protocol denies. The lists are those of
    ``few_labels`` for draws 0, 1, ...

    Gives ``classification``'s figures (means over the draws) and, where there are several draws,
    "accuracy_std", the sample standard deviation of accuracy. Deterministic. Raises RequestError for several
    draws of all labels.
    """

    parts = ("val", "test")

    def __init__(
        self,
        *,
        labels: Amount | None = None,
        draws: Annotated[int, Ge(1)] = 1,
        l2: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
        max_iter: Annotated[int, Ge(1)] = 200,
    ):
        if draws > 1 and labels is None:
            raise RequestError(f"draws={draws}: all labels make one list; give labels='10%' or draws=1")
        self.labels, self.draws, self.l2, self.max_iter = labels, draws, l2, max_iter

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        train, val = features(embed, data, "train"), features(embed, data, "val")
        probes = [self._select(train, val, data.num_classes, draw) for draw in range(self.draws)]
        x, label = features(embed, data, "test")
        figures = [classification(probe(x), label, data.num_classes) for probe in probes]
        result = {name: mean(each[name] for each in figures) for name in figures[0]}
        if self.draws > 1:
            result["accuracy_std"] = stdev(each["accuracy"] for each in figures)
        return result

    def _select(self, train: Labelled, val: Labelled, num_classes: int, draw: int) -> Probe:
        """The probe of the penalty that does best on validation data. It sees no other part."""
        centre, scale = standardiser(train[0])
        x, label = self._few(train, draw)
        val_x, val_label = self._few(val, draw)
        fitted = path((x - centre) / scale, label, num_classes, self.l2, self.max_iter)
        probes = [Probe(l2, centre, scale, weight, bias) for l2, weight, bias in fitted]
        # strongest penalty first, and max keeps the first of equals
        return max(probes, key=lambda probe: int((probe(val_x).argmax(1) == val_label).sum()))

    def _few(self, part: Labelled, draw: int) -> Labelled:
        if self.labels is None:
            return part
        x, label = part
        keep = few_labels(label.cpu(), self.labels, draw).to(label.device)
        return x[keep], label[keep]


def standardiser(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> mean and standard deviation of each feature, (D,) each; a constant feature has scale 1."""
    scale, centre = torch.std_mean(x, 0, correction=0)
    constant = scale <= 1e-6 * centre.abs()  # what float32 leaves of a constant must not be blown up to noise
    return centre, torch.where(constant, 1.0, scale)


@torch.no_grad()
def path(
    x: Tensor, label: Tensor, num_classes: int, l2: Sequence[float], max_iter: int
) -> list[tuple[float, Tensor, Tensor]]:
    """Fits logistic regression for each penalty: [(l2, (D, C) weight, (C,) bias), ...], the strongest first.

    x: (N, D) features, centred and of about unit scale. label: (N,) int64. Minimises

        1/N sum_i -log softmax(x_i W + b)[label_i]  +  l2/2 ||W||^2

    by full-batch L-BFGS, each fit started from the last one's solution. scikit-learn's C is 1 / (N l2).

    Correlated features make this ill-conditioned, so it is solved in other coordinates: the features are
    rotated to their principal axes, and the weights along an axis of variance v are written U / sqrt(v + l2),
    which evens out the curvature. Neither changes the objective: a rotation keeps ||W||, and the penalty is
    on W, not on U.
    """
    fitted = []
    with _few_threads(x):
        variance, axes = torch.linalg.eigh((x.T @ x / len(x)).double())
        variance, axes = variance.clamp(min=0).to(x.dtype), axes.to(x.dtype)
        z = x @ axes
        weight, bias = x.new_zeros(x.shape[1], num_classes), x.new_zeros(num_classes)
        for strength in sorted(set(l2), reverse=True):
            unit = (variance + strength).rsqrt()[:, None]
            weight, bias = _minimise(z, label, weight, bias, unit, strength, max_iter)
            fitted.append((strength, axes @ weight, bias))
    return fitted


@contextmanager
def _few_threads(x: Tensor) -> Iterator[None]:
    """One CPU thread for a small problem: its steps are shorter than the wait for the other threads. With
    1078 x 512 features on two busy cores, two threads took 16 s and one took 2 s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if x.numel() < 2**20 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _minimise(
    z: Tensor, label: Tensor, weight: Tensor, bias: Tensor, unit: Tensor, l2: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """The weight and bias at the minimum of ``path``'s objective, in its coordinates, from a first guess."""
    u, b = weight / unit, bias.clone()
    rows = torch.arange(len(z), device=z.device)

    def closure() -> Tensor:
        w = unit * u
        log_p = torch.addmm(b, z, w).log_softmax(1)
        loss = -log_p[rows, label].mean() + l2 / 2 * w.square().sum()
        residual = log_p.exp_()
        residual[rows, label] -= 1
        residual /= len(z)
        u.grad, b.grad = unit * (z.T @ residual + l2 * w), residual.sum(0)
        return loss

    # float32 tells losses of about 1 apart by 1e-7, so a smaller change is no progress; the loss is then
    # about 1e-5 above its lowest, unless max_iter came first
    optimizer = torch.optim.LBFGS(
        [u, b], max_iter=max_iter, tolerance_grad=1e-6, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )
    optimizer.step(closure)
    return unit * u, b
