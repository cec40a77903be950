"""Tagging: a linear probe of token features, beside each word's most frequent tag."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import Tensor

from ssl_runner.errors import RequestError, RunError
from ssl_runner.evaluators import tagging
from ssl_runner.evaluators.tagging import Tagging
from ssl_runner.types import Embed, Samples, TokenBackbone, View

CONF = Path(__file__).parent.parent / "conf" / "evaluators" / "tagging.yaml"
NONE = -100


class Tagged:
    """A data module of samples in memory: {part: {"x", "pad", "tag" and, it may be, "unit"}}."""

    device = torch.device("cpu")

    def __init__(self, tags: int, **parts: dict[str, Tensor]):
        self.source, self.tags, self.parts = self, tuple(f"t{n}" for n in range(tags)), parts

    def split(self, name: str) -> str:
        return name

    def plain(self, name: str) -> Iterator[tuple[View, Samples]]:
        part = self.parts[name]
        for first in range(0, len(part["x"]), 3):
            rows = slice(first, first + 3)
            samples: Any = {key: part[key][rows] for key in ("tag", "unit") if key in part}
            yield {"x": part["x"][rows], "pad": part["pad"][rows]}, samples


def part(n: int, seed: int, length: int = 8, tags: int = 3) -> dict[str, Tensor]:
    """Tags that the id before decides; a place in four has none."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 12, (n, length), generator=generator)
    pad = torch.arange(length) >= length - torch.arange(n)[:, None] % 3
    tag = ids.roll(1, 1) % tags
    tag = tag.masked_fill((torch.rand(ids.shape, generator=generator) < 0.25) | pad, NONE)
    tag[:, 0] = NONE
    return {"x": ids.masked_fill(pad, 0), "pad": pad, "tag": tag}


def tokens(view: View) -> Tensor:
    """(B, L, 18): an id and the one before it, each as a unit vector with some noise; padding is never asked for."""
    x = torch.nn.functional.one_hot(torch.stack([view["x"], view["x"].roll(1, 1)], 2), 12)[..., 3:].flatten(2).float()
    return x.masked_fill(view["pad"][..., None], math.nan)


def contextual(features: Any = tokens) -> Embed:
    return Embed(lambda view: features(view).mean(1), tokens=features)


RAW = Embed(lambda view: view["x"].float())


# -- the probe ---------------------------------------------------------------------------------------------------


def test_features_that_tell_the_tags_score_perfectly_and_words_alone_do_not() -> None:
    data = Tagged(3, train=part(90, 1), val=part(30, 2), test=part(30, 3))
    found = Tagging()(contextual(), data)
    assert found["accuracy"] == found["f1"] == 1
    assert Tagging()(RAW, data)["accuracy"] < 0.55


def test_each_tag_meets_the_features_of_its_own_place() -> None:
    data = Tagged(3, train=part(7, 1))
    x, label = tagging.labelled(contextual(), data, "train", None)
    given = data.parts["train"]
    features = tokens(given)
    wanted = [(features[n, t], int(given["tag"][n, t])) for n in range(7) for t in range(8) if given["tag"][n, t] >= 0]
    assert torch.equal(x, torch.stack([each for each, _ in wanted]))
    assert label.tolist() == [each for _, each in wanted]


def test_it_is_fitted_to_so_many_tokens_and_always_the_same() -> None:
    data = Tagged(3, train=part(60, 1))
    x, label = tagging.labelled(contextual(), data, "train", None)
    few, few_label = tagging.labelled(contextual(), data, "train", 40)
    torch.manual_seed(9)
    again, _ = tagging.labelled(contextual(), data, "train", 40)
    assert few.shape == (40, 18)
    assert torch.equal(few, again)
    known = Counter((*row.tolist(), tag) for row, tag in zip(x, label.tolist(), strict=True))
    drawn = Counter((*row.tolist(), tag) for row, tag in zip(few, few_label.tolist(), strict=True))
    assert not drawn - known
    assert not torch.equal(few, x[:40]), "drawn from all of the part"


@pytest.mark.parametrize("most", [40, 50000])
def test_every_token_of_the_test_part_is_scored(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    data = Tagged(3, train=part(60, 1), val=part(20, 2), test=part(40, 3))
    asked: list[tuple[str, int | None]] = []
    real = tagging.labelled

    def watched(embed: Embed, data: Any, name: Any, most: int | None) -> tuple[Tensor, Tensor]:
        asked.append((name, most))
        return real(embed, data, name, most)

    monkeypatch.setattr(tagging, "labelled", watched)
    Tagging(tokens=most)(contextual(), data)
    assert asked == [("train", most), ("val", most), ("test", None)]


def test_the_penalty_is_chosen_on_the_validation_part() -> None:
    """Where all of that has the commonest tag, the strongest penalty is best: by it, the commonest is all that is ever
    said."""
    train, val, test = part(60, 1), part(20, 2), part(30, 3)
    commonest = Counter(train["tag"][train["tag"] >= 0].tolist()).most_common(1)[0][0]
    val["tag"] = val["tag"].where(val["tag"] < 0, commonest)
    found = Tagging(l2=(1e-4, 1e4))(contextual(), Tagged(3, train=train, val=val, test=test))
    there = test["tag"][test["tag"] >= 0]
    assert found["accuracy"] == pytest.approx((there == commonest).float().mean().item())


# -- the baseline ------------------------------------------------------------------------------------------------


def row(ids: list[int], tag: list[int], unit: list[int] | None = None) -> dict[str, Tensor]:
    found = {"x": torch.tensor([ids]), "pad": torch.tensor([ids]) == 0, "tag": torch.tensor([tag])}
    return found if unit is None else {**found, "unit": torch.tensor([unit])}


def together(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([each[key] for each in rows]) for key in rows[0]}


def test_a_word_is_its_ids_to_the_end_of_its_unit_or_to_the_next_tag() -> None:
    given = row([5, 6, 7, 8, 9, 1, 0], [0, NONE, 2, NONE, NONE, NONE, NONE], [0, 0, 1, 1, 2, -1, -1])
    data = Tagged(3, train=given)
    ((view, samples),) = data.plain("train")
    assert list(tagging.words(view, samples)) == [((5, 6), 0), ((7, 8), 2)]
    del samples["unit"]
    assert list(tagging.words(view, samples)) == [((5, 6), 0), ((7, 8, 9, 1, 0), 2)]


def test_the_baseline_is_each_words_most_frequent_tag() -> None:
    def words(*given: tuple[tuple[int, ...], int]) -> dict[str, Tensor]:
        ids, tag, unit = [], [], []
        for number, (word, each) in enumerate(given):
            ids += word
            tag += [each, *[NONE] * (len(word) - 1)]
            unit += [number] * len(word)
        more = 12 - len(ids)
        return row([*ids, 1, *[0] * more], [*tag, NONE, *[NONE] * more], [*unit, -1, *[-1] * more])

    a, b, c, equal, unseen = (5,), (5, 6), (7,), (8,), (6,)
    train = together(
        [
            words((a, 0), (b, 1), (c, 2), (equal, 0), (equal, 2)),
            words((a, 0), (b, 1), (a, 1), (c, 2), (c, 2)),
            words((c, 2), (c, 0)),
        ]
    )
    test = words((a, 0), (b, 1), (c, 2), (equal, 2), (unseen, 2), (unseen, 1))
    data = Tagged(3, train=train, test=test)
    scores, tag = tagging.most_frequent(data)
    assert scores.argmax(1).tolist() == [0, 1, 2, 2, 2, 2], "2 is the commonest of all"
    assert tag.tolist() == [0, 1, 2, 2, 2, 1]
    assert Tagging()(RAW, data)["accuracy"] == pytest.approx(5 / 6)


# -- what it refuses ---------------------------------------------------------------------------------------------


def test_what_has_no_tags_is_refused_before_training() -> None:
    class Untagged:
        tags, classes = (), ("a", "b")

    class Unlabelled:
        tags, classes = ("noun", "verb"), ()

    refusal = Tagging().refusal(Untagged())
    assert refusal is not None
    assert "tag for each token" in refusal
    assert Tagging().refusal(Unlabelled()) is None, "it needs no classes of whole samples"
    assert Tagging.asks is TokenBackbone


def test_a_part_without_tags_and_broken_features_are_told() -> None:
    empty = part(6, 2)
    empty["tag"].fill_(NONE)
    with pytest.raises(RequestError, match="the val part has no tag"):
        Tagging()(contextual(), Tagged(3, train=part(30, 1), val=empty, test=part(6, 3)))

    def broken(view: View) -> Tensor:
        return tokens(view).masked_fill((view["x"] == 5)[..., None], math.inf)

    with pytest.raises(RunError, match=r"\d+ of \d+ tokens of the train part have features that are NaN or infinite"):
        Tagging()(contextual(broken), Tagged(3, train=part(30, 1), val=part(6, 2), test=part(6, 3)))


def test_its_config_builds_it() -> None:
    (node,) = yaml.safe_load(CONF.read_text()).values()
    assert isinstance(instantiate(node), Tagging)
