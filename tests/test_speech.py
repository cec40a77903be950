"""HuBERT, CPC, APC, CTC, enhancement, verification and signals as ids, against references written out."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.frames import FrameEncoder, FrameRecurrent, Frames
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.errors import RequestError, RunError
from ssl_runner.evaluators.bits import Bits
from ssl_runner.evaluators.enhancement import Enhanced, wiener
from ssl_runner.evaluators.transcripts import edits, error_rates, interval
from ssl_runner.evaluators.verification import Verification, equal_error_rate
from ssl_runner.objectives import hubert
from ssl_runner.objectives.apc import APC
from ssl_runner.objectives.clm import CLM
from ssl_runner.objectives.cpc import CPC, info_nce
from ssl_runner.objectives.ctc import CTC, ctc_loss
from ssl_runner.objectives.enhancement import Enhancement
from ssl_runner.objectives.hubert import HuBERT
from ssl_runner.objectives.mae import MAE
from ssl_runner.parts.cepstra import BandCepstra, Cepstra, changes
from ssl_runner.parts.ctc import beam, collapsed, greedy
from ssl_runner.parts.kmeans import kmeans
from ssl_runner.parts.noise import noisy, si_sdr
from ssl_runner.pictures import undo
from ssl_runner.types import Batch, Embed, View, seen_by
from ssl_runner.views.mu_law import MuLaw

LENGTH = 130


def frames(**more: Any) -> Frames:
    sizes: dict[str, Any] = {"kernels": (4, 2), "strides": (2, 2), "norm": "layer", "positions": 4, "groups": 2}
    return Frames(shape=(1, LENGTH), dim=16, width=8, **{**sizes, **more})


def encoder() -> FrameEncoder:
    torch.manual_seed(0)
    return FrameEncoder(stem=frames(), depth=2, heads=2)


def heard(n: int = 3, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pad = torch.arange(LENGTH) >= LENGTH - 30 * (torch.arange(n)[:, None] % 3)
    x = torch.randn(n, 1, LENGTH, generator=generator).masked_fill(pad[:, None], 0.0)
    return {"views": [seen_by(encoder(), {"x": x, "pad": pad})], "index": torch.arange(n)}


# -- clusters ------------------------------------------------------------------------------------------------------


def test_kmeans_finds_places_and_not_directions() -> None:
    torch.manual_seed(0)
    middle = torch.tensor([[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]])  # one direction
    rows = middle.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2)
    for seed in range(5):
        torch.manual_seed(seed)
        centroids, nearest = kmeans(rows, 3)
        means = torch.stack([rows[nearest == k].mean(0) for k in range(3)])
        assert torch.allclose(centroids, means, atol=1e-4)
        assert torch.cdist(rows, centroids).argmin(1).equal(nearest)


def test_a_cluster_without_rows_moves_to_the_farthest() -> None:
    rows = torch.tensor([[0.0], [0.0], [0.0], [0.1], [7.0]])
    for seed in range(10):
        torch.manual_seed(seed)
        centroids, nearest = kmeans(rows, 2)
        assert nearest.bincount(minlength=2).tolist() in ([4, 1], [1, 4])
        assert centroids.max() == 7


# -- cepstra -------------------------------------------------------------------------------------------------------


def test_cepstra_are_as_written_out() -> None:
    torch.manual_seed(0)
    rate, n, mels, count = 8000, 200, 23, 13
    windows = torch.randn(2, 1, 5, n)
    found = Cepstra(shape=(1, 8000), rate=rate)(windows)
    assert found.shape == (2, 5, 39)

    def mel(f: float) -> float:
        return 2595 * math.log10(1 + f / 700)

    centres = [700 * (10 ** (m / 2595) - 1) for m in torch.linspace(mel(20), mel(4000), mels + 2).tolist()]
    for b, t in itertools.product(range(2), range(5)):
        x = windows[b, 0, t]
        x = x - 0.97 * torch.cat([x[:1], x[:-1]])
        power = torch.fft.rfft(x * torch.hann_window(n), 256).abs() ** 2
        logs = []
        for m in range(mels):
            low, middle, high = centres[m : m + 3]
            total = 0.0
            for k, p in enumerate(power.tolist()):
                f = k * rate / 256
                total += p * max(0.0, min((f - low) / (middle - low), (high - f) / (high - middle)))
            logs.append(math.log(max(total, 1e-10)))
        for c in range(count):
            scale = math.sqrt((1 if c == 0 else 2) / mels)
            wanted = scale * sum(v * math.cos(math.pi / mels * (m + 0.5) * c) for m, v in enumerate(logs))
            assert found[b, t, c].item() == pytest.approx(wanted, abs=2e-3)
    assert torch.allclose(found[..., 13:26], changes(found[..., :13]), atol=1e-4)
    assert torch.allclose(found[..., 26:], changes(found[..., 13:26]), atol=1e-4)


def test_cepstra_of_a_spectrogram_are_the_cosine_transform_of_its_frames() -> None:
    torch.manual_seed(0)
    bands, count = 8, 5
    windows = torch.randn(2, bands, 6, 3)
    found = BandCepstra(shape=(1, bands, 20), count=count)(windows)
    assert found.shape == (2, 6, 15)
    for b, t, c in itertools.product(range(2), range(6), range(count)):
        scale = math.sqrt((1 if c == 0 else 2) / bands)
        values = [windows[b, m, t].mean().item() for m in range(bands)]
        wanted = scale * sum(v * math.cos(math.pi / bands * (m + 0.5) * c) for m, v in enumerate(values))
        assert found[b, t, c].item() == pytest.approx(wanted, abs=1e-5)
    assert torch.allclose(found[..., 5:10], changes(found[..., :5]), atol=1e-5)
    assert torch.allclose(found[..., 10:], changes(found[..., 5:10]), atol=1e-5)


def test_cepstra_of_what_they_are_not_for_are_refused() -> None:
    for make, said in (
        (lambda: Cepstra(shape=(1, 40, 600), rate=8000), r"of signals.*\(1, 40, 600\)"),
        (lambda: BandCepstra(shape=(1, 8000)), r"of spectrograms.*\(1, 8000\)"),
        (lambda: BandCepstra(shape=(2, 40, 600)), r"of spectrograms.*\(2, 40, 600\)"),
        (lambda: BandCepstra(shape=(1, 8, 600)), "count=13: more coefficients than bands, 8"),
        (lambda: Cepstra(shape=(1, 8000), rate=8000, mels=12), "count=13: more coefficients than bands, 12"),
    ):
        with pytest.raises(RequestError, match=said):
            make()


def test_changes_are_the_slope_over_five_frames() -> None:
    line = torch.arange(8.0)[None, :, None] * torch.tensor([2.0, -0.5])
    found = changes(line)
    assert torch.allclose(found[0, 2:6], torch.tensor([2.0, -0.5]).expand(4, 2))
    assert torch.allclose(found[0, 0], torch.tensor([2.0, -0.5]) * (1 + 2 * 2) / 10)  # what is before is as the first


# -- HuBERT --------------------------------------------------------------------------------------------------------


def small_hubert(**more: Any) -> HuBERT:
    torch.manual_seed(0)
    return HuBERT(encoder(), **{"span": 3, "clusters": 4, "bank": 50, "dim": 8, **more})


class Loudness(Cepstra):
    """The mean of a frame and its power: easy to follow."""

    def __init__(self) -> None:
        super().__init__(shape=(1, 8000), rate=8000)
        self.dim = 2

    def forward(self, windows: Tensor) -> Tensor:
        return torch.stack([windows.mean((1, 3)), windows.square().mean((1, 3))], 2)


def test_each_frame_is_described_by_the_values_that_it_sees() -> None:
    objective = small_hubert(features=Loudness())
    x = heard()["views"][0]["x"]
    count = objective.backbone.grid[0]
    found = objective.describe({"x": x}, count)
    assert found.shape == (3, count, 2)
    for t in range(count):
        seen = x[1, 0, t * objective.backbone.hop : t * objective.backbone.hop + objective.backbone.reach]
        assert found[1, t].tolist() == pytest.approx([seen.mean().item(), seen.square().mean().item()], abs=1e-5)


def test_frames_of_a_spectrogram_are_described_by_the_columns_that_they_see() -> None:
    stem = Frames(shape=(1, 6, 40), dim=16, width=8, kernels=(5, 3), strides=(2, 1), norm="layer", positions=4)
    backbone = FrameEncoder(stem=stem, depth=1, heads=2)
    objective = HuBERT(backbone, features=BandCepstra(shape=(1, 6, 40), count=3), span=3, clusters=4, bank=50, dim=8)
    x = torch.randn(2, 1, 6, 40)
    found = objective.describe({"x": x}, backbone.grid[0])
    seen = torch.stack([x[:, 0, :, 2 * t : 2 * t + 9].mean(2) for t in range(backbone.grid[0])], 1)
    assert found.shape == (2, 16, 9)
    assert torch.allclose(found, objective.features(seen.mT[..., None]), atol=1e-5)
    for n in range(4):
        torch.manual_seed(n)
        loss = objective({"views": [{"x": torch.randn(4, 1, 6, 40)}]}).value
    assert loss > 0


def test_the_bank_is_filled_then_clustered_once_and_nothing_is_learned_before() -> None:
    objective = small_hubert(features=Loudness())
    for n in range(4):
        torch.manual_seed(n)
        loss = objective(heard(seed=n))
        met = int(objective.met)
        if met < 50 or loss.value == 0:
            assert loss.value == 0
            loss.value.backward()
            assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())
    assert met == 50
    made = objective.centroids.clone()
    assert torch.allclose(made[torch.cdist(objective.rows, made).argmin(1)].mean(0), objective.rows.mean(0), atol=1e-3)
    assert objective(heard(seed=9)).value > 0
    assert objective.centroids.equal(made)


def test_no_padding_is_clustered() -> None:
    class Padded(Loudness):
        def forward(self, windows: Tensor) -> Tensor:
            return (windows == 0).all(3).any(1)[..., None].float().expand(-1, -1, 2)

    objective = small_hubert(features=Padded(), bank=60)
    for n in range(3):
        objective(heard(seed=n))
    assert int(objective.met) == 60
    assert not objective.rows.any()


def test_huberts_loss_is_as_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small_hubert(features=Loudness(), penalty=2.0)
    for n in range(3):
        objective(heard(seed=n))
    objective.eval()
    batch = heard(seed=7)
    (view,) = batch["views"]
    torch.manual_seed(5)
    mask = hubert.span_mask(~view["pad"], 0.8, 3)
    monkeypatch.setattr(hubert, "span_mask", lambda *_: mask)
    found = objective(batch)
    backbone, described = objective.backbone, objective.describe(view, mask.shape[1])
    every = backbone.patchify(view["x"])
    tokens = backbone.project(backbone.normalise(every)).clone()
    tokens[mask] = objective.mask_token
    tokens = backbone.encode(tokens, view["pad"])
    losses = []
    for b, t in mask.nonzero().tolist():
        distances = [(described[b, t] - each).square().sum() for each in objective.centroids]
        wanted = int(torch.stack(distances).argmin())
        said = objective.predictor(tokens[b, t])
        logits = torch.stack([F.cosine_similarity(said, code, dim=0) / 0.1 for code in objective.codes])
        losses.append(-logits.log_softmax(0)[wanted])
    penalty = every[~view["pad"]].square().mean()
    assert found.value.item() == pytest.approx((torch.stack(losses).mean() + 2 * penalty).item(), rel=1e-4)


def test_a_later_round_clusters_a_layer_of_the_backbone_as_it_was() -> None:
    torch.manual_seed(3)
    backbone = FrameEncoder(stem=frames(), depth=2, heads=2)
    objective = HuBERT(backbone, layer=1, span=3, clusters=4, bank=50, dim=8)
    (view,) = heard()["views"]
    with torch.no_grad():
        first = next(iter(backbone.layers(backbone.embed(backbone.patchify(view["x"])), view["pad"])))
    assert torch.allclose(objective.describe(view, 32), first, atol=1e-6)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    for n in range(3):
        optimizer.zero_grad()
        objective(heard(seed=n)).value.backward()
        optimizer.step()
    assert torch.allclose(objective.describe(view, 32), first, atol=1e-6)  # though the backbone has moved
    assert not torch.allclose(
        next(iter(backbone.layers(backbone.embed(backbone.patchify(view["x"]))))), first, atol=1e-3
    )
    assert not any(p.requires_grad for p in objective.labeller.parameters())
    assert not objective.train().labeller.training


def test_a_resumed_hubert_keeps_its_clusters_and_goes_on_filling() -> None:
    objective = small_hubert(features=Loudness(), bank=150)
    objective(heard())
    again = small_hubert(features=Loudness(), bank=150)
    again.load_state_dict(objective.state_dict())
    for each in (objective, again):
        torch.manual_seed(0)
        for n in range(2):
            each(heard(seed=n))
    assert again.centroids.equal(objective.centroids)
    assert int(again.met) == int(objective.met) == 150


def test_a_bank_smaller_than_its_clusters_is_refused() -> None:
    with pytest.raises(RequestError, match="fewer frames"):
        small_hubert(clusters=51)


# -- CPC -----------------------------------------------------------------------------------------------------------


def test_info_nce_is_as_written_out() -> None:
    torch.manual_seed(0)
    z, predicted, k = torch.randn(2, 7, 5), torch.randn(2, 4, 5), 3
    real = torch.arange(7) < torch.tensor([[7], [5]])
    found, right = info_nce(predicted, z, k, real)
    for b, t in itertools.product(range(2), range(4)):
        if real[b, t + k]:
            scores = [float(predicted[b, t] @ z[b, n]) for n in range(7) if real[b, n]]
            own = float(predicted[b, t] @ z[b, t + k])
            assert found[b, t].item() == pytest.approx(math.log(sum(map(math.exp, scores))) - own, abs=1e-4)
            assert bool(right[b, t]) == (own == max(scores))
    assert found.isfinite().all()


@pytest.mark.parametrize("recurrent", [False, True])
def test_cpc_predicts_from_what_came_before(recurrent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = FrameRecurrent(stem=frames(positions=0)) if recurrent else encoder()
    objective = CPC(backbone, steps=2).eval()
    seen: list[Tensor] = []
    encode = backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda *a, **k: (seen.append(encode(*a, **k)), seen[-1])[1])
    x = torch.randn(1, 1, LENGTH)
    later = x.clone()
    later[..., 60:] = torch.randn(LENGTH - 60)
    for each in (x, later):
        objective({"views": [{"x": each}], "index": torch.arange(1)})
    clear = (60 - backbone.reach) // backbone.hop + 1
    assert torch.allclose(seen[0][:, :clear], seen[1][:, :clear], atol=1e-6)
    assert not torch.allclose(seen[0][:, clear:], seen[1][:, clear:], atol=1e-3)


def test_cpc_is_the_mean_over_steps_and_padding_is_not_in_it() -> None:
    objective = CPC(encoder(), steps=2).eval()
    (view,) = heard()["views"]
    backbone = objective.backbone
    z = backbone.embed(backbone.patchify(view["x"]))
    context = backbone.encode(z, view["pad"], causal=True)
    steps = []
    for k in (1, 2):
        losses, _ = info_nce(objective.ahead[k - 1](context[:, :-k]), z, k, ~view["pad"])
        steps.append(losses[~view["pad"][:, k:]].mean())
    found = objective({"views": [view], "index": torch.arange(3)}).value
    assert found.item() == pytest.approx(torch.stack(steps).mean().item(), rel=1e-5)
    padding = torch.arange(LENGTH) >= LENGTH - 30 * torch.arange(3)[:, None]
    other = {**view, "x": view["x"].masked_fill(padding[:, None], 5.0)}
    assert objective({"views": [other], "index": torch.arange(3)}).value.item() == pytest.approx(found.item(), rel=1e-6)


def test_cpc_refuses_samples_of_few_frames() -> None:
    with pytest.raises(RequestError, match="32 frames"):
        CPC(encoder(), steps=32)


def test_cpc_learns_series_of_several_channels() -> None:
    torch.manual_seed(0)
    stem = Frames(shape=(3, 24), dim=16, width=8, kernels=(3,), strides=(2,), norm="layer", positions=0)
    objective = CPC(FrameRecurrent(stem=stem), steps=2)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    rates = torch.rand(16, 1, 1) + 0.3
    x = (torch.arange(24) * rates + torch.arange(3)[:, None]).sin()
    losses = []
    for _ in range(40):
        loss = objective({"views": [{"x": x}], "index": torch.arange(16)}).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


# -- APC -----------------------------------------------------------------------------------------------------------


def columns() -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Continuous(shape=(1, 5, 12), block=(5, 1), dim=16), depth=1, heads=2)


def test_apc_is_the_absolute_error_of_columns_further_on() -> None:
    objective = APC(columns(), shape=(1, 5, 12), steps=3).eval()
    x, pad = torch.randn(2, 1, 5, 12), torch.arange(12) >= torch.tensor([[12], [8]])
    found = objective({"views": [{"x": x, "pad": pad}], "index": torch.arange(2)}).value
    backbone = objective.backbone
    said = objective.head(backbone.encode(backbone.embed(backbone.patchify(x)), pad, causal=True))
    errors = [(said[b, t] - x[b, 0, :, t + 3]).abs().mean() for b in range(2) for t in range(9) if not pad[b, t + 3]]
    assert found.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_apc_sees_nothing_of_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = APC(columns(), shape=(1, 5, 12), steps=3).eval()
    said: list[Tensor] = []
    head = objective.head.forward
    monkeypatch.setattr(objective.head, "forward", lambda x: (said.append(head(x)), said[-1])[1])
    x = torch.randn(1, 1, 5, 12)
    later = x.clone()
    later[..., 6:] = 4.0
    for each in (x, later):
        objective({"views": [{"x": each}], "index": torch.arange(1)})
    assert torch.allclose(said[0][:, :6], said[1][:, :6], atol=1e-6)
    assert not torch.allclose(said[0][:, 6:], said[1][:, 6:], atol=1e-2)


def test_objectives_on_values_refuse_frames_which_are_learned() -> None:
    for make in (lambda: APC(encoder(), shape=(1, LENGTH)), lambda: MAE(encoder(), shape=(1, LENGTH))):
        with pytest.raises(RequestError, match="learned"):
            make()
    with pytest.raises(RequestError, match="learned"):
        encoder().unpatchify(torch.zeros(1, 2, 8))


# -- CTC -----------------------------------------------------------------------------------------------------------


def chances(length: int, symbols: int, seed: int) -> Tensor:
    return torch.randn(length, symbols, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(1)


def spellings(scores: Tensor) -> dict[tuple[int, ...], float]:
    """Every spelling and its chance, by all paths."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        chance = math.exp(sum(float(scores[t, s]) for t, s in enumerate(path)))
        spelt = tuple(s for n, s in enumerate(path) if s and (n == 0 or path[n - 1] != s))
        found[spelt] = found.get(spelt, 0.0) + chance
    return found


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(2, 3), st.integers(0, 99))
def test_a_wide_beam_finds_the_likeliest_spelling(length: int, symbols: int, seed: int) -> None:
    scores = chances(length, symbols, seed)
    assert beam(scores, 400) == max(spellings(scores).items(), key=lambda item: item[1])[0]


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(2, 3), st.integers(0, 99), st.data())
def test_the_loss_is_minus_log_of_all_paths_chances(length: int, symbols: int, seed: int, data: st.DataObject) -> None:
    scores = torch.stack([chances(length, symbols, seed), chances(length, symbols, seed + 1)])
    lengths = torch.tensor([length, data.draw(st.integers(1, length))])
    said = [data.draw(st.lists(st.integers(1, symbols - 1), min_size=1, max_size=3)) for _ in range(2)]
    target = torch.tensor([each + [-1] * (3 - len(each)) for each in said])
    total, count, short = 0.0, 0, 0
    for b in range(2):
        chance = spellings(scores[b, : lengths[b]]).get(tuple(said[b]), 0.0)
        if chance:
            total, count = total - math.log(chance), count + len(said[b])
        else:
            short += 1
    found, missed = ctc_loss(scores, lengths, target)
    assert found.item() == pytest.approx(total / max(count, 1), abs=1e-4)
    assert missed.item() == short / 2


def test_paths_spell_without_repeats_and_blanks() -> None:
    assert collapsed([0, 3, 3, 0, 3, 1, 1, 0]) == (3, 3, 1)
    assert collapsed([]) == ()
    assert greedy(F.one_hot(torch.tensor([2, 2, 0, 2]), 3).float()) == (2, 2)


def test_ctc_learns_to_spell_and_is_scored_by_its_errors() -> None:
    torch.manual_seed(0)
    alphabet = ("", "a", "b", " ")
    stem = Frames(shape=(1, 80), dim=16, width=16, kernels=(8,), strides=(4,), norm="layer", positions=4, groups=2)
    objective = CTC(FrameEncoder(stem=stem, depth=1, heads=2), alphabet=alphabet)
    target = torch.tensor([[1, 2, -1], [2, 1, -1], [1, 3, 2], [2, 2, -1]])
    tone = torch.tensor([0.0, 0.4, 1.0, 1.9])
    rates = tone[torch.cat([target.clamp(min=0), torch.zeros(4, 1).long()], 1)].repeat_interleave(20, 1)
    gaps = (torch.arange(80) % 20 < 14).float()
    x = (rates.cumsum(1).sin() * gaps * (rates > 0))[:, None]
    batch: Batch = {"views": [{"x": x}], "target": target, "index": torch.arange(4)}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for _ in range(100):
        loss = objective(batch).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    objective.eval()
    scores = objective.scores([batch, batch])
    assert scores["cer"] == scores["wer"] == scores["cer_beam"] == scores["wer_beam"] == 0
    wrong = target.clone()
    wrong[0, 0] = 2
    assert objective.scores([{**batch, "target": wrong}])["cer"] == pytest.approx(1 / 9)
    assert objective({**batch, "target": wrong}).log["cer"].item() == pytest.approx(1 / 9)  # of which is the best epoch
    assert objective.monitor == "-val/cer"
    assert "cer" not in objective.train()(batch).log  # a step is not to wait for it


def test_scores_are_of_so_many_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeliest path says nothing, at 0.36; but of all paths those that say one letter are likelier, at 0.48."""
    scores = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log().expand(3, -1, -1)
    for beams, wrong in ((1, 1.0), (2, 0.0)):
        objective = CTC(encoder(), alphabet=("", "a"), beams=beams)
        monkeypatch.setattr(objective, "predict", lambda view: (scores, torch.full((3,), 2)))
        found = objective.scores([{**heard(), "target": torch.ones(3, 1, dtype=torch.int64)}])
        assert found["cer"] == 1.0
        assert found["cer_beam"] == wrong


def test_padding_says_nothing() -> None:
    objective = CTC(encoder(), alphabet=("", "a", "b")).eval()
    with torch.no_grad():
        objective.head.bias.copy_(torch.tensor([0.0, 3.0, 0.0]))
    (view,) = heard()["views"]
    _, lengths = objective.predict(view)
    assert lengths.tolist() == (~view["pad"]).sum(1).tolist()


def test_a_frozen_ctc_trains_its_head_alone() -> None:
    objective = CTC(encoder(), alphabet=("", "a"), freeze=True).train()
    assert {n for n, p in objective.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert not objective.backbone.training


@settings(max_examples=60)
@given(st.text("abc ", max_size=6), st.text("abc ", max_size=6))
def test_edits_are_the_fewest(one: str, other: str) -> None:
    def fewest(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(fewest(a[1:], b) + 1, fewest(a, b[1:]) + 1, fewest(a[1:], b[1:]) + (a[0] != b[0]))

    assert edits(one, other) == fewest(one, other)


def test_error_rates_are_of_all_texts_together() -> None:
    found = error_rates(["ab c", "x"], ["ab d", "xyzw"])
    assert found["cer"] == pytest.approx((1 + 3) / 8)
    assert found["wer"] == pytest.approx((1 + 1) / 3)
    assert found["cer_low"] <= found["cer"] <= found["cer_high"]
    assert "wer" not in error_rates(["a"], ["b"])
    with pytest.raises(RunError, match="no text"):
        error_rates(["a"], [""])


def test_the_interval_is_of_resampled_texts() -> None:
    torch.manual_seed(0)
    wrong = torch.bernoulli(torch.full((400,), 0.3)).double()
    low, high = interval(wrong, torch.ones(400, dtype=torch.float64))
    spread = 1.96 * math.sqrt(wrong.mean().item() * (1 - wrong.mean().item()) / 400)
    assert low == pytest.approx(wrong.mean().item() - spread, abs=0.01)
    assert high == pytest.approx(wrong.mean().item() + spread, abs=0.01)


# -- enhancement ---------------------------------------------------------------------------------------------------


def test_noise_is_as_loud_as_asked_and_not_in_padding() -> None:
    torch.manual_seed(0)
    x, real = torch.randn(3, 1, 4000), torch.ones(3, 1, 4000, dtype=torch.bool)
    real[1, :, 3000:] = False
    x = x * real
    x[2] = 0
    added = noisy(x, torch.tensor([10.0, -5.0, 0.0]), torch.tensor([0.0, 1.0, 2.0]), real) - x
    for b, decibels in ((0, 10.0), (1, -5.0)):
        ratio = 10 * math.log10(x[b].square().sum() / added[b].square().sum())
        assert ratio == pytest.approx(decibels, abs=1e-3)
    assert not added[1, :, 3000:].any()
    assert not added[2].any()


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_falls_with_frequency_as_its_colour_says(colour: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 1, 1024)
    added = noisy(x, torch.zeros(64), torch.full((64,), colour), torch.ones_like(x, dtype=torch.bool)) - x
    power = torch.fft.rfft(added).abs().square().mean((0, 1))
    low, high = power[8:16].mean(), power[256:512].mean()
    octaves = math.log2(sum(range(256, 512)) / 256 / (sum(range(8, 16)) / 8))
    assert math.log2(low / high) == pytest.approx(colour * octaves, abs=0.3)


def test_si_sdr_is_as_written_out_and_knows_no_scale() -> None:
    torch.manual_seed(0)
    clean, made = torch.randn(2, 1, 50), torch.randn(2, 1, 50)
    made = made + 2 * clean
    real = torch.ones_like(clean, dtype=torch.bool)
    real[1, :, 40:] = False
    found = si_sdr(made, clean, real)
    for b, n in ((0, 50), (1, 40)):
        s, e = clean[b, 0, :n].tolist(), made[b, 0, :n].tolist()
        s, e = ([v - sum(x) / n for v in x] for x in (s, e))
        a = sum(p * q for p, q in zip(s, e, strict=True)) / sum(p * p for p in s)
        ratio = sum((a * p) ** 2 for p in s) / sum((a * p - q) ** 2 for p, q in zip(s, e, strict=True))
        assert found[b].item() == pytest.approx(10 * math.log10(ratio), abs=1e-3)
    assert torch.allclose(si_sdr(made * 7 + 3, clean, real), found, atol=1e-3)


def block_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Continuous(shape=(1, 160), block=(8,), dim=32), depth=1, heads=2)


def tones(n: int) -> Tensor:
    return (torch.arange(160) * (0.2 + 0.4 * torch.rand(n, 1, 1)) + 6 * torch.rand(n, 1, 1)).sin()


class Signals:
    """A data module of one part, in two batches."""

    device = torch.device("cpu")

    def __init__(self, x: Tensor, label: Tensor | None = None, pad: Tensor | None = None):
        self.x, self.label, self.pad, self.num_classes = x, label, pad, 2
        self.source = SimpleNamespace(split=lambda name: name, pretext=lambda name: name, classes=("a", "b"))

    def plain(self, part: str) -> Any:
        for half in torch.arange(len(self.x)).tensor_split(2):
            view: View = {"x": self.x[half]}
            yield (view if self.pad is None else {**view, "pad": self.pad[half]}), {"index": half}

    def features(self, embed: Embed, split: str) -> tuple[Tensor, Tensor]:
        assert self.label is not None
        return embed({"x": self.x}), self.label


def test_enhancement_learns_to_take_noise_out_and_is_scored_by_it() -> None:
    torch.manual_seed(0)
    objective = Enhancement(block_encoder(), shape=(1, 160), snr=(0.0, 10.0))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    data, evaluator = Signals(tones(20)), Enhanced(snr=5.0)

    def scored() -> dict[str, float]:
        return evaluator(Embed(lambda view: view["x"], objective=objective), data)

    before, raw = scored(), evaluator(Embed(lambda view: view["x"]), data)
    noisy_ones = raw["si_sdr"] - raw["improvement"]
    assert noisy_ones == pytest.approx(5.0, abs=1.0)
    assert before["improvement"] == pytest.approx(0.0, abs=0.5)
    for _ in range(150):
        loss = objective({"views": [{"x": tones(16)}], "index": torch.arange(16)})
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert loss.value == -loss.log["si_sdr"]
    after = scored()
    assert after["improvement"] > 2
    assert after["si_sdr"] - after["improvement"] == pytest.approx(noisy_ones)
    assert scored() == after


def test_no_other_filter_of_one_shape_takes_out_more_noise_than_wieners() -> None:
    torch.manual_seed(0)
    x, n = tones(64), 160
    found = wiener(Signals(x), 5.0, 1.0)
    noise = [max(k, 1) ** -1.0 for k in range(n // 2 + 1)]
    power = [0.0] * len(noise)
    for row in x[:, 0]:
        for k, value in enumerate(torch.fft.rfft(row).tolist()):
            power[k] += abs(value) ** 2
    scale = sum(power) / sum(noise) * 10 ** (-5 / 10)
    wanted = [s / (s + scale * v) for s, v in zip(power, noise, strict=True)]
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-4)
    heard = noisy(x, torch.full((64,), 5.0), torch.ones(64), torch.ones_like(x, dtype=torch.bool))

    def error(kept: Tensor) -> float:
        return float((torch.fft.irfft(torch.fft.rfft(heard) * kept, n) - x).square().mean())

    best = error(found)
    assert best < 0.6 * error(torch.ones_like(found))
    for _ in range(20):
        assert best < error((found + 0.3 * torch.randn_like(found)).clamp(0, 1))


def test_padding_is_neither_noisy_nor_scored() -> None:
    objective = Enhancement(block_encoder(), shape=(1, 160)).eval()
    x, pad = tones(2), torch.arange(20) >= torch.tensor([[20], [12]])
    real = objective.real(x, pad)
    assert real.sum((1, 2)).tolist() == [160, 96]
    assert objective.real(x, None).all()
    losses = []
    for filler in (0.0, 3.0):
        torch.manual_seed(0)
        losses.append(objective({"views": [{"x": x.masked_fill(~real, filler), "pad": pad}], "index": pad[:, 0]}).value)
    assert torch.allclose(losses[0], losses[1], atol=1e-4)


# -- verification --------------------------------------------------------------------------------------------------


def test_the_equal_error_rate_is_where_both_errors_meet() -> None:
    same = torch.tensor([True, True, True, False, True, False, False, False])
    score = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert equal_error_rate(score, same) == 0.25
    assert equal_error_rate(score, torch.arange(8) < 4) == 0
    assert equal_error_rate(-score, torch.arange(8) < 4) == 1
    assert equal_error_rate(torch.zeros(8), same) == 0.5  # equals are accepted together
    for wrong in (torch.ones(3).bool(), torch.zeros(3).bool()):
        with pytest.raises(RequestError, match="two classes"):
            equal_error_rate(torch.arange(3.0), wrong)


@settings(max_examples=40)
@given(st.integers(4, 30), st.integers(0, 99))
def test_the_equal_error_rate_is_that_of_the_best_threshold(n: int, seed: int) -> None:
    torch.manual_seed(seed)
    score, same = torch.randn(n).round(decimals=1), torch.arange(n) % 2 == 0
    best = (Fraction(2), Fraction(0))
    for threshold in score.unique().flip(0):  # of equally near ones the first, which accepts the fewest
        accepted = Fraction(int((score[~same] >= threshold).sum()), int((~same).sum()))
        refused = Fraction(int((score[same] < threshold).sum()), int(same.sum()))
        best = min(best, (abs(accepted - refused), (accepted + refused) / 2), key=lambda pair: pair[0])
    assert equal_error_rate(score, same) == pytest.approx(float(best[1]))


def test_verification_pairs_the_test_part() -> None:
    label = torch.tensor([0, 0, 1, 1, 1])
    x = F.one_hot(label, 2).float()[:, None] + 0.01
    told = Verification()(Embed(lambda view: view["x"].flatten(1)), Signals(x, label))
    assert told == {"eer": 0.0}
    few = Verification(samples=3)(Embed(lambda view: view["x"].flatten(1)), Signals(x, label))
    assert few == {"eer": 0.0}


# -- ids -----------------------------------------------------------------------------------------------------------


def test_ids_are_finer_near_silence_and_come_back() -> None:
    law = MuLaw()
    x = torch.linspace(-1, 1, 2001)[None, None]
    ids = law(View(x=x))["x"]
    assert ids.shape == (1, 2001)
    assert ids.dtype == torch.int64
    assert ids.min() == 0
    assert ids.max() == 255
    assert (ids[0, 1:] >= ids[0, :-1]).all()
    back = law.inverse(ids)
    assert (back - x).abs()[..., 950:1051].max() < 2e-3
    assert (back - x).abs().max() < 0.03
    assert law(View(x=back))["x"].equal(ids)
    assert law(View(x=torch.tensor([[[-7.0, 7.0, 0.0]]])))["x"].tolist() == [[0, 255, 128]]


def test_mu_law_is_the_formula() -> None:
    for value in (-0.7, -0.01, 0.2, 0.99):
        loud = math.copysign(math.log(1 + 255 * abs(value)) / math.log(256), value)
        assert MuLaw()(View(x=torch.tensor([[[value]]])))["x"].item() == math.floor((loud + 1) / 2 * 255 + 0.5)


def test_ids_have_a_shape_and_padding_stays() -> None:
    law = MuLaw(levels=16)
    assert law.shape((1, 50)) == (50,)
    with pytest.raises(RequestError, match="one channel"):
        law.shape((2, 50))
    pad = torch.zeros(1, 4, dtype=torch.bool)
    assert law({"x": torch.zeros(1, 1, 4), "pad": pad})["pad"] is pad


def test_what_a_language_model_goes_on_with_can_be_heard() -> None:
    torch.manual_seed(0)
    model = CLM(Encoder(stem=Discrete(vocab=256, length=40, dim=16), depth=1, heads=2), separator=None)
    ids = MuLaw()(View(x=torch.rand(2, 1, 40)))["x"]
    shown = model.show({"views": [{"x": ids}], "index": torch.arange(2)})["completion"]
    waves = [undo(column, nn.ModuleDict({"law": MuLaw()})) for column in shown]
    assert [tuple(wave.shape) for wave in waves] == [(2, 1, 40)] * 2
    assert all(wave.abs().max() <= 1 for wave in waves)
    assert waves[0][..., :20].equal(waves[1][..., :20])


def test_bits_of_pairs_are_as_counted_and_a_models_as_it_says() -> None:
    ids = torch.tensor([[0, 1, 0, 1, 2], [1, 0, 1, 0, 0]])
    data = Signals(ids)
    raw = Bits()(Embed(lambda view: view["x"].float()), data)
    counts = torch.ones(3, 3)
    for row in ids.tolist():
        for a, b in zip(row, row[1:], strict=False):
            counts[a, b] += 1
    wanted = [
        -math.log2(counts[a, b] / counts[a].sum()) for row in ids.tolist() for a, b in zip(row, row[1:], strict=False)
    ]
    assert raw["bits_per_id"] == pytest.approx(sum(wanted) / 8)
    torch.manual_seed(0)
    model = CLM(Encoder(stem=Discrete(vocab=3, length=5, dim=8), depth=1, heads=2), separator=None).eval()
    found = Bits()(Embed(lambda view: view["x"].float(), objective=model), data)
    logits = model.logits(ids).log_softmax(2)
    said = [-logits[b, t, ids[b, t + 1]].item() / math.log(2) for b in range(2) for t in range(4)]
    assert found["bits_per_id"] == pytest.approx(sum(said) / 8, rel=1e-5)


def test_bits_leave_padding_out() -> None:
    ids, pad = torch.tensor([[0, 1, 2, 2], [1, 0, 2, 2]]), torch.tensor([[False, False, True, True]]).expand(2, -1)
    assert Bits()(Embed(lambda view: view["x"].float()), Signals(ids, pad=pad))["bits_per_id"] == pytest.approx(1.0)


def test_bits_count_pairs_in_all_that_was_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the labelled part alone: the model has seen the rest too."""
    rows = {"pretrain": [[0, 1, 1, 1, 1, 1]] * 2, "train": [[0, 0, 0]] * 2, "test": [[0, 1, 1]] * 2}
    parts = {part: Signals(torch.tensor(ids)) for part, ids in rows.items()}
    data = parts["test"]
    monkeypatch.setattr(data, "plain", lambda part: Signals.plain(parts[part], part))
    said = Bits()(Embed(lambda view: view["x"].float()), data)["bits_per_id"]
    assert said == pytest.approx(-(math.log2(3 / 4) + math.log2(9 / 10)) / 2)
