"""Next sentences, the order of sentences and span corruption, against what the papers write out."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.errors import RequestError
from ssl_runner.objectives import nsp, sop
from ssl_runner.objectives import span_corruption as t5
from ssl_runner.parts import segments
from ssl_runner.parts.ids import parts_of
from ssl_runner.types import Batch, TokenBackbone

VOCAB, LENGTH, PAD, END, MASK = 40, 16, 0, 1, 2
FACTS = {"vocab": VOCAB, "mask": MASK, "separator": END}


def encoder(dim: int = 16, length: int = LENGTH) -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Discrete(vocab=VOCAB, length=length, dim=dim), depth=2, heads=2)


def following(backbone: TokenBackbone | None = None) -> nsp.NSP:
    return nsp.NSP(backbone or encoder(), **FACTS, special=(PAD,), ratio=0.2)  # type: ignore[arg-type]


def ordered(backbone: TokenBackbone | None = None) -> sop.SOP:
    return sop.SOP(backbone or encoder(), **FACTS, special=(PAD,), ratio=0.2)  # type: ignore[arg-type]


def spans(**given: object) -> t5.SpanCorruption:
    chosen = {**FACTS, "length": LENGTH, "ratio": 0.3, "span": 2.0, "depth": 2, "heads": 2, **given}
    return t5.SpanCorruption(encoder(), **chosen)  # type: ignore[arg-type]


def sample(n: int = 6, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Ids of one to three documents, and which are padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (n, LENGTH), generator=generator)
    ids[torch.rand(n, LENGTH, generator=generator) < 0.12] = END
    pad = torch.arange(LENGTH) >= LENGTH - torch.arange(n)[:, None]
    return ids.masked_fill(pad, PAD), pad


def batch(ids: Tensor, pad: Tensor | None = None, unit: Tensor | None = None) -> Batch:
    found: Batch = {"views": [{"x": ids} if pad is None else {"x": ids, "pad": pad}], "index": torch.arange(len(ids))}
    if unit is not None:
        found["unit"] = unit
    return found


def documents(ids: list[int]) -> list[int]:
    """The document that each id of a sample is in."""
    found, number = [], 0
    for each in ids:
        found.append(number)
        number += each == END
    return found


# -- where a sample is cut ---------------------------------------------------------------------------------------


@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 999), words=st.booleans())
def test_a_sample_is_cut_within_a_document_and_between_words(seed: int, words: bool) -> None:
    ids, pad = sample(5, seed)
    unit = (torch.rand(ids.shape) < 0.5).cumsum(1).masked_fill((ids == END) | pad, -1) if words else None
    found = segments.cuts(ids, pad, END, unit)
    for n, row in enumerate(ids.tolist()):
        document = documents(row)
        for place in range(LENGTH):
            allowed = (
                place > 0
                and not pad[n, place]
                and document[place] == document[place - 1]
                and row[place] != END  # or the second segment were nothing but its end
                and not (unit is not None and 0 <= unit[n, place] == unit[n, place - 1])
            )
            assert bool(found[n, place]) == allowed
    place, told = segments.drawn(found)
    assert torch.equal(told, found.any(1))
    assert found.gather(1, place)[told].all()


def test_every_place_is_drawn() -> None:
    torch.manual_seed(0)
    may = torch.zeros(4000, 6, dtype=torch.bool)
    may[:, 1:5] = True
    place, _ = segments.drawn(may)
    share = torch.bincount(place[:, 0], minlength=6) / 4000
    torch.testing.assert_close(share, torch.tensor([0, 0.25, 0.25, 0.25, 0.25, 0]), rtol=0, atol=0.03)


def test_padding_on_the_left_is_no_segment() -> None:
    ids = torch.tensor([[PAD, PAD, 5, 6, 7]])
    assert segments.cuts(ids, ids == PAD, END, None).tolist() == [[False, False, False, True, True]]


# -- next sentences ----------------------------------------------------------------------------------------------


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 999))
def test_half_of_the_samples_end_with_another_ones_words(seed: int) -> None:
    ids, pad = sample(6, seed)
    torch.manual_seed(seed)
    pairs = following().pairs(batch(ids, pad))
    for n in range(6):
        other = (n + 3) % 6
        if not pairs.told[n]:
            assert torch.equal(pairs.ids[n], ids[n])
            assert not pairs.inside[n].any()
            # there was no place at which both could be cut
            ours, its = (segments.cuts(ids, pad, END, None)[k] for k in (n, other))
            assert not (ours & its).any()
            continue
        cut = int(pairs.second[n].nonzero()[0])
        behind = ids[n, cut:] if pairs.true[n] else ids[other, cut:]
        assert torch.equal(pairs.ids[n], torch.cat([ids[n, :cut], behind]))
        behind = pad[n, cut:] if pairs.true[n] else pad[other, cut:]
        assert torch.equal(pairs.pad[n], torch.cat([pad[n, :cut], behind]))
        document = documents(pairs.ids[n].tolist())
        for place in range(LENGTH):
            own = document[place] == document[cut] and not bool(pairs.pad[n, place])
            assert bool(pairs.inside[n, place]) == own
            assert bool(pairs.second[n, place]) == (own and place >= cut)
        assert document[cut] == document[cut - 1], "the second segment is in the first one's place"
        for each in (n, other):  # neither segment comes from two documents, nor begins or ends one at the cut
            source = documents(ids[each].tolist())
            assert source[cut] == source[cut - 1]


def test_a_segment_follows_in_half_of_the_samples() -> None:
    torch.manual_seed(0)
    ids = torch.where(torch.arange(4000)[:, None] < 2000, 5, torch.full((1, LENGTH), 6))  # so others differ
    pairs = following().pairs(batch(ids))
    assert pairs.told.all()
    assert pairs.true.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal((pairs.ids == ids).all(1), pairs.true)


def test_words_stay_whole() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, VOCAB, (200, LENGTH))
    unit = torch.arange(LENGTH).div(4, rounding_mode="floor").expand_as(ids)
    for objective in (following(), ordered()):
        pairs = objective.pairs(batch(ids, unit=unit))
        kept = pairs.true
        assert set(pairs.second[kept].long().argmax(1).tolist()) == {4, 8, 12}


def test_a_sample_alone_has_no_other() -> None:
    ids, pad = sample(1)
    with pytest.raises(RequestError, match="batch_size"):
        following()(batch(ids, pad))
    with torch.no_grad():
        loss = following().eval()(batch(ids, pad))
    assert loss.log["following"] == 0
    assert loss.value == loss.log["filling"]


@torch.no_grad()
@pytest.mark.parametrize("make", [following, ordered])
def test_the_loss_of_pairs_is_that_of_the_hidden_ids_and_of_the_verdict(make: type) -> None:
    ids, pad = sample(8)
    ids[7] = END  # nowhere to cut it, nor is another at its places
    objective = make()
    objective.tasks.second.normal_()
    torch.manual_seed(5)
    found = objective(batch(ids, pad))
    torch.manual_seed(5)
    pairs = objective.pairs(batch(ids, pad))
    assert not pairs.told.all()
    tasks, backbone = objective.tasks, objective.backbone
    place, told = tasks.hiding.choose(pairs.ids, pairs.pad)
    changed = tasks.hiding.corrupted(pairs.ids, place, told)
    part = parts_of(ids if make is ordered else pairs.ids, END)
    filling, verdicts, right = [], [], []
    for n in range(8):
        tokens = backbone.embed(changed[n : n + 1])
        for t in range(LENGTH):
            if pairs.second[n, t]:
                tokens[0, t] += tasks.second
        tokens = backbone.encode(tokens, pairs.pad[n : n + 1], part=part[n : n + 1])[0]  # type: ignore[index]
        for k in range(place.shape[1]):
            if told[n, k]:
                z = tasks.head.transform(tokens[place[n, k]])
                scores = backbone.stem.table.weight @ z + tasks.head.bias
                filling.append(-float(scores.log_softmax(0)[pairs.ids[n, place[n, k]]]))
        if pairs.told[n]:
            own = [tokens[t] for t in range(LENGTH) if pairs.inside[n, t]]
            score = float(tasks.verdict(sum(own) / len(own)))
            chance = 1 / (1 + math.exp(-score))
            verdicts.append(-math.log(chance if pairs.true[n] else 1 - chance))
            right.append((score > 0) == bool(pairs.true[n]))
    assert found.log["filling"].item() == pytest.approx(sum(filling) / len(filling), abs=1e-5)
    assert found.log["following"].item() == pytest.approx(sum(verdicts) / len(verdicts), abs=1e-5)
    assert found.log["following_accuracy"].item() == pytest.approx(sum(right) / len(right))
    assert found.value.item() == pytest.approx(sum(filling) / len(filling) + sum(verdicts) / len(verdicts), abs=1e-5)


def test_a_single_text_is_embedded_as_a_first_segment() -> None:
    """What is scored and kept is the backbone alone: its tokens are those of training, without the second's part."""
    objective = following().eval()
    ids, pad = sample()
    pairs = objective.pairs(batch(ids, pad))
    nothing = pairs._replace(second=torch.zeros_like(pairs.second))
    backbone = objective.backbone
    plain = backbone.encode(backbone.embed(pairs.ids), pairs.pad, part=pairs.part)
    assert torch.equal(objective.tasks.tokens(backbone, pairs.ids, nothing), plain)
    assert not torch.allclose(objective.tasks.tokens(backbone, pairs.ids, pairs), plain, atol=1e-4)


def test_it_learns_whether_segments_are_of_one_text() -> None:
    """Texts of two alphabets, and all others of the batch that end a sample are of the other one."""
    objective = following()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    right = []
    for step in range(90):
        torch.manual_seed(step)
        ids = torch.randint(3, 11, (32, LENGTH)) + 8 * (torch.arange(32) < 16)[:, None]
        loss = objective(batch(ids))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        right.append(loss.log["following_accuracy"].item())
    assert sum(right[:10]) / 10 < 0.7
    assert sum(right[-10:]) / 10 > 0.85


# -- the order of sentences --------------------------------------------------------------------------------------


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 999))
def test_the_two_stretches_of_a_document_change_places(seed: int) -> None:
    ids, pad = sample(6, seed)
    torch.manual_seed(seed)
    pairs = ordered().pairs(batch(ids, pad))
    assert torch.equal(pairs.part, parts_of(ids, END))  # type: ignore[arg-type]
    for n in range(6):
        if not pairs.told[n]:
            assert torch.equal(pairs.ids[n], ids[n])
            assert not pairs.inside[n].any()
            continue
        places = pairs.inside[n].nonzero()[:, 0].tolist()
        start, end = places[0], places[-1] + 1
        assert places == list(range(start, end))
        document = documents(ids[n].tolist())
        whole = [t for t in range(LENGTH) if document[t] == document[start] and ids[n, t] != END and not pad[n, t]]
        assert places == whole
        later = int(pairs.second[n].nonzero()[0])
        assert pairs.second[n].nonzero()[:, 0].tolist() == list(range(later, end))
        row = ids[n].tolist()
        if not pairs.true[n]:
            cut = start + end - later
            row = [*row[:start], *row[cut:end], *row[start:cut], *row[end:]]
        assert pairs.ids[n].tolist() == row


def test_segments_are_in_their_order_in_half_of_the_samples() -> None:
    torch.manual_seed(0)
    ids = torch.arange(3, 3 + LENGTH).expand(4000, -1)
    pairs = ordered().pairs(batch(ids))
    assert pairs.true.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal((pairs.ids == ids).all(1), pairs.true)


@settings(max_examples=60, derandomize=True)
@given(before=st.integers(0, 4), first=st.integers(1, 6), second=st.integers(1, 6), after=st.integers(0, 4))
def test_exchanging_twice_changes_nothing(before: int, first: int, second: int, after: int) -> None:
    length = before + first + second + after
    at = torch.arange(length)[None]
    stretch = (at >= before) & (at < before + first + second)
    order, late = sop.exchanged(stretch, torch.tensor([[before + first]]))
    back, _ = sop.exchanged(stretch, torch.tensor([[before + second]]))
    assert torch.equal(order.gather(1, back), at)
    assert int(late.sum()) == first


# -- spans -------------------------------------------------------------------------------------------------------


@settings(max_examples=80, derandomize=True)
@given(
    length=st.integers(2, 70),
    ratio=st.floats(0.01, 0.99),
    span=st.floats(1, 10),
    seed=st.integers(0, 99),
)
def test_every_sample_has_so_many_hidden_ids_in_so_many_stretches(
    length: int, ratio: float, span: float, seed: int
) -> None:
    hidden, stretches = t5.sizes(length, ratio, span)
    assert 1 <= stretches <= hidden < length
    assert hidden == min(max(round(length * ratio), 1), length - 1)
    torch.manual_seed(seed)
    noise = t5.noise_mask(4, length, hidden, stretches)
    for row in noise.tolist():
        runs = [(value, len(list(run))) for value, run in itertools.groupby(row)]
        assert sum(n for value, n in runs if value) == hidden
        assert len([n for value, n in runs if value]) == stretches
        assert not row[0]
        assert row[-1]


def test_the_lengths_are_the_authors() -> None:
    """Of 568 ids their code makes inputs of 512 and targets of 114, an end marker in each."""
    hidden, stretches = t5.sizes(568, 0.15, 3.0)
    assert 568 - hidden + stretches + 1 == 512
    assert hidden + stretches + 1 == 114


def test_every_division_is_as_likely() -> None:
    torch.manual_seed(0)
    found = Counter(tuple(row) for row in t5.division(12000, 5, 3).tolist())
    assert set(found) == {d for d in itertools.product(range(1, 6), repeat=3) if sum(d) == 5}
    for count in found.values():
        assert count / 12000 == pytest.approx(1 / 6, abs=0.02)
    assert t5.division(2, 1, 1).tolist() == [[1], [1]]


@settings(max_examples=80, derandomize=True)
@given(
    length=st.integers(2, 40),
    ratio=st.floats(0.02, 0.9),
    span=st.sampled_from([1.0, 2.5, 3.0]),
    seed=st.integers(0, 99),
)
def test_what_is_left_and_what_is_told_give_the_sample_back(length: int, ratio: float, span: float, seed: int) -> None:
    torch.manual_seed(seed)
    ids = torch.randint(0, VOCAB, (3, length))
    sizes = t5.sizes(length, ratio, span)
    noise = t5.noise_mask(3, length, *sizes)
    text = t5.corrupted(ids, torch.zeros_like(noise), noise, *sizes, VOCAB)
    for n in range(3):
        stretches: dict[int, list[int]] = {}
        for each in text.target[n].tolist():
            if each >= VOCAB:
                last = stretches.setdefault(each - VOCAB, [])
            else:
                last.append(each)
        assert list(stretches) == list(range(sizes[1] + 1)), "sentinels are numbered in order"
        assert stretches[sizes[1]] == [], "the last is the end"
        whole: list[int] = []
        for each, number in zip(text.left[n].tolist(), text.number[n].tolist(), strict=True):
            whole += [each] if number < 0 else stretches[number]
        assert whole == ids[n].tolist()
        assert [v for v in text.number[n].tolist() if v >= 0] == list(range(sizes[1]))
        assert text.target[n].gather(0, text.at[n]).tolist() == ids[n].gather(0, text.hidden[n]).tolist()


def test_padding_is_not_told() -> None:
    ids = torch.arange(10, 20)[None]
    pad = torch.zeros_like(ids, dtype=torch.bool)
    pad[0, 8:] = True
    noise = torch.tensor([[0, 1, 0, 0, 0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0, 1, 1]]).bool()
    text = t5.corrupted(ids.expand(2, -1), pad.expand(2, -1), noise, 3, 2, 100)
    assert text.target.tolist() == [[100, 11, 101, 17, 18, 102], [100, 11, 101, 18, 19, 102]]
    assert text.told.tolist() == [[True, True, True, True, False, True], [True, True, False, False, False, True]]
    assert text.left.tolist() == [[10, 11, 12, 13, 14, 15, 16, 17, 19], [10, 11, 12, 13, 14, 15, 16, 17, 18]]
    assert text.pad.tolist() == [[False] * 8 + [True], [False] * 8 + [True]]


@torch.no_grad()
def test_the_loss_of_spans_is_that_of_each_id_given_those_before_it() -> None:
    ids, pad = sample()
    objective = spans()
    objective.mask_token.normal_()
    torch.manual_seed(5)
    found = objective(batch(ids, pad))
    torch.manual_seed(5)
    text = objective.hide(ids, pad)
    table = objective.backbone.stem.table.weight  # type: ignore[union-attr]
    position = objective.backbone.stem.pos_embed[0]  # type: ignore[union-attr]
    vectors = [*table, *(table[MASK] + each for each in objective.mask_token)]
    total, count = 0.0, 0
    right: list[bool] = []
    for n in range(len(ids)):
        inputs = []
        for m, number in enumerate(text.number[n].tolist()):
            inputs.append(position[m] + (vectors[VOCAB + number] if number >= 0 else table[text.left[n, m]]))
        document = documents(ids[n].tolist())
        part = torch.tensor([[document[t] for t in text.place[n].tolist()]])
        # alone, without what is padding
        there = ~text.pad[n]
        tokens = objective.backbone.encode(torch.stack(inputs)[None][:, there], part=part[:, there])
        target = text.target[n].tolist()
        before = [target[-1]]
        for t, wanted in enumerate(target):
            if text.told[n, t]:
                prefix = torch.stack([vectors[v] for v in before])[None]
                # padding that is not told stays in its place, unseen
                unseen = torch.tensor([[False, *(not told for told in text.told[n, :t].tolist())]])
                nothing = torch.zeros(tokens.shape[:2], dtype=torch.bool)
                z = objective.decoder(prefix, unseen, tokens, nothing)[0, -1]
                scores = torch.stack([v @ z for v in vectors])
                total -= float(scores.log_softmax(0)[wanted])
                if wanted < VOCAB:
                    right.append(int(scores.argmax()) == wanted)
                count += 1
            before.append(wanted if text.told[n, t] else MASK)
    assert count == int(text.told.sum())
    assert found.value.item() == pytest.approx(total / count, abs=1e-4)
    assert found.log["accuracy"].item() == pytest.approx(sum(right) / len(right))


def test_the_decoder_reads_and_sees_nothing_that_comes_later() -> None:
    objective = spans()
    ids, _ = sample()
    text = objective.hide(ids, None)
    read = objective.read(text)
    logits = objective.logits(read, text, text.target)
    target = text.target.clone()
    target[:, 4] = 7  # is read from the next place on
    other = objective.logits(read, text, target)
    assert torch.equal(logits[:, :5], other[:, :5])
    assert not torch.allclose(logits[:, 5:], other[:, 5:], atol=1e-4)
    assert not torch.allclose(logits, objective.logits(read.flip(0), text, text.target), atol=1e-4), "reads nothing"


@torch.no_grad()
def test_padding_changes_nothing_and_a_sample_of_it_stays_finite() -> None:
    objective = spans()
    ids, pad = sample()
    pad[5] = True
    left = torch.arange(LENGTH) < torch.arange(6)[:, None]
    for each in (pad, left | pad):
        losses = []
        for filler in (PAD, 9):
            torch.manual_seed(1)
            losses.append(objective(batch(ids.masked_fill(each, filler), each)).value)
        assert losses[0].isfinite()
        assert torch.equal(losses[0], losses[1])


def test_no_document_sees_another_in_the_encoder() -> None:
    objective = spans()
    ids = torch.randint(3, VOCAB, (1, LENGTH))
    ids[0, 6] = END
    other = ids.clone()
    other[0, :3] += 1
    for seed in range(5):
        found = []
        for each in (ids, other.clamp(max=VOCAB - 1)):
            torch.manual_seed(seed)
            text = objective.hide(each, None)
            found.append(objective.read(text))
        later = text.place[0] > 6
        assert torch.equal(found[0][:, later], found[1][:, later])


@torch.no_grad()
def test_stretches_are_filled_with_the_likeliest_ids_one_after_another() -> None:
    objective = spans().eval()
    ids, pad = sample()
    torch.manual_seed(2)
    text = objective.hide(ids, pad)
    filled = objective.fill(text)
    whole = text.target.scatter(1, text.at, filled)
    scores = objective.logits(objective.read(text), text, whole)[..., :VOCAB]
    assert torch.equal(scores.argmax(2).gather(1, text.at), filled)
    torch.manual_seed(2)
    first, masked, told = objective.show(batch(ids, pad))["filled"]
    assert torch.equal(first, ids)
    assert torch.equal(masked, ids.scatter(1, text.hidden, MASK))
    hidden = torch.zeros_like(pad).scatter(1, text.hidden, True) & ~pad
    assert torch.equal(told[~hidden], ids[~hidden])
    assert torch.equal(told.gather(1, text.hidden)[text.told.gather(1, text.at)], filled[text.told.gather(1, text.at)])


def test_it_learns_what_the_encoder_tells_the_decoder() -> None:
    """Samples of one id, over and over: the rest tells what is hidden."""
    objective = spans(span=1.0, depth=1)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for step in range(75):
        torch.manual_seed(step)
        ids = torch.randint(3, 11, (32, 1)).expand(-1, LENGTH)
        loss = objective(batch(ids))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert loss.log["accuracy"] > 0.95
    text = objective.eval().hide(ids, None)
    assert (objective.fill(text) == ids.gather(1, text.hidden)).float().mean() > 0.95


def test_heads_and_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RequestError, match=r"objective\.heads=3"):
        spans(heads=3)
    values = Encoder(stem=Continuous(shape=(1, 8), block=(2,), dim=8), depth=1, heads=2)
    for make in (following, ordered):
        with pytest.raises(RequestError, match="predicts ids"):
            make(values)
    with pytest.raises(RequestError, match="predicts ids"):
        t5.SpanCorruption(values, **FACTS, length=8, heads=2)  # type: ignore[arg-type]


def test_what_is_shown_of_pairs() -> None:
    ids, pad = sample()
    for objective in (following().eval(), ordered().eval()):
        torch.manual_seed(0)
        with torch.no_grad():
            pairs, changed, filled = objective.show(batch(ids, pad))["filled"]
        torch.manual_seed(0)
        assert torch.equal(pairs, objective.pairs(batch(ids, pad)).ids)
        assert MASK in changed
        hidden = changed != pairs
        assert 0 < hidden.sum() < pairs.numel() * 0.3
        assert (filled != MASK).any()
