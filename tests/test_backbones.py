"""What every backbone promises, over timm's models and encoders of every modality."""

from __future__ import annotations

import copy
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.backbones.timm import Timm
from ssl_runner.backbones.transformers_patches import TransformersPatches
from ssl_runner.backbones.vit import ViT
from ssl_runner.build import fill
from ssl_runner.errors import RequestError, RunError
from ssl_runner.parts import attention
from ssl_runner.parts.attention import attend
from ssl_runner.types import Backbone, View

CONF = Path(__file__).parents[1] / "conf" / "backbone"
TINY = {"stem_width": 16, "channels": [16, 32, 64, 128]}  # conf/backbone/resnet_tiny.yaml
HF = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 4}


def encoder(stem, **options) -> Encoder:
    return Encoder(stem=stem, **{"depth": 2, "heads": 2, **options})


BACKBONES = {
    "resnet_tiny": lambda: Timm(name="resnet10t", shape=(1, 8, 8), small_stem=True, options=TINY),
    "resnet18": lambda: Timm(name="resnet18", shape=(3, 32, 32), small_stem=True),
    "resnet": lambda: Timm(name="test_resnet", shape=(3, 64, 64)),
    "convnext": lambda: Timm(name="test_convnext", shape=(3, 64, 64)),
    "efficientnet": lambda: Timm(name="test_efficientnet", shape=(2, 40, 32)),
    "mobilenet": lambda: Timm(name="mobilenetv3_small_050", shape=(3, 32, 32)),
    "vit_oblong": lambda: Timm(name="test_vit4", shape=(3, 32, 48), options={"patch_size": 8}),
    "vit": lambda: Timm(name="test_vit", shape=(3, 32, 32), options={"patch_size": 8}),
    "vit_tokens": lambda: ViT(name="test_vit", shape=(3, 32, 32), options={"patch_size": 8}),
    "image": lambda: encoder(Continuous(shape=(3, 8, 12), block=(4, 4), dim=16)),
    "series": lambda: encoder(Continuous(shape=(2, 24), block=(3,), dim=16)),
    "video": lambda: encoder(Continuous(shape=(1, 4, 8, 8), block=(2, 4, 4), dim=16)),
    "text": lambda: encoder(Discrete(vocab=50, length=12, dim=16)),
    "hf_picture": lambda: TransformersPatches(name="vit", shape=(3, 8, 12), config=HF),
    "hf_clip": lambda: TransformersPatches(name="videomae", shape=(1, 4, 8, 8), config=HF),
}
SAMPLES = {
    "resnet_tiny": (1, 8, 8),
    "resnet18": (3, 32, 32),
    "resnet": (3, 64, 64),
    "convnext": (3, 64, 64),
    "efficientnet": (2, 40, 32),
    "mobilenet": (3, 32, 32),
    "vit_oblong": (3, 32, 48),
    "vit": (3, 32, 32),
    "vit_tokens": (3, 32, 32),
    "image": (3, 8, 12),
    "series": (2, 24),
    "video": (1, 4, 8, 8),
    "text": (12,),
    "hf_picture": (3, 8, 12),
    "hf_clip": (1, 4, 8, 8),
}
TOKENS = {"image": (6, 48), "series": (8, 6), "video": (8, 32), "text": (12,)}
every = pytest.mark.parametrize("kind", BACKBONES)
every_encoder = pytest.mark.parametrize("kind", TOKENS)


def make(kind: str) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES[kind]()


def sample(kind: str, batch: int = 3) -> Tensor:
    torch.manual_seed(1)
    shape = (batch, *SAMPLES[kind])
    return torch.randint(50, shape) if kind == "text" else torch.randn(shape)


# -- every backbone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all", "seen", "added", "causal", "fewer keys"])
def test_attention_in_bf16_is_torchs_own_written_out(kind: str) -> None:
    torch.manual_seed(0)
    causal, there = kind == "causal", torch.rand(3, 1, 9, 9).lt(0.6) | torch.eye(9, dtype=torch.bool)
    added = torch.randn(1, 2, 9, 9).masked_fill(~there[:1], float("-inf"))
    seen = {"seen": there, "added": added}.get(kind)
    exact = [torch.randn(3, 2, n, 8, requires_grad=True) for n in (9, *((5, 5) if kind == "fewer keys" else (9, 9)))]
    low = [each.detach().bfloat16().requires_grad_() for each in exact]
    wanted = F.scaled_dot_product_attention(*exact, attn_mask=seen, is_causal=causal)
    found = attend(*low, seen, causal)
    assert "Attention" not in type(found.grad_fn).__name__
    assert torch.allclose(found.float(), wanted, atol=0.05)
    of = torch.randn(wanted.shape)
    gradients = zip(torch.autograd.grad(found, low, of.bfloat16()), torch.autograd.grad(wanted, exact, of), strict=True)
    assert all(torch.allclose(mine.float(), theirs, atol=0.1) for mine, theirs in gradients)
    with torch.no_grad():
        assert torch.allclose(attend(*low, seen, causal).float(), wanted, atol=0.05)


@pytest.mark.parametrize("case", ["fp32", "long", "no gradient"])
def test_attention_is_torchs_own_but_for_short_gradients_in_bf16(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    own = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: asked.append(1) or own(*a, **k))
    length, kind = (attention.SHORT + 1 if case == "long" else 9), torch.float32 if case == "fp32" else torch.bfloat16
    q = torch.randn(1, 1, length, 8, dtype=kind, requires_grad=case != "no gradient")
    assert attend(q, q, q).shape == q.shape
    assert asked == [1]


@every
@torch.no_grad()
def test_gives_one_vector_a_sample(kind):
    backbone = make(kind).eval()
    features = backbone(sample(kind))
    assert features.shape == (3, backbone.dim)
    assert features.isfinite().all()
    assert (features.std(0) > 0).any()
    one_by_one = torch.cat([backbone(x[None]) for x in sample(kind)])
    torch.testing.assert_close(features, one_by_one, rtol=1e-3, atol=1e-4)
    assert backbone(**View(x=sample(kind))).shape == features.shape


@every
def test_every_parameter_gets_a_gradient(kind):
    backbone = make(kind).train()
    backbone(sample(kind, 4)).square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@every
@torch.no_grad()
def test_state_and_copies_reproduce_the_features(kind):
    backbone = make(kind)
    x = sample(kind, 4)
    backbone.train()(x)  # moves running statistics
    expected = backbone.eval()(x)
    torch.manual_seed(5)
    other = BACKBONES[kind]()
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other.eval()(x), expected)
    assert torch.equal(copy.deepcopy(backbone)(x), expected)


@pytest.mark.parametrize("kind", [k for k, shape in SAMPLES.items() if len(shape) == 3])
@torch.no_grad()
def test_channels_last_changes_nothing(kind):
    backbone = make(kind).eval()
    x = sample(kind)
    expected = backbone(x)
    backbone.to(memory_format=torch.channels_last)
    found = backbone(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


SOUND, SERIES, CLIP = (1, 1600), (2, 40), (3, 4, 32, 32)
OF_SIGNALS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("encoder_frames", "encoder_speech", "hf_speech", "recurrent_frames"), SOUND),
    **dict.fromkeys(("dilated", "dilated_tiny", "encoder_series"), SERIES),
    **dict.fromkeys(("encoder_video", "hf_vision", "r3d18", "stacked_tiny"), CLIP),
}
"""What samples a choice is for, where these are no images, ids or rows of a table."""
GIVEN: dict[str, dict[str, Any]] = {
    "timm": {"name": "test_vit"},
    "hf": {"name": "bert", "config": {"num_hidden_layers": 1}},
    "hf_speech": {"name": "wav2vec2", "config": {"num_hidden_layers": 1}},
    "hf_vision": {"name": "videomae", "config": {"num_hidden_layers": 1, "patch_size": 16}},
}


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
@torch.no_grad()
def test_configs_build_a_backbone(path):
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose(f"backbone/{path.stem}").backbone)
    kind = node.get("stem", node)["_target_"].rpartition(".")[2]
    ids, columns = kind in ("Discrete", "Transformers"), kind in ("Columns", "MLP")
    shape = OF_SIGNALS.get(path.stem, (1, 16, 16))
    # what the runner fills in from the data
    second = {"vocab": 11, "length": 16, "shape": [1, 64, 8]}
    facts = {"columns": [0, 3, 0]} if columns else {"shape": list(shape), "second": second}
    node = fill(node, second if ids else facts)
    if path.stem in GIVEN:
        assert node["name"] == "???"  # for a person to give
        node |= GIVEN[path.stem]
    backbone = instantiate(node, _convert_="all").eval()
    x = torch.randint(11, (2, 16)) if ids else torch.ones(2, 3) if columns else torch.randn(2, *shape)
    assert backbone(x).shape == (2, backbone.dim)


# -- timm ------------------------------------------------------------------------------------------------


def shapes_of_stages(backbone: Timm, x: Tensor) -> dict[str, tuple[int, ...]]:
    seen: dict[str, tuple[int, ...]] = {}
    stages = {stage["module"]: stage["reduction"] for stage in backbone.model.feature_info}
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: tuple(o.shape[2:])}))
        for name, module in backbone.model.named_modules()
        if name in stages
    ]
    with torch.no_grad():
        backbone.eval()(x)
    for handle in handles:
        handle.remove()
    assert seen == {n: tuple(math.ceil(side / r) for side in x.shape[2:]) for n, r in stages.items()}
    return seen


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "resnet26d", "seresnet18", "resnetblur18"])
def test_small_stem_keeps_the_first_maps_whole(name):
    x = torch.randn(2, 3, 32, 32)
    small = shapes_of_stages(Timm(name=name, shape=(3, 32, 32), small_stem=True), x)
    usual = shapes_of_stages(Timm(name=name, shape=(3, 32, 32)), x)
    assert small["act1"] == (32, 32)
    assert small["layer1"] == (32, 32)
    assert small["layer4"] == (4, 4)
    assert usual["layer1"] == (8, 8)


def test_small_stem_is_three_by_three():
    conv = Timm(name="resnet18", shape=(2, 32, 32), small_stem=True).model.conv1
    assert (conv.in_channels, conv.kernel_size, conv.stride, conv.padding) == (2, (3, 3), (1, 1), (1, 1))
    spread = math.sqrt(2 / (64 * 9))  # He et al., 2015, Equation 14: the fan out
    assert float(conv.weight.detach().std()) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(
    ("name", "shape", "options", "expected"),
    [
        ("resnet18", (3, 32, 32), {}, "a 32x32 image to a map of 1x1 .*backbone.small_stem=true"),
        ("resnet18", (3, 63, 80), {}, "backbone.small_stem=true"),
        ("resnet18", (3, 64, 64), {}, None),
        ("resnet18", (3, 32, 32), {"small_stem": True}, None),
        ("resnet18", (3, 128, 128), {"small_stem": True}, "16 times"),
        ("resnet10t", (1, 8, 8), {"small_stem": True, "options": TINY}, None),
        ("test_convnext", (3, 32, 32), {}, "smaller total stride"),
        ("test_vit", (3, 32, 32), {}, "2x2 patches.*backbone.options.patch_size=4"),
        ("test_vit", (3, 32, 32), {"options": {"patch_size": 4}}, None),
    ],
)
def test_advice_comes_from_the_model_and_the_size(name, shape, options, expected):
    advice = Timm(name=name, shape=shape, **options).advice
    if expected is None:
        assert advice is None
    else:
        assert advice is not None
        assert re.search(expected, advice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet_18"}, r"backbone\.name.*'resnet18"),
        ({"name": "qqqq"}, r"backbone\.name: timm knows no model 'qqqq'; .{0,60}$"),
        ({"name": "resnet18.nope"}, r"backbone\.name"),
        ({"name": "resnet18", "options": {"chanels": [8]}}, r"backbone\.options\.chanels"),
        ({"name": "test_vit", "options": {"img_size": 8}}, r"backbone\.options\.img_size"),
        ({"name": "resnet18", "options": {"num_classes": 8}}, r"backbone\.options\.num_classes"),
        ({"name": "test_vit", "options": {"patch_size": 5}}, r"backbone\.options\.patch_size.*\(5, 5\)"),
        ({"name": "test_vit", "shape": (3, 8, 8)}, r"backbone\.options\.patch_size"),
        ({"name": "test_vit", "small_stem": True}, r"backbone\.small_stem.*no ResNet stem"),
        ({"name": "resnetv2_18", "small_stem": True}, r"backbone\.small_stem"),
        ({"name": "resnet18", "small_stem": True, "pretrained": True}, r"backbone\.small_stem"),
        ({"name": "resnetv2_50d", "pretrained": True}, r"backbone\.pretrained: timm has no weights"),
        ({"name": "resnet18", "shape": (2, 100)}, r"backbone\.shape.*backbone=encoder"),
    ],
)
def test_wrong_requests_name_the_key(arguments, message):
    with pytest.raises(RequestError, match=message):
        Timm(**{"shape": (3, 32, 32), **arguments})


def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    import huggingface_hub.constants
    from huggingface_hub.errors import LocalEntryNotFoundError
    from timm.models import _builder

    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(_builder, "load_pretrained", unreachable)
    with pytest.raises(RunError, match=r"backbone\.pretrained: the weights of test_vit .*cannot reach the hub"):
        Timm(name="test_vit", shape=(3, 32, 32), pretrained=True)


def test_timm_refuses_what_it_cannot_do():
    backbone = make("vit")
    with pytest.raises(RequestError, match="padding"):
        backbone(sample("vit"), pad=torch.zeros(3, 4, dtype=torch.bool))
    maps = Timm(name="resnet18", shape=(3, 32, 32), options={"global_pool": ""})
    with pytest.raises(RequestError, match="global pooling"):
        maps(torch.randn(2, 3, 32, 32))


def test_options_take_effect():
    assert make("resnet_tiny").dim == 128
    assert 0.2e6 < sum(p.numel() for p in make("resnet_tiny").parameters()) < 0.7e6
    wide = Timm(name="resnet18", shape=(3, 32, 32), options={"global_pool": "catavgmax"})
    assert wide.dim == 1024
    assert wide.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 1024)


def test_importing_a_backbone_does_not_import_timm():
    code = (
        "import sys, ssl_runner.backbones.timm, ssl_runner.backbones.vit, ssl_runner.backbones.encoder, "
        "ssl_runner.optim.recipe, "
        "ssl_runner.optim.schedules, ssl_runner.parts.batchnorm\n"
        "heavy = {'timm', 'transformers', 'torchvision', 'pytorch_lightning', 'sklearn', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- maps of timm's nets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "options", "expected"),
    [
        ("resnet18", (3, 64, 96), {}, (512, 2, 3)),
        ("resnet10t", (1, 16, 16), {"small_stem": True, "options": TINY}, (128, 2, 2)),
        ("test_efficientnet", (3, 64, 64), {}, (256, 2, 2)),
        ("test_convnext", (3, 64, 96), {}, (64, 2, 3)),
        ("swin_tiny_patch4_window7_224", (3, 64, 64), {"options": {"depths": [1, 1, 1, 1], "embed_dim": 24}}, None),
    ],
)
def test_maps_are_what_is_pooled(name, shape, options, expected):
    backbone = Timm(name=name, shape=shape, **options).train()
    before = copy.deepcopy(backbone.state_dict())
    channels, height, width = backbone.map_shape()
    assert (channels, height, width) == (expected or (192, 2, 2))
    assert backbone.training
    assert backbone.model.training
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items()), "looking leaves no trace"
    assert all(p.grad is None for p in backbone.parameters())
    backbone.eval()
    x = torch.randn(2, *shape)
    maps = backbone.maps(x)
    assert maps.shape == (2, channels, height, width)
    if name != "test_convnext":  # which normalises what it pooled
        torch.testing.assert_close(maps.mean((2, 3)), backbone(x), rtol=1e-3, atol=1e-4)
    (maps * torch.randn_like(maps)).sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_vit", r"test_vit makes no map.*backbone=vit_tiny backbone\.name=test_vit"),
        ("mobilenetv3_small_050", r"layers behind its last map \(conv_head\.weight"),
    ],
)
def test_a_model_without_maps_says_so(name, message):
    with pytest.raises(RequestError, match=message):
        Timm(name=name, shape=(3, 64, 64)).map_shape()


# -- timm's vision transformers, token by token ----------------------------------------------------------

VITS = {
    "class": ("test_vit", {}),
    "class_avg": ("test_vit", {"global_pool": "avg"}),
    "class_avg_of_normed": ("test_vit", {"global_pool": "avg", "fc_norm": False}),
    "class_registers": ("test_vit", {"reg_tokens": 3}),
    "class_registers_without_positions": ("test_vit", {"reg_tokens": 2, "no_embed_class": True}),
    "registers_avg": ("test_vit2", {}),
    "registers_avg_rmsnorm": ("test_vit4", {}),
    "nothing_but_patches": ("test_vit", {"class_token": False, "global_pool": "avg"}),
    "no_positions": ("test_vit", {"pos_embed": "none"}),
    "norms_everywhere": ("test_vit", {"pre_norm": True, "qk_norm": True, "embed_norm_layer": "layernorm"}),
    "one_size": ("test_vit", {"dynamic_img_size": False}),
}
every_vit = pytest.mark.parametrize("kind", VITS)


def vit(kind: str, **options) -> ViT:
    """24 patches of 8x4 pixels, every weight random, norms' too."""
    torch.manual_seed(0)
    name, given = VITS[kind]
    backbone = ViT(name=name, shape=(3, 32, 24), options={"patch_size": [8, 4], "depth": 2, **given, **options})
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return backbone


def images(batch: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 3, 32, 24)


@every_vit
@torch.no_grad()
def test_vit_steps_are_timms(kind):
    backbone, x = vit(kind).eval(), images()
    model = backbone.model
    patches = backbone.patchify(x)
    assert (backbone.grid, patches.shape) == ((4, 6), (3, 24, 96))
    assert torch.equal(patches[:, 7], x[:, :, 8:16, 4:8].flatten(1))  # second row, second column
    assert torch.equal(backbone.unpatchify(patches), x)
    extra = model.num_prefix_tokens
    tokens = backbone.embed(patches)
    torch.testing.assert_close(tokens, model._pos_embed(model.patch_embed(x))[:, extra:])
    features = model.forward_features(x)
    encoded = backbone.encode(tokens)
    torch.testing.assert_close(encoded, model.fc_norm(features[:, extra:]))
    assert torch.equal(backbone(x), model.fc_norm(model.pool(features)))
    *_, last = backbone.layers(tokens)
    torch.testing.assert_close(model.fc_norm(model.norm(last)), encoded)
    if kind == "class_avg_of_normed":
        torch.testing.assert_close(encoded.mean(1), backbone(x))


@every_vit
def test_vit_encode_trains_every_weight(kind):
    backbone = vit(kind).train()
    tokens = backbone.encode(backbone.embed(backbone.patchify(images())))
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_vit
@torch.no_grad()
def test_vit_encodes_any_tokens_as_if_there_were_no_others(kind):
    """In any order, and with padding between them, which nobody sees."""
    backbone = vit(kind).eval()
    tokens = backbone.embed(backbone.patchify(images()))
    chosen = torch.tensor([20, 3, 7, 11, 0])
    alone = backbone.encode(tokens[:, chosen])
    pad = torch.ones(3, 24, dtype=torch.bool)
    pad[:, chosen] = False
    torch.testing.assert_close(backbone.encode(tokens, pad)[:, chosen], alone)
    noise = torch.where(pad[..., None], 9.0, tokens)
    torch.testing.assert_close(backbone.encode(noise, pad)[:, chosen], alone)
    assert not torch.allclose(backbone.encode(tokens)[:, chosen], alone)
    torch.testing.assert_close(backbone.encode(tokens, torch.zeros_like(pad)), backbone.encode(tokens))


@every_vit
@torch.no_grad()
def test_vit_causal_tokens_see_what_came_before(kind):
    """A token's outcome is what it would be if the sequence ended with it."""
    backbone = vit(kind).eval()
    tokens = backbone.embed(backbone.patchify(images()))
    found = backbone.encode(tokens, causal=True)
    for last in (0, 5, 23):
        ended = backbone.encode(tokens[:, : last + 1], causal=True)
        torch.testing.assert_close(found[:, : last + 1], ended)
    earlier = tokens.clone()
    earlier[:, 2] += torch.randn_like(earlier[:, 2])
    changed = (backbone.encode(earlier, causal=True) - found).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [k >= 2 for k in range(24)]
    pad = torch.arange(24).expand(3, 24) >= 6
    padded = backbone.encode(torch.where(pad[..., None], 9.0, tokens), pad, causal=True)
    torch.testing.assert_close(padded[:, :6], found[:, :6])


def test_vit_prefix_sees_itself_alone_when_causal():
    backbone = vit("class_registers")
    seen = backbone._seen(torch.zeros(2, 7, 64), None, True, None)[0, 0]
    assert seen.tolist() == [[key <= query for key in range(7)] for query in range(7)]  # class, 3 registers, 3 patches


@pytest.mark.parametrize("causal", [False, True])
def test_vit_stays_finite_when_all_is_padding(causal):
    backbone = vit("nothing_but_patches")
    tokens = backbone.embed(backbone.patchify(images()))
    pad = torch.ones(3, 24, dtype=torch.bool)
    encoded = backbone.encode(tokens, pad, causal)
    encoded.square().sum().backward()
    assert encoded.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_vit_options_take_effect_in_training():
    x = images()
    for option in ("pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
        backbone = vit("class", **{option: 0.5}).train()
        tokens = backbone.embed(backbone.patchify(x))
        assert not torch.equal(backbone.encode(tokens), backbone.encode(tokens)), option
        backbone.eval()
        assert torch.equal(backbone.encode(tokens), backbone.encode(tokens)), option


def test_vit_advice():
    assert re.search("2x2 patches.*patch_size=4", ViT(name="test_vit", shape=(3, 32, 32)).advice or "")
    assert ViT(name="test_vit", shape=(3, 32, 32), options={"patch_size": 4}).advice is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "swin_tiny_patch4_window7_224"}, r"backbone\.name: swin_.*backbone=timm .*Timm"),
        ({"name": "vit_tiny_r_s16_p8_224"}, r"is no plain vision transformer.*ssl_runner\.backbones\.timm\.Timm"),
        ({"name": "deit_tiny_distilled_patch16_224"}, r"is no plain vision transformer"),
        ({"name": "resnet18"}, r"is no plain vision transformer"),
        ({"name": "test_vit3"}, r"backbone\.options\.global_pool: test_vit3 pools by attention"),
        ({"options": {"patch_drop_rate": 0.5}}, r"backbone\.options\.patch_drop_rate: leave it out"),
        ({"options": {"dynamic_img_pad": True}}, r"backbone\.options\.dynamic_img_pad: leave it out"),
        ({"options": {"img_size": 8}}, r"backbone\.options\.img_size"),
        ({"options": {"depht": 8}}, r"backbone\.options\.depht: test_vit takes no such option"),
        ({"options": {"patch_size": 5}}, r"backbone\.options\.patch_size.*\(5, 5\)"),
        ({"shape": (2, 100)}, r"backbone\.shape.*backbone=encoder"),
    ],
)
def test_wrong_requests_for_a_vit_name_the_key(arguments, message):
    with pytest.raises(RequestError, match=message):
        ViT(**{"name": "test_vit", "shape": (3, 64, 64), **arguments})


def test_vit_refuses_what_it_cannot_do(monkeypatch):
    backbone = vit("class")
    with pytest.raises(RequestError, match=r"built for \(3, 32, 24\), and got samples of \(3, 32, 32\)"):
        backbone.patchify(torch.zeros(1, 3, 32, 32))
    with pytest.raises(RequestError, match="padding"):
        backbone(images(), pad=torch.zeros(3, 24, dtype=torch.bool))
    tokens = backbone.embed(backbone.patchify(images()))
    with pytest.raises(ValueError, match="pad of shape"):
        backbone.encode(tokens, torch.zeros(3, 5, dtype=torch.bool))
    for block in backbone.model.blocks:
        monkeypatch.setattr(block, "forward", lambda x: x)  # as an older timm's, without a mask
    backbone.encode(tokens)
    with pytest.raises(RequestError, match=r"takes no mask.*backbone=encoder"):
        backbone.encode(tokens, causal=True)


def test_vit_starts_from_published_weights(monkeypatch):
    """Whatever timm loads is what is taken apart."""
    from timm.models import _builder

    monkeypatch.setattr(_builder, "load_pretrained", lambda model, **_: nn.init.constant_(model.cls_token, 7.0))
    backbone = ViT(name="test_vit", shape=(3, 32, 32), pretrained=True, options={"patch_size": 8})
    assert (backbone._prefix() - backbone.model.pos_embed[:, :1] == 7.0).all()


# -- stems -----------------------------------------------------------------------------------------------


@st.composite
def signals(draw):
    """(shape, block) of any rank, small."""
    rank = draw(st.integers(1, 4))
    block = [draw(st.integers(1, 3)) for _ in range(rank)]
    grid = [draw(st.integers(1, 3)) for _ in range(rank)]
    shape = (draw(st.integers(1, 3)), *(b * g for b, g in zip(block, grid, strict=True)))
    return shape, tuple(block), tuple(grid)


@given(signals())
def test_patchify_is_undone_by_unpatchify(signal):
    shape, block, grid = signal
    stem = Continuous(shape=shape, block=block, dim=4)
    x = torch.randn(2, *shape)
    patches = stem.patchify(x)
    assert stem.grid == grid
    assert patches.shape == (2, math.prod(grid), stem.patch_dim)
    assert stem.patch_dim == shape[0] * math.prod(block)
    assert torch.equal(stem.unpatchify(patches), x)
    assert torch.equal(stem.patchify(stem.unpatchify(patches)), patches)
    assert stem(patches).shape == (2, math.prod(grid), 4)
    # the last block of the signal is the last patch, channel by channel
    corner = x[(slice(None), slice(None), *(slice(-b, None) for b in block))]
    assert torch.equal(patches[:, -1], corner.flatten(1))


@torch.no_grad()
def test_continuous_is_a_strided_convolution():
    stem = Continuous(shape=(3, 8, 12), block=(2, 4), dim=5)
    x = torch.randn(2, 3, 8, 12)
    kernel = stem.project.weight.view(5, 3, 2, 4)
    convolved = F.conv2d(x, kernel, stem.project.bias, stride=(2, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(stem.patchify(x)), convolved + stem.pos_embed)


def test_stem_errors_name_the_key():
    with pytest.raises(RequestError, match=r"backbone\.stem\.block=\[4, 5\]"):
        Continuous(shape=(3, 8, 8), block=(4, 5), dim=4)
    with pytest.raises(RequestError, match=r"backbone\.stem\.block=\[4\]: the data has 2 axes"):
        Continuous(shape=(3, 8, 8), block=(4,), dim=4)
    with pytest.raises(RequestError, match=r"backbone\.stem\.block"):
        Continuous(shape=(3, 8, 8), block=(0, 4), dim=4)
    with pytest.raises(RequestError, match=r"built for \(3, 8, 8\), and got samples of \(3, 8, 4\)"):
        Continuous(shape=(3, 8, 8), block=(4, 4), dim=4).patchify(torch.zeros(1, 3, 8, 4))
    with pytest.raises(RequestError, match=r"backbone\.stem\.length=3: got a sample of 4 ids"):
        Discrete(vocab=5, length=3, dim=4)(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(RequestError, match=r"backbone\.heads=3"):
        Encoder(stem=Discrete(vocab=5, length=3, dim=4), heads=3)
    lists = Continuous(shape=[3, 8, 8], block=[4, 2], dim=4)  # type: ignore[arg-type]  # as YAML gives them
    assert lists.patchify(torch.zeros(1, 3, 8, 8)).shape == (1, 8, 24)


# -- encoders --------------------------------------------------------------------------------------------


@every_encoder
@torch.no_grad()
def test_steps_make_up_the_embedding(kind):
    backbone = make(kind).eval()
    x = sample(kind)
    patches = backbone.patchify(x)
    assert patches.shape == (3, *TOKENS[kind])
    tokens = backbone.embed(patches)
    assert tokens.shape == (3, TOKENS[kind][0], backbone.dim)
    encoded = backbone.encode(tokens)
    assert encoded.shape == tokens.shape
    torch.testing.assert_close(backbone(x), encoded.mean(1))
    nothing = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(backbone(x, pad=nothing), backbone(x))
    torch.testing.assert_close(backbone.encode(tokens, nothing, causal=True), backbone.encode(tokens, causal=True))


@every_encoder
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_padding_is_not_seen(kind, causal):
    backbone = make(kind).eval()
    tokens = backbone.embed(backbone.patchify(sample(kind)))
    length = tokens.shape[1]
    held = torch.tensor([length, length - 2, 1])
    pad = torch.arange(length) >= held[:, None]
    noise = torch.where(pad[..., None], 10 * torch.randn_like(tokens), tokens)
    found, expected = backbone.encode(noise, pad, causal), backbone.encode(tokens, pad, causal)
    torch.testing.assert_close(found[~pad], expected[~pad])
    for n, count in enumerate(held):  # and it is as if it were not there at all
        alone = backbone.encode(tokens[n : n + 1, :count], causal=causal)
        torch.testing.assert_close(found[n, :count], alone[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_more_padding_gives_the_same_embedding():
    backbone = make("text").eval()
    ids = sample("text")[:, :5]
    padded = torch.cat([ids, torch.randint(50, (3, 4))], 1)
    pad = torch.arange(9).expand(3, 9) >= 5
    torch.testing.assert_close(backbone(padded, pad=pad), backbone(ids))


@torch.no_grad()
def test_padded_blocks_of_a_series_do_not_matter():
    backbone = make("series").eval()
    x = sample("series")
    pad = torch.arange(8).expand(3, 8) >= 6
    other = torch.cat([x[..., :18], torch.randn(3, 2, 6)], -1)
    torch.testing.assert_close(backbone(other, pad=pad), backbone(x, pad=pad))
    assert not torch.allclose(backbone(other), backbone(x))


@every_encoder
@torch.no_grad()
def test_causal_tokens_do_not_see_the_future(kind):
    backbone = make(kind).eval()
    tokens = backbone.embed(backbone.patchify(sample(kind)))
    later = tokens.clone()
    later[:, 4:] += torch.randn_like(later[:, 4:])
    found, expected = backbone.encode(later, causal=True), backbone.encode(tokens, causal=True)
    torch.testing.assert_close(found[:, :4], expected[:, :4])
    assert not torch.allclose(found[:, 4:], expected[:, 4:])
    assert not torch.allclose(backbone.encode(later)[:, :4], backbone.encode(tokens)[:, :4])
    # and do see the past
    earlier = tokens.clone()
    earlier[:, 0] += torch.randn_like(earlier[:, 0])
    assert not torch.allclose(backbone.encode(earlier, causal=True)[:, 3], expected[:, 3])


@every_encoder
@pytest.mark.parametrize("causal", [False, True])
def test_a_sample_of_nothing_but_padding_stays_finite(kind, causal):
    backbone = make(kind)
    tokens = backbone.embed(backbone.patchify(sample(kind)))
    pad = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    pad[1] = True
    pad[2, :-1] = True  # padded on the left
    encoded = backbone.encode(tokens, pad, causal)
    features = backbone(sample(kind), pad=pad)
    assert encoded.isfinite().all()
    torch.testing.assert_close(encoded[1, :1], backbone.encode(tokens[1:2, :1])[0])  # sees itself alone
    assert torch.equal(features[1], torch.zeros(backbone.dim))
    (features.square().sum() + encoded.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@torch.no_grad()
def test_attention_is_the_papers():
    """One block against torch's own multi-head attention, with the same weights."""
    backbone = encoder(Discrete(vocab=9, length=6, dim=8), depth=1).eval()
    block = backbone.blocks[0]
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.copy_(block.qkv.weight)
    theirs.in_proj_bias.copy_(block.qkv.bias)
    theirs.out_proj.load_state_dict(block.out.state_dict())
    tokens = torch.randn(3, 6, 8)
    pad = torch.arange(6) >= torch.tensor([6, 4, 2])[:, None]
    normed = block.norm1(tokens)
    middle = tokens + theirs(normed, normed, normed, key_padding_mask=pad)[0]
    expected = backbone.norm(middle + block.down(F.gelu(block.up(block.norm2(middle)))))
    torch.testing.assert_close(backbone.encode(tokens, pad)[~pad], expected[~pad])


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_with_alibi_attention_falls_with_distance(causal):
    """Against the formula, query by query and key by key."""
    backbone = encoder(Discrete(vocab=9, length=6, dim=8), depth=1, alibi=0.75, causal=causal).eval()
    block = backbone.blocks[0]
    tokens = torch.randn(3, 6, 8)
    pad = torch.arange(6) >= torch.tensor([6, 4, 2])[:, None]
    part = torch.tensor([[1, 1, 1, 2, 2, 2]]).expand(3, 6)
    q, k, v = block.qkv(block.norm1(tokens)).view(3, 6, 3, 2, 4).unbind(2)
    mixed = torch.zeros(3, 6, 2, 4)
    for n, i, head in itertools.product(range(3), range(6), range(2)):
        keys = [j for j in range(6) if j == i or (part[n, i] == part[n, j] and not pad[n, j] and (j < i or not causal))]
        slope = 0.75 / 2**head
        scores = torch.stack([q[n, i, head] @ k[n, j, head] / 4**0.5 - slope * abs(i - j) for j in keys])
        mixed[n, i, head] = sum(p * v[n, j, head] for p, j in zip(scores.softmax(0), keys, strict=True))
    middle = tokens + block.out(mixed.flatten(2))
    expected = backbone.norm(middle + block.down(F.gelu(block.up(block.norm2(middle)))))
    torch.testing.assert_close(backbone.encode(tokens, pad, part=part)[~pad], expected[~pad])


def test_dropout_and_drop_path():
    stem = Continuous(shape=(1, 8), block=(2,), dim=8)
    x = torch.randn(64, 1, 8)
    for options in ({"dropout": 0.5}, {"drop_path": 0.5}):
        backbone = encoder(stem, depth=3, **options)
        assert not torch.equal(backbone(x), backbone(x))
        backbone.eval()
        assert torch.equal(backbone(x), backbone(x))
    assert [b.drop_path for b in encoder(stem, depth=3, drop_path=0.5).blocks] == [0.0, 0.25, 0.5]
    # whole samples are dropped, and what stays is scaled up
    block = encoder(stem, depth=2, drop_path=0.75).blocks[1]
    ones = block._drop(torch.ones(400, 3, 2))
    assert set(ones.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(ones, ones[:, :1, :1].expand_as(ones))
    assert 0.15 < (ones[:, 0, 0] > 0).float().mean() < 0.35


def test_mlp_ratio_and_depth():
    backbone = encoder(Discrete(vocab=9, length=6, dim=8), depth=5, mlp_ratio=2.5)
    assert len(backbone.blocks) == 5
    assert backbone.blocks[0].up.out_features == 20


def test_pad_of_the_wrong_length():
    with pytest.raises(ValueError, match="pad of shape"):
        make("text")(sample("text"), pad=torch.zeros(3, 5, dtype=torch.bool))
