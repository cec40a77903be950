"""BYOL, SimSiam and DINO: losses against the papers' equations, and where gradients and state may go."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.objectives import byol, simsiam
from ssl_runner.objectives.byol import BYOL
from ssl_runner.objectives.dino import DINO
from ssl_runner.objectives.simsiam import SimSiam
from ssl_runner.parts import distillation
from ssl_runner.parts.multicrop import embed_together
from ssl_runner.types import Backbone, Batch, Objective


class Flat(Backbone):
    """Any input: its mean over the last axis, projected; with BatchNorm and dropout, so that modes matter."""

    def __init__(self, inputs: int = 12, dim: int = 8, dropout: float = 0.0):
        super().__init__()
        self.dim, self.calls = dim, 0
        self.layer, self.norm, self.dropout = nn.Linear(inputs, dim), nn.BatchNorm1d(dim), nn.Dropout(dropout)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.dropout(self.norm(self.layer(x.mean(-1))))


def some(*widths: int, rows: int = 6) -> Batch:
    """A batch of views whose last axes are `widths`."""
    return {"views": [{"x": torch.randn(rows, 12, width)} for width in widths]}


def byol_small() -> BYOL:
    return BYOL(Flat(), hidden=10, dim=5, momentum=0.9)


def simsiam_small() -> SimSiam:
    return SimSiam(Flat(), hidden=10, dim=6, width=4)


def dino_small(**options: Any) -> DINO:
    return DINO(Flat(), hidden=10, dim=5, prototypes=7, **options)


def rows(x: Tensor) -> list[list[float]]:
    return x.detach().double().tolist()


def cosine(p: list[float], q: list[float]) -> float:
    return sum(a * b for a, b in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q))


def teachers(objective: Objective) -> dict[str, Tensor]:
    found = {n: p for n, p in objective.named_parameters() if n.startswith(("target_", "teacher_"))}
    assert found
    return found


def before(objective: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in objective.state_dict().items()}


# -- BYOL ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_byol_regression_is_equation_2(n: int) -> None:
    """|q/|q| - z/|z||^2, the definition and not its expansion."""
    torch.manual_seed(n)
    q, z = torch.randn(n, 4), 3 * torch.randn(n, 4)
    wanted = 0.0
    for a, b in zip(rows(q), rows(z), strict=True):
        wanted += sum((x / math.hypot(*a) - y / math.hypot(*b)) ** 2 for x, y in zip(a, b, strict=True)) / n
    assert byol.regression(q, z).item() == pytest.approx(wanted, abs=1e-5)


def test_byol_predicts_each_view_from_the_other() -> None:
    torch.manual_seed(0)
    objective, batch = byol_small().eval(), some(3, 3)
    with torch.no_grad():
        for p in teachers(objective).values():
            p.add_(0.3 * torch.randn_like(p))
    a, b = batch["views"]
    online = [objective.predictor(objective.projector(objective.backbone(**v))) for v in (a, b)]
    target = [objective.target_projector.copy(objective.target_backbone.copy(**v)) for v in (a, b)]
    pairs = [(online[0], target[1]), (online[1], target[0])]
    wanted = sum(2 - 2 * cosine(p, q) for x, y in pairs for p, q in zip(rows(x), rows(y), strict=True)) / 6
    assert objective(batch).value.item() == pytest.approx(wanted, abs=1e-5)


def test_byol_regression_has_no_gradient_to_its_target() -> None:
    q, z = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    byol.regression(q, z).backward()
    assert q.grad is not None
    assert z.grad is None


# -- SimSiam -------------------------------------------------------------------------------------------------


def test_simsiam_distance_is_equation_1() -> None:
    torch.manual_seed(0)
    p, z = torch.randn(5, 4), 3 * torch.randn(5, 4)
    wanted = -sum(cosine(a, b) for a, b in zip(rows(p), rows(z), strict=True)) / 5
    assert simsiam.distance(p, z).item() == pytest.approx(wanted, abs=1e-5)


def test_simsiam_is_equation_4_with_gradients_through_predictions_only() -> None:
    torch.manual_seed(0)
    objective, batch = simsiam_small(), some(3, 3)
    reference = copy.deepcopy(objective)
    za, zb = (reference.projector(reference.backbone(**v)) for v in batch["views"])
    pa, pb = reference.predictor(za), reference.predictor(zb)
    frozen_a, frozen_b = za.detach(), zb.detach()
    total = torch.zeros(())
    for i in range(6):
        total = total - pa[i] @ frozen_b[i] / (pa[i].norm() * frozen_b[i].norm()) / 12
        total = total - pb[i] @ frozen_a[i] / (pb[i].norm() * frozen_a[i].norm()) / 12
    loss = objective(batch).value
    torch.testing.assert_close(loss, total, atol=1e-5, rtol=0)
    total.backward()
    loss.backward()
    for mine, theirs in zip(objective.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_simsiam_projections_end_in_a_norm_that_learns_nothing() -> None:
    torch.manual_seed(0)
    objective = simsiam_small()
    last = objective.projector[-1]
    assert isinstance(last, nn.BatchNorm1d)
    assert last.weight is None
    assert last.bias is None
    z = objective.projector(objective.backbone(**some(3, rows=40)["views"][0]))
    torch.testing.assert_close(z.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    assert isinstance(objective.predictor[-1], nn.Linear)


# -- DINO ----------------------------------------------------------------------------------------------------


def probabilities(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("large", "views"), [(1, 3), (2, 2), (2, 5)])
def test_dino_is_equation_3_over_pairs_of_different_views(large: int, views: int) -> None:
    torch.manual_seed(views)
    batch, progress, centre = some(*[4] * large, *[3] * (views - large)), 0.25, 0.1 * torch.randn(7)
    objective = dino_small(large=large, teacher_start=0.04, teacher_end=0.08, teacher_warmup=0.5).eval()
    with torch.no_grad():
        for p in teachers(objective).values():
            p.add_(0.3 * torch.randn_like(p))
    objective.progress.fill_(progress)
    objective.centre.copy_(centre)
    student = [rows(objective.head(objective.backbone(**v))) for v in batch["views"]]
    teacher = [rows(objective.teacher_head(objective.teacher_backbone(**v))) for v in batch["views"][:large]]
    total, pairs = 0.0, 0
    for t in range(large):
        for s in range(views):
            if t == s:
                continue
            pairs += 1
            for theirs, mine in zip(teacher[t], student[s], strict=True):
                p = probabilities([x - c for x, c in zip(theirs, centre.tolist(), strict=True)], 0.06)
                q = probabilities(mine, 0.1)
                total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 6
    assert objective(batch).value.item() == pytest.approx(total / pairs, abs=1e-5)


def test_dino_head_gives_cosines_with_prototypes_whose_length_cannot_matter() -> None:
    torch.manual_seed(0)
    head = distillation.Head(8, 10, 5, 7)
    x = torch.randn(4, 8)
    scores = head(x)
    bottleneck, weight = rows(head.mlp(x)), rows(head.last.weight)
    for i in range(4):
        for k in range(7):
            assert scores[i, k].item() == pytest.approx(cosine(bottleneck[i], weight[k]), abs=1e-5)
    with torch.no_grad():
        head.last.weight.mul_(torch.rand(7, 1) * 5 + 0.1)
    torch.testing.assert_close(head(x), scores)
    assert head.last.bias is None


def test_dino_centre_is_equation_4_and_moves_after_its_use() -> None:
    torch.manual_seed(0)
    objective, batch = dino_small(centre_momentum=0.8), some(4, 4, 3)
    objective.centre.copy_(torch.randn(7))
    twin = copy.deepcopy(objective)
    old = objective.centre.clone()
    teacher = [twin.teacher_head(z) for z in embed_together(twin.teacher_backbone, batch["views"][:2])]
    student = [twin.head(z) for z in embed_together(twin.backbone, batch["views"])]
    wanted = distillation.cross_view(student, twin.targets(teacher), 0.1)
    torch.testing.assert_close(objective(batch).value, wanted)
    every = [row for each in teacher for row in rows(each)]
    expected = [0.8 * old[k].item() + 0.2 * sum(row[k] for row in every) / 12 for k in range(7)]
    torch.testing.assert_close(objective.centre, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    moved = objective.centre.clone()
    objective.eval()(batch)
    assert torch.equal(objective.centre, moved), "the centre moves in training only"


def test_dino_logs_how_many_prototypes_its_targets_use() -> None:
    torch.manual_seed(0)
    peaked = torch.eye(7)[torch.tensor([0, 1, 1, 4])]  # shares 1/4, 1/2, 1/4
    wanted = math.exp(-sum(p * math.log(p) for p in (0.25, 0.5, 0.25))) / 7
    assert distillation.prototypes_used(peaked).item() == pytest.approx(wanted)
    assert distillation.prototypes_used(torch.full((4, 7), 1 / 7)).item() == pytest.approx(1)
    assert distillation.prototypes_used(torch.eye(7)[:1].expand(4, 7)).item() == pytest.approx(1 / 7)
    assert 1 / 7 <= dino_small()(some(4, 4)).log["prototypes_used"] <= 1.001


def test_dino_teacher_temperature_rises_and_then_stays() -> None:
    objective = dino_small(teacher_start=0.02, teacher_end=0.1, teacher_warmup=0.4)
    logits = torch.tensor([[0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0]])
    for progress, wanted in [(0.0, 0.02), (0.1, 0.04), (0.4, 0.1), (1.0, 0.1)]:
        objective.after_step(progress)
        (target,) = objective.targets([logits])
        assert (target[0, 1] / target[0, 0]).log().item() == pytest.approx(0.1 / wanted, rel=1e-4)


def test_dino_without_a_temperature_warmup_is_at_its_end_after_the_first_step() -> None:
    objective = dino_small(teacher_start=0.02, teacher_end=0.1, teacher_warmup=0.0)
    objective.after_step(0.01)
    (target,) = objective.targets([torch.eye(7)[:1] / 10])
    assert (target[0, 0] / target[0, 1]).log().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_dino_last_layer_is_still_at_first_and_learns_later(optimizer: type) -> None:
    torch.manual_seed(0)
    objective, batch = dino_small(frozen=0.5), some(4, 4)
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    learning = [p for p in objective.parameters() if p.requires_grad]
    steps = optimizer(learning, lr=0.01, weight_decay=0.1, **options)

    def directions() -> Tensor:
        return nn.functional.normalize(objective.head.last.weight.detach(), dim=1)

    start = directions()
    for progress in (0.25, 0.5):
        steps.zero_grad()
        objective(batch).value.backward()
        steps.step()
        objective.after_step(progress)
    torch.testing.assert_close(directions(), start)
    objective(batch).value.backward()
    steps.step()
    assert (directions() - start).abs().max() > 1e-3


def test_dino_joins_views_of_one_size_and_no_others() -> None:
    torch.manual_seed(0)
    backbone, batch = Flat().eval(), some(4, 4, 3, 3, 3)
    together = embed_together(backbone, batch["views"])
    assert backbone.calls == 2
    for each, view in zip(together, batch["views"], strict=True):
        torch.testing.assert_close(each, backbone(**view))


def test_dino_joins_padding_too() -> None:
    class Padded(Backbone):
        dim = 1

        def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
            assert pad is not None
            return x.masked_fill(pad, 0).sum(1, keepdim=True)

    x = torch.arange(6.0).view(2, 3)
    views = [{"x": x, "pad": x > 3}, {"x": -x, "pad": x > 1}]
    first, second = embed_together(Padded(), views)
    assert (first.flatten().tolist(), second.flatten().tolist()) == ([3, 3], [-1, 0])


def test_dino_teacher_drops_nothing_but_uses_the_batchs_statistics() -> None:
    torch.manual_seed(0)
    objective = DINO(Flat(dropout=0.5), hidden=10, dim=5, prototypes=7)
    view = some(4)["views"][0]
    for mode in (True, False, True):
        objective.train(mode)
        first, again = objective.teacher_backbone(**view), objective.teacher_backbone(**view)
        torch.testing.assert_close(first, again)
        assert objective.teacher_backbone.copy.norm.training is mode
        assert objective.backbone.dropout.training is mode


@pytest.mark.parametrize(("large", "views"), [(2, 1), (1, 1), (3, 2)])
def test_dino_says_how_many_views_it_needs(large: int, views: int) -> None:
    with pytest.raises(RequestError, match=f"views: DINO needs {max(2, large)}"):
        dino_small(large=large)(some(*[3] * views))


# -- all -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [byol_small, dino_small])
def test_a_teacher_starts_as_a_copy_without_gradients_and_moves_only_after_the_step(make: Any) -> None:
    torch.manual_seed(0)
    objective = make()
    slow = teachers(objective)
    assert not any(p.requires_grad for p in slow.values())
    for name, p in slow.items():
        source, _, rest = name.partition(".copy.")
        online = objective.get_parameter(f"{source.removeprefix('target_').removeprefix('teacher_')}.{rest}")
        assert torch.equal(p, online)
        assert p.data_ptr() != online.data_ptr()
    with torch.no_grad():
        for p in objective.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    start = before(objective)
    objective(some(3, 3)).value.backward()
    assert all(p.grad is None for p in slow.values())
    assert all(torch.equal(p, start[name]) for name, p in slow.items())
    objective.after_step(0.5)
    momentum = {BYOL: 0.9, DINO: 0.996}[type(objective)]
    momentum = 1 - (1 - momentum) * (math.cos(math.pi / 2) + 1) / 2
    for name, p in slow.items():
        source, _, rest = name.partition(".copy.")
        online = objective.get_parameter(f"{source.removeprefix('target_').removeprefix('teacher_')}.{rest}")
        torch.testing.assert_close(p, momentum * start[name] + (1 - momentum) * online.detach())


@pytest.mark.parametrize("make", [byol_small, simsiam_small, dino_small])
def test_gradients_reach_all_that_learns(make: Any) -> None:
    torch.manual_seed(0)
    objective = make()
    objective.after_step(0.5)
    objective(some(3, 3)).value.backward()
    for name, p in objective.named_parameters():
        assert (p.grad is not None) is p.requires_grad, name
    # a bias that a BatchNorm follows gets none; Flat has one
    assert all(
        p.grad.abs().sum() > 0
        for n, p in objective.named_parameters()
        if p.requires_grad and n != "backbone.layer.bias"
    )


@pytest.mark.parametrize("make", [byol_small, simsiam_small, dino_small])
def test_losses_stay_in_fp32_under_autocast(make: Any) -> None:
    torch.manual_seed(0)
    objective, batch = make().eval(), some(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = objective(batch).value
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, objective(batch).value, atol=0.05, rtol=0.02)
