"""MAE, SimMIM, I-JEPA, next patch and the autoencoders against their papers, written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.errors import RequestError
from ssl_runner.objectives import autoencoder, denoising, ijepa, mae, simmim, vae
from ssl_runner.objectives.next_patch import NextPatch, shifted
from ssl_runner.parts import patches
from ssl_runner.parts.masking import shown
from ssl_runner.parts.patches import masked_mean, normalised, patch_sizes
from ssl_runner.types import Batch, Objective

SHAPE = (2, 6, 8)
GRID = (3, 4)


def encoder(shape: tuple[int, ...] = SHAPE, block: tuple[int, ...] = (2, 2)) -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Continuous(shape=shape, block=block, dim=16), depth=2, heads=2)


def every_objective(shape: tuple[int, ...] = SHAPE, block: tuple[int, ...] = (2, 2)) -> list[Objective]:
    def backbone() -> Encoder:
        return encoder(shape, block)

    return [
        mae.MAE(backbone(), shape=shape, dim=16, depth=1, heads=2),
        simmim.SimMIM(backbone(), shape=shape),
        NextPatch(backbone(), shape=shape, hidden=16),
        ijepa.IJEPA(backbone(), shape=shape, dim=16, depth=1, heads=2),
        autoencoder.Autoencoder(backbone(), shape=shape, hidden=16),
        denoising.Denoising(backbone(), shape=shape, hidden=16),
        denoising.Denoising(backbone(), shape=shape, hidden=16, corruption="gaussian"),
        denoising.Denoising(backbone(), shape=shape, hidden=16, corruption="salt_and_pepper"),
        vae.VAE(backbone(), shape=shape, hidden=16, dim=4),
    ]


def samples(count: int = 5, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def some(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)) < 0.5


# -- losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "power"), [(mae.reconstruction, 2)])
def test_a_reconstruction_counts_the_hidden_patches_only(loss: object, power: int) -> None:
    torch.manual_seed(0)
    prediction, target, mask = torch.randn(3, 5, 4), torch.randn(3, 5, 4), some(3, 5)
    errors = [
        abs(p - t) ** power
        for b in range(3)
        for k in range(5)
        if mask[b, k]
        for p, t in zip(prediction[b, k].tolist(), target[b, k].tolist(), strict=True)
    ]
    assert loss(prediction, target, mask).item() == pytest.approx(sum(errors) / len(errors), abs=1e-5)  # type: ignore[operator]
    other = torch.where(mask[..., None], prediction, 1e6)
    assert torch.equal(loss(prediction, target, mask), loss(other, target, mask))  # type: ignore[operator]


def test_a_patch_is_normalised_by_itself() -> None:
    torch.manual_seed(0)
    cut = torch.randn(2, 3, 6) * 5 + 2
    cut[0, 0] = 7.0  # a flat patch stays finite
    for b in range(2):
        for k in range(3):
            values = cut[b, k].tolist()
            mean = sum(values) / 6
            var = sum((v - mean) ** 2 for v in values) / 5
            wanted = [(v - mean) / math.sqrt(var + 1e-6) for v in values]
            assert normalised(cut)[b, k].tolist() == pytest.approx(wanted, abs=1e-4)


def test_a_mean_over_nothing_is_zero() -> None:
    assert masked_mean(torch.full((2, 3), float("nan")), torch.zeros(2, 3, dtype=torch.bool)) == 0


def test_a_mean_over_uneven_ranks_is_that_of_the_joined_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 2, 4)
    mask = torch.tensor([[[1, 1, 1, 0], [1, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 1, 0]]]).bool()
    joined = masked_mean(values.flatten(0, 1), mask.flatten(0, 1))
    monkeypatch.setattr(patches, "world_size", lambda: 2)
    monkeypatch.setattr(patches.dist, "all_reduce", lambda count: count.copy_(mask.sum()))
    torch.testing.assert_close((masked_mean(values[0], mask[0]) + masked_mean(values[1], mask[1])) / 2, joined)


def test_next_patch_shifts_once() -> None:
    torch.manual_seed(0)
    prediction, target, pad = torch.randn(2, 3, 4), torch.randn(2, 4, 4), torch.zeros(2, 4, dtype=torch.bool)
    pad[1, 2:] = True

    def mean(places: list[tuple[int, int]]) -> float:
        errors = [(prediction[b, k, i] - target[b, k + 1, i]).item() ** 2 for b, k in places for i in range(4)]
        return sum(errors) / len(errors)

    assert shifted(prediction, target).item() == pytest.approx(mean([(b, k) for b in range(2) for k in range(3)]))
    assert shifted(prediction, target, pad).item() == pytest.approx(mean([(0, 0), (0, 1), (0, 2), (1, 0)]))


def test_ijepa_measures_at_the_targets_only() -> None:
    torch.manual_seed(0)
    prediction, target, mask = 2 * torch.randn(2, 3, 5, 4), torch.randn(2, 5, 4), some(2, 3, 5)
    errors = []
    for b, m, k in mask.nonzero().tolist():
        for p, t in zip(prediction[b, m, k].tolist(), target[b, k].tolist(), strict=True):
            gap = abs(p - t)
            errors.append(gap**2 / 2 if gap < 1 else gap - 0.5)
    assert ijepa.distance(prediction, target, mask).item() == pytest.approx(sum(errors) / len(errors), abs=1e-5)


@pytest.mark.parametrize("loss", [autoencoder.squared_error, denoising.squared_error])
def test_an_autoencoder_takes_the_squared_error(loss: object) -> None:
    prediction, x = samples(3).flatten(1) * 2, samples(3)
    pairs = list(zip(prediction.flatten().tolist(), x.flatten().tolist(), strict=True))
    assert loss(prediction, x).item() == pytest.approx(sum((p - t) ** 2 for p, t in pairs) / len(pairs), rel=1e-5)  # type: ignore[operator]


def test_vae_terms_are_those_of_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, log_var = torch.randn(4, 3), torch.randn(4, 3)
    posterior = torch.distributions.Normal(mean, (log_var / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(4, 3), torch.ones(4, 3))
    wanted = torch.distributions.kl_divergence(posterior, prior).sum(1)
    torch.testing.assert_close(vae.divergence(mean, log_var), wanted)
    prediction, x = torch.randn(4, 6), torch.randn(4, 2, 3)
    density = torch.distributions.Normal(prediction, 0.7).log_prob(x.flatten(1)).sum(1)
    torch.testing.assert_close(vae.log_likelihood(prediction, x, 0.7), density)
    many = vae.sample(torch.full((20000, 1), 3.0), torch.full((20000, 1), math.log(4.0)))
    assert many.mean().item() == pytest.approx(3.0, abs=0.1)
    assert many.std().item() == pytest.approx(2.0, abs=0.1)


def test_vae_adds_its_terms() -> None:
    loss, log = vae.VAE(encoder(), shape=SHAPE, hidden=16, dim=4)({"views": [{"x": samples()}]})
    assert loss.item() == pytest.approx(log["reconstruction"].item() + log["kl"].item())


# -- what is seen ----------------------------------------------------------------------------------------------


def test_mae_sees_visible_patches_only_and_puts_them_back() -> None:
    objective = mae.MAE(encoder(), shape=SHAPE, dim=16, depth=1, heads=2).eval()
    cut, mask = objective.backbone.patchify(samples(2)), some(12)[None].repeat(2, 1)
    mask[1] = mask[0].flip(0)
    seen: list[Tensor] = []
    encode = objective.backbone.encode
    objective.backbone.encode = lambda tokens, pad=None: seen.append(tokens) or encode(tokens, pad)  # type: ignore
    before = objective.predict(cut, mask)
    torch.testing.assert_close(seen[0], shown(objective.backbone.embed(cut), mask))  # positions come first
    torch.testing.assert_close(objective.predict(torch.where(mask[..., None], 9.0, cut), mask), before)
    changed = cut.clone()
    changed[0, int((~mask[0]).nonzero()[0])] += 1
    after = objective.predict(changed, mask)
    assert not torch.allclose(after[0], before[0])
    torch.testing.assert_close(after[1], before[1])


def test_mae_restores_each_token_to_its_place() -> None:
    objective = mae.MAE(encoder(), shape=SHAPE, dim=16, depth=1, heads=2).eval()
    cut = objective.backbone.patchify(samples(1))
    mask = some(1, 12)
    into: list[Tensor] = []
    embed = objective.decoder.trunk.embed
    objective.decoder.trunk.embed = lambda tokens: into.append(tokens) or embed(tokens)  # type: ignore
    objective.predict(cut, mask)
    visible = objective.decoder.enter(objective.backbone.encode(shown(objective.backbone.embed(cut), mask)))
    expected = iter(visible[0])
    for k in range(12):
        torch.testing.assert_close(into[0][0, k], objective.decoder.mask_token if mask[0, k] else next(expected))


def test_mae_averages_over_hidden_patches_of_its_own_input(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.zeros(5, 12, dtype=torch.bool)
    mask[:, :9] = True
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(mae, "random_mask", lambda *args: asked.append(args) or mask)
    for normalise in (True, False):
        objective = mae.MAE(encoder(), shape=SHAPE, dim=16, depth=1, heads=2, normalise=normalise)
        cut = objective.backbone.patchify(samples())
        target = normalised(cut) if normalise else cut
        wanted = (objective.predict(cut, mask) - target)[:, :9].square().mean()
        torch.testing.assert_close(objective({"views": [{"x": samples()}]}).value, wanted)
    assert asked[0][:3] == (5, 12, 0.75)


def test_next_patch_never_sees_what_it_predicts() -> None:
    objective = NextPatch(encoder(), shape=SHAPE, hidden=16).eval()
    cut = objective.backbone.patchify(samples(2))
    before = objective.predict(cut)
    assert before.shape == (2, 11, 8)
    for k in range(1, 12):
        changed = cut.clone()
        changed[:, k:] += 1
        after = objective.predict(changed)
        torch.testing.assert_close(after[:, :k], before[:, :k])
        assert k == 11 or not torch.allclose(after[:, k], before[:, k])


def next_patch(**arguments: bool) -> NextPatch:
    return NextPatch(encoder(), shape=SHAPE, hidden=32, **arguments).eval()


@pytest.mark.parametrize("normalise", [True, False])
@torch.no_grad()
def test_next_patch_makes_each_patch_from_those_made_before(normalise: bool) -> None:
    objective = next_patch(normalise=normalise)
    cut = objective.backbone.patchify(samples(3))
    made = objective.complete(cut, 5)
    assert torch.equal(made[:, :5], cut[:, :5])
    for k in range(5, 12):
        wanted = objective.predict(made)[:, k - 1]
        if normalise:
            given = cut[:, k].double()
            wanted = wanted * (given.var(1, keepdim=True) + 1e-6).sqrt() + given.mean(1, keepdim=True)
        torch.testing.assert_close(made[:, k].double(), wanted.double(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_next_patch_is_not_told_what_it_is_to_make() -> None:
    objective = next_patch(normalise=False)
    cut = objective.backbone.patchify(samples(3))
    made = objective.complete(cut, 5)
    for k in range(5, 12):
        other = cut.clone()
        other[:, k:] = 7.0
        assert torch.equal(objective.complete(other, 5), made)
    other = cut.clone()
    other[0, 4] += 1
    changed = objective.complete(other, 5)
    assert not torch.allclose(changed[0, 5:], made[0, 5:])
    torch.testing.assert_close(changed[1:], made[1:])


@torch.no_grad()
def test_next_patch_draws_around_its_mean_with_the_given_deviation() -> None:
    objective = next_patch(normalise=False)
    cut = objective.backbone.patchify(samples(1)).expand(4000, -1, -1)
    mean = objective.complete(cut[:1], 11)[0, 11]
    torch.manual_seed(0)
    drawn = objective.complete(cut, 11, 0.5)[:, 11]
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full_like(mean, 0.5), atol=0.04, rtol=0)


def test_next_patch_that_knows_two_images_finishes_them() -> None:
    objective = next_patch(normalise=False).train()
    x = samples(2).clamp(-1, 1)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for _ in range(400):
        loss = objective({"views": [{"x": x}]}).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        cut = objective.eval().backbone.patchify(x)
        forgotten = cut.clone()
        forgotten[:, 6:] = 0
        torch.testing.assert_close(objective.complete(forgotten, 6), cut, atol=0.15, rtol=0)
    assert (cut[0, 6:] - cut[1, 6:]).abs().mean() > 0.3  # so it was the first half that told them apart


@pytest.mark.parametrize("corruption", ["masking", "gaussian", "salt_and_pepper"])
def test_denoising_rebuilds_the_clean_input_from_a_corrupted_one(corruption: denoising.Corruption) -> None:
    objective = denoising.Denoising(encoder(), shape=SHAPE, hidden=16, corruption=corruption, amount=0.3)
    x = samples()
    torch.manual_seed(5)
    loss = objective({"views": [{"x": x}]}).value
    torch.manual_seed(5)
    seen = denoising.corrupt(x, corruption, 0.3)
    assert not torch.equal(seen, x)
    torch.testing.assert_close(loss, (objective.decoder(objective.backbone(seen)) - x.flatten(1)).square().mean())


def test_corruptions_have_their_amount() -> None:
    torch.manual_seed(0)
    x = torch.full((100, 200), 5.0)
    masked = denoising.corrupt(x, "masking", 0.3)
    assert set(masked.unique().tolist()) == {0.0, 5.0}
    assert (masked == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(masked[0], masked[1])
    noise = denoising.corrupt(x, "gaussian", 0.3) - x
    assert noise.std().item() == pytest.approx(0.3, abs=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)


def test_salt_and_pepper_are_the_ends_of_each_sample_by_a_fair_coin() -> None:
    torch.manual_seed(0)
    x = torch.rand(100, 4, 50) * torch.arange(1.0, 101.0).view(-1, 1, 1)  # another range for each sample
    found = denoising.corrupt(x, "salt_and_pepper", 0.3)
    salt = pepper = 0
    for clean, seen in zip(x, found, strict=True):
        changed = seen != clean
        assert set(seen[changed].tolist()) <= {clean.min().item(), clean.max().item()}
        salt += int((seen[changed] == clean.max()).sum())
        pepper += int((seen[changed] == clean.min()).sum())
    assert salt / x.numel() == pytest.approx(0.15, abs=0.01)
    assert pepper / x.numel() == pytest.approx(0.15, abs=0.01)
    assert not torch.equal(found[0] == x[0], found[1] == x[1])  # drawn per sample


# -- I-JEPA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "block", "grid"),
    [((2, 6, 8), (2, 2), (3, 4)), ((3, 12), (3,), (4,)), ((1, 4, 6, 2), (2, 3, 1), (2, 2, 2))],
)
def test_cells_are_the_patches_places(shape: tuple[int, ...], block: tuple[int, ...], grid: tuple[int, ...]) -> None:
    wanted = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, len(grid))
    assert torch.equal(ijepa.cells(encoder(shape, block), shape), wanted)


@settings(max_examples=30)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 1000))
def test_a_block_is_a_full_rectangle_of_its_scale(height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    grid = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    for row in ijepa.block(grid, 8, (0.15, 0.2), (0.75, 1.5)):
        inside = grid[row]
        extent = inside.amax(0) - inside.amin(0) + 1
        assert len(inside) == extent.prod()
        tall, wide = (math.sqrt(0.2 * height * width * a) for a in (1.5, 1 / 0.75))
        assert extent[0] <= max(1, tall + 0.5)
        assert extent[1] <= max(1, wide + 0.5)


def test_the_context_is_never_empty_and_holds_no_target() -> None:
    objective = ijepa.IJEPA(encoder((1, 4, 4), (2, 2)), shape=(1, 4, 4), dim=16, depth=1, heads=2)
    torch.manual_seed(0)
    context, targets = objective.draw(64)
    assert context.any(1).all()
    assert targets.any(2).all()
    assert targets.shape == (64, 4, 4)
    assert not (context & targets.any(1)).any()
    assert len(targets.flatten(1).unique(dim=0)) > 8  # drawn per sample
    greedy = ijepa.IJEPA(
        encoder((1, 4, 4), (2, 2)),
        shape=(1, 4, 4),
        dim=16,
        depth=1,
        heads=2,
        target_scale=(1.0, 1.0),
        aspect=(1.0, 1.0),
    )
    with pytest.raises(RequestError, match=r"objective\.target_scale"):
        greedy.draw(2)


def test_ijepa_predicts_as_it_would_sample_by_sample_and_block_by_block() -> None:
    torch.manual_seed(3)
    objective = ijepa.IJEPA(encoder(), shape=SHAPE, dim=16, depth=1, heads=2).eval()
    cut = objective.backbone.patchify(samples(6))
    context, targets = objective.draw(6)
    found = objective.predict(cut, context, targets)
    predictor = objective.predictor
    for b in range(6):
        inside = context[b].nonzero()[:, 0]
        known = predictor.enter(objective.backbone.encode(objective.backbone.embed(cut[b : b + 1])[:, inside]))
        for m in range(4):
            wanted = targets[b, m].nonzero()[:, 0]
            tokens = torch.cat([known, predictor.mask_token.expand(1, len(wanted), -1)], 1)
            tokens = tokens + predictor.trunk.stem.pos_embed[:, torch.cat([inside, wanted])]
            out = predictor.leave(predictor.trunk.encode(tokens))[0, len(inside) :]
            torch.testing.assert_close(found[b, m, wanted], out, atol=1e-5, rtol=1e-4)


def test_ijepa_teacher_sees_all_gets_no_gradient_and_moves_after_the_step() -> None:
    objective = ijepa.IJEPA(encoder(), shape=SHAPE, dim=16, depth=1, heads=2, momentum=0.9, end_momentum=0.9)
    cut = objective.backbone.patchify(samples())
    target = objective.teacher(cut)
    assert not target.requires_grad
    torch.testing.assert_close(target.mean(2), torch.zeros(5, 12), atol=1e-5, rtol=0)
    own = objective.backbone.encode(objective.backbone.embed(cut))
    torch.testing.assert_close(target, torch.nn.functional.layer_norm(own, (16,)))
    before = [p.clone() for p in objective.teacher.parameters()]
    objective({"views": [{"x": samples()}]}).value.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    with torch.no_grad():
        for p in objective.backbone.parameters():
            p += 1
    objective({"views": [{"x": samples()}]})
    assert all(torch.equal(p, old) for p, old in zip(objective.teacher.parameters(), before, strict=True))
    objective.after_step(0.5)
    for p, old in zip(objective.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(p, old + 0.1)


# -- all of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "block"),
    [(SHAPE, (2, 2)), ((3, 12), (3,)), ((1, 4, 6, 2), (2, 3, 1))],
    ids=["image", "series", "video"],
)
def test_every_shape_gives_a_finite_loss_and_gradients_everywhere(
    shape: tuple[int, ...], block: tuple[int, ...]
) -> None:
    for objective in every_objective(shape, block):
        torch.manual_seed(0)
        objective({"views": [{"x": samples(8, shape)}]}).value.backward()
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{type(objective).__name__}: {name}"
                assert parameter.grad.isfinite().all(), f"{type(objective).__name__}: {name}"
                assert parameter.grad.abs().sum() > 0, f"{type(objective).__name__}: {name}"


def test_no_training_step_waits_for_its_device() -> None:
    """A meta tensor has no values, so that whatever reads one fails."""
    for objective in every_objective():
        if not isinstance(objective, mae.MAE | simmim.SimMIM):
            loss = objective.to("meta")({"views": [{"x": samples().to("meta")}]}).value
            assert loss.is_meta


def test_losses_stay_in_fp32_under_autocast() -> None:
    for objective in every_objective():
        torch.manual_seed(0)
        exact = objective({"views": [{"x": samples()}]}).value
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            low = objective({"views": [{"x": samples()}]}).value
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, exact, rtol=0.03, atol=0.03)


def test_bf16_models_learn_and_show() -> None:
    """precision=bf16-true: parameters, views and whatever is made anew are bf16."""
    for objective in every_objective():
        objective.to(torch.bfloat16)
        torch.set_default_dtype(torch.bfloat16)
        try:
            batch: Batch = {"views": [{"x": samples().bfloat16()}]}
            loss = objective(batch).value
            loss.backward()
            with torch.no_grad():
                objective.eval().show(batch)
        finally:
            torch.set_default_dtype(torch.float32)
        assert loss.dtype == torch.float32
        assert loss.isfinite()


def test_padding_takes_no_part() -> None:
    pad = torch.zeros(5, 12, dtype=torch.bool)
    pad[:, 7:] = True
    for kind in (mae.MAE, simmim.SimMIM, NextPatch):
        objective = kind(encoder(), shape=SHAPE)
        x = samples()
        other = objective.backbone.stem.unpatchify(objective.backbone.patchify(x).masked_fill(pad[..., None], 3.0))
        losses = []
        for each in (x, other):
            torch.manual_seed(0)
            losses.append(objective({"views": [{"x": each, "pad": pad}]}).value)
        torch.testing.assert_close(losses[0], losses[1])


def test_what_can_not_be_predicted_is_refused() -> None:
    words = Encoder(stem=Discrete(vocab=9, length=12, dim=16), depth=1, heads=2)
    with pytest.raises(RequestError, match="ids"):
        patch_sizes(words, (12,))
    with pytest.raises(RequestError, match="smaller blocks"):
        simmim.SimMIM(encoder((1, 4, 4), (4, 4)), shape=(1, 4, 4))
    with pytest.raises(RequestError, match=r"objective\.heads=3"):
        mae.MAE(encoder(), shape=SHAPE, dim=16, heads=3)
