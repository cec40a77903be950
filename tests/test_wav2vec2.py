"""Frames of waveforms, and wav2vec 2.0, against references written out and against the library of published models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.frames import FrameEncoder, FrameRecurrent, Frames, framed_padding, hop_and_reach
from ssl_runner.backbones.transformers_frames import TransformersFrames
from ssl_runner.errors import RequestError
from ssl_runner.objectives import wav2vec2
from ssl_runner.objectives.wav2vec2 import Wav2Vec2, alike, candidates, draw_negatives
from ssl_runner.parts import quantiser
from ssl_runner.parts.masking import hidden_places, most_hidden, span_mask
from ssl_runner.parts.quantiser import Quantiser, perplexity
from ssl_runner.types import Batch, seen_by

SIZES: dict[str, Any] = {"kernels": (4, 2), "strides": (2, 2)}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8],
    "conv_kernel": [4, 2],
    "conv_stride": [2, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def encoder(norm: Any = "layer", **more: Any) -> FrameEncoder:
    torch.manual_seed(0)
    sizes = {"shape": (1, 130), "dim": 16, "width": 8, "positions": 4, "groups": 2, **SIZES}
    return FrameEncoder(stem=Frames(**sizes, norm=norm), depth=2, heads=2, **more)


def heard(padded: bool = True, n: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    view = {"x": torch.randn(n, 1, 130, generator=generator)}
    if padded:
        view["pad"] = torch.arange(130) >= 130 - 30 * torch.arange(n)[:, None]
    return {"views": [seen_by(encoder(), view)], "index": torch.arange(n)}


# -- frames ----------------------------------------------------------------------------------------------------------


def test_the_papers_frames_are_400_values_long_and_320_apart() -> None:
    stem = Frames(shape=(1, 16000), dim=32)
    assert (stem.hop, stem.reach, stem.grid) == (320, 400, (49,))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4), st.data())
def test_lengths_are_those_behind_the_convolutions(layers: list[tuple[int, int]], data: st.DataObject) -> None:
    kernels, strides = (tuple(each) for each in zip(*layers, strict=True))
    hop, reach = hop_and_reach(kernels, strides)
    length = data.draw(st.integers(reach, reach + 40))
    real = data.draw(st.integers(0, length))
    behind, x = real, torch.zeros(1, 1, length)
    for kernel, stride in layers:
        behind = max(0, (behind - kernel) // stride + 1)
        x = F.conv1d(x, torch.ones(1, 1, kernel), stride=stride)
    found = framed_padding(torch.arange(length)[None] >= real, hop, reach)
    assert found.shape[1] == x.shape[2]
    assert (~found).sum().item() == behind
    assert not found[0, :behind].any()


def test_the_bands_of_a_spectrogram_are_channels() -> None:
    sizes: dict[str, Any] = {"dim": 16, "width": 8, "norm": "layer", "positions": 0, **SIZES}
    torch.manual_seed(0)
    of_bands = Frames(shape=(2, 3, 130), **sizes)
    torch.manual_seed(0)
    of_channels = Frames(shape=(6, 130), **sizes)
    x = torch.randn(2, 2, 3, 130)
    found = of_bands.patchify(x)
    assert found.shape == (2, *of_bands.grid, 8)
    assert torch.equal(found, of_channels.patchify(x.view(2, 6, 130)))
    x[:, :, :, of_bands.reach :] += 1.0
    assert torch.equal(of_bands.patchify(x)[:, 0], found[:, 0]), "the first frame sees what comes later"


def test_padding_reaches_no_frame_with_layer_norms() -> None:
    backbone = encoder().eval()
    x, pad = torch.randn(2, 1, 130), torch.zeros(2, 130, dtype=torch.bool)
    pad[0, 90:] = True
    other = {"x": x.masked_fill(pad[:, None], 7.0), "pad": pad}
    here = backbone(**seen_by(backbone, {"x": x, "pad": pad}))
    assert torch.equal(backbone(**seen_by(backbone, other)), here)
    assert torch.allclose(backbone(x[:1, :, :90]), here[:1], atol=1e-6)


@pytest.mark.parametrize("make", [encoder, lambda: recurrent(), lambda: encoder(causal=True)])
def test_a_causal_frame_knows_nothing_of_what_follows(make: Callable[[], Any]) -> None:
    backbone = make().eval()
    x = torch.randn(1, 1, 130)
    later = x.clone()
    later[..., 60:] = 3.0
    causal = {} if getattr(backbone, "causal", False) else {"causal": True}
    one, other = (backbone.encode(backbone.embed(backbone.patchify(each)), **causal) for each in (x, later))
    clear = (60 - backbone.reach) // backbone.hop + 1
    assert torch.allclose(one[:, :clear], other[:, :clear], atol=1e-6)
    assert not torch.allclose(one[:, clear:], other[:, clear:], atol=1e-3)


def recurrent() -> FrameRecurrent:
    torch.manual_seed(0)
    return FrameRecurrent(stem=Frames(shape=(1, 130), dim=16, width=8, norm="layer", positions=0, **SIZES))


def test_without_positions_order_tells_nothing_and_with_them_it_does() -> None:
    tokens = torch.randn(1, 6, 16)
    turned = tokens.flip(1)
    stem = encoder().stem
    assert not torch.allclose(stem.placed(turned, None, False), stem.placed(tokens, None, False).flip(1), atol=1e-3)
    bare = recurrent().stem
    assert bare.placed(turned, None, False).equal(turned)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": (1, 2, 8, 8)}, "convolves along time"),
        ({"shape": (1, 9)}, "samples have 9"),
        ({"strides": (2,)}, "as many as kernels"),
        ({"groups": 3}, "does not divide"),
    ],
)
def test_frames_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Frames(**{"shape": (1, 130), "dim": 16, "width": 8, "positions": 4, "groups": 2, **SIZES, **wrong})


# -- the library -----------------------------------------------------------------------------------------------------


def library(kind: str = "wav2vec2", **more: Any) -> TransformersFrames:
    torch.manual_seed(0)
    return TransformersFrames(name=kind, shape=(1, 130), config={**SMALL, **more})


@pytest.mark.parametrize(
    "kind", ["wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "wav2vec2-conformer", "data2vec-audio"]
)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_steps_one_by_one_give_what_the_library_gives_at_once(kind: str) -> None:
    backbone = library(kind).eval()
    x, pad = torch.randn(2, 1, 130), torch.zeros(2, 130, dtype=torch.bool)
    pad[0, 90:] = True
    theirs = backbone.model(x[:, 0], attention_mask=(~pad).long()).last_hidden_state
    ours = backbone.encode(backbone.embed(backbone.patchify(x)), backbone.padding(pad))
    real = ~backbone.padding(pad)
    assert torch.allclose(ours[real], theirs[real], atol=1e-5)
    assert len(list(backbone.layers(backbone.embed(backbone.patchify(x))))) == 2
    assert (backbone.dim, backbone.frame_dim, backbone.hop, backbone.reach) == (16, 8, 4, 6)


def test_the_librarys_layers_are_those_of_its_blocks() -> None:
    backbone = library().eval()
    x = torch.randn(2, 1, 130)
    found = list(backbone.layers(backbone.embed(backbone.patchify(x))))
    theirs = backbone.model(x[:, 0], output_hidden_states=True).hidden_states
    for ours, one in zip(found, theirs[1:], strict=True):
        assert torch.allclose(ours, one, atol=1e-6)


def test_a_run_keeps_the_architecture() -> None:
    backbone = library()
    torch.manual_seed(0)
    again = TransformersFrames(name="/nowhere", shape=(1, 130), **backbone.pinned())
    again.load_state_dict(backbone.state_dict())
    assert backbone.pinned()["config"]["layerdrop"] == 0.0


def test_weights_of_a_folder_are_loaded_and_a_receipt_tells(tmp_path: Any) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    torch.manual_seed(5)
    published = Wav2Vec2ForPreTraining(Wav2Vec2Config(**SMALL))
    published.save_pretrained(tmp_path)
    backbone = TransformersFrames(name=str(tmp_path), shape=(1, 130), pretrained=True).eval()
    x = torch.randn(2, 130)
    assert torch.allclose(
        backbone.encode(backbone.embed(backbone.patchify(x[:, None]))),
        published.eval().wav2vec2(x).last_hidden_state,
        atol=1e-6,
    )
    assert "100" in str(backbone.receipt)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "bert"}, "no convolutions"),
        ({"name": "sew"}, "taken apart"),
        ({"shape": (2, 130)}, "one channel"),
        ({"shape": (1, 8)}, "samples have 8"),
    ],
)
def test_models_that_are_of_no_waveforms_are_refused(wrong: dict[str, Any], message: str) -> None:
    config = {} if wrong.get("name") == "bert" else SMALL
    with pytest.raises(RequestError, match=message):
        TransformersFrames(**{"name": "wav2vec2", "shape": (1, 130), "config": config, **wrong})


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_our_convolutions_are_the_librarys(norm: str) -> None:
    theirs = library(feat_extract_norm=norm, conv_bias=norm == "layer").eval()
    ours = encoder(norm).eval().stem
    for n, layer in enumerate(theirs.model.feature_extractor.conv_layers):
        ours.convolutions[n].load_state_dict(layer.conv.state_dict())
        if hasattr(layer, "layer_norm"):
            (ours.norms[n] if norm == "layer" else ours.group_norm).load_state_dict(layer.layer_norm.state_dict())
    ours.norm.load_state_dict(theirs.model.feature_projection.layer_norm.state_dict())
    ours.projection.load_state_dict(theirs.model.feature_projection.projection.state_dict())
    ours.convolved.load_state_dict(theirs.model.encoder.pos_conv_embed.conv.state_dict())
    x = torch.randn(2, 1, 130)
    assert torch.allclose(ours.patchify(x), theirs.patchify(x), atol=1e-5)
    tokens = ours(ours.patchify(x))
    assert torch.allclose(tokens, theirs.embed(theirs.patchify(x)), atol=1e-5)
    placed = tokens + theirs.model.encoder.pos_conv_embed(tokens)
    assert torch.allclose(ours.placed(tokens, None, False), placed, atol=1e-5)


# -- spans -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 60), st.floats(0.05, 1.0), st.integers(1, 12), st.data())
def test_hidden_spans_lie_in_what_may_be_hidden(length: int, ratio: float, span: int, data: st.DataObject) -> None:
    counts = torch.tensor(data.draw(st.lists(st.integers(0, length), min_size=1, max_size=4)))
    may = torch.arange(length) < counts[:, None]
    torch.manual_seed(0)
    mask = span_mask(may, ratio, span)
    assert not (mask & ~may).any()
    most = most_hidden(length, ratio, span)
    place, told = hidden_places(mask, most)
    assert told.sum(1).equal(mask.sum(1))  # none is left out
    for row, count in enumerate(counts.tolist()):
        hidden = mask[row].nonzero()[:, 0].tolist()
        assert place[row][told[row]].tolist() == hidden
        assert (len(hidden) > 0) == (count > 0)
        runs = "".join("x" if each else " " for each in mask[row].tolist()).split()
        assert all(len(run) >= min(span, count) for run in runs)
        assert len(hidden) <= span * (ratio * count / span + 1) or count < span


def test_about_half_is_hidden_at_the_papers_ratio() -> None:
    torch.manual_seed(0)
    share = span_mask(torch.ones(64, 750, dtype=torch.bool), 0.65, 10).float().mean()
    assert 0.47 < share < 0.51  # "49% of all time steps", in the paper


def test_spans_are_drawn_anew() -> None:
    may = torch.ones(2, 200, dtype=torch.bool)
    one, other = span_mask(may, 0.5, 10), span_mask(may, 0.5, 10)
    assert not one.equal(other)
    assert not one[0].equal(one[1])


# -- codes -----------------------------------------------------------------------------------------------------------


def small_quantiser(**more: Any) -> Quantiser:
    torch.manual_seed(0)
    return Quantiser(6, **{"groups": 2, "codes": 5, "dim": 8, "start": 2.0, "end": 0.5, "decay": 0.9, **more})


def test_a_code_is_the_best_one_of_each_group() -> None:
    module, x = small_quantiser().eval(), torch.randn(3, 4, 6)
    found = module(x)
    scores = module.score(x).view(3, 4, 2, 5)
    for b in range(3):
        for t in range(4):
            best = [int(scores[b, t, g].argmax()) for g in range(2)]
            assert found.codes[b, t].tolist() == best
            assert torch.allclose(found.vectors[b, t], torch.cat([module.vectors[g, best[g]] for g in range(2)]))


def test_the_gradient_is_that_of_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiser, "gumbel", torch.zeros_like)
    module, x = small_quantiser().train(), torch.randn(1, 1, 6)
    weight = torch.randn(8)
    (module(x).vectors[0, 0] @ weight).backward()
    found = module.score.weight.grad.clone()
    module.zero_grad()
    soft = (module.score(x).view(2, 5) / 2.0).softmax(1)
    (torch.cat([soft[g] @ module.vectors.detach()[g] for g in range(2)]) @ weight).backward()
    assert torch.allclose(found, module.score.weight.grad, atol=1e-6)


def test_noise_is_gumbels_and_evaluation_has_none() -> None:
    torch.manual_seed(0)
    noise = quantiser.gumbel(torch.zeros(200000))
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.03)
    module, x = small_quantiser(), torch.randn(40, 6)
    assert not module(x).codes.equal(module(x).codes)
    module.eval()
    assert module(x).codes.equal(module(x).codes)


def test_the_temperature_falls_with_each_update_and_a_resumed_one_goes_on() -> None:
    objective = Wav2Vec2(encoder(), span=3, decay=0.9)
    for n in range(20):
        assert objective.quantiser.temperature().item() == pytest.approx(max(2 * 0.9**n, 0.5), rel=1e-5)
        objective(heard())  # what counts is updates, not batches
        objective.after_step(n / 20)
    again = Wav2Vec2(encoder(), span=3, decay=0.9)
    again.load_state_dict(objective.state_dict())
    assert again.quantiser.temperature().equal(objective.quantiser.temperature())
    long = Wav2Vec2(encoder())
    long.quantiser.updates += 200000
    assert long.quantiser.temperature().item() == pytest.approx(2 * 0.999995**200000, rel=1e-5)


def test_perplexity_is_e_to_the_entropy_of_the_mean_in_fp32() -> None:
    torch.manual_seed(0)
    chances = torch.randn(2, 3, 2, 5).mul(3).softmax(3)
    counted = torch.tensor([[True, False, True], [True, True, False]])
    for g in range(2):
        mean = torch.stack([chances[b, t, g] for b in range(2) for t in range(3) if counted[b, t]]).mean(0)
        expected = math.exp(-sum(p * math.log(p) for p in mean.tolist()))
        assert perplexity(chances, counted)[g].item() == pytest.approx(expected, rel=1e-4)
    assert perplexity(chances.bfloat16(), counted).dtype == torch.float32


def test_perplexity_is_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    chances, counted = torch.randn(4, 3, 2, 5).mul(3).softmax(3), torch.rand(4, 3) < 0.6
    whole = perplexity(chances, counted)
    sums: list[Tensor] = []
    monkeypatch.setattr(quantiser, "all_reduce", lambda x: (sums.append(x), x)[1])
    perplexity(chances[2:], counted[2:])  # the other rank
    monkeypatch.setattr(quantiser, "all_reduce", lambda x: x + sums.pop(0))
    assert torch.allclose(perplexity(chances[:2], counted[:2]), whole, rtol=1e-5)
    assert not sums


def test_the_softmax_is_in_fp32_under_autocast() -> None:
    module = small_quantiser()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(torch.randn(2, 3, 6))
    assert found.chances.dtype == torch.float32
    assert torch.allclose(found.chances.sum(3), torch.ones(2, 3, 2), atol=1e-6)


# -- negatives -------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(0, 99))
def test_negatives_are_the_samples_other_hidden_frames(most: int, counts: list[int], seed: int) -> None:
    told = torch.arange(most) < torch.tensor(counts)[:, None]
    torch.manual_seed(seed)
    drawn = draw_negatives(told, 40)
    assert drawn.shape == (len(counts), most, 40)
    for row, count in enumerate(counts):
        count = min(count, most)
        for own in range(count):
            if count > 1:
                assert set(drawn[row, own].tolist()) <= set(range(count)) - {own}
            else:
                assert set(drawn[row, own].tolist()) == {own}
    assert drawn.max() < most


def test_every_other_frame_has_its_turn() -> None:
    torch.manual_seed(0)
    drawn = draw_negatives(torch.arange(7) < torch.tensor([[5]]), 3000)
    for own in range(5):
        share = drawn[0, own].bincount(minlength=7).float() / 3000
        assert share[[n for n in range(5) if n != own]].sub(0.25).abs().max() < 0.04


def test_a_negative_with_the_targets_codes_counts_for_nothing() -> None:
    codes = torch.tensor([[[1, 2], [1, 3], [1, 2], [0, 0]]])
    logits = torch.arange(16.0).view(1, 4, 4)
    drawn = torch.tensor([[[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]])
    found = candidates(logits, alike(codes), drawn)
    low = float("-inf")
    assert found[0].tolist() == [[0, 1, low, 3], [5, 4, 6, 7], [10, low, 9, 11], [15, 12, 13, 14]]


# -- the loss --------------------------------------------------------------------------------------------------------


class Fixed:
    """A mask and negatives that both implementations get."""

    def __init__(self, pad: Tensor | None, length: int, negatives: int = 7):
        torch.manual_seed(3)
        may = torch.ones(3, length, dtype=torch.bool) if pad is None else ~pad
        self.mask = span_mask(may, 0.65, 3)
        self.place, told = hidden_places(self.mask, most_hidden(length, 0.65, 3))
        self.drawn = draw_negatives(told, negatives)
        own = torch.arange(3)[:, None, None] * length
        flat = self.place.gather(1, self.drawn.flatten(1)).view_as(self.drawn) + own
        self.theirs = torch.zeros(3, length, negatives, dtype=torch.long)
        for b in range(3):
            for n in range(int(told[b].sum())):
                self.theirs[b, self.place[b, n]] = flat[b, n]

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wav2vec2, "span_mask", lambda *_: self.mask)
        monkeypatch.setattr(wav2vec2, "draw_negatives", lambda *_: self.drawn)
        monkeypatch.setattr(quantiser, "gumbel", torch.zeros_like)


def no_noise(scores: Tensor, tau: float, hard: bool) -> Tensor:
    soft = (scores / tau).softmax(-1)
    return F.one_hot(soft.argmax(-1), scores.shape[-1]) + (soft - soft.detach())


@pytest.mark.parametrize("padded", [False, True])
def test_loss_and_gradients_are_the_librarys(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    torch.manual_seed(0)
    theirs = Wav2Vec2ForPreTraining(
        Wav2Vec2Config(
            **SMALL,
            feat_extract_norm="layer",
            num_codevectors_per_group=4,
            codevector_dim=8,
            proj_codevector_dim=6,
            num_negatives=7,
        )
    )
    theirs.eval()  # no dropout
    theirs.quantizer.train()
    monkeypatch.setattr(F, "gumbel_softmax", no_noise)
    backbone = library(feat_extract_norm="layer").eval()
    weights = {k: v for k, v in theirs.wav2vec2.state_dict().items() if k != "masked_spec_embed"}
    backbone.model.load_state_dict(weights)
    ours = Wav2Vec2(backbone, span=3, codes=4, code_dim=8, dim=6, penalty=0.0, frame_gradient=1.0)
    backbone.eval()
    ours.quantiser.score.load_state_dict(theirs.quantizer.weight_proj.state_dict())
    with torch.no_grad():
        ours.quantiser.vectors.copy_(theirs.quantizer.codevectors.view(2, 4, 4))
        ours.mask_token.copy_(theirs.wav2vec2.masked_spec_embed)
    ours.predictor.load_state_dict(theirs.project_hid.state_dict())
    ours.target.load_state_dict(theirs.project_q.state_dict())

    x, pad = torch.randn(3, 1, 130), torch.arange(130) >= 130 - 30 * torch.arange(3)[:, None]
    view = seen_by(backbone, {"x": x, "pad": pad} if padded else {"x": x})
    fixed = Fixed(view.get("pad"), backbone.grid[0])
    fixed.patch(monkeypatch)
    found = ours({"views": [view], "index": torch.arange(3)})
    expected = theirs(
        x[:, 0],
        attention_mask=(~pad).long() if padded else None,
        mask_time_indices=fixed.mask,
        sampled_negative_indices=fixed.theirs,
    )
    count = fixed.mask.sum()
    assert found.log["contrastive"].item() == pytest.approx((expected.contrastive_loss / count).item(), rel=1e-5)
    assert found.log["diversity"].item() == pytest.approx((expected.diversity_loss / count).item(), rel=1e-4)
    share = expected.codevector_perplexity / (
        theirs.config.num_codevector_groups * theirs.config.num_codevectors_per_group
    )
    assert found.log["codes_used"].item() == pytest.approx(share.item(), rel=1e-4)
    assert found.value.item() == pytest.approx((expected.loss / count).item(), rel=1e-5)

    found.value.backward()
    (expected.loss / count).backward()
    there = dict(theirs.wav2vec2.named_parameters())
    for name, parameter in backbone.model.named_parameters():
        assert torch.allclose(parameter.grad, there[name].grad, atol=1e-5), name
    assert torch.allclose(ours.mask_token.grad, there["masked_spec_embed"].grad, atol=1e-5)
    assert torch.allclose(ours.quantiser.vectors.grad.flatten(), theirs.quantizer.codevectors.grad.flatten(), atol=1e-5)


def test_targets_are_of_frames_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hides a frame from the backbone is not in its target."""
    objective = Wav2Vec2(encoder(), span=3, codes=8, code_dim=8, dim=8).eval()
    seen: list[Tensor] = []
    quantise = objective.quantiser.forward
    monkeypatch.setattr(objective.quantiser, "forward", lambda x: (seen.append(x), quantise(x))[1])
    batch = heard()
    torch.manual_seed(4)
    objective(batch)
    with torch.no_grad():
        objective.mask_token.fill_(50.0)
    torch.manual_seed(4)
    objective(batch)
    assert seen[0].equal(seen[1])
    stem = objective.backbone.stem
    every = stem.normalise(stem.patchify(batch["views"][0]["x"]))
    assert (seen[0][0, 0] - every[0]).abs().sum(1).min() == 0


def test_hidden_frames_are_hidden_from_the_context() -> None:
    objective = Wav2Vec2(encoder(), span=3).eval()
    normed = torch.randn(2, 20, 8)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, 5:11] = True
    other = torch.where(mask[..., None], torch.randn(2, 20, 8), normed)
    assert torch.equal(objective.context(normed, mask, None), objective.context(other, mask, None))


def test_padding_changes_nothing() -> None:
    objective = Wav2Vec2(encoder(), span=3, codes=8, code_dim=8, dim=8, negatives=5).eval()
    batch = heard()
    raw = torch.arange(130) >= 130 - 30 * torch.arange(3)[:, None]
    view = batch["views"][0]
    other: Batch = {**batch, "views": [{**view, "x": view["x"].masked_fill(raw[:, None], 9.0)}]}
    losses = []
    for each in (batch, other):
        torch.manual_seed(0)
        losses.append(objective(each).value)
    assert torch.equal(*losses)


def test_the_loss_is_over_the_hidden_frames_of_the_whole_batch() -> None:
    """A short sample's frames count as much as a long one's: the mean is over frames."""
    objective = Wav2Vec2(encoder(), span=3, codes=8, code_dim=8, dim=8, diversity=0.0, penalty=0.0)
    objective.eval()
    batch = heard()
    torch.manual_seed(2)
    whole = objective(batch).value
    parts, counts = [], []
    real = ~batch["views"][0]["pad"]
    torch.manual_seed(2)
    mask = span_mask(real, 0.65, 3)
    _, told = hidden_places(mask, most_hidden(mask.shape[1], 0.65, 3))
    drawn = draw_negatives(told, 100)
    normed = objective.backbone.normalise(objective.backbone.patchify(batch["views"][0]["x"]))
    context = objective.predictor(objective.context(normed, mask, batch["views"][0]["pad"]))
    for b in range(3):
        frames = [t for t in range(mask.shape[1]) if mask[b, t]]
        target = objective.target(objective.quantiser(normed[b, frames]).vectors)
        codes = objective.quantiser(normed[b, frames]).codes
        for n, t in enumerate(frames):
            own = F.cosine_similarity(context[b, t], target[n], dim=0) / 0.1
            terms = [own]
            for k in drawn[b, n].tolist():
                assert k != n
                assert k < len(frames)
                if not codes[k].equal(codes[n]):
                    terms.append(F.cosine_similarity(context[b, t], target[k], dim=0) / 0.1)
            parts.append(torch.stack(terms).logsumexp(0) - own)
        counts.append(len(frames))
    assert len(set(counts)) > 1
    assert whole.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)


def test_the_penalty_is_the_mean_square_of_frames_before_their_norm() -> None:
    objective = Wav2Vec2(encoder(), span=3, penalty=10.0)
    batch = heard()
    frames = objective.backbone.patchify(batch["views"][0]["x"])
    real = ~batch["views"][0]["pad"]
    torch.manual_seed(0)
    found = objective(batch)
    assert found.log["penalty"].item() == pytest.approx(frames[real].square().mean().item(), rel=1e-5)
    rest = found.log["contrastive"] + 0.1 * found.log["diversity"]
    assert found.value.item() == pytest.approx((rest + 10 * found.log["penalty"]).item(), rel=1e-5)


def test_the_convolutions_learn_ten_times_slower() -> None:
    objective = Wav2Vec2(encoder(), span=3)
    stem = objective.backbone.stem
    found = []
    for factor in (1.0, 0.1):
        objective.zero_grad()
        objective.frame_gradient = factor
        torch.manual_seed(0)
        objective(heard()).value.backward()
        found.append((stem.convolutions[0].weight.grad.clone(), stem.projection.weight.grad.clone()))
    assert torch.allclose(found[1][0], 0.1 * found[0][0], rtol=1e-4, atol=1e-7)
    assert torch.allclose(found[1][1], found[0][1], rtol=1e-4, atol=1e-7)
    assert Wav2Vec2(encoder()).frame_gradient == 0.1
