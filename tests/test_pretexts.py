"""The image pretexts against their papers' equations, written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.objectives.colourisation import (
    Colourisation,
    colour_loss,
    expected_colour,
    gamut,
    lab_to_rgb,
    rarity,
    rgb_to_lab,
    soft_encode,
)
from ssl_runner.objectives.inpainting import Inpainting, holes, masked_mse
from ssl_runner.objectives.jigsaw import Jigsaw, cut, distant_permutations, normalised, shuffled
from ssl_runner.objectives.relative_position import RelativePosition, patch_pairs
from ssl_runner.objectives.rotation import Rotation, rotations
from ssl_runner.objectives.super_resolution import SuperResolution, degraded, residual_loss
from ssl_runner.parts.tiles import crops
from ssl_runner.parts.upsampling import Decoder
from ssl_runner.types import Backbone, Batch, Objective

SHAPE = (3, 16, 16)


class Small(Backbone):
    """Square images of any side; remembers what it was shown."""

    def __init__(self, dim: int = 8):
        super().__init__()
        self.dim = dim
        self.layer, self.norm = nn.Conv2d(3, dim, 3, padding=1), nn.BatchNorm2d(dim)
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        self.shown.append(x.detach())
        return self.norm(self.layer(x)).relu().mean((2, 3))


def shown(objective: Objective) -> Tensor:
    """What its backbone saw first."""
    backbone = objective.backbone
    assert isinstance(backbone, Small)
    return backbone.shown[0]


def every() -> list[Objective]:
    torch.manual_seed(0)
    return [
        Rotation(Small()),
        Inpainting(Small(), shape=SHAPE, width=8),
        SuperResolution(Small(), shape=SHAPE, width=8),
        Jigsaw(Small(), hidden=16, dim=8, permutations=10),
        RelativePosition(Small(), hidden=16),
        Colourisation(Small(), shape=SHAPE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), width=8),
    ]


@pytest.mark.parametrize("objective", every(), ids=lambda o: type(o).__name__)
def test_all_parameters_learn_and_the_loss_is_a_finite_scalar(objective: Objective) -> None:
    torch.manual_seed(0)
    loss = objective({"views": [{"x": torch.randn(6, *SHAPE)}]}).value
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


@pytest.mark.parametrize("objective", every(), ids=lambda o: type(o).__name__)
def test_no_training_step_waits_for_its_device(objective: Objective) -> None:
    """A meta tensor has no values, so that whatever reads one fails."""
    assert objective.to("meta")({"views": [{"x": torch.randn(6, *SHAPE).to("meta")}]}).value.is_meta


@pytest.mark.parametrize("objective", every(), ids=lambda o: type(o).__name__)
def test_a_bf16_model_learns_and_shows(objective: Objective) -> None:
    """precision=bf16-true: parameters, views and whatever is made anew are bf16."""
    objective.to(torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        batch: Batch = {"views": [{"x": torch.randn(6, *SHAPE)}]}
        loss = objective(batch).value
        loss.backward()
        with torch.no_grad():
            objective.eval().show(batch)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


# -- decoder and tiles -----------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
def test_decoder_gives_any_size(height: int, across: int, channels: int) -> None:
    out = Decoder(5, (channels, height, across), 4).eval()(torch.randn(2, 5))
    assert out.shape == (2, channels, height, across)


def test_crops_are_slices() -> None:
    x = torch.randn(3, 2, 9, 9)
    top, left = torch.randint(6, (3, 5)), torch.randint(6, (3, 5))
    found = crops(x, top, left, 4)
    for n in range(3):
        for k in range(5):
            t, w = int(top[n, k]), int(left[n, k])
            assert torch.equal(found[n, k], x[n, :, t : t + 4, w : w + 4])


# -- rotation --------------------------------------------------------------------------------------------------


def test_rotations_turn_pixel_by_pixel() -> None:
    x = torch.randn(2, 1, 5, 5)
    turned, turns = rotations(x)
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for row, k in enumerate(turns.tolist()):
        for i in range(5):
            for j in range(5):
                a, b = i, j
                for _ in range(k):
                    a, b = b, 4 - a  # an anticlockwise turn takes (i, j) from (j, 4 - i)
                assert turned[row, 0, i, j] == x[row % 2, 0, a, b]


def test_rotation_is_the_mean_negative_log_likelihood_of_the_four_turns() -> None:
    torch.manual_seed(0)
    objective = Rotation(Small()).eval()
    x = torch.randn(3, *SHAPE)
    total = 0.0
    for image in x:
        for k in range(4):
            scores = objective.head(objective.backbone(torch.rot90(image, k, (1, 2))[None]))[0].double().tolist()
            total += math.log(sum(map(math.exp, scores))) - scores[k]
    assert objective({"views": [{"x": x}]}).value.item() == pytest.approx(total / 12, abs=1e-5)


@pytest.mark.parametrize("make", [Rotation, Jigsaw, RelativePosition])
def test_images_that_are_not_square_are_refused(make: type[Objective]) -> None:
    with pytest.raises(RequestError, match="square"):
        make(Small())({"views": [{"x": torch.randn(2, 3, 16, 12)}]})


# -- inpainting ------------------------------------------------------------------------------------------------


def test_masked_mse_counts_removed_values_only() -> None:
    torch.manual_seed(0)
    painted, x, hole = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5) < 0.3
    where = [(b, c, i, j) for b in range(2) for c in range(3) for i in range(4) for j in range(5) if hole[b, 0, i, j]]
    wanted = sum((painted[p].item() - x[p].item()) ** 2 for p in where) / len(where)
    assert masked_mse(painted, x, hole).item() == pytest.approx(wanted, abs=1e-5)


def test_holes_are_squares_that_differ_between_samples() -> None:
    torch.manual_seed(0)
    hole = holes(torch.zeros(2000, 3, 16, 16), 1, 0.25)
    assert hole.shape == (2000, 1, 16, 16)
    assert all(h.sum() == 16 and h.any(1).sum() == 4 and h.any(0).sum() == 4 for h in hole[:, 0])
    assert hole.flatten(1).unique(dim=0).shape[0] == 13**2
    assert hole.any(0).all()  # every place is cut out now and then, edges too
    assert holes(torch.zeros(64, 3, 16, 16), 4, 0.25).sum((1, 2, 3)).max() <= 64


def test_inpainting_shows_the_backbone_nothing_of_the_holes() -> None:
    torch.manual_seed(0)
    objective = Inpainting(Small(), shape=SHAPE, width=8)
    x = torch.rand(4, *SHAPE) + 1
    torch.manual_seed(1)
    hole = holes(x, 4, 0.25)
    torch.manual_seed(1)
    objective({"views": [{"x": x}]})
    assert torch.equal(shown(objective), x * ~hole)


# -- super-resolution ------------------------------------------------------------------------------------------


def test_residual_loss_is_half_the_squared_error() -> None:
    torch.manual_seed(0)
    predicted, x, low = torch.randn(3, 2, 3, 4, 4)
    terms = zip(*(t.flatten().double().tolist() for t in (predicted, x, low)), strict=True)
    wanted = [0.5 * ((b - c) - a) ** 2 for a, b, c in terms]
    assert residual_loss(predicted, x, low).item() == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)


def test_degraded_loses_fine_detail_and_keeps_the_coarse() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    stripes = (torch.arange(32) % 2).float().expand(1, 1, 32, 32)
    assert (degraded(ramp, 2.0) - ramp).abs().max() < 0.02
    assert (degraded(stripes, 2.0)[..., 4:-4] - 0.5).abs().max() < 0.1


def test_super_resolution_shows_the_backbone_the_coarse_image() -> None:
    objective = SuperResolution(Small(), shape=SHAPE, width=8, scale=4.0)
    x = torch.randn(2, *SHAPE)
    objective({"views": [{"x": x}]})
    torch.testing.assert_close(shown(objective), degraded(x, 4.0))


# -- jigsaw ----------------------------------------------------------------------------------------------------


def hamming(a: list[int], b: list[int]) -> int:
    return sum(p != q for p, q in zip(a, b, strict=True))


def test_permutations_follow_algorithm_1() -> None:
    chosen = distant_permutations(12, 4).tolist()
    every = distant_permutations(24, 4).tolist()
    assert sorted(every) == sorted(map(list, {tuple(p) for p in every}))
    for n in range(1, 12):
        best = max(sum(hamming(p, c) for c in chosen[:n]) for p in every if p not in chosen[:n])
        assert sum(hamming(chosen[n], c) for c in chosen[:n]) == best


def test_permutations_of_nine_are_distinct_distant_and_always_the_same() -> None:
    table = distant_permutations(100, 9)
    assert torch.equal(table, distant_permutations(100, 9))
    assert torch.equal(table.sort(1).values, torch.arange(9).expand(100, 9))
    apart = (table[:, None] != table).sum(2)[~torch.eye(100, dtype=torch.bool)]
    assert apart.min() > 0
    assert apart.double().mean() > 8.05  # two random ones differ in 8 places on average; at most 8.08 for 100


def test_more_permutations_than_there_are_is_refused() -> None:
    with pytest.raises(RequestError, match=r"objective\.permutations=25"):
        Jigsaw(Small(), grid=2, permutations=25)


def test_each_tile_comes_normalised_from_its_cell() -> None:
    torch.manual_seed(0)
    x = torch.zeros(2, 1, 30, 30)
    for cell in range(9):
        top, left = cell // 3 * 10, cell % 3 * 10
        x[:, :, top : top + 10, left : left + 10] = torch.rand(10, 10) + 100 * cell
    tiles = normalised(cut(x, 3))
    assert tiles.shape == (2, 9, 1, 9, 9)
    for n in range(2):
        for cell in range(9):
            top, left = cell // 3 * 10, cell % 3 * 10
            places = [(top + i, left + j) for i in range(2) for j in range(2)]
            every = [x[n, 0, i : i + 9, j : j + 9] for i, j in places]
            plain = [(c - c.mean()) / (c.std(correction=0) + 1e-2) for c in every]
            assert any(torch.allclose(tiles[n, cell, 0], p, atol=1e-3) for p in plain)


def test_tiles_of_the_smallest_images_still_hold_something() -> None:
    torch.manual_seed(0)
    tiles = normalised(cut(torch.randn(2, 3, 8, 8), 3))
    assert tiles.shape == (2, 9, 3, 2, 2)
    assert (tiles.std((3, 4)) > 0).all()


def test_shuffling_features_is_shuffling_tiles() -> None:
    torch.manual_seed(0)
    tiles, order = torch.randn(2, 4, 3), torch.tensor([[2, 0, 3, 1], [1, 3, 0, 2]])
    found = shuffled(tiles, order)
    assert all(torch.equal(found[n, k], tiles[n, order[n, k]]) for n in range(2) for k in range(4))


# -- relative position -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 32, 96])
def test_the_label_says_where_the_second_patch_lies(size: int) -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pairs, where = patch_pairs(torch.stack([rows, columns]).float().expand(200, 2, size, size))
    side, jitter = size // 4, round(size // 4 * 7 / 96)
    assert pairs.shape == (200, 2, 2, side, side)
    places = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    moved = pairs[:, 1, :, 0, 0] - pairs[:, 0, :, 0, 0]  # (200, 2): down, right
    wanted = torch.tensor(places)[where] * (size // 4 + size // 8)
    assert (moved - wanted).abs().max() <= 2 * jitter
    assert (moved - wanted).abs().max() > 0 or jitter == 0
    assert set(where.tolist()) == set(range(8))
    assert pairs.min() >= 0
    assert pairs.max() < size


# -- colourisation ---------------------------------------------------------------------------------------------


def test_lab_of_known_colours() -> None:
    known = {  # sRGB at D65
        (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
        (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
        (1.0, 0.0, 0.0): (53.24, 80.09, 67.20),
        (0.0, 1.0, 0.0): (87.73, -86.18, 83.18),
        (0.0, 0.0, 1.0): (32.30, 79.19, -107.86),
    }
    for rgb, lab in known.items():
        found = rgb_to_lab(torch.tensor(rgb).view(1, 3, 1, 1)).flatten()
        torch.testing.assert_close(found, torch.tensor(lab), atol=0.1, rtol=0)


def test_lab_back_to_rgb() -> None:
    rgb = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    rgb[0, :, 0] *= 0.03  # the linear ends of both curves
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=2e-4, rtol=0)
    green = lab_to_rgb(torch.tensor([80.0, -200.0, 100.0]).view(1, 3, 1, 1))  # more than a screen can show
    assert green.min() >= 0
    assert green.max() <= 1


def test_the_expected_colour_is_an_annealed_mean() -> None:
    torch.manual_seed(0)
    logits, bins = torch.randn(2, 5, 2, 3), 30 * torch.randn(5, 2)
    found = expected_colour(logits, bins)
    assert found.shape == (2, 2, 2, 3)
    for n, i, j in [(0, 0, 0), (1, 1, 2)]:
        share = logits[n, :, i, j].double().softmax(0)
        warmed = [math.exp(math.log(p) / 0.38) for p in share.tolist()]
        for axis in range(2):
            mean = sum(w * b for w, b in zip(warmed, bins[:, axis].tolist(), strict=True)) / sum(warmed)
            assert found[n, axis, i, j].item() == pytest.approx(mean, abs=1e-3)


def test_gamut_is_a_grid_that_covers_all_colours() -> None:
    bins = gamut()
    assert torch.equal(bins, (bins / 10).round() * 10)
    assert len(bins.unique(dim=0)) == len(bins)
    colours = rgb_to_lab(torch.rand(1, 3, 50, 50))[0, 1:].flatten(1).T
    assert torch.cdist(colours, bins).min(1).values.max() < 11


def test_soft_encoding_is_a_gaussian_over_the_five_nearest() -> None:
    torch.manual_seed(0)
    bins, colour = gamut(), 30 * torch.randn(7, 2)
    found = soft_encode(colour, bins)
    for row, (a, b) in zip(found.tolist(), colour.tolist(), strict=True):
        square = [(a - p) ** 2 + (b - q) ** 2 for p, q in bins.tolist()]
        near = sorted(range(len(square)), key=square.__getitem__)[:5]
        weight = {k: math.exp(-square[k] / 50) for k in near}
        wanted = [weight.get(k, 0.0) / sum(weight.values()) for k in range(len(square))]
        assert row == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_rarity_is_equation_4(balance: float) -> None:
    seen = torch.tensor([8.0, 1.0, 4.0, 3.0])
    prior = [v / 16 for v in seen.tolist()]
    raw = [1 / ((1 - balance) * p + balance / 4) for p in prior]
    mean = sum(p * w for p, w in zip(prior, raw, strict=True))
    assert rarity(seen, balance).tolist() == pytest.approx([w / mean for w in raw], abs=1e-5)
    assert rarity(torch.zeros(4), balance).tolist() == pytest.approx([1.0] * 4)


def test_colour_loss_is_equations_2_and_3() -> None:
    torch.manual_seed(0)
    logits, target, weight = torch.randn(6, 5), torch.rand(6, 5).softmax(1), torch.rand(5)
    total = 0.0
    for row, true in zip(logits.double().tolist(), target.double().tolist(), strict=True):
        norm = math.log(sum(map(math.exp, row)))
        v = weight[max(range(5), key=true.__getitem__)].item()
        total -= v * sum(t * (z - norm) for t, z in zip(true, row, strict=True))
    assert colour_loss(logits, target, weight).item() == pytest.approx(total / 6, abs=1e-5)


def test_the_colour_prior_moves_after_its_use_and_in_training_only() -> None:
    torch.manual_seed(0)
    objective = Colourisation(Small(), shape=SHAPE, mean=(0.5,) * 3, std=(0.2,) * 3, width=8)
    batch = {"views": [{"x": torch.randn(4, *SHAPE)}]}
    first = objective(batch).value
    assert objective.seen.sum().item() == pytest.approx(1, abs=1e-4)
    assert "seen" in objective.state_dict()
    seen = objective.seen.clone()
    objective.seen.zero_()
    torch.testing.assert_close(objective(batch).value, first)
    objective.eval()(batch)
    assert torch.equal(objective.seen, seen)


def test_colourisation_shows_the_backbone_no_colour() -> None:
    torch.manual_seed(0)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    objective = Colourisation(Small(), shape=SHAPE, mean=mean, std=std, width=8)
    rgb = torch.rand(2, *SHAPE)
    x = (rgb - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    objective({"views": [{"x": x}]})
    back = shown(objective) * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    for channel in range(3):
        torch.testing.assert_close(back[:, channel] * 100, rgb_to_lab(rgb)[:, 0], atol=1e-3, rtol=0)


def test_colourisation_refuses_grey_images() -> None:
    with pytest.raises(RequestError, match="red, green and blue"):
        Colourisation(Small(), shape=(1, 8, 8), mean=(0.5,), std=(0.2,))
