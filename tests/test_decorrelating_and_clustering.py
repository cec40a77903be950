"""Barlow Twins, VICReg, W-MSE, SwAV and DeepCluster v2: losses against the papers in loops, and state over time."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_runner.errors import RequestError
from ssl_runner.objectives import swav, w_mse
from ssl_runner.objectives.barlow_twins import BarlowTwins, barlow, correlation
from ssl_runner.objectives.deepcluster_v2 import NONE, DeepClusterV2, classification
from ssl_runner.objectives.swav import SwAV
from ssl_runner.objectives.vicreg import VICReg, covariance_loss, variance_loss
from ssl_runner.objectives.w_mse import WMSE
from ssl_runner.parts import kmeans
from ssl_runner.parts.batchnorm import synchronise
from ssl_runner.parts.kmeans import spherical_kmeans
from ssl_runner.parts.prototypes import share_used, similarity
from ssl_runner.types import Backbone, Batch

Rows = list[list[float]]


class Flat(Backbone):
    """Any input: its mean over the last axis, projected; with BatchNorm, so that modes matter."""

    def __init__(self, inputs: int = 12, dim: int = 8):
        super().__init__()
        self.dim = dim
        self.widths: list[tuple[int, ...]] = []
        self.layer, self.norm = nn.Linear(inputs, dim), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        self.widths.append(tuple(x.shape))
        return self.norm(self.layer(x.mean(-1)))


def some(*widths: int, rows: int = 6) -> Batch:
    """A batch of views whose last axes are `widths`."""
    return {"views": [{"x": torch.randn(rows, 12, width)} for width in widths]}


def lists(x: Tensor) -> Rows:
    return x.detach().double().tolist()


def columns(x: Tensor) -> Rows:
    return lists(x.T)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def covariance(p: list[float], q: list[float]) -> float:
    return sum((x - mean(p)) * (y - mean(q)) for x, y in zip(p, q, strict=True)) / (len(p) - 1)


def cosine(p: list[float], q: list[float]) -> float:
    return sum(a * b for a, b in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q))


# -- Barlow Twins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redundancy", [0.0, 0.0051, 0.5])
def test_barlow_is_equations_1_and_2(redundancy: float) -> None:
    """Equation 2 on raw features, divided by the norms of centred columns, as the paper has it."""
    torch.manual_seed(0)
    a, b = 2 * torch.randn(7, 4) + 1, torch.randn(7, 4) - 3
    wanted = 0.0
    for i, p in enumerate(columns(a)):
        for j, q in enumerate(columns(b)):
            c = covariance(p, q) / math.sqrt(covariance(p, p) * covariance(q, q))
            wanted += (1 - c) ** 2 if i == j else redundancy * c**2
    norm = nn.BatchNorm1d(4, affine=False, eps=1e-12)
    assert barlow(correlation(norm(a), norm(b)), redundancy).item() == pytest.approx(wanted, abs=1e-5)


def test_barlow_twins_ends_in_a_norm_without_parameters() -> None:
    last = BarlowTwins(Flat(), hidden=10, dim=5).projector[-1]
    assert isinstance(last, nn.BatchNorm1d)
    assert not list(last.parameters())


def test_barlow_twins_is_its_equations_on_the_projections() -> None:
    torch.manual_seed(0)
    objective, batch = BarlowTwins(Flat(), hidden=10, dim=5, redundancy=0.3), some(3, 3)
    a, b = (lists(objective.projector(objective.backbone(**view)).T) for view in batch["views"])
    wanted = 0.0
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            c = mean([x * y for x, y in zip(p, q, strict=True)])
            wanted += (1 - c) ** 2 if i == j else 0.3 * c**2
    assert objective(batch).value.item() == pytest.approx(wanted, abs=1e-5)


# -- VICReg ---------------------------------------------------------------------------------------------------


def test_vicreg_terms_are_equations_1_to_4() -> None:
    torch.manual_seed(0)
    z = torch.randn(6, 4) * torch.tensor([0.1, 0.5, 1.0, 3.0])  # short of deviation 1, and beyond it
    each = columns(z)
    variance = mean([max(0.0, 1 - math.sqrt(covariance(p, p) + 1e-4)) for p in each])
    off = sum(covariance(p, q) ** 2 for i, p in enumerate(each) for j, q in enumerate(each) if i != j)
    assert variance_loss(z).item() == pytest.approx(variance, abs=1e-5)
    assert covariance_loss(z).item() == pytest.approx(off / 4, abs=1e-5)


def test_collapsed_embeddings_have_finite_gradients() -> None:
    """The epsilon stands inside the root, whose slope at 0 is infinite."""
    z = torch.ones(4, 3, requires_grad=True)
    loss = variance_loss(z)
    loss.backward()
    assert loss.item() == pytest.approx(1 - 0.01)
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_one_row_gives_a_finite_vicreg_loss() -> None:
    assert VICReg(Flat(), hidden=10, dim=5).eval()(some(3, 3, rows=1)).value.isfinite()


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_vicreg_weighs_its_terms_as_the_authors_do(weights: tuple[float, float, float]) -> None:
    """Variance halved over the views, covariance added, invariance averaged over rows and variables."""
    torch.manual_seed(0)
    of, to, nu = weights
    objective = VICReg(Flat(), hidden=10, dim=5, invariance=of, variance=to, covariance=nu)
    batch = some(3, 3)
    a, b = (objective.expander(objective.backbone(**view)) for view in batch["views"])
    pairs = zip(a.detach().flatten().tolist(), b.detach().flatten().tolist(), strict=True)
    wanted = of * mean([(x - y) ** 2 for x, y in pairs])
    for z in (columns(a), columns(b)):
        wanted += to * mean([max(0.0, 1 - math.sqrt(covariance(p, p) + 1e-4)) for p in z]) / 2
        wanted += nu * sum(covariance(p, q) ** 2 for i, p in enumerate(z) for j, q in enumerate(z) if i != j) / 5
    assert objective(batch).value.item() == pytest.approx(wanted, abs=1e-4)


# -- W-MSE ----------------------------------------------------------------------------------------------------


def test_whitened_rows_have_mean_0_and_covariance_1() -> None:
    torch.manual_seed(0)
    z = w_mse.whiten(torch.randn(40, 4) @ torch.randn(4, 4) + 5, eps=0.0)
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(4), atol=1e-3, rtol=0)


def test_w_mse_is_equation_6_with_slices() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(12, 3) @ torch.randn(3, 3), torch.randn(12, 3)
    parts = [torch.tensor([0, 3, 5, 7, 9, 11]), torch.tensor([10, 8, 6, 4, 2, 1])]
    wanted = []
    for part in parts:
        white = []
        for v in (a[part].double(), b[part].double()):
            inverse = torch.linalg.inv(torch.linalg.cholesky(torch.cov(v.T)))
            white.append([(inverse @ (row - v.mean(0))).tolist() for row in v])
        wanted += [2 - 2 * cosine(p, q) for p, q in zip(*white, strict=True)]
    assert w_mse.whitened_mse(a, b, parts, 0.0).item() == pytest.approx(mean(wanted), abs=1e-5)


@pytest.mark.parametrize(("total", "rows", "count"), [(256, 128, 2), (300, 128, 2), (100, 128, 1), (1, 128, 1)])
def test_slices_hold_every_row_once_and_enough_rows(total: int, rows: int, count: int) -> None:
    parts = w_mse.slices(total, rows)
    assert sorted(torch.cat(parts).tolist()) == list(range(total))
    assert len(parts) == count
    assert all(len(part) >= min(rows, total) for part in parts)
    assert total == 1 or torch.cat(parts).tolist() != list(range(total))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_w_mse_is_finite_with_fewer_rows_than_variables(rows: int) -> None:
    torch.manual_seed(0)
    assert WMSE(Flat(), hidden=10, dim=5).eval()(some(3, 3, rows=rows)).value.isfinite()


# -- SwAV -----------------------------------------------------------------------------------------------------


def small(**options: Any) -> SwAV:
    return SwAV(Flat(), hidden=10, dim=5, prototypes=7, **options)


def balanced(scores: Rows, epsilon: float, iterations: int) -> Rows:
    """Section 3.1: exp(scores / epsilon), columns and rows scaled in turn to 1/K and 1/B; then times B."""
    plan = [[math.exp(s / epsilon) for s in row] for row in scores]
    n, k = len(plan), len(plan[0])
    for _ in range(iterations):
        sums = [sum(row[j] for row in plan) for j in range(k)]
        plan = [[row[j] / sums[j] / k for j in range(k)] for row in plan]
        plan = [[value / sum(row) / n for value in row] for row in plan]
    return [[value * n for value in row] for row in plan]


def reference(scores: list[Rows], codes: list[Rows], temperature: float) -> float:
    """Equations 1 and 2."""
    terms = []
    for n, code in enumerate(codes):
        for m, rows in enumerate(scores):
            if m == n:
                continue
            for q, s in zip(code, rows, strict=True):
                total = sum(math.exp(x / temperature) for x in s)
                losses = (c * math.log(math.exp(x / temperature) / total) for c, x in zip(q, s, strict=True))
                terms.append(-sum(losses))
    return mean(terms)


def unit_scores(objective: SwAV, batch: Batch) -> list[Rows]:
    scores = []
    for z in objective.project(batch["views"]):
        scores.append([[cosine(row, c) for c in lists(objective.prototypes)] for row in lists(z)])
    return scores


@pytest.mark.parametrize("widths", [(4, 4), (4, 4, 2, 2, 2)])
def test_swav_is_its_equations_with_codes_from_the_large_crops(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    objective, batch = small(epsilon=0.3, temperature=0.2), some(*widths)
    scores = unit_scores(objective, batch)
    codes = [balanced(rows, 0.3, 3) for rows in scores[:2]]
    assert objective(batch).value.item() == pytest.approx(reference(scores, codes, 0.2), abs=1e-5)


def test_views_of_one_size_pass_the_backbone_together() -> None:
    objective = small()
    objective(some(4, 4, 2, 2, 2))
    assert objective.backbone.widths == [(12, 12, 4), (18, 12, 2)]


def test_codes_get_no_gradient() -> None:
    """With the codes given as constants the gradients are the same."""
    torch.manual_seed(0)
    objective, batch = small(frozen=0.0, epsilon=0.3), some(4, 4)
    objective(batch).value.backward()
    found = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
    objective.zero_grad()
    scores = [z @ objective.prototypes.T for z in objective.project(batch["views"])]
    codes = [torch.tensor(balanced(lists(s), 0.3, 3)) for s in scores]
    swav.swapped(scores, codes, 0.1).backward()
    wanted = [p.grad for p in objective.parameters()]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_prototypes_have_unit_length_from_the_start_and_after_each_step() -> None:
    torch.manual_seed(0)
    objective = small(frozen=0.0)
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    ones = torch.ones(7)
    torch.testing.assert_close(objective.prototypes.norm(dim=1), ones)
    objective(some(4, 4)).value.backward()
    optimizer.step()
    assert (objective.prototypes.norm(dim=1) - 1).abs().max() > 1e-3
    objective.after_step(0.5)
    torch.testing.assert_close(objective.prototypes.norm(dim=1), ones)


def test_prototypes_stay_until_they_are_released_whatever_decays_them() -> None:
    torch.manual_seed(0)
    objective = small(frozen=0.5)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    first = objective.prototypes.detach().clone()
    for progress in (0.25, 0.5, 0.75):
        optimizer.zero_grad()
        objective(some(4, 4)).value.backward()
        optimizer.step()
        objective.after_step(progress)
        if progress <= 0.5:
            torch.testing.assert_close(objective.prototypes.detach(), first)
    assert (objective.prototypes - first).abs().max() > 1e-3


def test_the_queue_is_used_once_full_and_started_and_read_before_it_is_put_to() -> None:
    torch.manual_seed(0)
    objective = small(queue=12, queue_start=0.5, epsilon=0.3, temperature=0.2)
    batches = [some(4, 4) for _ in range(4)]

    def plain(batch: Batch) -> float:
        scores = unit_scores(objective, batch)
        return reference(scores, [balanced(rows, 0.3, 3) for rows in scores], 0.2)

    for batch in batches[:2]:  # not full; the rows of chance that fill it are never used
        objective.after_step(1.0)
        assert objective(batch).value.item() == pytest.approx(plain(batch), abs=1e-5)
    objective.after_step(0.4)  # full, and not yet started
    assert objective(batches[2]).value.item() == pytest.approx(plain(batches[2]), abs=1e-5)
    objective.after_step(0.5)
    scores = unit_scores(objective, batches[3])
    codes = []
    for crop in range(2):  # batches 1 and 2 are what a ring of 12 still holds
        past = [unit_scores(objective, batch)[crop] for batch in batches[1:3]]
        codes.append(balanced(scores[crop] + past[0] + past[1], 0.3, 3)[:6])
    found = objective(batches[3]).value.item()
    assert found == pytest.approx(reference(scores, codes, 0.2), abs=1e-5)
    assert abs(found - plain(batches[3])) > 1e-4


def test_evaluation_puts_nothing_in_the_queue() -> None:
    objective = small(queue=12).eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective(some(4, 4))
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_swav_stays_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    z, c = F.normalize(torch.randn(8, 5), dim=1), F.normalize(torch.randn(7, 5), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        low = similarity(z.bfloat16(), c)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, z.bfloat16().float() @ c.T)


@pytest.mark.parametrize("count", [0, 1])
def test_swav_says_how_many_views_it_needs(count: int) -> None:
    with pytest.raises(RequestError, match="2 or more"):
        small()(some(*[4] * count))


def test_swav_tells_the_share_of_prototypes_that_its_large_crops_use() -> None:
    torch.manual_seed(0)
    objective, batch = small(), some(4, 4, 2, 2)
    scores = unit_scores(objective, batch)
    nearest = {max(range(7), key=row.__getitem__) for rows in scores[:2] for row in rows}
    assert objective(batch).log["prototypes_used"].item() == pytest.approx(len(nearest) / 7)


def test_a_prototype_is_used_that_scores_best_for_a_row() -> None:
    assert share_used(torch.tensor([[3.0, 1.0, 2.0, 0.0], [5.0, 4.0, 0.0, 1.0]])) == 1 / 4
    assert share_used(torch.tensor([[3.0, 1.0, 2.0, 0.0], [5.0, 6.0, 0.0, 1.0]])) == 2 / 4
    assert share_used(torch.randn(1, 8).expand(20, 8)) == 1 / 8  # collapsed


# -- spherical k-means ----------------------------------------------------------------------------------------


def loops(rows: Rows, first: list[int], iterations: int) -> tuple[Rows, list[int]]:
    """k-means by cosine, one row and one centroid at a time; a centroid without rows takes the farthest row left."""
    centroids = [rows[i] for i in first]

    def nearest(row: list[float]) -> int:
        return max(range(len(centroids)), key=lambda k: cosine(row, centroids[k]))

    for _ in range(iterations):
        assigned = [nearest(row) for row in rows]
        near = [cosine(row, centroids[k]) for row, k in zip(rows, assigned, strict=True)]
        far = sorted(range(len(rows)), key=near.__getitem__)
        for k in range(len(centroids)):
            own = [row for row, a in zip(rows, assigned, strict=True) if a == k]
            total = [sum(column) for column in zip(*own, strict=True)] if own else rows[far.pop(0)]
            centroids[k] = [value / math.hypot(*total) for value in total]
    return centroids, [nearest(row) for row in rows]


@pytest.mark.parametrize("iterations", [0, 1, 10])
@pytest.mark.parametrize(("n", "clusters"), [(40, 5), (40, 25), (12, 12)])
def test_kmeans_is_its_loops(n: int, clusters: int, iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "CHUNK", 7)
    torch.manual_seed(n)
    rows = F.normalize(torch.randn(n, 3), dim=1)
    torch.manual_seed(1)
    first = torch.randperm(n)[:clusters].tolist()
    wanted = loops(lists(rows), first, iterations)
    torch.manual_seed(1)
    centroids, assigned = spherical_kmeans(rows, clusters, iterations=iterations)
    torch.testing.assert_close(centroids.double(), torch.tensor(wanted[0], dtype=torch.float64), rtol=0, atol=1e-5)
    assert assigned.tolist() == wanted[1]


def test_kmeans_seeds_empty_clusters_anew() -> None:
    """Twenty copies of one row, so that most first centroids are equal and all but one of those empty at once."""
    torch.manual_seed(0)
    rows = F.normalize(torch.cat([torch.ones(20, 3), torch.randn(7, 3)]), dim=1)
    assert sorted(set(spherical_kmeans(rows, 8, iterations=2)[1].tolist())) == list(range(8))
    torch.manual_seed(0)
    centroids, assigned = spherical_kmeans(rows, 8)
    torch.testing.assert_close((rows * centroids[assigned]).sum(1), torch.ones(27))


def test_kmeans_of_fewer_rows_than_clusters() -> None:
    rows = F.normalize(torch.randn(3, 4), dim=1)
    centroids, assigned = spherical_kmeans(rows, 5)
    assert centroids.isfinite().all()
    torch.testing.assert_close(centroids[assigned], rows)


def test_kmeans_stays_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    rows, found = F.normalize(torch.randn(50, 6), dim=1), []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(spherical_kmeans(rows, 5))
    assert torch.equal(found[0][0], found[1][0])


# -- DeepCluster v2 -------------------------------------------------------------------------------------------


def deep(samples: int = 12, **options: Any) -> DeepClusterV2:
    return DeepClusterV2(Flat(), samples=samples, hidden=10, dim=5, sets=3, prototypes=4, **options)


def numbered(*index: int, widths: tuple[int, ...] = (4, 4), seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(100 * seed + index[0])
    views = [{"x": torch.randn(len(index), 12, width, generator=generator)} for width in widths]
    return {"views": views, "index": torch.tensor(index)}


def epoch(objective: DeepClusterV2, *batches: Batch) -> list[float]:
    return [objective(batch).value.item() for batch in batches]


def test_deepcluster_is_the_cross_entropy_of_all_views_with_their_samples_clusters() -> None:
    torch.manual_seed(0)
    objective, widths = deep(temperature=0.2), (4, 4, 2, 2)
    epoch(objective, numbered(0, 1, 2, 3, 4, 5), numbered(6, 7, 8, 9, 10, 11))
    bank = objective.bank.clone()  # as the clustering before the next batch finds it
    batch = numbered(3, 8, widths=widths)
    loss, log = objective(batch)
    terms, used = [], []
    for n in range(3):
        prototypes, crop = lists(objective.prototypes[n]), n % 2
        large = objective.project(batch["views"])[:2].flatten(0, 1)
        used.append(len({max(range(4), key=lambda k: cosine(row, prototypes[k])) for row in lists(large)}) / 4)
        for z in objective.project(batch["views"]):
            for row, sample in zip(lists(z), batch["index"].tolist(), strict=True):
                kept = bank[crop, sample].tolist()
                target = max(range(4), key=lambda k: cosine(kept, prototypes[k]))
                scores = [cosine(row, c) / 0.2 for c in prototypes]
                terms.append(math.log(sum(map(math.exp, scores))) - scores[target])
    assert loss.item() == pytest.approx(mean(terms), abs=1e-5)
    assert log["prototypes_used"].item() == pytest.approx(mean(used))


def test_samples_without_a_cluster_do_not_count() -> None:
    torch.manual_seed(0)
    scores, target = [torch.randn(2, 5, 4)], torch.tensor([[0, NONE, 3, NONE, 1]])
    known = [0, 2, 4]
    wanted = classification([scores[0][:, known]], target[:, known], 0.1)
    torch.testing.assert_close(classification(scores, target, 0.1), wanted)
    assert classification(scores, torch.full((1, 5), NONE), 0.1) == 0


def test_the_first_epoch_fills_the_bank_and_learns_nothing() -> None:
    torch.manual_seed(0)
    objective = deep()
    for batch in (numbered(0, 1, 2, 3, 4, 5), numbered(6, 7, 8, 9, 10, 11)):
        z = objective.project(batch["views"]).detach()
        loss = objective(batch).value
        loss.backward()
        assert loss == 0
        assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())
        torch.testing.assert_close(objective.bank[:, batch["index"]], z)
    assert (objective.assignments == NONE).all()
    objective(numbered(0, 1, 2, 3, 4, 5)).value.backward()
    assert (objective.assignments != NONE).all()
    assert all(p.grad.abs().sum() > 0 for p in objective.parameters() if p.grad is not None)


def test_it_clusters_once_an_epoch_whose_rest_is_dropped() -> None:
    """13 samples in batches of 5: two batches an epoch, and another three samples left out of each."""
    torch.manual_seed(0)
    objective, changed = deep(13), []
    for n in range(6):
        before = objective.prototypes.clone()
        objective(numbered(*((n * 5 + i) % 13 for i in range(5)), seed=n))
        changed.append(not torch.equal(objective.prototypes, before))
    assert changed == [False, False, True, False, True, False]


def test_a_sample_that_the_bank_has_not_met_is_left_out() -> None:
    torch.manual_seed(0)
    objective = deep(13)
    epoch(objective, numbered(0, 1, 2, 3, 4), numbered(0, 1, 2, 3, 4))
    assert epoch(objective, numbered(9, 10, 11, 12)) == [0.0]
    assert (objective.assignments[:, 5:] == NONE).all()
    assert (objective.assignments[:, :5] != NONE).all()


def test_large_crops_banks_are_clustered_in_turn() -> None:
    torch.manual_seed(0)
    objective = deep()
    objective.bank.copy_(F.normalize(torch.randn(2, 12, 5), dim=2))
    objective.train()._cluster()
    for n, crop in enumerate([0, 1, 0]):
        near = objective.bank[crop] @ objective.prototypes[n].T
        assert torch.equal(near.argmax(1), objective.assignments[n])
    assert not torch.equal(objective.prototypes[0], objective.prototypes[2])  # they start from other rows


def test_evaluation_takes_the_clusters_of_the_large_crops_themselves() -> None:
    torch.manual_seed(0)
    objective = deep()
    epoch(objective, numbered(0, 1, 2, 3, 4, 5), numbered(6, 7, 8, 9, 10, 11), numbered(0, 1, 2, 3, 4, 5))
    state = copy.deepcopy(objective.eval().state_dict())
    batch = numbered(0, 1, 2, seed=7)
    z = objective.project(batch["views"])
    scores = [similarity(z, c) for c in objective.prototypes]
    own = torch.stack([scores[0][0].argmax(1), scores[1][1].argmax(1), scores[2][0].argmax(1)])
    torch.testing.assert_close(objective(batch).value, classification(scores, own, 0.1))
    batch["index"] += 1000  # places in another split
    torch.testing.assert_close(objective(batch).value, classification(scores, own, 0.1))
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_resumed_deepcluster_clusters_when_the_whole_one_does(steps: int) -> None:
    batches = [numbered(*range(first, first + 6), seed=n) for n, first in enumerate([0, 6] * 3)]
    torch.manual_seed(0)
    whole = deep()
    epoch(whole, *batches[:steps])
    resumed = deep()
    epoch(resumed, *batches[:2])  # has counted, too
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    found = []
    for each in (whole, resumed):
        torch.manual_seed(3)
        found.append(epoch(each, *batches[steps:]))
    assert found[0] == found[1]
    assert found[0][-1] > 0


def test_deepcluster_needs_as_many_samples_as_clusters_and_its_large_views() -> None:
    with pytest.raises(RequestError, match=r"objective\.prototypes=4"):
        deep(3)
    with pytest.raises(RequestError, match="2 or more"):
        deep()(numbered(0, 1, widths=(4,)))


def two_epochs(part: slice) -> tuple[dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    objective = deep(8)
    model: nn.Module = objective
    if dist.is_initialized():
        model = DistributedDataParallel(synchronise(objective))
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
    used = []
    for n in range(4):
        batch = numbered(*torch.randperm(8, generator=torch.Generator().manual_seed(n)).tolist(), seed=n)
        torch.manual_seed(50 + n + part.start)  # ranks draw other numbers, and the first one's count
        views = [{"x": view["x"][part]} for view in batch["views"]]
        value, log = model({"views": views, "index": batch["index"][part]})
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        used.append(log["prototypes_used"])
    return {key: value.clone() for key, value in objective.state_dict().items()}, used


def cluster_on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(two_epochs(slice(4 * rank, 4 * rank + 4)), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_cluster_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(cluster_on_a_rank, (str(tmp_path),), nprocs=2)
    alone = two_epochs(slice(0, 8))
    assert (alone[0]["assignments"] != NONE).all()
    for rank in range(2):
        state, used = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(used, alone[1])
        for key, value in state.items():
            torch.testing.assert_close(value, alone[0][key], rtol=1e-3, atol=5e-5, msg=lambda m, k=key: f"{k}: {m}")
