"""Views of recordings: each held to its formula, written out, and to what it may do to padding."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from ssl_runner import build
from ssl_runner.errors import RequestError
from ssl_runner.types import Transform, View
from ssl_runner.views.audio import (
    Gain,
    LogMel,
    LogMixup,
    MaskFrequency,
    MaskTime,
    Noise,
    Reverb,
    Standardize,
    TimeFrequencyCrop,
    convolve,
    mel_filters,
)


def padded(x: Tensor, lengths: list[int]) -> View:
    pad = torch.arange(x.shape[-1]) >= torch.tensor(lengths)[:, None]
    shape = (len(x), *[1] * (x.ndim - 2), -1)
    return {"x": x.masked_fill(pad.view(shape), 0.0), "pad": pad}


def waves(n: int = 4, length: int = 4000) -> Tensor:
    return torch.randn(n, 1, length, generator=torch.Generator().manual_seed(1))


def power(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


# -- waveforms -------------------------------------------------------------------------------------------------


def test_gain_is_in_decibels_and_drawn_for_each_sample() -> None:
    torch.manual_seed(0)
    x = waves(200, 50)
    db = 10 * torch.log10(power(Gain(db=(-12.0, 6.0)).transform(x)) / power(x))
    assert -12.01 < db.min() < -11
    assert 5 < db.max() < 6.01
    assert (Gain(db=(20.0, 20.0)).transform(x) / x).allclose(torch.tensor(10.0))
    touched = (Gain(p=0.25).transform(x) != x).flatten(1).any(1).float().mean()
    assert 0.15 < touched < 0.35


def test_noise_lies_as_many_decibels_below_what_is_heard_as_asked() -> None:
    torch.manual_seed(0)
    view = padded(waves(8, 20000), [20000, 20000, 5000, 5000, 300, 20000, 20000, 20000])
    view["x"][7] = 0  # silence
    out = Noise(snr=(10.0, 10.0))(view)
    noise = out["x"] - view["x"]
    for row in range(7):
        there = ~view["pad"][row]
        ratio = view["x"][row, 0][there].square().mean() / noise[row, 0][there].square().mean()
        assert 10 * math.log10(ratio) == pytest.approx(10, abs=0.8)
        assert noise[row, 0][~there].abs().sum() == 0
    assert out["x"][7].abs().max() == 0
    assert out["pad"].equal(view["pad"])
    spread = Noise(snr=(0.0, 40.0))({"x": waves(300, 2000)})["x"] - waves(300, 2000)
    db = -10 * torch.log10(power(spread) / power(waves(300, 2000)))
    assert db.min() < 4
    assert db.max() > 36


def test_convolution_is_the_sum_over_what_came_before() -> None:
    x, response = torch.randn(2, 2, 30), torch.randn(2, 7)
    expected = torch.zeros_like(x)
    for b in range(2):
        for t in range(30):
            for s in range(min(7, t + 1)):
                expected[b, :, t] += response[b, s] * x[b, :, t - s]
    assert torch.allclose(convolve(x, response), expected, atol=1e-5)


def test_a_rooms_response_decays_by_60_db_in_the_time_drawn() -> None:
    torch.manual_seed(0)
    room = Reverb(rate=8000, decay=(0.5, 0.5), wet=(0.3, 0.3))
    response = room.responses(torch.zeros(64, 1, 9))
    assert response.shape == (64, 4000)
    assert response[:, 0].eq(1).all()
    assert torch.allclose(response[:, 1:].square().sum(1), torch.tensor(0.3), atol=1e-4)
    level = 10 * torch.log10(response.square().mean(0))
    early, late = level[100:500].mean(), level[3500:3900].mean()
    assert float(early - late) == pytest.approx(60 * 3400 / 4000, abs=2)


def test_a_room_changes_no_power_and_no_padding() -> None:
    torch.manual_seed(0)
    view = padded(waves(6), [4000, 4000, 2500, 2500, 700, 4000])
    view["x"][5] = 0
    out = Reverb(rate=8000)(view)
    assert (out["x"][:5] - view["x"][:5]).abs().flatten(1).amax(1).min() > 0.01
    assert torch.allclose(power(out["x"]), power(view["x"]), rtol=1e-4)
    assert out["x"].masked_fill(~view["pad"][:, None], 0).abs().max() == 0
    assert out["x"].isfinite().all()


# -- the spectrogram ---------------------------------------------------------------------------------------------


def slow_log_mel(x: np.ndarray, rate: int, width: int, hop: int, size: int, bank: np.ndarray) -> np.ndarray:
    """Frame by frame, frequency by frequency: (mels, frames)."""
    reach = size // 2
    around = np.concatenate([x[1 : reach + 1][::-1], x, x[-reach - 1 : -1][::-1]])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    window = np.zeros(size)
    window[(size - width) // 2 : (size - width) // 2 + width] = hann
    columns = []
    for t in range(1 + len(x) // hop):
        frame = around[t * hop : t * hop + size] * window
        bins = [abs(np.sum(frame * np.exp(-2j * np.pi * k * np.arange(size) / size))) ** 2 for k in range(reach + 1)]
        columns.append(np.log(np.maximum(np.array(bins) @ bank, 1e-10)))
    return np.stack(columns, 1)


def slow_filters(rate: int, size: int, mels: int, low: float, high: float, scale: str) -> np.ndarray:
    def mel(f: float) -> float:
        if scale == "htk":
            return 2595 * math.log10(1 + f / 700)
        return f / (200 / 3) if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)

    def hertz(m: float) -> float:
        if scale == "htk":
            return 700 * (10 ** (m / 2595) - 1)
        return m * 200 / 3 if m < 15 else 1000 * math.exp((m - 15) * math.log(6.4) / 27)

    edges = [hertz(mel(low) + (mel(high) - mel(low)) * i / (mels + 1)) for i in range(mels + 2)]
    bank = np.zeros((size // 2 + 1, mels))
    for k in range(size // 2 + 1):
        f = k * rate / size
        for m in range(mels):
            a, b, c = edges[m : m + 3]
            height = max(0.0, min((f - a) / (b - a), (c - f) / (c - b)))
            bank[k, m] = height * (2 / (c - a) if scale == "slaney" else 1)
    return bank


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_the_filters_are_triangles_on_the_mel_scale(scale: str) -> None:
    found = mel_filters(16000, 1024, 40, 60.0, 7800.0, scale)  # type: ignore[arg-type]
    assert np.abs(found.numpy() - slow_filters(16000, 1024, 40, 60, 7800, scale)).max() < 1e-6


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_a_log_mel_spectrogram_is_the_slow_one(scale: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=903)
    transform = LogMel(rate=8000, window=0.02, hop=0.01, mels=12, low=100.0, scale=scale)  # type: ignore[arg-type]
    assert (transform.width, transform.hop, transform.size) == (160, 80, 256)
    found = transform({"x": torch.from_numpy(x).float()[None, None]})["x"]
    expected = slow_log_mel(x, 8000, 160, 80, 256, slow_filters(8000, 256, 12, 100, 4000, scale))
    assert found.shape == (1, *transform.shape((1, 903))) == (1, 1, 12, 12)
    assert np.abs(found[0, 0].numpy() - expected).max() < 1e-3


def test_many_spectrograms_are_those_of_each_signal() -> None:
    x = torch.randn(5, 1, 16000)
    transform = LogMel(rate=8000, mels=20)
    alone = torch.cat([transform({"x": signal[None]})["x"] for signal in x])
    assert alone.shape == (5, *transform.shape((1, 16000)))
    torch.testing.assert_close(transform({"x": x})["x"], alone)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_a_log_mel_spectrogram_is_that_of_transformers(scale: str) -> None:
    from transformers import audio_utils

    x = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    bank = audio_utils.mel_filter_bank(
        num_frequency_bins=513,
        num_mel_filters=64,
        min_frequency=60,
        max_frequency=7800,
        sampling_rate=16000,
        norm="slaney" if scale == "slaney" else None,
        mel_scale=scale,
    )
    expected = audio_utils.spectrogram(
        x,
        audio_utils.window_function(1024, "hann"),
        frame_length=1024,
        hop_length=160,
        power=2.0,
        mel_filters=bank,
        mel_floor=1e-10,
        log_mel="log",
    )
    ours = LogMel(rate=16000, window=0.064, mels=64, low=60.0, high=7800.0, scale=scale)  # type: ignore[arg-type]
    found = ours({"x": torch.from_numpy(x)[None, None]})["x"][0, 0].numpy()
    assert found.shape == expected.shape == (64, 51)
    # its Slaney scale has rounded constants
    assert np.abs(found - expected).max() < 2e-2


@settings(max_examples=25)
@given(st.integers(300, 3000), st.integers(1, 3000), st.sampled_from([0.01, 0.0125, 0.003]))
def test_a_frame_is_padding_if_its_centre_is(n: int, length: int, hop: float) -> None:
    length = min(n, length)
    transform = LogMel(rate=8000, hop=hop, mels=8)
    out = transform(padded(torch.randn(1, 1, n), [length]))
    assert out["x"].shape[1:] == transform.shape((1, n))
    assert out["pad"].shape == (1, out["x"].shape[-1])
    assert [bool(p) for p in out["pad"][0]] == [
        min(t * transform.hop, n - 1) >= length for t in range(out["pad"].shape[1])
    ]


def test_a_spectrogram_of_silence_is_finite_and_of_bf16_that_of_fp32() -> None:
    transform = LogMel(rate=8000, mels=20)
    assert transform({"x": torch.zeros(1, 1, 800)})["x"].isfinite().all()
    x = waves(2, 1600)
    with torch.autocast("cpu", torch.bfloat16):
        low = transform({"x": x})["x"]
    assert low.dtype == torch.float32
    assert low.equal(transform({"x": x})["x"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"low": 5000.0}, "low=5000"),
        ({"high": 4001.0}, "high=4001"),
        ({"mels": 200}, "mels=200"),
    ],
)
def test_what_a_spectrogram_refuses(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        LogMel(rate=8000, **arguments)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"raise data\.seconds"):
        LogMel(rate=8000).shape((1, 128))


# -- spectrograms, disturbed ---------------------------------------------------------------------------------------


def test_mixing_in_the_log_domain_adds_power() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 1, 3, 5)
    out = LogMixup(share=0.4).transform(x)
    shares = []
    for row in range(64):
        own, mixed = x[row].double().exp(), out[row].double().exp()
        fits = []
        for other in range(64):
            change = (x[other].double().exp() - own).flatten()
            if other != row and change.abs().max() > 1e-9:
                s = float((mixed - own).flatten() @ change / (change @ change))
                fits.append((float((own.flatten() + s * change - mixed.flatten()).abs().max()), s))
        error, share = min(fits)
        if error < 1e-4:
            shares.append(share)
    assert len(shares) >= 60  # one may be mixed with itself
    assert all(-1e-4 <= s <= 0.4001 for s in shares)
    assert max(shares) > 0.3
    assert LogMixup(share=0.0).transform(x).allclose(x)


def test_a_crop_of_the_whole_changes_nothing() -> None:
    x = torch.randn(3, 1, 8, 12)
    whole = TimeFrequencyCrop(time=(1.0, 1.0), frequency=(1.0, 1.0), canvas=1.0)
    assert torch.allclose(whole({"x": x})["x"], x, atol=1e-5)


def test_a_crop_stretches_time_and_frequency() -> None:
    """Half of both sides of a plane that rises along one of them: its slope is halved, within its bounds."""
    torch.manual_seed(0)
    time = torch.arange(40.0).expand(6, 1, 20, 40)
    frequency = torch.arange(20.0)[:, None].expand(6, 1, 20, 40)
    half = TimeFrequencyCrop(time=(0.5, 0.5), frequency=(0.5, 0.5), canvas=1.0)
    out = half({"x": time})["x"]
    assert torch.allclose(out.diff(dim=-1)[..., 2:-2], torch.tensor(0.5), atol=1e-3)
    assert out.diff(dim=-2).abs().max() < 1e-3
    starts = out[:, 0, 0, 2]
    assert starts.min() >= 0
    assert starts.max() <= 22
    assert starts.std() > 1
    out = half({"x": frequency})["x"]
    assert torch.allclose(out.diff(dim=-2)[..., 2:-2, :], torch.tensor(0.5), atol=1e-3)


def test_a_crop_of_a_wider_canvas_has_the_mean_around_and_its_padding_goes_along() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 6, 30) + 4
    view = {"x": x, "pad": torch.arange(30).expand(8, -1) >= 20}
    out = TimeFrequencyCrop(time=(1.5, 1.5), frequency=(1.0, 1.0), canvas=1.5)(view)
    assert out["x"].shape == x.shape
    means = x.mean((2, 3))
    assert torch.allclose(out["x"][:, 0, 0, 0], means[:, 0], atol=1e-4)  # a sixth to each side is outside
    assert torch.allclose(out["x"][:, 0, 0, -1], means[:, 0], atol=1e-4)
    outside, inside = out["pad"][:, [0, 1, 2, 3, 4]], out["pad"][:, 6:17]
    assert outside.all()
    assert not inside.any()
    assert out["pad"][:, 19:].all()  # frames 20 and on begin at 5 + 20 / 1.5


@pytest.mark.parametrize(("cls", "axis"), [(MaskTime, 3), (MaskFrequency, 2)])
def test_masks_hide_stretches_of_one_axis_by_the_mean(cls: type[MaskTime], axis: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 1, 20, 20)
    out = cls(count=1, width=0.25).transform(x)
    mean = x.mean((2, 3), keepdim=True)
    hidden = (out == mean).all(dim=5 - axis)[:, 0]  # along the axis that is masked
    assert torch.equal(out, torch.where(hidden.view(400, 1, *((20, 1) if axis == 2 else (1, 20))), mean, x))
    widths = hidden.sum(1)
    assert widths.unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert (hidden[:, 1:] != hidden[:, :-1]).sum(1).max() <= 2  # one stretch
    assert hidden.any(0).all()  # anywhere
    assert (cls(count=3, width=0.25).transform(x) == mean).float().mean() > hidden.float().mean() * 1.5


@pytest.mark.parametrize("shape", [(3, 1, 50), (3, 1, 4, 50), (3, 2, 50)])
def test_standardising_leaves_padding_out(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    view = padded(torch.randn(shape) * 3 + 5, [50, 20, 1])
    out = Standardize()(view)
    for row, length in enumerate((50, 20)):
        heard = out["x"][row, ..., :length]
        assert float(heard.mean()) == pytest.approx(0, abs=1e-5)
        assert float(heard.std(correction=0)) == pytest.approx(1, abs=1e-4)
        assert out["x"][row, ..., length:].abs().sum() == 0
    assert out["x"].isfinite().all()
    assert out["pad"].equal(view["pad"])
    assert "pad" not in Standardize(padded=False)(view)
    bare = Standardize()({"x": view["x"]})["x"]
    assert torch.allclose(bare.flatten(1).std(1, correction=0), torch.ones(3), atol=1e-3)


MADE: dict[str, Callable[[], Transform]] = {
    "gain": Gain,
    "noise": Noise,
    "reverb": lambda: Reverb(rate=8000),
    "mixup": LogMixup,
    "crop": TimeFrequencyCrop,
    "time": MaskTime,
    "frequency": MaskFrequency,
}


@pytest.mark.parametrize("name", MADE)
def test_samples_are_disturbed_each_in_its_own_way_and_by_the_seed(name: str) -> None:
    one = torch.randn(1, 1, 24, 40) if name in ("mixup", "crop", "time", "frequency") else waves(1, 3000)
    x = one.repeat(8, *[1] * (one.ndim - 1))
    if name == "mixup":
        x = x + torch.arange(8.0).view(-1, 1, 1, 1)
    kept = x.clone()
    torch.manual_seed(3)
    out = MADE[name]()({"x": x})["x"]
    assert x.equal(kept)
    assert out.shape == x.shape
    torch.manual_seed(3)
    assert MADE[name]()({"x": x})["x"].equal(out)
    assert len({round(float(row.double().square().sum()), 4) for row in out}) >= 6 or name in ("noise", "reverb")
    assert (out[1:] != out[:-1]).flatten(1).any(1).sum() >= 6


@pytest.mark.parametrize("cls", [Gain, Noise, Reverb])
def test_none_may_be_chosen(cls: type[Transform]) -> None:
    arguments = {"rate": 8000} if cls is Reverb else {}
    view = padded(waves(2, 300), [300, 200])
    assert cls(p=0.0, **arguments)(view)["x"].equal(view["x"])  # type: ignore[call-arg]


# -- the configs -----------------------------------------------------------------------------------------------------

CONFIGS = {"waveform": (1, False), "two_waveforms": (2, False), "spectrogram": (1, True)}
CONFIGS |= {"two_spectrograms": (2, True), "byol_a": (2, True)}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_of_views(name: str) -> None:
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        node = OmegaConf.to_container(compose(overrides=[f"+views={name}"]).views, resolve=True)
    views = build.make(build.fill(node, {"size": 15200, "rate": 16000}))
    count, spectrogram = CONFIGS[name]
    shape = (1, 64, 96) if spectrogram else (1, 15200)
    assert views.shape((1, 15200)) == shape
    torch.manual_seed(0)
    rows = [views.crops([{"x": torch.randn(1, n)}]) for n in (4000, 20000)]
    samples = {
        "inputs": [{k: torch.stack([row[i][k] for row in rows]) for k in rows[0][i]} for i in range(count)],
        "cropped": True,
    }
    made = views(samples)
    assert len(made) == count
    for view in made:
        assert view["x"].shape == (2, *shape)
        assert view["x"].isfinite().all()
        assert float(view["x"][1].std()) == pytest.approx(1, abs=0.3)
        assert ("pad" in view) == (name != "byol_a")
        if "pad" in view:
            assert view["pad"][0].float().mean() > 0.6
    if count == 2:
        assert not made[0]["x"].equal(made[1]["x"])
    fitted = {k: v[None] for k, v in views.fitted([{"x": torch.randn(1, 9000)}])[0].items()}
    plain = [views.plain({"inputs": [fitted], "cropped": True})["x"] for _ in range(2)]
    assert plain[0].shape == (1, *shape)
    assert plain[0].equal(plain[1])
