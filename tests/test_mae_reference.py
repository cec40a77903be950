"""MAE's loss against that of transformers' ViTMAE, which follows the authors' code: same weights, images, noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous
from ssl_runner.backbones.vit import ViT
from ssl_runner.objectives.mae import MAE
from ssl_runner.types import TokenBackbone

SHAPE, PATCH, TOKENS = (3, 12, 12), 3, 16
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DECODER = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}


def reference(normalise: bool, eps: float) -> ViTMAEForPreTraining:
    """Weights are drawn at random, biases and norms too, so that each of them counts."""
    torch.manual_seed(0)
    config = ViTMAEConfig(
        **SIZES,
        **{f"decoder_{key}": value for key, value in DECODER.items()},
        image_size=12,
        patch_size=PATCH,
        mask_ratio=0.75,
        norm_pix_loss=normalise,
        layer_norm_eps=eps,
    )
    model = ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model


def hide_the_class_token(layers: nn.ModuleList, heads_see: int) -> None:
    """No other token sees the first one of `heads_see`, as in a network that has none."""
    mask = torch.zeros(1, 1, heads_see, heads_see)
    mask[..., 1:, 0] = float("-inf")

    def masked(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict]:
        return (given[0], mask), {}

    for layer in layers:
        layer.register_forward_pre_hook(masked, with_kwargs=True)


def copy_block(theirs: Any, norms: tuple[nn.Module, nn.Module], qkv: Any, out: Any, up: Any, down: Any) -> None:
    attention = theirs.attention
    joined = {
        kind: torch.cat([getattr(part, kind) for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
        for kind in ("weight", "bias")
    }
    qkv.load_state_dict(joined)
    pairs = [(theirs.layernorm_before, norms[0]), (theirs.layernorm_after, norms[1])]
    pairs += [(attention.o_proj, out), (theirs.mlp.fc1, up), (theirs.mlp.fc2, down)]
    for one, other in pairs:
        other.load_state_dict(one.state_dict())


def copy_trunk(layers: nn.ModuleList, norm: nn.Module, trunk: Encoder) -> None:
    for theirs, ours in zip(layers, trunk.blocks, strict=True):
        copy_block(theirs, (ours.norm1, ours.norm2), ours.qkv, ours.out, ours.up, ours.down)
    trunk.norm.load_state_dict(norm.state_dict())


def encoder(model: ViTMAEForPreTraining) -> Encoder:
    """Ours, which has no class token."""
    theirs = model.vit
    stem = Continuous(shape=SHAPE, block=(PATCH, PATCH), dim=SIZES["hidden_size"])
    projection = theirs.embeddings.patch_embeddings.projection
    stem.project.load_state_dict({"weight": projection.weight.flatten(1), "bias": projection.bias})
    stem.pos_embed.copy_(theirs.embeddings.position_embeddings[:, 1:])
    made = Encoder(stem=stem, depth=2, heads=2)
    copy_trunk(theirs.layers, theirs.layernorm, made)
    hide_the_class_token(theirs.layers, 1 + TOKENS // 4)
    return made


def vit(model: ViTMAEForPreTraining) -> ViT:
    """timm's, class token and all."""
    theirs = model.vit
    options = {"patch_size": PATCH, "embed_dim": 16, "depth": 2, "num_heads": 2, "class_token": True}
    options |= {"reg_tokens": 0, "init_values": None, "fc_norm": False, "no_embed_class": False}
    options |= {"global_pool": "token", "mlp_ratio": 4}
    made = ViT(name="test_vit", shape=SHAPE, options=options).eval()
    made.model.patch_embed.proj.load_state_dict(theirs.embeddings.patch_embeddings.projection.state_dict())
    made.model.pos_embed.copy_(theirs.embeddings.position_embeddings)
    made.model.cls_token.copy_(theirs.embeddings.cls_token)
    for block, ours in zip(theirs.layers, made.model.blocks, strict=True):
        copy_block(block, (ours.norm1, ours.norm2), ours.attn.qkv, ours.attn.proj, ours.mlp.fc1, ours.mlp.fc2)
    made.model.norm.load_state_dict(theirs.layernorm.state_dict())
    return made


def objective(model: ViTMAEForPreTraining, backbone: TokenBackbone, normalise: bool, eps: float) -> MAE:
    sizes = {"dim": 12, "depth": 2, "heads": 3}
    made = MAE(backbone, shape=SHAPE, ratio=0.75, normalise=normalise, **sizes).eval()
    theirs, ours = model.decoder, made.decoder
    ours.enter.load_state_dict(theirs.decoder_embed.state_dict())
    ours.mask_token.copy_(theirs.mask_token[0, 0])
    ours.trunk.stem.pos_embed.copy_(theirs.decoder_pos_embed[:, 1:])
    copy_trunk(theirs.decoder_layers, theirs.decoder_norm, ours.trunk)
    hide_the_class_token(theirs.decoder_layers, 1 + TOKENS)
    # their patches are (p, q, C), ours (C, p, q)
    place = torch.arange(27).view(PATCH, PATCH, 3).permute(2, 0, 1).flatten()
    ours.leave.load_state_dict({"weight": theirs.decoder_pred.weight[place], "bias": theirs.decoder_pred.bias[place]})
    for part in made.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps
    return made


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("make", [encoder, vit])
def test_the_loss_is_that_of_transformers(make: Any, normalise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference(normalise, eps=1e-6)
    with torch.no_grad():
        ours = objective(model, make(model), normalise, eps=1e-6)
    x, noise = torch.randn(4, *SHAPE), torch.rand(4, TOKENS)
    theirs = model(x, noise=noise)

    def same_noise(batch: int, length: int) -> Tensor:
        assert (batch, length) == noise.shape
        return (1 - noise).argsort(1).float()  # theirs shows what has the least noise; ours hides the first of an order

    monkeypatch.setattr("ssl_runner.parts.masking.torch.rand", same_noise)
    hidden = ours.masks(ours.backbone.patchify(x))
    assert hidden.equal(theirs.mask.bool())
    found = ours({"views": [{"x": x}], "index": torch.arange(4)}).value
    torch.testing.assert_close(found, theirs.loss, rtol=1e-5, atol=1e-5)
    assert found > 0.1
    theirs.loss.backward()
    found.backward()
    stem = model.vit.embeddings.patch_embeddings.projection.weight.grad
    mine = dict(ours.backbone.named_parameters())
    grad = next(p.grad for name, p in mine.items() if name in ("stem.project.weight", "model.patch_embed.proj.weight"))
    torch.testing.assert_close(grad.flatten(1), stem.flatten(1), rtol=1e-4, atol=1e-5)
