"""How likely text is: by a language model id by id, by n-grams against Chen & Goodman's formulas, and GPT-2's own."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Discrete
from ssl_runner.errors import RunError
from ssl_runner.evaluators.likelihood import Surprise, stream_nats, windows
from ssl_runner.evaluators.ngram import NGram, discounts
from ssl_runner.objectives.clm import CLM, surprise
from ssl_runner.types import Embed, Likelihood, TokenBackbone

VOCAB, LENGTH, PAD, END = 19, 12, 0, 1


def causal(separator: int | None = END) -> CLM:
    torch.manual_seed(0)
    encoder = Encoder(stem=Discrete(vocab=VOCAB, length=LENGTH, dim=16), depth=2, heads=2)
    with torch.no_grad():
        encoder.stem.table.weight.mul_(20)  # so that ids differ in their chances
    return CLM(encoder, separator=separator).eval()


def ids_and_pad() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, VOCAB, (5, LENGTH), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.15] = END
    pad = torch.arange(LENGTH) >= LENGTH - torch.arange(5)[:, None]
    return ids.masked_fill(pad, PAD), pad


# -- the objective -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_nats_of_each_id_are_those_given_its_document_so_far() -> None:
    ids, pad = ids_and_pad()
    objective = causal()
    nats, told = objective.nats(ids, pad)
    table = objective.backbone.stem.table.weight  # type: ignore[union-attr]
    for n in range(len(ids)):
        for t in range(LENGTH):
            if t == 0 or pad[n, t] or ids[n, t - 1] == END:
                assert not told[n, t]
                assert nats[n, t] == 0
                continue
            first = max([k + 1 for k in range(t) if ids[n, k] == END], default=0)
            tokens = objective.backbone.embed(ids[n : n + 1, :t])[:, first:]
            z = objective.backbone.encode(tokens, causal=True)[0, -1]
            assert told[n, t]
            assert nats[n, t].item() == pytest.approx(-float((table @ z).log_softmax(0)[ids[n, t]]), abs=1e-5)
    loss = objective({"views": [{"x": ids, "pad": pad}], "index": torch.arange(5)}).value
    assert loss.item() == pytest.approx(float(nats.sum() / told.sum()), abs=1e-5)


def test_minus_log_p_is_in_fp32_whatever_the_scores_are_in() -> None:
    scores, ids = (10 * torch.randn(4, 5, VOCAB)).bfloat16(), torch.randint(VOCAB, (4, 5))
    found = surprise(scores, ids)
    assert found.dtype == torch.float32
    wanted = -scores.double().log_softmax(2).gather(2, ids[..., None])[..., 0]
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_in_front_predicts_nothing() -> None:
    ids = torch.tensor([[PAD, PAD, 5, 6, 7, 8]])
    _, told = causal(None).nats(ids, ids == PAD)
    assert told.tolist() == [[False, False, False, True, True, True]]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_follows_the_last_id_ignores_padding_on_either_side(side: str) -> None:
    objective = causal(None)
    given = torch.tensor([[5, 6, 7, 8, 9, 10]]).repeat(4, 1)
    pad = torch.zeros_like(given, dtype=torch.bool)
    for n in range(4):
        pad[n, :n] = side == "left"
        pad[n, 6 - n :] = side == "right"
    found = objective.following(given.masked_fill(pad, PAD), pad)
    table = objective.backbone.stem.table.weight  # type: ignore[union-attr]
    for n in range(4):
        ids = given[n : n + 1]
        if not pad[n, -1]:  # in training nothing follows the last place: one step to the left, without the first
            ids = ids.roll(-1, 1)
        told = ~pad[n] if pad[n, -1] else torch.cat([~pad[n, 1:], torch.tensor([False])])
        alone = objective.backbone.embed(ids)[:, told]  # in the places where they stand
        z = objective.backbone.encode(alone, causal=True)[0, -1]
        torch.testing.assert_close(found[n], table @ z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(objective.following(given)[0], objective.logits(given)[0, -1])


def test_the_next_item_is_asked_for_at_a_place_that_learned_to_tell_one() -> None:
    """The gradient of the training loss reaches every position but the last; following reads none but those."""
    objective = causal(None)
    ids = torch.randint(3, VOCAB, (8, LENGTH))
    pad = torch.zeros_like(ids, dtype=torch.bool)
    pad[:4, :2] = True
    table = objective.backbone.stem.pos_embed  # type: ignore[union-attr]
    (trained,) = torch.autograd.grad(objective({"views": [{"x": ids, "pad": pad}], "index": ids[:, 0]}).value, table)
    assert not trained[0, -1].any()
    (asked,) = torch.autograd.grad(objective.following(ids, pad).sum(), table)
    assert asked[0, -2].any()
    assert not asked[0, trained[0].abs().sum(1) == 0].any()


@torch.no_grad()
def test_what_follows_depends_on_the_last_document_alone() -> None:
    one, other = torch.tensor([[5, 6, END, 7, 8]]), torch.tensor([[9, 10, END, 7, 8]])
    assert torch.equal(causal().following(one), causal().following(other))
    assert not torch.equal(causal(None).following(one), causal(None).following(other))


def test_a_document_that_has_ended_is_not_gone_on_with() -> None:
    made = causal().generate(torch.tensor([[5, 6, END], [5, 6, 7]]), 4, window=LENGTH)
    assert made[0].tolist() == [5, 6, END, END, END, END, END]
    ended = (made[1] == END).cumsum(0) > 0
    assert (made[1][ended] == END).all()


# -- GPT-2, by the library that has its weights ------------------------------------------------------------------


@torch.no_grad()
def test_gpt2s_logits_are_the_librarys_at_every_step_of_a_generation() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=3,
        n_head=4,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,  # so that each id matters
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = GPT2LMHeadModel(config).eval()
    for parameter in theirs.parameters():  # norms and biases too
        parameter.add_(0.1 * torch.randn_like(parameter))
    ours = CLM(with_weights_of(theirs), separator=None).eval()

    ids = torch.randint(VOCAB, (4, LENGTH))
    torch.testing.assert_close(ours.logits(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    nats, told = ours.nats(ids)
    assert nats[told].mean().item() == pytest.approx(theirs(ids, labels=ids).loss.item(), abs=1e-5)

    start = ids[:, :2]
    made = ours.generate(start, LENGTH - 2, window=LENGTH, temperature=0)
    assert torch.equal(made, theirs.generate(start, max_new_tokens=LENGTH - 2, do_sample=False, pad_token_id=PAD))
    for t in range(2, LENGTH + 1):
        torch.testing.assert_close(ours.following(made[:, :t]), theirs(made[:, :t]).logits[:, -1], atol=1e-5, rtol=1e-5)


def with_weights_of(gpt2: torch.nn.Module) -> Encoder:
    """Its layers keep (in, out) weights, ours (out, in)."""
    config, source = gpt2.config, gpt2.transformer  # type: ignore[attr-defined]
    stem = Discrete(vocab=config.vocab_size, length=config.n_positions, dim=config.n_embd)
    encoder = Encoder(stem=stem, depth=config.n_layer, heads=config.n_head, causal=True)
    stem.table.weight.copy_(source.wte.weight)
    stem.pos_embed.copy_(source.wpe.weight[None])
    for block, theirs in zip(encoder.blocks, source.h, strict=True):
        for norm, its in ((block.norm1, theirs.ln_1), (block.norm2, theirs.ln_2)):
            norm.load_state_dict(its.state_dict())
        for layer, its in (
            (block.qkv, theirs.attn.c_attn),
            (block.out, theirs.attn.c_proj),
            (block.up, theirs.mlp.c_fc),
            (block.down, theirs.mlp.c_proj),
        ):
            layer.weight.copy_(its.weight.T)
            layer.bias.copy_(its.bias)
    encoder.norm.load_state_dict(source.ln_f.state_dict())
    return encoder


# -- n-grams -----------------------------------------------------------------------------------------------------


def reference(sequences: list[list[int]], context: list[int], symbol: int, symbols: int, order: int) -> float:
    """Modified Kneser-Ney, interpolated, written out: p(symbol | context)."""
    context = context[len(context) - (order - 1) :] if len(context) >= order else context
    counts = gram_counts(sequences, len(context) + 1, order)
    many = Counter(counts.values())
    y = many[1] / (many[1] + 2 * many[2]) if many[1] else 0.0
    taken = {0: 0.0}
    for j in (1, 2, 3):
        estimate = j - (j + 1) * y * many[j + 1] / many[j] if many[j] and many[1] else 0.0
        taken[j] = estimate if 0 < estimate <= j else j / 2
    following = {g[-1]: c for g, c in counts.items() if list(g[:-1]) == context}
    lower = reference(sequences, context[1:], symbol, symbols, order) if context else 1 / symbols
    total = sum(following.values())
    if total == 0:
        return lower
    own = following.get(symbol, 0)
    left = sum(taken[min(c, 3)] for c in following.values())
    return (own - taken[min(own, 3)] + left * lower) / total


def gram_counts(sequences: list[list[int]], length: int, order: int) -> dict[tuple[int, ...], int]:
    """How often, or behind how many different symbols."""
    if length == order:
        return Counter(tuple(s[i : i + length]) for s in sequences for i in range(len(s) - length + 1))
    before: dict[tuple[int, ...], set[int]] = {}
    for s in sequences:
        for i in range(1, len(s) - length + 1):
            before.setdefault(tuple(s[i : i + length]), set()).add(s[i - 1])
    return {gram: len(symbols) for gram, symbols in before.items()}


texts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), min_size=1, max_size=4)


@settings(max_examples=40, derandomize=True)
@given(train=texts, test=texts, order=st.integers(1, 4))
def test_an_n_gram_model_is_the_formula_of_the_paper(train: list, test: list, order: int) -> None:
    found = NGram(train, symbols=5, order=order).nats(test)
    wanted = [-math.log(reference(train, s[:i], s[i], 5, order)) for s in test for i in range(len(s))]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@settings(max_examples=40, derandomize=True)
@given(train=texts, context=st.lists(st.integers(0, 4), max_size=6), order=st.integers(1, 5))
def test_the_chances_of_all_symbols_sum_to_one_behind_any_context(train: list, context: list, order: int) -> None:
    """Symbol 4 is in no training sequence, so contexts with it are unseen."""
    model = NGram(train, symbols=5, order=order)
    last = [model.nats([[*context, symbol]])[-1] for symbol in range(5)]
    assert np.exp(-np.array(last)).sum() == pytest.approx(1, abs=1e-12)


def test_the_three_discounts_are_the_papers() -> None:
    count = np.repeat([1, 2, 3, 4, 9], [40, 10, 5, 3, 7])
    y = 40 / (40 + 2 * 10)
    np.testing.assert_allclose(discounts(count), [0, 1 - 2 * y * 10 / 40, 2 - 3 * y * 5 / 10, 3 - 4 * y * 3 / 5])
    np.testing.assert_allclose(discounts(np.array([7, 8])), [0, 0.5, 1, 1.5])  # nothing to estimate them from


def test_no_context_reaches_into_another_sequence() -> None:
    train = [[0, 1, 2, 0, 1, 2, 0, 1, 2, 3], [3, 1, 0, 2]]
    model = NGram(train, symbols=4, order=3)
    apart = np.concatenate([model.nats([[0, 1]]), model.nats([[2, 0]])])
    np.testing.assert_array_equal(model.nats([[0, 1], [2, 0]]), apart)
    assert model.nats([[0, 1, 2, 0]])[2] != apart[2]


def test_symbols_out_of_range_and_no_symbols_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 3, and there is 4"):
        NGram([[0, 4]], symbols=4, order=2)
    with pytest.raises(ValueError, match="no symbols"):
        NGram([], symbols=4, order=2)


# -- the evaluator -----------------------------------------------------------------------------------------------


@settings(max_examples=60, derandomize=True)
@given(length=st.integers(2, 9), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_every_id_is_scored_once_with_half_a_sample_before_it(length: int, sizes: list[int]) -> None:
    samples = torch.arange(sum(sizes) * length).view(-1, length)
    scored = []
    for ids, start in windows(iter(samples.split(sizes))):
        assert ids.shape[1] == length
        assert (ids.diff(dim=1) == 1).all(), "a stretch of the stream"
        for row in ids.tolist():
            assert start >= length // 2 or row[0] == 0
            scored += row[start:]
    assert sorted(scored) == list(range(samples.numel()))


class Told(Likelihood):
    """Takes an id of value n for n / 10 nats, does not predict 7, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def nats(self, ids: Tensor, pad: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.asked.append(ids)
        return ids / 10, ids != 7


class Stream:
    """A source and a data module in one."""

    symbols = {"bytes": 4, "words": 3}

    def __init__(self, samples: Tensor, pad: bool = False):
        self.samples, self.padded, self.source, self.device = samples, pad, self, torch.device("cpu")

    def pretext(self, name: str) -> Stream:
        assert name == "test"
        return self

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: list) -> dict:
        return {"inputs": [{"x": self.samples, "pad": self.samples == 0} if self.padded else {"x": self.samples}]}

    def plain(self, dataset: Stream) -> Iterator[tuple[dict[str, Tensor], dict]]:
        for ids in dataset.samples.split(2):
            yield {"x": ids}, {}

    def measure(self, name: str) -> dict[str, int]:
        return {"ids": 50, "bytes": 120}

    def sequences(self, name: str) -> dict[str, Iterator[list[int]]]:
        made = {
            "train": {"bytes": [[0, 1, 2, 0, 1, 3]], "words": [[0, 1, 0, 2], [1, 1]]},
            "test": {"bytes": [[0, 1, 2], [3, 3]], "words": [[2, 0]]},
        }
        return {kind: iter(sequences) for kind, sequences in made[name].items()}


def embed(objective: Likelihood | None) -> Embed:
    return Embed(lambda view: view["x"].float(), objective=objective)


def test_perplexity_is_by_id_and_bits_are_by_byte() -> None:
    ids = torch.randint(0, 12, (5, 6), generator=torch.Generator().manual_seed(0))
    figures = Surprise()(embed(Told()), Stream(ids))
    mean = sum(int(i) / 10 for i in ids.flatten() if i != 7) / sum(int(i) != 7 for i in ids.flatten())
    assert figures == {
        "perplexity": pytest.approx(math.exp(mean)),
        "bits_per_byte": pytest.approx(mean / math.log(2) * 50 / 120),
    }


def test_the_raw_input_is_scored_by_n_grams_of_each_kind_of_symbol() -> None:
    data = Stream(torch.zeros(1, 6))
    figures = Surprise(order=2)(embed(None), data)
    bits = {
        kind: NGram(data.sequences("train")[kind], symbols=data.symbols[kind], order=2)
        .nats(data.sequences("test")[kind])
        .sum()
        / math.log(2)
        / 120
        for kind in ("bytes", "words")
    }
    assert figures == {
        "bits_per_byte": pytest.approx(bits["bytes"]),
        "bits_per_byte_words": pytest.approx(bits["words"]),
    }


def test_an_objective_that_has_diverged_is_said_so() -> None:
    data = Stream(torch.full((3, 6), math.nan))
    with pytest.raises(RunError, match="NaN or infinite"):
        Surprise()(embed(Told()), data)
    assert math.isnan(stream_nats(Told(), Stream(torch.full((2, 4), 7))))


def test_what_it_refuses() -> None:
    full = torch.ones(2, 6)
    assert Surprise().refusal(Stream(full)) is None
    assert "padded" in str(Surprise().refusal(Stream(full, pad=True)))
    assert "too small" in str(Surprise().refusal(Stream(full[:0])))
    assert "measure and sequences and symbols" in str(Surprise().refusal(SimpleNamespace()))


# -- all of it ---------------------------------------------------------------------------------------------------


def story(n: int) -> str:
    who, where = ("the cat", "a dog", "my bird")[n % 3], ("on the mat", "in the sun")[n % 2]
    return "\n".join(f"{who} sat {where} , and {k % 4} of them saw it ." for k in range(12))


def test_a_run_on_text_is_scored_beside_untrained_and_n_grams(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    for n in range(30):
        (tmp_path / "texts" / f"{n}.txt").write_text(story(n))
    data = ["data=text", "data.root=texts", "data.cache=cache", "data.length=32", "data.tokenizer=bytes"]
    code, _, err = ssl_run(
        "pretrain",
        "views=ids",
        "backbone=encoder_ids",
        "backbone.depth=1",
        "backbone.stem.dim=32",
        "backbone.causal=true",
        "objective=clm",
        "evaluators=likelihood",
        "optim.lr=0.01",
        "optim.reference_batch=null",
        "batch_size=16",
        "duration=120 steps",
        "precision=32",
        "hydra.run.dir=r",
        *data,
    )
    assert code == 0, err
    scores = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert scores["likelihood/bits_per_byte"] < 3 < scores["likelihood/bits_per_byte/untrained"]
    assert scores["likelihood/perplexity"] == pytest.approx(2 ** scores["likelihood/bits_per_byte"])  # an id is a byte
    assert 0 < scores["likelihood/bits_per_byte/raw"] < 3
    assert 0 < scores["likelihood/bits_per_byte_words/raw"] < 3
    shown = (tmp_path / "r" / "shown" / "completion.txt").read_text()
    assert " sat " in shown

    code, _, err = ssl_run("evaluate", "from=r", "evaluators=likelihood", "hydra.run.dir=e")
    assert code == 0, err
    again = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert again["likelihood/bits_per_byte"] == pytest.approx(scores["likelihood/bits_per_byte"], abs=1e-6)

    code, _, err = ssl_run("evaluate", "from=r", "evaluators=likelihood", "data.pretrain=lines")
    assert code == 2
    assert "evaluators.likelihood: needs samples that make one stream" in err


def test_images_have_no_likelihood(ssl_run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = ssl_run("pretrain", "evaluators=likelihood", "duration=1 steps")
    assert code == 2
    assert "evaluators.likelihood: Surprise scores a Likelihood, and SimCLR is none" in err


# -- the paper's own size ----------------------------------------------------------------------------------------


def test_the_published_recipe_is_gpt2s_smallest_model() -> None:
    from hydra import compose, initialize_config_module

    from ssl_runner import build

    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        config = compose("pretrain", ["+task=gpt2_openwebtext", "data.root=/nowhere"])
    facts = {"vocab": 50257, "length": config.data.length, "separator": 50256}
    with torch.device("meta"):
        backbone: TokenBackbone = build.make(build.fill(yaml.safe_load(to_yaml(config.backbone)), facts))
    weights = {name: p.numel() for name, p in CLM(backbone, separator=50256).named_parameters()}
    assert sum(weights.values()) == 124_439_808, "of the 124M; the library's gpt2 has as many"
    assert config.batch_size * config.data.length == 491_520
    assert build.make(yaml.safe_load(to_yaml(config.optim))).scaled_lr(config.batch_size) == pytest.approx(6e-4)


def to_yaml(node: object) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(node, resolve=True)
