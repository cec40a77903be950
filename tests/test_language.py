"""Masked and causal language modelling, on ids of any kind, against what the papers write out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.errors import RequestError
from ssl_runner.objectives import clm, electra, mlm
from ssl_runner.parts.hiding import chosen, spans
from ssl_runner.parts.ids import parts_of
from ssl_runner.types import Batch

VOCAB, LENGTH, PAD, END, MASK = 23, 16, 0, 1, 2


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Discrete(vocab=VOCAB, length=LENGTH, dim=16), depth=2, heads=2)


def masked(**given: object) -> mlm.MLM:
    return mlm.MLM(encoder(), vocab=VOCAB, mask=MASK, special=(PAD,), separator=END, **given)  # type: ignore[arg-type]


def causal(separator: int | None = END) -> clm.CLM:
    return clm.CLM(encoder(), separator=separator)


def sample(n: int = 6) -> tuple[Tensor, Tensor]:
    """Ids of one to three documents, and which are padding."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCAB, (n, LENGTH), generator=generator)
    ids[torch.rand(n, LENGTH, generator=generator) < 0.12] = END
    pad = torch.arange(LENGTH) >= LENGTH - torch.arange(n)[:, None]
    return ids.masked_fill(pad, PAD), pad


def batch(ids: Tensor, pad: Tensor | None) -> Batch:
    return {"views": [{"x": ids} if pad is None else {"x": ids, "pad": pad}], "index": torch.arange(len(ids))}


# -- documents ---------------------------------------------------------------------------------------------------


def test_a_document_ends_with_its_separator() -> None:
    ids = torch.tensor([[5, END, 6, 7, END, 8], [END, END, 3, 4, 5, 6]])
    assert parts_of(ids, END).tolist() == [[1, 1, 2, 2, 2, 3], [1, 2, 3, 3, 3, 3]]  # type: ignore[union-attr]
    assert parts_of(ids, None) is None


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_no_document_sees_another(kind: str) -> None:
    ids = torch.tensor([[5, 6, 7, END, 8, 9, 10, 11]])
    other = ids.clone()
    other[0, :3] = torch.tensor([12, 13, 14])
    objective = masked() if kind == "masked" else causal()
    backbone, part = objective.backbone, parts_of(ids, END)
    one, two = (backbone.encode(backbone.embed(x), causal=kind == "causal", part=part) for x in (ids, other))
    assert torch.equal(one[:, 4:], two[:, 4:])
    assert not torch.allclose(one[:, 3], two[:, 3])
    joined = backbone.encode(backbone.embed(other), causal=kind == "causal")
    assert not torch.allclose(joined[:, 4:], two[:, 4:])


# -- masked ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_masked_loss_is_the_mean_of_minus_log_p_at_the_told_places() -> None:
    ids, pad = sample()
    objective = masked()
    torch.manual_seed(5)
    found = objective(batch(ids, pad))
    torch.manual_seed(5)
    may = torch.tensor([[int(i) not in (PAD, END, MASK) for i in row] for row in ids])
    place, told = chosen(may, 0.15, None)
    changed = objective.hiding.corrupted(ids, place, told)
    total, right, count = 0.0, 0, 0
    for n in range(len(ids)):
        for k in range(place.shape[1]):
            if not told[n, k]:
                continue
            where = int(place[n, k])
            own = parts_of(ids, END)[n]  # type: ignore[index]
            tokens = objective.backbone.encode(
                objective.backbone.embed(changed[n : n + 1]), pad[n : n + 1], part=own[None]
            )[0]
            z = objective.head.transform(tokens[where])
            table = objective.backbone.stem.table.weight  # type: ignore[union-attr]
            scores = [float(z @ table[v] + objective.head.bias[v]) for v in range(VOCAB)]  # type: ignore[index]
            top = max(scores)
            log_sum = top + math.log(sum(math.exp(s - top) for s in scores))
            total += log_sum - scores[int(ids[n, where])]
            right += scores.index(top) == int(ids[n, where])
            count += 1
    assert found.value.item() == pytest.approx(total / count, abs=1e-5)
    assert found.log["accuracy"].item() == pytest.approx(right / count)


@settings(max_examples=60, derandomize=True)
@given(
    length=st.integers(1, 40),
    ratio=st.floats(0.01, 0.9),
    span=st.sampled_from([None, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_so_many_are_told_of_each_sample_and_only_such_as_may_be(
    length: int, ratio: float, span: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    may = torch.rand(5, length) < 0.7
    may[0] = False
    place, told = chosen(may, ratio, span)
    for n in range(5):
        count = int(may[n].sum())
        places = place[n][told[n]].tolist()
        assert (
            len(places) == len(set(places)) == min(count, max(1, round(ratio * count)) if count else 0, place.shape[1])
        )
        assert all(may[n, p] for p in places)


def test_eight_in_ten_become_the_mask_one_another_id_and_one_stays() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, VOCAB, (4000, LENGTH))
    objective = masked()
    place, told = chosen(torch.ones_like(ids, dtype=torch.bool), 0.15, None)
    after = objective.hiding.corrupted(ids, place, told)
    at = torch.zeros_like(ids, dtype=torch.bool).scatter(1, place, told)
    assert torch.equal(after[~at], ids[~at])
    became, was = after[at], ids[at]
    assert (became == MASK).float().mean() == pytest.approx(0.8, abs=0.02)
    # one of the 20 usual ids that are drawn is the id itself
    assert (became == was).float().mean() == pytest.approx(0.1 + 0.1 / 20, abs=0.02)
    others = became[(became != MASK) & (became != was)]
    assert set(others.tolist()) == set(range(3, VOCAB)), "special ids are not drawn, and all others are"


def test_what_is_hidden_is_drawn_anew() -> None:
    may = torch.ones(1, 60, dtype=torch.bool)
    assert len({tuple(sorted(chosen(may, 0.15, None)[0][0].tolist())) for _ in range(20)}) == 20


def test_spans_hide_neighbours_and_are_cut_at_ten() -> None:
    torch.manual_seed(0)
    score = spans(torch.rand(4000, 64), 3.8)
    runs = []
    for row in score[:500].tolist():
        run = 1
        for a, b in zip(row, [*row[1:], None], strict=True):
            if a == b:
                run += 1
            else:
                runs.append(run)
                run = 1
    assert max(runs) == 10
    wanted = sum(0.263158 * (1 - 0.263158) ** (k - 1) * k for k in range(1, 10)) + 10 * (1 - 0.263158) ** 9
    # a stretch that is cut leaves a shorter one behind it
    assert 2.8 < sum(runs) / len(runs) < wanted
    may = torch.ones(2000, 64, dtype=torch.bool)
    together = {}
    for unit, span in (("token", None), ("span", 3.8)):
        place, told = chosen(may, 0.15, span)
        at = torch.zeros_like(may).scatter(1, place, told)
        together[unit] = (at[:, 1:] & at[:, :-1]).sum() / at.sum()
    assert together["span"] > 3 * together["token"]


# -- replaced ----------------------------------------------------------------------------------------------------


def replacing(**given: object) -> electra.ELECTRA:
    facts = {"vocab": VOCAB, "mask": MASK, "special": (PAD,), "separator": END}
    return electra.ELECTRA(encoder(), generator=encoder(), **facts, **given)  # type: ignore[arg-type]


@torch.no_grad()
def test_the_electra_loss_is_the_generators_and_lambda_times_the_detectors() -> None:
    ids, pad = sample()
    objective = replacing(weight=7.0)
    torch.manual_seed(5)
    found = objective(batch(ids, pad))
    torch.manual_seed(5)
    place, told = objective.generator.hiding.choose(ids, pad)
    hidden = objective.generator.hiding.corrupted(ids, place, told)
    at = torch.zeros_like(ids, dtype=torch.bool).scatter(1, place, told)
    assert (hidden[at] == MASK).all()
    logits = objective.generator.predict(hidden, ids, pad, place)
    changed = objective.filled(ids, place, told, logits)
    assert torch.equal(changed[~at], ids[~at])
    filling = [
        -float(logits[n, k].log_softmax(0)[ids[n, place[n, k]]])
        for n in range(len(ids))
        for k in range(place.shape[1])
        if told[n, k]
    ]
    scores = objective.scores(changed, pad, parts_of(ids, END))
    telling = []
    for n in range(len(ids)):
        for t in range(LENGTH - n):  # the rest is padding
            chance = 1 / (1 + math.exp(-float(scores[n, t])))
            telling.append(-math.log(chance if changed[n, t] != ids[n, t] else 1 - chance))
    wanted = sum(filling) / len(filling) + 7 * sum(telling) / len(telling)
    assert found.value.item() == pytest.approx(wanted, abs=1e-4)


def test_the_detectors_term_does_not_reach_the_generator() -> None:
    ids, pad = sample()
    grads = []
    for weight in (1e-6, 50.0):
        objective = replacing(weight=weight)
        torch.manual_seed(5)
        objective(batch(ids, pad)).value.backward()
        grads.append([p.grad for p in objective.generator.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_what_the_generator_puts_in_is_drawn_from_its_softmax() -> None:
    torch.manual_seed(0)
    objective = replacing()
    logits = torch.tensor([2.0, 1.0, 0.0, *[-9.0] * (VOCAB - 3)]).expand(20000, 1, VOCAB)
    ids, place = torch.full((20000, 1), 5), torch.zeros(20000, 1, dtype=torch.int64)
    drawn = objective.filled(ids, place, torch.ones(20000, 1, dtype=torch.bool), logits)
    for value, chance in enumerate(logits[0, 0].softmax(0)[:3].tolist()):
        assert (drawn == value).float().mean().item() == pytest.approx(chance, abs=0.015)


# -- causal ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_causal_loss_predicts_each_id_from_those_before_it_in_its_document() -> None:
    ids, pad = sample()
    objective = causal()
    found = objective(batch(ids, pad)).value
    total, count = 0.0, 0
    table = objective.backbone.stem.table.weight  # type: ignore[union-attr]
    for n in range(len(ids)):
        length = int((~pad[n]).sum())
        for t in range(1, length):
            first = max([k + 1 for k in range(t) if ids[n, k] == END], default=0)
            if first == t:
                continue  # the first of a document
            alone = ids[n : n + 1, :t]
            part = (torch.arange(t) >= first).long()[None]
            z = objective.backbone.encode(objective.backbone.embed(alone), causal=True, part=part)[0, -1]
            total -= float((table @ z).log_softmax(0)[ids[n, t]])
            count += 1
    assert found.item() == pytest.approx(total / count, abs=1e-5)


def test_what_follows_changes_no_logits() -> None:
    ids, _ = sample()
    objective = causal(separator=None)
    other = ids.clone()
    other[:, 9:] = 5
    assert torch.allclose(objective.logits(ids)[:, :9], objective.logits(other)[:, :9], atol=1e-6)
    assert not torch.allclose(objective.logits(ids)[:, 9:], objective.logits(other)[:, 9:], atol=1e-3)


def test_generation_goes_on_step_by_step() -> None:
    objective = causal(separator=None).eval()
    start = torch.tensor([[4, 5], [6, 7]])
    greedy = objective.generate(start, 20, window=LENGTH, temperature=0)
    assert greedy.shape == (2, 22)
    assert torch.equal(greedy[:, :2], start)
    for t in range(2, 22):
        seen = greedy[:, max(0, t - LENGTH) : t]
        assert torch.equal(objective.logits(seen)[:, -1].argmax(1), greedy[:, t])
    assert torch.equal(objective.generate(start, 5, window=LENGTH, top_k=1), greedy[:, :7])
    assert torch.equal(objective.generate(start, 5, window=LENGTH, top_p=1e-6), greedy[:, :7])
    torch.manual_seed(1)
    first = objective.generate(start, 10, window=LENGTH)
    torch.manual_seed(1)
    assert torch.equal(objective.generate(start, 10, window=LENGTH), first)
    assert not torch.equal(first, greedy[:, :12])


@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 999), top_k=st.one_of(st.none(), st.integers(1, 12)), top_p=st.floats(0.01, 1.0))
def test_only_the_likeliest_are_kept(seed: int, top_k: int | None, top_p: float) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(3, 9) * 2
    found = clm.kept(logits, top_k, top_p)
    for row, kept in zip(logits.tolist(), found.tolist(), strict=True):
        order = sorted(range(9), key=lambda v: -row[v])[: top_k or 9]
        weights = [math.exp(row[v]) for v in order]
        wanted, reached = [], 0.0
        for v, weight in zip(order, weights, strict=True):
            if reached / sum(weights) >= top_p - 1e-6 and wanted:
                break
            wanted.append(v)
            reached += weight
        assert {v for v in range(9) if kept[v] > -math.inf} == set(wanted)
        assert all(kept[v] == pytest.approx(row[v]) for v in wanted)


def test_values_are_no_ids() -> None:
    backbone = Encoder(stem=Continuous(shape=(1, 8), block=(2,), dim=8), depth=1, heads=2)
    with pytest.raises(RequestError, match="predicts ids"):
        clm.CLM(backbone, separator=None)


def test_what_is_shown_of_ids() -> None:
    ids, _ = sample()
    ids = ids.where(ids != PAD, 5)
    objective = causal(separator=None).eval()
    given, made = objective.show(batch(ids, None))["completion"]
    assert torch.equal(given, ids)
    assert torch.equal(made[:, : LENGTH // 2], ids[:, : LENGTH // 2])
    assert made.shape == ids.shape
    hiding = masked().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        whole, changed, filled = hiding.show(batch(ids, None))["filled"]
    assert torch.equal(whole, ids)
    assert ((changed != ids) <= (ids > MASK)).all()
    assert MASK in changed
    assert ((filled != ids).sum(1) <= 3).all()
