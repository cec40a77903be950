"""Convolutions in bf16 on a processor: none gives what has nothing to do with its input, none reads beyond it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from ssl_runner import kernels
from ssl_runner.backbones.frames import Frames

CONF = Path(__file__).parents[1] / "conf"
CONVOLUTIONS = {
    "wav2vec 2.0's positions in a small net": nn.Conv1d(128, 128, 32, groups=16),
    "strided by their width": nn.Conv1d(8, 16, 8, stride=8),
    "patches of many channels": nn.Conv2d(12, 24, 16, stride=16),
    "a wide kernel on few channels": nn.Conv2d(4, 16, (1, 32), padding=(0, 16)),
    "tubes": nn.Conv3d(8, 16, (3, 8, 8)),
    "of an image": nn.Conv2d(3, 16, 7, stride=2, padding=3),
    "of one group": nn.Conv1d(128, 128, 5, dilation=2),
}


def apart(module: nn.Module, x: Tensor) -> float:
    """How far its output under autocast is from that in fp32, of the latter's norm."""
    with torch.no_grad():
        exact = copy.deepcopy(module).float()(x)
        with torch.autocast("cpu", torch.bfloat16):
            return float((module(x).float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_no_convolution_in_bf16_is_far_from_fp32(name: str, weights: torch.dtype) -> None:
    module = copy.deepcopy(CONVOLUTIONS[name]).to(weights)
    whole = nn.Sequential(module)
    kernels.mend(whole)
    torch.manual_seed(0)
    assert apart(whole, torch.randn(3, module.in_channels, *[40] * len(module.kernel_size))) < 0.02


def test_what_is_mended_computes_in_fp32_and_is_otherwise_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "wrong", lambda each: each.kernel_size == (5,))
    own = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 5, padding=2, padding_mode="circular"))
    net = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), own, nn.Sequential(nn.Conv1d(4, 4, 5)))
    x, before = torch.randn(2, 4, 20), torch.get_rng_state()
    exact, names = net(x), list(net.state_dict())
    assert kernels.mend(net) == ["1", "2.0"]
    assert kernels.mend(net) == []  # it is not mended twice
    assert torch.get_rng_state().equal(before)
    assert net(x).equal(exact)
    assert list(copy.deepcopy(net).state_dict()) == names
    inner = torch.randn(2, 4, 20).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert net[0](x).dtype == torch.bfloat16
        assert copy.deepcopy(net)[1](inner).equal(net[1](inner.float()))
        assert net[1](inner).dtype == torch.float32
    net[1](x).sum().backward()
    assert all(p.grad is not None for p in own.parameters())


@pytest.mark.parametrize("length", range(20, 27))
def test_no_convolution_gets_what_it_does_not_use(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Conv1d(2, 3, 4, stride=3, dilation=2)
    mended = copy.deepcopy(plain)
    assert kernels.mend(nn.Sequential(mended)) == []
    x, got, own = torch.randn(2, 2, length), [], F.conv1d
    wanted = plain(x)
    monkeypatch.setattr(F, "conv1d", lambda x, *args: got.append(x.shape[2]) or own(x, *args))
    assert mended(x).equal(wanted)
    assert got == [(wanted.shape[2] - 1) * 3 + 7]


def test_the_backbones_for_speech_need_no_mending() -> None:
    for path in CONF.glob("backbone/*frames*.yaml"):
        given = yaml.safe_load(path.read_text())["stem"]
        assert given.pop("_target_").endswith("Frames")
        assert kernels.mend(Frames(shape=(1, 8000), **given)) == [], path.name
