"""What evaluators share: features that can be trusted going in, and figures coming out."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ssl_runner.errors import RunError
from ssl_runner.types import Embed


def features(embed: Embed, data: Any, split: Literal["train", "val", "test"]) -> tuple[Tensor, Tensor]:
    """The (N, D) float32 features of a split and its (N,) labels.

    Raises RunError when a feature is NaN or infinite: every score of such features would be meaningless.
    """
    x, label = data.features(embed, split)
    broken = int((~x.isfinite()).any(1).sum())
    if broken:
        raise RunError(
            f"{broken} of {len(x)} samples of the {split} part have features that are NaN or infinite; "
            "the backbone has diverged, or the samples are broken"
        )
    return x, label


def classification(scores: Tensor, label: Tensor, num_classes: int) -> dict[str, float]:
    """Figures of a classifier, each between 0 and 1.

    scores: (N, num_classes), of any scale, the highest wins (the first of equals). label: (N,) int64.

      accuracy       the share of samples whose class has the highest score
      accuracy_top5  the share whose class is among the five highest; only with more than five classes. A
                     class that shares its score with others counts as the last of them: a vote of nearest
                     neighbours leaves most classes at zero, and a guess among those must not count.
      f1             the mean over classes of 2 TP / (2 TP + FP + FN). A class that is neither there nor
                     predicted is left out; one that is absent but predicted counts as 0.

    Raises RunError when a score is NaN or infinite.
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    if not scores.isfinite().all():
        raise RunError("the classifier's scores are NaN or infinite; it has diverged")
    place = (scores >= scores.gather(1, label[:, None])).sum(1).cpu()
    predicted, label = scores.argmax(1).cpu(), label.cpu()  # torchmetrics fails on a TPU
    figures = {"accuracy": multiclass_accuracy(predicted, label, num_classes, average="micro").item()}
    if num_classes > 5:
        hit = (place <= 5) | (predicted == label)  # right is right, whatever else has the same score
        figures["accuracy_top5"] = hit.to(torch.float32).mean().item()
    figures["f1"] = multiclass_f1_score(predicted, label, num_classes, average="macro").item()
    return figures
