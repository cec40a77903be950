"""Tagging: a class for each token, as parts of speech, by a linear probe of frozen token features.

The probe is that of Liu, Gardner, Belinkov, Peters, Smith, Linguistic Knowledge and Transferability of Contextual
Representations, NAACL 2019 (https://arxiv.org/abs/1903.08855), fitted as in ``ssl_runner.evaluators.linear``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor

from ssl_runner.errors import RequestError, RunError
from ssl_runner.evaluators.linear import Probe, path, standardiser
from ssl_runner.evaluators.scores import classification
from ssl_runner.types import Embed, Evaluator, Samples, TokenBackbone, View

Part = Literal["train", "val", "test"]


class Tagging(Evaluator):
    """Scores of the test part's labelled tokens by a linear classifier fitted to the train part's.

    tokens: the most that it is fitted to, and as many to choose the penalty by; drawn from the part's labelled tokens,
    always the same ones.
    l2, max_iter: as in ``Linear``.

    The features are those of the backbone's last layer at the places that have a tag, for undisturbed samples in
    evaluation mode, standardised. The penalty with the best accuracy on the validation part is kept, the stronger of
    equals, and scored once on all of the test part.

    The raw input's figures are those of each word's most frequent tag in the whole train part; a word that is not in it
    gets the commonest tag of all. A word is the ids from its tag's place to the next one that has a tag, or to the end
    of its unit, where samples tell units.

    Gives ``classification``'s figures. Deterministic. Raises RequestError for a part without a tag, and RunError for
    features that are NaN or infinite.
    """

    asks = TokenBackbone
    labelled = False

    def __init__(
        self,
        *,
        tokens: Annotated[int, Gt(0)] = 50000,
        l2: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] = (1e-2, 1e-3, 1e-4, 1e-5),
        max_iter: Annotated[int, Ge(1)] = 100,
    ):
        self.tokens, self.l2, self.max_iter = tokens, l2, max_iter

    def refusal(self, source: Any) -> str | None:
        return None if source.tags else "needs a tag for each token, and this data has none; leave it out"

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        classes = len(data.source.tags)
        if embed.tokens is None:
            return classification(*most_frequent(data), classes)
        x, label = labelled(embed, data, "train", self.tokens)
        centre, scale = standardiser(x)
        fitted = path((x - centre) / scale, label, classes, self.l2, self.max_iter)
        probes = [Probe(l2, centre, scale, weight, bias) for l2, weight, bias in fitted]
        x, label = labelled(embed, data, "val", self.tokens)
        # strongest penalty first, and max keeps the first of equals
        probe = max(probes, key=lambda each: int((each(x).argmax(1) == label).sum()))
        x, label = labelled(embed, data, "test", None)
        return classification(probe(x), label, classes)


def labelled(embed: Embed, data: Any, part: Part, most: int | None) -> tuple[Tensor, Tensor]:
    """(N, D) float32 features of a part's tokens that have a tag, and their (N,) tags; at most so many, drawn."""
    assert embed.tokens is not None
    dataset = data.source.split(part)
    total = sum(int((samples["tag"] >= 0).sum()) for _, samples in data.plain(dataset))
    if not total:
        raise RequestError(f"the {part} part has no tag, which tagging needs: give the data more, e.g. data.{part}=0.1")
    keep = torch.ones(total, dtype=torch.bool)
    if most is not None:
        keep[torch.randperm(total, generator=torch.Generator().manual_seed(0))[most:]] = False
    features, tags, seen = [], [], 0
    for view, samples in data.plain(dataset):
        rows, places = (samples["tag"] >= 0).nonzero(as_tuple=True)
        kept = keep[seen : seen + len(rows)]
        seen += len(rows)
        rows, places = rows[kept], places[kept]
        features.append(embed.tokens(view)[rows.to(data.device), places.to(data.device)].float())
        tags.append(samples["tag"][rows, places])
    x = torch.cat(features)
    broken = int((~x.isfinite()).any(1).sum())
    if broken:
        raise RunError(
            f"{broken} of {len(x)} tokens of the {part} part have features that are NaN or infinite; the backbone has "
            "diverged, or the samples are broken"
        )
    return x, torch.cat(tags).to(data.device)


def most_frequent(data: Any) -> tuple[Tensor, Tensor]:
    """The baseline that knows each word's tags and no context: (N, tags) scores of the test part's words, which are
    how often each tag was the word's in the train part, and their (N,) tags. The commonest tag of all decides between
    equals."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    overall = torch.zeros(len(data.source.tags))
    for view, samples in data.plain(data.source.split("train")):
        for word, tag in words(view, samples):
            counts[word][tag] += 1
            overall[tag] += 1
    share = overall / (overall.sum() + 1)  # below 1, so it only decides between equals
    scores, tags = [], []
    for view, samples in data.plain(data.source.split("test")):
        for word, tag in words(view, samples):
            score = share.clone()
            for known, count in counts.get(word, {}).items():
                score[known] += count
            scores.append(score)
            tags.append(tag)
    return torch.stack(scores), torch.tensor(tags)


def words(view: View, samples: Samples) -> Iterator[tuple[tuple[int, ...], int]]:
    """Each word that has a tag, as its ids, and the tag."""
    ids, tags = view["x"].tolist(), samples["tag"].tolist()
    units = samples["unit"].tolist() if "unit" in samples else [[None] * len(row) for row in ids]
    for row, tag, unit in zip(ids, tags, units, strict=True):
        starts = [n for n, each in enumerate(tag) if each >= 0]
        for start, following in zip(starts, [*starts[1:], len(row)], strict=True):
            end = start + 1
            while end < following and unit[end] == unit[start]:
                end += 1
            yield tuple(row[start:end]), tag[start]
