"""What objectives show of their work, and the pictures that a run writes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from ssl_runner import pictures
from ssl_runner.data import LOOKED_AT
from ssl_runner.objectives import inpainting, jigsaw, relative_position, rotation
from ssl_runner.objectives.autoencoder import Autoencoder
from ssl_runner.objectives.colourisation import Colourisation, rgb_to_lab
from ssl_runner.objectives.denoising import Denoising
from ssl_runner.objectives.ijepa import IJEPA
from ssl_runner.objectives.next_patch import NextPatch
from ssl_runner.objectives.super_resolution import SuperResolution
from ssl_runner.objectives.vae import VAE
from ssl_runner.types import Batch, Objective
from ssl_runner.views.normalise import Normalize
from tests.test_contract import CASES, OBJECTIVES, batch_of, build, inputs

Call = Callable[..., tuple[int, str, str]]
SHOWS = {  # the masked, the generative and the pretext methods
    "clm",
    "mlm",
    "autoencoder",
    "bigan",
    "colourisation",
    "data2vec",
    "denoising",
    "ibot",
    "ijepa",
    "inpainting",
    "jigsaw",
    "mae",
    "next_patch",
    "relative_position",
    "rotation",
    "simmim",
    "super_resolution",
    "vae",
    "vq_vae",
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two ranks, whose other one never answers: a collective would wait for ever."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a picture asked the other ranks")

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(dist, "get_rank", lambda *_: 0)
    for name in ("all_reduce", "all_gather", "broadcast", "barrier"):
        monkeypatch.setattr(dist, name, refuse)


def unlabelled(objective: Objective) -> Batch:
    batch = batch_of(objective)
    return {"views": batch["views"], "index": batch["index"]}


def test_those_that_show_something_exist() -> None:
    assert set(OBJECTIVES) >= SHOWS


@pytest.mark.parametrize(("name", "backbone"), CASES)
@pytest.mark.usefixtures("alone")
def test_what_is_shown_is_a_row_of_images_for_each_sample(name: str, backbone: str) -> None:
    objective = build(name, backbone).eval()
    before = copy.deepcopy(objective.state_dict())
    torch.manual_seed(2)
    with torch.no_grad():
        shown = objective.show(unlabelled(objective))
    assert bool(shown) or name not in SHOWS or (name == "data2vec" and backbone in ("ids", "columns", "frames"))
    for columns in shown.values():
        if backbone == "towers":  # pairs: one input beside others of the second kind
            assert all(len(column) == 8 for column in columns)
        else:
            assert {column.shape for column in columns} == {inputs(backbone, 8).shape}
        # what a table lacks is no number
        assert backbone == "columns" or all(column.isfinite().all() for column in columns)
    assert not objective.training
    assert [k for k, v in objective.state_dict().items() if not torch.equal(v, before[k])] == []


def shown(objective: Objective, x: Tensor, name: str) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return objective.eval().show({"views": [{"x": x}]})[name]


def images(count: int = 6, side: int = 24) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


# -- each method's pictures ------------------------------------------------------------------------------------


def test_an_autoencoder_shows_what_it_measures() -> None:
    x = batch_of(build("autoencoder", "encoder"))["views"][0]["x"]
    for cls in (Autoencoder, Denoising):
        objective = build(cls.__name__.lower(), "encoder").eval()
        torch.manual_seed(0)
        loss = objective({"views": [{"x": x}]}).value
        columns = shown(objective, x, "reconstruction")
        assert torch.equal(columns[0], x)
        torch.testing.assert_close((columns[-1] - x).square().mean(), loss)
    assert len(columns) == 3
    assert 0.1 < (columns[1] != x).float().mean() < 0.4  # a quarter of the values was set to zero


def test_vae_shows_means_and_samples_of_the_prior() -> None:
    objective = build("vae", "encoder")
    assert isinstance(objective, VAE)
    x = batch_of(objective)["views"][0]["x"]
    mean, log_var = objective.eval().infer({"x": x})
    whole, likeliest, drawn = shown(objective, x, "reconstruction")
    torch.manual_seed(0)
    first, second = torch.randn(2, 8, mean.shape[1])  # of the posterior, then of the prior
    assert torch.equal(whole, x)
    torch.testing.assert_close(likeliest.flatten(1), objective.decoder(mean).detach())
    latent = mean + (log_var / 2).exp() * first
    torch.testing.assert_close(drawn.flatten(1), objective.decoder(latent).detach())
    columns = shown(objective, x, "samples")
    torch.testing.assert_close(columns[0].flatten(1), objective.decoder(second).detach())
    assert not torch.allclose(columns[0], columns[1])
    for one, other in zip(columns, shown(objective, x + 1, "samples"), strict=True):
        assert torch.equal(one, other)  # the input has no part in them


def test_next_patch_keeps_what_was_given_and_samples_where_it_can() -> None:
    objective = build("next_patch", "encoder")
    assert isinstance(objective, NextPatch)
    batch = batch_of(objective)
    x = batch["views"][0]["x"]
    whole, given, mean, drawn = shown(objective, x, "completion")
    assert torch.equal(whole, x)
    assert not given[:, :, 4:].any()
    for column in (given, mean, drawn):
        assert torch.equal(column[:, :, :4], x[:, :, :4])
    assert not torch.allclose(mean[:, :, 4:], drawn[:, :, 4:])
    with torch.no_grad():
        assert "samples" not in objective.show(batch)
        objective.normalise = False
        columns = objective.show(batch)["samples"]
    assert all(torch.equal(column[:, :, :2, :2], x[:, :, :2, :2]) for column in columns)
    assert not torch.allclose(columns[0], columns[1])


def test_inpainting_paints_in_the_holes_only() -> None:
    objective = build("inpainting", "encoder")
    assert isinstance(objective, inpainting.Inpainting)
    x = batch_of(objective)["views"][0]["x"]
    seen, painted, whole = shown(objective, x, "inpainting")
    hole = (seen != x).any(1, keepdim=True).expand_as(x)
    assert hole.any()
    assert torch.equal(painted[~hole], x[~hole])
    assert torch.equal(seen[hole], torch.zeros_like(seen[hole]))
    torch.testing.assert_close(painted[hole], objective.paint(seen).detach()[hole])
    assert torch.equal(whole, x)


def test_super_resolution_adds_its_residual() -> None:
    objective = build("super_resolution", "encoder")
    assert isinstance(objective, SuperResolution)
    x = batch_of(objective)["views"][0]["x"]
    low, sharp, whole = shown(objective, x, "super_resolution")
    torch.testing.assert_close(sharp - low, objective.detail(low).detach())
    assert torch.equal(whole, x)


def test_colourisation_keeps_the_lightness_and_paints_the_colours_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("colourisation", "encoder")
    assert isinstance(objective, Colourisation)
    told = int((objective.bins - torch.tensor([40.0, 20.0])).square().sum(1).argmin())  # a light red
    logits = torch.zeros(1, len(objective.bins), 2, 2)
    logits[:, told] = 50.0
    monkeypatch.setattr(objective.decoder, "forward", lambda features: logits.expand(len(features), -1, -1, -1))
    x = torch.full((2, 3, 8, 8), 0.1)
    grey, coloured, whole = shown(objective, x, "colourisation")
    assert torch.equal(whole, x)
    lightness = rgb_to_lab(x * 0.2 + 0.5)[:, :1]
    torch.testing.assert_close(grey * 0.2 + 0.5, lightness.expand(-1, 3, -1, -1) / 100)
    lab = rgb_to_lab(coloured * 0.2 + 0.5)
    torch.testing.assert_close(lab[:, :1], lightness, atol=0.1, rtol=0)
    torch.testing.assert_close(lab[0, 1:, 0, 0], objective.bins[told], atol=0.1, rtol=0)


@pytest.mark.parametrize("wrong_by", [0, 1])
def test_rotation_turns_back_by_what_it_tells(wrong_by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("rotation", "convolutions")
    assert isinstance(objective, rotation.Rotation)
    x = images(12)

    def scores(seen: Tensor) -> Tensor:
        turned = [[torch.equal(torch.rot90(x[n], k, (1, 2)), seen[n]) for k in range(4)].index(True) for n in range(12)]
        return torch.eye(4)[(torch.tensor(turned) + wrong_by) % 4]

    monkeypatch.setattr(objective, "scores", scores)
    seen, back = shown(objective, x, "rotation")
    assert not torch.equal(seen, x)
    assert torch.equal(back, torch.rot90(x, -wrong_by, (2, 3)))


def test_a_solved_jigsaw_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("jigsaw", "convolutions")
    assert isinstance(objective, jigsaw.Jigsaw)
    x = torch.arange(9.0).view(1, 1, 3, 3).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(6, 3, -1, -1)
    monkeypatch.setattr(objective, "scores", lambda tiles, choice, side: torch.eye(len(objective.table))[choice])
    seen, together, whole = shown(objective, x, "jigsaw")
    assert torch.equal(together, x)  # tiles of one shade each, so that the lost rims do not show
    assert torch.equal(whole, x)
    assert not torch.equal(seen, x)
    monkeypatch.setattr(objective, "scores", lambda tiles, choice, side: torch.eye(len(objective.table))[choice - 1])
    assert not torch.equal(shown(objective, x, "jigsaw")[1], x)


def test_patches_lie_where_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("relative_position", "convolutions")
    assert isinstance(objective, relative_position.RelativePosition)
    pairs = torch.stack([torch.full((8, 3, 4, 4), 1.0), torch.full((8, 3, 4, 4), 2.0)], 1)
    monkeypatch.setattr(relative_position, "patch_pairs", lambda x: (pairs, torch.arange(8)))
    monkeypatch.setattr(objective, "scores", lambda pairs, side: torch.eye(8).flip(0))
    x = images(8, 16)
    whole, true, told = shown(objective, x, "relative_position")
    assert torch.equal(whole, x)
    assert torch.equal(told, true.flip(0))
    corners = [(0, 0), (0, 6), (0, 12), (6, 0), (6, 12), (12, 0), (12, 6), (12, 12)]  # four pixels, two between
    for board, (top, left) in zip(true, corners, strict=True):
        wanted = torch.zeros(3, 16, 16)
        wanted[:, 6:10, 6:10] = 1.0
        wanted[:, top : top + 4, left : left + 4] = 2.0
        assert torch.equal(board, wanted)


def test_ijepa_shows_context_and_targets_apart() -> None:
    objective = build("ijepa", "encoder")
    assert isinstance(objective, IJEPA)
    objective.context_scale = (0.4, 0.5)  # some patches are neither
    x = batch_of(objective)["views"][0]["x"]
    whole, context, targets = shown(objective, x, "blocks")
    assert torch.equal(whole, x)
    torch.manual_seed(0)
    seen, wanted = objective.draw(8)
    cut = objective.backbone.patchify(x)
    for picture, mask in ((context, seen), (targets, wanted.any(1))):
        for n, k in torch.cartesian_prod(torch.arange(8), torch.arange(16)).tolist():
            patch = objective.backbone.patchify(picture)[n, k]
            assert torch.equal(patch, cut[n, k] if mask[n, k] else torch.zeros(12))


# -- files -----------------------------------------------------------------------------------------------------


def test_a_grid_has_a_row_for_each_sample(tmp_path: Path) -> None:
    columns = [torch.zeros(2, 1, 8, 8), torch.ones(2, 3, 8, 8), torch.full((2, 3, 4, 4), 2.0)]
    assert pictures.draw(columns, tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.size == (3 * 68, 2 * 68)
        assert [image.getpixel((34 + 68 * n, 34)) for n in range(3)] == [(0,) * 3, (255,) * 3, (255,) * 3]
        assert image.getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("shape", [(2, 8), (2, 2, 8, 8), (2, 3, 12)])
def test_what_is_no_image_is_not_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert not pictures.draw([torch.zeros(shape)], tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_colours_are_those_before_normalisation() -> None:
    last = torch.nn.ModuleDict({"normalize": Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))})
    x = images()
    torch.testing.assert_close(pictures.undo(last["normalize"]({"x": x})["x"], last), x)


def test_a_pretraining_leaves_its_pictures(ssl_run: Call, tmp_path: Path) -> None:
    tiny = [
        "data=fake",
        "data.samples=96",
        "data.shape=[1,8,8]",
        "batch_size=16",
        "objective.hidden=16",
        "precision=32",
    ]
    code, out, err = ssl_run("pretrain", "task=vae", *tiny, "duration=2 steps", "evaluators=none", "hydra.run.dir=out")
    assert code == 0, err
    folder = tmp_path / "out" / "shown"
    assert {path.name for path in folder.iterdir()} == {"reconstruction.png", "samples.png"}
    assert f"to look at: {Path('out/shown/samples.png')}" in out or str(folder / "samples.png") in out
    with Image.open(folder / "reconstruction.png") as image:
        assert image.size == (3 * 68, LOOKED_AT * 68)
