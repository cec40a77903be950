"""Vision transformers of transformers, taken apart into patches: pictures and clips, weights, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from ssl_runner.backbones.transformers_patches import TransformersPatches
from ssl_runner.errors import RequestError
from ssl_runner.objectives.mae import MAE

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE, CLIP = (3, 12, 8), (3, 4, 8, 8)
KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "vit": (IMAGE, {**SIZES, "patch_size": 4}),
    "dinov2": ((3, 8, 8), {**SIZES, "patch_size": 4}),
    "ijepa": (IMAGE, {**SIZES, "patch_size": 4}),
    "videomae": (CLIP, {**SIZES, "patch_size": 4}),
    "vivit": (CLIP, {**SIZES, "tubelet_size": [2, 4, 4]}),
}
KINDS["dinov2"][1].pop("intermediate_size")  # it has mlp_ratio
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, **more: Any) -> TransformersPatches:
    shape, config = KINDS[kind]
    torch.manual_seed(0)
    return TransformersPatches(name=kind, shape=shape, config={**config, **more})


def sample(kind: str, count: int = 3) -> torch.Tensor:
    return torch.randn(count, *KINDS[kind][0], generator=torch.Generator().manual_seed(1))


@kinds
@torch.no_grad()
def test_steps_one_by_one_give_what_the_library_gives_at_once(kind: str) -> None:
    backbone = made(kind).eval()
    for parameter in backbone.parameters():  # biases, positions and the class token count too
        parameter.add_(0.3 * torch.randn_like(parameter))
    x = sample(kind)
    # (B, T, C, H, W) is how the library has clips
    theirs = backbone.model(x if x.ndim == 4 else x.permute(0, 2, 1, 3, 4), output_hidden_states=True)
    ours = backbone.tokens(x)
    length = torch.Size(backbone.grid).numel()
    assert ours.shape == (3, length, 16)
    first = theirs.last_hidden_state.shape[1] - length
    assert first == (0 if kind in ("videomae", "ijepa") else 1)
    torch.testing.assert_close(ours, theirs.last_hidden_state[:, first:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone(x), ours.mean(1))
    found = list(backbone.layers(backbone.embed(backbone.patchify(x))))
    for one, other in zip(found, theirs.hidden_states[1:], strict=True):
        torch.testing.assert_close(one, other[:, first:], rtol=1e-5, atol=1e-5)


@kinds
def test_patches_are_blocks_in_row_major_order_and_come_together_again(kind: str) -> None:
    backbone, x = made(kind), sample(kind)
    patches = backbone.patchify(x)
    assert torch.equal(backbone.unpatchify(patches), x)
    place = [slice(-b, None) for b in backbone.block]
    assert torch.equal(patches[:, -1], x[(slice(None), slice(None), *place)].flatten(1))
    place[-1] = slice(-2 * backbone.block[-1], -backbone.block[-1])
    assert torch.equal(patches[:, -2], x[(slice(None), slice(None), *place)].flatten(1))


@pytest.mark.parametrize(("kind", "mask"), [("vit", "random"), ("videomae", "random"), ("videomae", "tubes")])
def test_masked_autoencoding_learns_all_of_it(kind: str, mask: Any) -> None:
    backbone = made(kind)
    objective = MAE(backbone, shape=KINDS[kind][0], mask=mask, dim=8, depth=1, heads=2)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        torch.manual_seed(2)
        loss = objective({"views": [{"x": sample(kind)}], "index": torch.arange(3)}).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@kinds
def test_a_run_keeps_the_architecture(kind: str) -> None:
    backbone = made(kind).eval()
    pinned = yaml.safe_load(yaml.safe_dump(backbone.pinned()))
    again = TransformersPatches(name="/gone", shape=KINDS[kind][0], **pinned).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(sample(kind)), backbone(sample(kind)))
    assert len(again.blocks) == 2


def test_what_the_data_decides_may_be_given_otherwise_and_is_then_held_to() -> None:
    assert made("videomae").pinned()["config"]["num_frames"] == 4
    assert made("vit").pinned()["config"]["image_size"] == [12, 8]
    with pytest.raises(RequestError, match=r"can't be run on samples of \(3, 4, 8, 8\)"):
        made("videomae", num_frames=8)


def test_weights_of_a_folder_are_loaded_and_a_receipt_tells(tmp_path: Path) -> None:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    torch.manual_seed(5)
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = VideoMAEConfig(**SIZES, **decoder, patch_size=4, image_size=8, num_frames=4, use_mean_pooling=False)
    published = VideoMAEForPreTraining(config)
    published.save_pretrained(tmp_path)
    backbone = TransformersPatches(name=str(tmp_path), shape=CLIP, pretrained=True).eval()
    x = sample("videomae")
    theirs = published.eval().videomae(x.permute(0, 2, 1, 3, 4)).last_hidden_state
    torch.testing.assert_close(backbone.tokens(x), theirs, rtol=1e-5, atol=1e-5)
    assert "100" in str(backbone.advice)
    with pytest.raises(RequestError, match="can't be run on samples"):
        TransformersPatches(name=str(tmp_path), shape=(3, 8, 8, 8), pretrained=True)


@pytest.mark.parametrize(
    ("name", "shape", "config", "message"),
    [
        ("videmae", CLIP, {}, "did you mean 'videomae'"),
        ("bert", IMAGE, {}, "is no model of pictures or clips"),
        ("swin", IMAGE, {}, "is no vision transformer that can be taken apart"),
        ("vit", CLIP, {}, "is for samples of 2 axes after the channels"),
        ("vit", (1, 100), {}, r"takes pictures \(C, H, W\) or clips"),
        ("videomae", (3, 3, 8, 8), {"patch_size": 4}, r"blocks of \(2, 4, 4\), which do not divide \(3, 8, 8\)"),
        ("vit", IMAGE, {"patch_size": 4, "pach": 1}, r"backbone\.config\.pach: vit has no such field"),
        ("vit_mae", (3, 8, 8), {"patch_size": 4, **SIZES}, "takes other steps"),
        ("deit", (3, 8, 8), {"patch_size": 4, **SIZES}, "takes other steps"),
    ],
)
def test_what_can_not_be_is_told(
    name: str, shape: tuple[int, ...], config: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str, **_: Any) -> str:
        from huggingface_hub.errors import HFValidationError

        raise HFValidationError(name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", unknown)
    with pytest.raises(RequestError, match=message):
        TransformersPatches(name=name, shape=shape, config=config)


def test_what_it_cannot_hide_is_refused() -> None:
    backbone = made("vit").eval()
    tokens = backbone.embed(backbone.patchify(sample("vit")))
    for wrong in ({"causal": True}, {"pad": torch.zeros(3, 6, dtype=torch.bool)}, {"part": torch.zeros(3, 6)}):
        with pytest.raises(RequestError, match="every token sees all others"):
            backbone.encode(tokens, **wrong)
    with pytest.raises(RequestError, match=r"built for \(3, 12, 8\)"):
        backbone(torch.randn(2, 3, 8, 12))


def test_a_run_on_clips_goes_on_from_its_own_config(tmp_path: Path, ssl_run: Callable[..., tuple]) -> None:
    for n in range(12):
        file = tmp_path / "clips" / "ab"[n % 2] / f"{n}.gif"
        file.parent.mkdir(parents=True, exist_ok=True)
        frames = [Image.new("L", (8, 8), 20 * n + 3 * t) for t in range(6)]
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=100)
    fixed = ["data=video", "data.root=clips", "data.size=8", "data.frames=4", "data.test=0.3", "data.val=0.2"]
    fixed += ["views=clip", "workers=0"]
    small = ["batch_size=4", "duration=2 steps", "precision=32", "evaluators=knn"]
    model = ["backbone=hf_vision", "backbone.name=videomae", *(f"+backbone.config.{k}={v}" for k, v in SIZES.items())]
    model += ["+backbone.config.patch_size=4", "objective=mae", "objective.mask=tubes", "objective.ratio=0.5"]
    model += ["objective.dim=8", "objective.depth=1", "objective.heads=2"]
    code, _, err = ssl_run("pretrain", *fixed, *model, *small, "hydra.run.dir=run")
    assert code == 0, err
    kept = yaml.safe_load(Path("run/config.yaml").read_text())["backbone"]
    assert kept["config"]["model_type"] == "videomae"
    assert kept["config"]["num_frames"] == 4
    code, _, err = ssl_run("evaluate", "from=run", "evaluators=knn")
    assert code == 0, err
