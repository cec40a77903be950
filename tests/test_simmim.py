"""SimMIM against its paper, on backbones of tokens and on backbones of maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous
from ssl_runner.backbones.timm import Timm
from ssl_runner.backbones.vit import ViT
from ssl_runner.config import check, plain
from ssl_runner.errors import RequestError
from ssl_runner.objectives import simmim
from ssl_runner.objectives.simmim import SimMIM, l1
from ssl_runner.parts.masking import random_mask
from ssl_runner.types import Backbone, MapBackbone

SHAPE = (2, 8, 12)


class Conv(MapBackbone):
    """Cells of `side` pixels, and no neighbours: what a cell's map holds is a function of its own pixels."""

    def __init__(self, side: int = 4, map_size: tuple[int, int] | None = None):
        super().__init__()
        self.dim, self.side = 6, side
        self.body = nn.Conv2d(2, 6, side, stride=side)
        self.map_size = map_size or (8 // side, 12 // side)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.maps(x).mean((2, 3))

    def maps(self, x: Tensor) -> Tensor:
        return self.body(x).relu()

    def map_shape(self) -> tuple[int, int, int]:
        return 6, *self.map_size


def encoder() -> Encoder:
    return Encoder(stem=Continuous(shape=SHAPE, block=(2, 4), dim=16), depth=1, heads=2)


def vit() -> ViT:
    options = {"patch_size": 4, "embed_dim": 16, "depth": 1, "reg_tokens": 1}
    return ViT(name="test_vit", shape=SHAPE, options=options)  # type: ignore[arg-type]


KINDS = {"tokens": encoder, "vit": vit, "maps": Conv}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(backbone: Backbone, **arguments: Any) -> SimMIM:
    torch.manual_seed(0)
    objective = SimMIM(backbone, shape=SHAPE, **arguments)  # type: ignore[arg-type]
    nn.init.normal_(objective.mask_token)  # as after some training: far from zero
    return objective


def samples(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


# -- the loss --------------------------------------------------------------------------------------------


def test_l1_averages_over_the_values_of_hidden_patches() -> None:
    torch.manual_seed(0)
    prediction, target, mask = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.rand(3, 5) < 0.5
    errors = [
        abs(prediction[b, k, i].item() - target[b, k, i].item())
        for b in range(3)
        for k in range(5)
        if mask[b, k]
        for i in range(4)
    ]
    assert l1(prediction, target, mask).item() == pytest.approx(sum(errors) / len(errors), abs=1e-5)
    wild = torch.where(mask[..., None], prediction, 1e6)
    assert torch.equal(l1(prediction, target, mask), l1(wild, target, mask))


@pytest.mark.parametrize("block", [None, 2, 4])
def test_the_loss_on_maps_is_that_of_the_paper_pixel_by_pixel(
    block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden blocks take the learned value of their channel, a 1x1 layer reads each cell of the map, and the error
    counts at hidden pixels: all of it written out with loops over pixels."""
    backbone = Conv(4)
    objective = make(backbone, block=block).eval()
    x, side = samples(), block or 4
    hidden = random_mask(3, (8 // side) * (12 // side), 0.6, x.device)
    monkeypatch.setattr(simmim, "random_mask", lambda *_: hidden)
    across = 12 // side

    def is_hidden(b: int, i: int, j: int) -> bool:
        return bool(hidden[b, (i // side) * across + j // side])

    seen = x.clone()
    for b in range(3):
        for i in range(8):
            for j in range(12):
                if is_hidden(b, i, j):
                    seen[b, :, i, j] = objective.mask_token.detach()
    maps = backbone.maps(seen)
    weight, bias = objective.head.weight[:, :, 0, 0], objective.head.bias
    errors = []
    for b in range(3):
        for i in range(8):
            for j in range(12):
                if is_hidden(b, i, j):
                    pixels = (weight @ maps[b, :, i // 4, j // 4] + bias).view(2, 4, 4)
                    errors += [(pixels[c, i % 4, j % 4] - x[b, c, i, j]).abs().item() for c in range(2)]
    found = objective({"views": [{"x": x}]}).value
    assert found.item() == pytest.approx(sum(errors) / len(errors), abs=1e-5)


@pytest.mark.parametrize("kind", ["tokens", "vit"])
def test_the_loss_on_tokens_is_that_of_the_paper_token_by_token(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make(KINDS[kind]()).eval()
    backbone, x = objective.backbone, samples()
    patches = backbone.patchify(x)
    count = patches.shape[1]
    hidden = random_mask(3, count, 0.6, x.device)
    monkeypatch.setattr(simmim, "random_mask", lambda *_: hidden)
    whole, blank = backbone.embed(patches), backbone.embed(torch.zeros_like(patches))  # blank: bias and position
    tokens = whole.clone()
    for b in range(3):
        for k in range(count):
            if hidden[b, k]:
                tokens[b, k] = blank[b, k] + objective.mask_token
    out = backbone.encode(tokens)
    errors = []
    for b, k in hidden.nonzero().tolist():
        values = objective.head.weight @ out[b, k] + objective.head.bias
        errors += (values - patches[b, k]).abs().tolist()
    found = objective({"views": [{"x": x}]}).value
    assert found.item() == pytest.approx(sum(errors) / len(errors), abs=1e-5)


# -- what is seen ----------------------------------------------------------------------------------------


@kinds
@torch.no_grad()
def test_nothing_of_a_hidden_patch_is_seen(kind: str) -> None:
    objective = make(KINDS[kind]()).eval()
    patches = objective.cut(samples())
    hidden = random_mask(3, patches.shape[1], 0.6, patches.device)
    before = objective.predict(patches, hidden)
    assert before.shape == patches.shape
    torch.testing.assert_close(objective.predict(torch.where(hidden[..., None], 9.0, patches), hidden), before)
    changed = patches.clone()
    changed[0, int((~hidden[0]).nonzero()[0])] += 1
    assert not torch.allclose(objective.predict(changed, hidden)[0], before[0])
    torch.testing.assert_close(objective.predict(changed, hidden)[1:], before[1:])


@kinds
def test_the_share_of_hidden_patches_is_the_ratio_and_each_sample_has_its_own(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = make(KINDS[kind](), ratio=0.4, **({"block": 2} if kind == "maps" else {}))
    drawn: list[Tensor] = []
    real = simmim.random_mask
    monkeypatch.setattr(simmim, "random_mask", lambda *given: drawn.append(real(*given)) or drawn[-1])
    torch.manual_seed(0)
    loss = objective({"views": [{"x": samples(16)}]}).value
    loss.backward()
    count = objective.cut(samples()).shape[1]
    assert drawn[0].sum(1).tolist() == [round(0.4 * count)] * 16
    assert len(drawn[0].unique(dim=0)) > 4
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert objective.mask_token.grad is not None
    assert objective.mask_token.grad.abs().sum() > 0


@kinds
@torch.no_grad()
def test_it_shows_the_input_what_is_left_and_what_was_rebuilt(kind: str) -> None:
    objective = make(KINDS[kind]()).eval()
    x = samples()
    (whole, seen, rebuilt) = objective.show({"views": [{"x": x}]})["reconstruction"]
    assert torch.equal(whole, x)
    assert seen.shape == rebuilt.shape == x.shape
    cut, left, made = (objective.cut(each) for each in (x, seen, rebuilt))
    hidden = (left == 0).all(2)
    assert hidden.sum(1).tolist() == [round(0.6 * cut.shape[1])] * 3
    assert torch.equal(left[~hidden], cut[~hidden])
    assert torch.equal(made[~hidden], cut[~hidden])
    assert not torch.isclose(made[hidden], cut[hidden]).all(1).any()


def test_blocks_are_cut_in_row_major_order_channel_by_channel() -> None:
    objective = make(Conv(4), block=2)
    x = samples()
    patches = objective.cut(x)
    assert patches.shape == (3, 4 * 6, 2 * 2 * 2)
    assert torch.equal(patches[:, 7], x[:, :, 2:4, 2:4].flatten(1))  # second row, second column
    assert torch.equal(objective.join(patches), x)


# -- nets of timm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("resnet10t", (1, 16, 16), {"small_stem": True, "options": {"stem_width": 8, "channels": [8, 8, 8, 8]}}),
        ("test_convnext", (3, 64, 96), {}),
        ("test_efficientnet", (3, 64, 64), {}),
    ],
)
def test_every_weight_of_a_net_learns(name: str, shape: tuple[int, int, int], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    objective = SimMIM(Timm(name=name, shape=shape, **options), shape=shape)
    x = torch.randn(4, *shape)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(12):
        torch.manual_seed(1)
        loss = objective({"views": [{"x": x}]}).value
        optimizer.zero_grad()
        loss.backward()
        assert [n for n, p in objective.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# -- wrong requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(Conv(4), block=3), r"objective\.block=3: does not cut a 8x12 image"),
        (lambda: make(Conv(4), block=8), r"objective\.block=8"),
        (lambda: make(encoder(), block=2), r"objective\.block: leave it out"),
        (lambda: make(Conv(4, map_size=(2, 4))), r"makes a 2x4 map of a 8x12 image.*square cells"),
        (lambda: make(Conv(4, map_size=(3, 4))), r"square cells"),
        (lambda: SimMIM(Conv(8, map_size=(1, 1)), shape=(2, 8, 8)), r"objective\.block=8"),
        (
            lambda: SimMIM(Timm(name="test_vit", shape=(3, 32, 32)), shape=(3, 32, 32)),
            r"test_vit makes no map.*backbone=vit_tiny backbone\.name=test_vit .*ViT",
        ),
        (
            lambda: SimMIM(Timm(name="mobilenetv3_small_050", shape=(3, 64, 64)), shape=(3, 64, 64)),
            r"layers behind its last map \(conv_head\.weight",
        ),
    ],
)
def test_wrong_requests_are_told_in_words(build: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build()


def test_check_takes_either_kind_of_backbone_and_refuses_a_third() -> None:
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        config = plain(compose("pretrain", ["+task=simmim"]))
    for target in ("ssl_runner.backbones.timm.Timm", "ssl_runner.backbones.vit.ViT"):
        check({**config, "backbone": {"_target_": target, "name": "resnet18"}})
    linear = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    with pytest.raises(RequestError, match="SimMIM needs a TokenBackbone or a MapBackbone, and Linear is none"):
        check({**config, "backbone": linear})
