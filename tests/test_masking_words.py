"""Hiding whole words, and what comes next by a mask behind the last id."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Discrete
from ssl_runner.errors import RequestError
from ssl_runner.objectives import mlm
from ssl_runner.parts.hiding import chosen, firsts
from ssl_runner.types import Batch, NextId

VOCAB, LENGTH, PAD, END, MASK, UNKNOWN = 23, 16, 0, 1, 2, 3


def masked(**given: object) -> mlm.MLM:
    torch.manual_seed(0)
    backbone = Encoder(stem=Discrete(vocab=VOCAB, length=LENGTH, dim=16), depth=2, heads=2)
    return mlm.MLM(backbone, vocab=VOCAB, mask=MASK, special=(PAD, UNKNOWN), separator=END, **given)  # type: ignore[arg-type]


def worded(n: int, length: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    """(n, length) ids, padding, and the number of each id's word: words of one to four ids, some separators."""
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(4, VOCAB, (n, length), generator=generator)
    ids[torch.rand(n, length, generator=generator) < 0.1] = END
    begins = torch.rand(n, length, generator=generator) < 0.5
    pad = torch.arange(length) >= length - torch.arange(n)[:, None] % 4
    ids = ids.masked_fill(pad, PAD)
    unit = torch.full_like(ids, -1)
    for row in range(n):
        number = -1
        for t in range(length):
            if ids[row, t] in (PAD, END):
                continue
            if t == 0 or unit[row, t - 1] < 0 or begins[row, t]:
                number += 1
            unit[row, t] = number
    return ids, pad, unit


def at(place: Tensor, told: Tensor, length: int) -> Tensor:
    """(B, length) bool: what is told."""
    return torch.zeros(len(place), length, dtype=torch.bool).scatter(1, place, told)


# -- whole words -------------------------------------------------------------------------------------------------


@settings(max_examples=80, derandomize=True)
@given(length=st.integers(1, 40), ratio=st.floats(0.01, 0.9), seed=st.integers(0, 99))
def test_words_are_told_whole_and_as_many_as_fit(length: int, ratio: float, seed: int) -> None:
    ids, _, unit = worded(6, length)
    may = ids > UNKNOWN
    torch.manual_seed(seed)
    place, told = chosen(may, ratio, None, unit)
    found = at(place, told, length)
    assert not (found & ~may).any()
    for row in range(len(ids)):
        size = Counter(unit[row][may[row]].tolist())
        count = sum(size.values())
        wanted = min(count, max(1, round(ratio * count)))
        hidden = Counter(unit[row][found[row]].tolist())
        assert all(size[word] == n for word, n in hidden.items()), "a word in part"
        total = sum(hidden.values())
        assert total <= wanted
        left = [n for word, n in size.items() if word not in hidden and n <= wanted]
        assert not left or total + max(left) > wanted, "the words that are left would all have fitted"


def test_the_share_of_ids_told_is_about_the_ratio_and_every_word_has_its_turn() -> None:
    ids, _, unit = worded(400, 128)
    may = ids > UNKNOWN
    torch.manual_seed(0)
    found = at(*chosen(may, 0.15, None, unit), 128)
    assert 0.93 * 0.15 < (found.sum() / may.sum()).item() <= 0.152
    first = torch.tensor([[len(set(row[:t])) < len(set(row[: t + 1])) for t in range(128)] for row in unit.tolist()])
    assert (found & first & may).sum() / (first & may).sum() == pytest.approx(0.145, abs=0.015)
    again = at(*chosen(may, 0.15, None, unit), 128)
    assert (found & again).sum() / found.sum() == pytest.approx(0.15, abs=0.03), "drawn anew"


def test_ids_of_no_word_stand_alone() -> None:
    unit = torch.tensor([[-1, -1, 0, 0, 1, -1]])
    assert firsts(unit).tolist() == [[0, 1, 2, 2, 4, 5]]


def test_an_id_that_is_never_hidden_may_stand_in_a_word() -> None:
    """The rest of its word is told without it."""
    may = torch.tensor([[True, False, True, True, True, True]])
    unit = torch.tensor([[0, 0, 0, 1, 2, 3]])
    torch.manual_seed(0)
    for _ in range(30):
        found = at(*chosen(may, 0.5, None, unit), 6)[0]
        assert found.sum() <= 2
        assert found[0] == found[2]
        assert not found[1]


def test_the_objective_hides_whole_words_in_training_and_in_what_it_shows() -> None:
    ids, pad, unit = worded(200)
    batch: Batch = {"views": [{"x": ids, "pad": pad}], "index": torch.arange(200), "unit": unit}
    hiding = masked(whole=True, ratio=0.4, mask_share=1.0, random_share=0.0)
    seen: list[Tensor] = []
    embed = hiding.backbone.embed
    hiding.backbone.embed = lambda patches: seen.append(patches) or embed(patches)  # type: ignore[method-assign, func-returns-value]
    with torch.no_grad():
        hiding(batch)
        changed = hiding.show(batch)["filled"][1]
    for after in (seen[0], changed):
        hidden = after == MASK
        assert hidden.any()
        for row in range(200):
            for word in set(unit[row].tolist()) - {-1}:
                assert hidden[row][unit[row] == word].float().mean() in (0, 1)


def test_whole_words_need_data_that_tells_them() -> None:
    ids, pad, _ = worded(4)
    with pytest.raises(RequestError, match=r"objective\.whole=true: this data does not tell"):
        masked(whole=True)({"views": [{"x": ids, "pad": pad}], "index": torch.arange(4)})
    with pytest.raises(RequestError, match=r"objective\.span=3\.0.*objective\.whole"):
        masked(whole=True, span=3.0)


def test_single_ids_are_hidden_whatever_their_words() -> None:
    ids, pad, unit = worded(6)
    losses = []
    for words in ({}, {"unit": unit}):
        torch.manual_seed(1)
        losses.append(masked()({"views": [{"x": ids, "pad": pad}], "index": torch.arange(6), **words}).value)
    assert torch.equal(*losses)


def test_padding_is_not_hidden_whatever_id_it_has() -> None:
    ids, pad, unit = worded(60)
    for objective, words in ((masked(ratio=0.5), None), (masked(ratio=0.5, whole=True), unit)):
        place, told = objective.hiding.choose(ids.masked_fill(pad, 7), pad, words)
        found = at(place, told, LENGTH)
        assert found.any()
        assert not (found & pad).any()


# -- what follows ------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["behind", "before", "none"])
def test_what_follows_is_told_by_a_mask_behind_the_last_id(side: str) -> None:
    objective = masked().eval()
    assert isinstance(objective, NextId)
    generator = torch.Generator().manual_seed(4)
    for length in (1, 2, 9, LENGTH):
        count = length if side == "none" else max(1, length - 3)
        known = torch.randint(4, VOCAB, (3, count), generator=generator)
        known[0, count // 2] = END  # what follows stands in a document with those behind it
        known[1, -1] = END  # and in a new one, behind an end
        room = torch.full((3, length - count), PAD)
        ids = torch.cat([known, room] if side == "behind" else [room, known], 1)
        found = objective.following(ids, None if side == "none" else ids == PAD)
        assert found.shape == (3, VOCAB)
        for row in range(3):
            start = 0 if side == "behind" else length - count
            asked = [*known[row].tolist(), MASK]
            if start + count == length:  # no room behind: all move left
                asked, start = (asked, start - 1) if start else (asked[1:], 0)
            part = [sum(each == END for each in asked[:n]) for n in range(len(asked))]
            mine = [n for n, each in enumerate(part) if each == part[-1]]  # the mask's document
            positions = torch.tensor([start + n for n in mine])
            x = torch.tensor([[asked[n] for n in mine]])
            stem: Discrete = objective.backbone.stem  # type: ignore[assignment]
            tokens = stem.table(x) + stem.pos_embed[:, positions]
            z = objective.head.transform(objective.backbone.encode(tokens)[0, -1])
            wanted = stem.table.weight @ z + objective.head.bias
            torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_follows_depends_on_no_padding_and_leaves_its_input_as_it_is() -> None:
    objective = masked().eval()
    ids, pad, _ = worded(8)
    before = ids.clone()
    found = objective.following(ids, pad)
    assert torch.equal(ids, before)
    torch.testing.assert_close(objective.following(ids.masked_fill(pad, 7), pad), found)
