"""Classes told by their names alone, without an example of any (Radford et al., 2021, "Zero-shot transfer").

https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor

from ssl_runner.errors import RequestError, nearest
from ssl_runner.evaluators.retrieval import embedded
from ssl_runner.evaluators.scores import classification
from ssl_runner.types import Embed, Evaluator, Matching


class ZeroShot(Evaluator):
    """Each first input of the test part goes to the class whose prompts, as second inputs, match it best.

    templates: prompts, with {} where the class is named. names: other words for some of the classes, one or several for
    each, e.g. {People: [man, woman]}. A class is the mean of its prompts' unit rows ("prompt ensembling").

    Gives ``classification``'s figures, "class_mean", the mean over classes of the share that is told rightly, and this
    share of each class that the test part has, as "class/NAME". For the raw input, the figures of a guess at random,
    1 / C each, but for "f1"; the two inputs as they are can't be compared.
    Raises RequestError for a template without {}, and for names of classes that are not there.

    It asks one thing of a source: `prompts`, as ssl_runner.datasets.pairs.Paired tells.
    """

    asks = Matching

    def __init__(
        self,
        *,
        templates: Annotated[Sequence[str], MinLen(1)] = ("{}", "a picture of {}", "a {}"),
        names: Mapping[str, Annotated[Sequence[str], MinLen(1)]] | None = None,
    ):
        for template in templates:
            if "{}" not in template:
                raise RequestError(f"evaluators: the template {template!r} has no {{}} where the class is to be named")
        self.templates, self.names = tuple(templates), dict(names or {})

    def refusal(self, source: Any) -> str | None:
        prompts = getattr(source, "prompts", None)
        if not source.classes or prompts is None or prompts(["a"]) is None:
            return "needs pairs with classes whose second input is text, and this data has none; use evaluators=none"
        unknown = [name for name in self.names if name not in source.classes]
        if unknown:
            return f"names {unknown[0]!r}, which is no class{nearest(unknown[0], source.classes)}"
        return None

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        test, classes = data.source.split("test"), data.source.classes
        if embed.objective is None:
            there = test.label.unique().tolist()
            names = ["accuracy", "class_mean", *(f"class/{classes[n]}" for n in there)]
            return dict.fromkeys(names, 1 / len(classes))
        assert isinstance(embed.objective, Matching)
        words = [self.names.get(name, [name]) for name in classes]
        prompts = [each.replace("{}", word) for named in words for word in named for each in self.templates]
        view = {name: x.to(data.device) for name, x in data.source.prompts(prompts).items()}
        told = embed.objective.second(data.views.second.plain({"inputs": [view]}))
        own = told.split([len(named) * len(self.templates) for named in words])
        told = torch.stack([each.mean(0) for each in own])
        rows, _, seen = embedded(embed.objective, data, test)
        return figures(rows @ F.normalize(told, dim=1).cpu().T, test.label[seen], classes)


def figures(scores: Tensor, label: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """scores: (N, C), the highest wins. label: (N,)."""
    right = (scores.argmax(1) == label).double()
    shares = {n: right[label == n].mean().item() for n in label.unique().tolist()}
    told = {f"class/{classes[n]}": share for n, share in shares.items()}
    mean = sum(shares.values()) / len(shares)
    return {**classification(scores, label, len(classes)), "class_mean": mean, **told}
