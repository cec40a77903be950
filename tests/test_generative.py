"""VQ-VAE and BiGAN against their papers, written out in loops and as two optimisers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.objectives import bigan, vq_vae
from ssl_runner.types import Backbone, Batch

SHAPE = (1, 6, 8)


class Flat(Backbone):
    """The pixels through one linear layer and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 10
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), nn.BatchNorm1d(10))

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.body(x)


def batch_of(count: int = 6) -> Batch:
    return {"views": [{"x": torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))}]}


# -- VQ-VAE ----------------------------------------------------------------------------------------------------


def quantiser(beta: float = 0.25) -> vq_vae.VQVAE:
    torch.manual_seed(0)
    objective = vq_vae.VQVAE(Flat(), shape=SHAPE, groups=3, codes=5, dim=4, width=8, beta=beta)
    with torch.no_grad():
        objective.codebook.normal_(std=0.5)
    return objective


def closest(latent: list[float], codes: list[list[float]]) -> int:
    return min(range(len(codes)), key=lambda k: math.dist(latent, codes[k]))


@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0])
def test_vq_vae_is_equation_3(beta: float) -> None:
    objective, batch = quantiser(beta), batch_of()
    loss = objective(batch)
    latents = objective.encode(batch["views"][0]).detach()
    codes = objective.codebook.tolist()
    numbers = [[closest(latent, codes) for latent in row] for row in latents.tolist()]
    assert len({k for row in numbers for k in row}) > 1
    rebuilt = objective.decoder(torch.tensor([[codes[k] for k in row] for row in numbers]).flatten(1))
    errors = [
        (a - b) ** 2 for a, b in zip(rebuilt.flatten().tolist(), batch["views"][0]["x"].flatten().tolist(), strict=True)
    ]
    distances = [
        (value - codes[k][d]) ** 2
        for row, ks in zip(latents.tolist(), numbers, strict=True)
        for latent, k in zip(row, ks, strict=True)
        for d, value in enumerate(latent)
    ]
    reconstruction, distance = sum(errors) / len(errors), sum(distances) / len(distances)
    assert loss.value.item() == pytest.approx(reconstruction + distance + beta * distance, abs=1e-5)
    assert loss.log["reconstruction"].item() == pytest.approx(reconstruction, abs=1e-5)
    counts = [sum(row.count(k) for row in numbers) for k in range(5)]
    entropy = -sum(c / 18 * math.log(c / 18) for c in counts if c)
    assert loss.log["codes_used"].item() == pytest.approx(math.exp(entropy) / 5, abs=1e-5)


def test_the_decoders_gradient_passes_straight_to_the_latents() -> None:
    objective, batch = quantiser(), batch_of()
    x = batch["views"][0]["x"]
    latents = objective.encode(batch["views"][0]).detach().requires_grad_()
    index = vq_vae.nearest(latents, objective.codebook)
    chosen = objective.codebook.detach()[index]
    passed = vq_vae.straight_through(latents, chosen)
    torch.testing.assert_close(passed.detach(), chosen)
    (found,) = torch.autograd.grad(F.mse_loss(objective.decoder(passed.flatten(1)), x), latents)
    entered = chosen.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(F.mse_loss(objective.decoder(entered.flatten(1)), x), entered)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted)


def test_codes_learn_from_their_latents_alone_and_latents_are_committed_beta_times_as_much() -> None:
    objective, batch = quantiser(beta=0.25), batch_of()
    latents = objective.encode(batch["views"][0]).detach()
    index = vq_vae.nearest(latents, objective.codebook)
    objective(batch).value.backward()
    wanted = torch.zeros(5, 4)
    for row, numbers in zip(latents, index.tolist(), strict=True):
        for latent, k in zip(row, numbers, strict=True):
            wanted[k] += 2 * (objective.codebook.detach()[k] - latent) / latents.numel()
    torch.testing.assert_close(objective.codebook.grad, wanted)
    free = latents.clone().requires_grad_()
    chosen = objective.codebook.detach()[index]
    vq_vae.quantisation_loss(free, chosen, 0.25).backward()
    torch.testing.assert_close(free.grad, 0.25 * 2 * (latents - chosen) / latents.numel())


def test_the_nearest_code_is_found_in_fp32_whatever_autocast_says() -> None:
    codebook = 1 + torch.arange(40.0)[:, None] * 1e-3  # in bf16 six values are left
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vq_vae.nearest(codebook, codebook), torch.arange(40))


def test_codes_used_tells_of_dead_codes() -> None:
    assert vq_vae.codes_used(torch.arange(12).view(3, 4), 12).item() == pytest.approx(1)
    assert vq_vae.codes_used(torch.zeros(3, 4, dtype=torch.int64), 12).item() == pytest.approx(1 / 12)
    assert vq_vae.codes_used(torch.tensor([[0, 1], [1, 0]]), 8).item() == pytest.approx(2 / 8)


def test_codes_come_into_use_in_training() -> None:
    torch.manual_seed(0)
    objective, batch = vq_vae.VQVAE(Flat(), shape=SHAPE, groups=4, codes=16, dim=4, width=8), batch_of(32)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(60):
        loss = objective(batch)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert loss.log["codes_used"] > 0.5


# -- BiGAN -----------------------------------------------------------------------------------------------------


def game() -> bigan.BiGAN:
    torch.manual_seed(0)
    return bigan.BiGAN(Flat(), shape=SHAPE, mean=(0.4,), std=(0.3,), dim=5, width=8, hidden=16)


def test_bigan_losses_are_the_papers_logarithms() -> None:
    torch.manual_seed(0)
    real, fake = 3 * torch.randn(7), 3 * torch.randn(7)
    sure = [(1 / (1 + math.exp(-r)), 1 / (1 + math.exp(-f))) for r, f in zip(real.tolist(), fake.tolist(), strict=True)]
    telling = -sum(math.log(r) + math.log(1 - f) for r, f in sure) / 7
    deceiving = -sum(math.log(1 - r) + math.log(f) for r, f in sure) / 7
    assert bigan.telling(real, fake).item() == pytest.approx(telling, abs=1e-5)
    assert bigan.deceiving(real, fake).item() == pytest.approx(deceiving, abs=1e-5)


def test_one_backward_gives_every_player_what_two_optimisers_would() -> None:
    objective, batch = game(), batch_of()
    written = copy.deepcopy(objective)
    torch.manual_seed(3)
    loss = objective(batch)
    loss.value.backward()

    x = batch["views"][0]["x"]
    torch.manual_seed(3)
    z = torch.rand(6, 5) * 2 - 1
    deceivers = {n: p for n, p in written.named_parameters() if not n.startswith("discriminator.")}
    judge = {n: p for n, p in written.named_parameters() if n.startswith("discriminator.")}
    found, made = written.head(written.backbone(x)), written.generator(z)
    yes, no = torch.ones(6), torch.zeros(6)
    bce = F.binary_cross_entropy_with_logits
    first = bce(written.discriminator(x, found.detach()), yes) + bce(written.discriminator(made.detach(), z), no)
    second = bce(written.discriminator(x, found), no) + bce(written.discriminator(made, z), yes)
    wanted = dict(zip(judge, torch.autograd.grad(first, list(judge.values())), strict=True))
    wanted |= dict(zip(deceivers, torch.autograd.grad(second, list(deceivers.values())), strict=True))

    torch.testing.assert_close(loss.value, first + second, atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.log["discriminator"], first.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.log["encoder_generator"], second.detach(), atol=1e-5, rtol=0)
    assert wanted.keys() == dict(objective.named_parameters()).keys()
    for name, parameter in objective.named_parameters():
        assert wanted[name].abs().max() > 0 or name == "backbone.body.1.bias", name  # BatchNorm takes that bias away
        torch.testing.assert_close(
            parameter.grad, wanted[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_pair_is_judged_by_itself() -> None:
    objective = game().train()
    x, z = torch.randn(6, *SHAPE), torch.randn(6, 5)
    whole = objective.discriminator(x, z)
    for n in range(6):
        torch.testing.assert_close(objective.discriminator(x[n : n + 1], z[n : n + 1])[0], whole[n])
    assert not torch.allclose(whole, objective.discriminator(x, z.flip(0)))  # both of the pair count
    assert not torch.allclose(whole, objective.discriminator(x.flip(0), z))


def test_a_discriminator_that_is_right_still_teaches() -> None:
    real, fake = torch.full((4,), 12.0, requires_grad=True), torch.full((4,), -12.0, requires_grad=True)
    bigan.deceiving(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.full((4,), 0.25), atol=1e-4, rtol=0)
    torch.testing.assert_close(fake.grad, torch.full((4,), -0.25), atol=1e-4, rtol=0)


def test_generated_images_lie_between_black_and_white_and_can_be_either() -> None:
    generator = game().generator.eval()
    black, white = -0.4 / 0.3, 0.6 / 0.3
    made = generator(bigan.noise(20, 5))
    assert black < made.min() < made.max() < white
    for sign, wanted in ((-1, black), (1, white)):
        with torch.no_grad():
            generator.decoder.last.bias.fill_(sign * 30.0)
        torch.testing.assert_close(generator(bigan.noise(2, 5)), torch.full((2, *SHAPE), wanted), atol=1e-5, rtol=0)


def test_noise_fills_its_interval_and_batch_statistics_are_taken_once_a_step() -> None:
    torch.manual_seed(0)
    drawn = bigan.noise(500, 20)
    assert -1 <= drawn.min() < -0.99
    assert 0.99 < drawn.max() <= 1
    assert drawn.mean().abs() < 0.03
    objective = game()
    objective(batch_of())
    counts = [int(m.num_batches_tracked) for m in objective.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert set(counts) == {1}


# -- both ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [quantiser, game])
@torch.no_grad()
def test_what_is_shown_are_images_in_the_units_of_the_views(make: object) -> None:
    objective, batch = make().eval(), batch_of()  # type: ignore[operator]
    x = batch["views"][0]["x"]
    torch.manual_seed(4)
    shown = objective.show(batch)
    assert all(column.shape == x.shape for columns in shown.values() for column in columns)
    assert torch.equal(shown["reconstruction"][0], x)
    if isinstance(objective, vq_vae.VQVAE):
        wanted = objective(batch).log["reconstruction"]
        torch.testing.assert_close(F.mse_loss(shown["reconstruction"][1], x), wanted)
        return
    torch.testing.assert_close(shown["reconstruction"][1], objective.generator(objective.head(objective.backbone(x))))
    torch.manual_seed(4)
    torch.testing.assert_close(shown["samples"][0], objective.generator(bigan.noise(6, 5)))
    assert not torch.allclose(shown["samples"][0], shown["samples"][1])


@pytest.mark.parametrize("make", [quantiser, game])
def test_losses_stay_in_fp32_under_autocast(make: object) -> None:
    losses = []
    for low in (False, True):
        torch.manual_seed(4)
        objective = make()  # type: ignore[operator]
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            losses.append(objective(batch_of()).value)
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0.03)
