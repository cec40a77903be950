"""The contrastive losses against the papers' equations, written out in loops, and the faults that they invite."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_runner.objectives import dcl, inst_disc, moco_v2, moco_v3, nnclr, supcon, triplet
from ssl_runner.types import Batch, Objective
from tests.test_objectives import Flat


def build(name: str) -> Objective:
    torch.manual_seed(0)
    backbone = Flat()
    match name:
        case "moco_v2":
            return moco_v2.MoCoV2(backbone, hidden=8, dim=4, queue=16)
        case "moco_v2_symmetric":
            return moco_v2.MoCoV2(backbone, hidden=8, dim=4, queue=16, symmetric=True)
        case "moco_v3":
            return moco_v3.MoCoV3(backbone, hidden=8, dim=4)
        case "nnclr":
            return nnclr.NNCLR(backbone, hidden=8, dim=4, predictor_hidden=8, queue=16)
    return inst_disc.InstDisc(backbone, samples=20, dim=4, noise=8)


def batch(n: int = 6, seed: int = 1) -> Batch:
    torch.manual_seed(seed)
    return {"views": [{"x": torch.randn(n, 12)} for _ in range(2)], "index": torch.arange(n) * 3}


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def unit(rows: Tensor) -> list[list[float]]:
    return [[v / math.hypot(*row) for v in row] for row in rows.double().tolist()]


def rows(n: int, seed: int, dim: int = 5) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(n, dim)


def cross_entropy(scores: list[float], right: int) -> float:
    return math.log(sum(map(math.exp, scores))) - scores[right]


# -- losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_moco_v2_is_equation_1(temperature: float) -> None:
    q, k, queue = (F.normalize(rows(n, n), dim=1) for n in (4, 4, 9))
    k = F.normalize(rows(4, 3), dim=1)
    qs, ks, old = unit(q), unit(k), unit(queue)
    wanted = [
        cross_entropy([dot(qs[i], ks[i]) / temperature] + [dot(qs[i], o) / temperature for o in old], 0)
        for i in range(4)
    ]
    assert moco_v2.info_nce(q, k, queue, temperature).item() == pytest.approx(sum(wanted) / 4, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_moco_v3_is_algorithm_1_times_two_tau(temperature: float) -> None:
    q, k = rows(5, 0), rows(5, 1)
    qs, ks = unit(q), unit(k)
    each = [cross_entropy([dot(qs[i], other) / temperature for other in ks], i) for i in range(5)]
    wanted = 2 * temperature * sum(each) / 5
    assert moco_v3.contrast(q, k, temperature).item() == pytest.approx(wanted, abs=1e-5)


def test_nnclr_takes_the_nearest_by_cosine_and_contrasts_it_over_predictions() -> None:
    z, queue, p = rows(5, 0), F.normalize(rows(11, 1), dim=1), rows(5, 2)
    zs, old, ps = unit(z), unit(queue), unit(p)
    places = [max(range(11), key=lambda j: dot(zs[i], old[j])) for i in range(5)]
    near = nnclr.nearest(z, queue)
    torch.testing.assert_close(near, queue[places])
    each = [cross_entropy([dot(old[places[i]], other) / 0.1 for other in ps], i) for i in range(5)]
    assert nnclr.contrast(near, p, 0.1).item() == pytest.approx(sum(each) / 5, abs=1e-5)


@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_dcl_leaves_the_positive_out_of_the_sum(n: int, temperature: float) -> None:
    a, b = rows(n, 0), rows(n, 1)
    z = [unit(a), unit(b)]
    wanted = 0.0
    for k in range(2):
        for i in range(n):
            others = [math.exp(dot(z[k][i], z[v][j]) / temperature) for v in range(2) for j in range(n) if j != i]
            wanted += -dot(z[k][i], z[1 - k][i]) / temperature + math.log(sum(others))
    assert dcl.decoupled(a, b, temperature).item() == pytest.approx(wanted / (2 * n), abs=1e-5)


@pytest.mark.parametrize("label", [[0, 1, 2, 3], [0, 0, 1, 0], [2, 2, 2, 2]])
def test_supcon_is_equation_2(label: list[int]) -> None:
    a, b, temperature = rows(4, 0), rows(4, 1), 0.3
    z, y = unit(torch.cat([a, b])), label * 2
    wanted = 0.0
    for i in range(8):
        below = sum(math.exp(dot(z[i], z[k]) / temperature) for k in range(8) if k != i)
        positives = [p for p in range(8) if p != i and y[p] == y[i]]
        terms = [math.log(math.exp(dot(z[i], z[p]) / temperature) / below) for p in positives]
        wanted -= sum(terms) / len(positives)
    loss = supcon.supervised_contrast(a, b, torch.tensor(label), temperature)
    assert loss.item() == pytest.approx(wanted / 8, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("closeness", [0.1, 1.0, 10.0])
def test_triplet_is_equation_2_with_semi_hard_negatives(seed: int, closeness: float) -> None:
    a = rows(6, seed)
    b = a + closeness * rows(6, seed + 100)
    z = [unit(a), unit(b)]

    def squared(p: list[float], q: list[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(p, q, strict=True))

    wanted = 0.0
    for k in range(2):
        for i in range(6):
            positive = squared(z[k][i], z[1 - k][i])
            negatives = [squared(z[k][i], z[v][j]) for v in range(2) for j in range(6) if j != i]
            farther = [d for d in negatives if d > positive]
            wanted += max(0.0, positive - (min(farther) if farther else max(negatives)) + 0.2)
    assert triplet.triplet(a, b, 0.2).item() == pytest.approx(wanted / 12, abs=1e-5)


def test_triplet_uses_the_farthest_negative_where_all_are_nearer_than_the_positive() -> None:
    a = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    b = torch.tensor([[-1.0, 0.0], [0.8, 0.6]])  # the first pair is opposite: distance 4, and no one is farther
    first = 4 - (2 - 2 * 0.8) + 0.2
    opposite = 4 - (2 + 2 * 0.8) + 0.2
    second = 0.0  # its positive coincides with it; its nearest negative is 0.4 away
    assert triplet.triplet(a, b, 0.2).item() == pytest.approx((first + opposite + second * 2) / 4, abs=1e-5)


def test_inst_disc_is_equations_4_to_8() -> None:
    n, m, tau = 7, 5, 0.2
    f, memory = F.normalize(rows(3, 0), dim=1), F.normalize(rows(n, 1), dim=1)
    own, drawn = [2, 6, 0], [1, 1, 4, 0, 6]
    fs, vs = unit(f), unit(memory)
    z = n / (3 * m) * sum(math.exp(dot(vs[j], one) / tau) for one in fs for j in drawn)
    assert inst_disc.partition(f, memory[drawn], n, tau).item() == pytest.approx(z, rel=1e-5)

    def h(i: int, one: list[float]) -> float:
        p = math.exp(dot(vs[i], one) / tau) / z
        return p / (p + m / n)

    wanted = 0.0
    for k in range(3):
        wanted -= math.log(h(own[k], fs[k])) + sum(math.log(1 - h(j, fs[k])) for j in drawn)
    loss = inst_disc.nce(f, memory[own], memory[drawn], torch.tensor(z), n, tau)
    assert loss.item() == pytest.approx(wanted / 3, rel=1e-5)


def test_losses_stay_in_fp32_under_autocast() -> None:
    a, b, queue = rows(16, 0, 32), rows(16, 1, 32), F.normalize(rows(40, 2, 32), dim=1)
    unit_a, unit_b, label = F.normalize(a, dim=1), F.normalize(b, dim=1), torch.arange(16) % 3

    def all_losses() -> list[Tensor]:
        return [
            moco_v2.info_nce(unit_a, unit_b, queue, 0.05),
            moco_v3.contrast(a, b, 0.05),
            nnclr.contrast(nnclr.nearest(a, queue), b, 0.05),
            dcl.decoupled(a, b, 0.05),
            supcon.supervised_contrast(a, b, label, 0.05),
            triplet.triplet(a, b, 0.2),
            inst_disc.nce(unit_a, unit_b, queue, inst_disc.partition(unit_a, queue, 50, 0.07), 50, 0.07),
        ]

    with torch.autocast("cpu", torch.bfloat16):
        low = all_losses()
    for mine, exact in zip(low, all_losses(), strict=True):
        torch.testing.assert_close(mine, exact)


# -- teachers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moco_v2", "moco_v2_symmetric", "moco_v3"])
def test_only_the_query_side_learns_and_the_key_side_moves_once_a_step(name: str) -> None:
    objective = build(name)
    slow = {k: v.clone() for k, v in objective.named_parameters() if k.startswith("key_")}
    data = batch()
    objective(data).value.backward()
    for key, p in objective.named_parameters():
        assert (p.grad is None) == key.startswith("key_"), key
        assert p.requires_grad != key.startswith("key_")
    assert all(torch.equal(v, objective.get_parameter(k)) for k, v in slow.items())  # not in forward
    with torch.no_grad():
        for key, p in objective.named_parameters():
            if not key.startswith("key_"):
                p.add_(1.0)
    objective.after_step(0.0)
    m = 0.99 if name == "moco_v3" else 0.999
    for key, before in slow.items():
        online = objective.get_parameter(key.removeprefix("key_").replace(".copy", ""))
        torch.testing.assert_close(objective.get_parameter(key), m * before + (1 - m) * online)


def test_moco_v2_gives_gradients_to_the_first_view_alone_unless_symmetric() -> None:
    for name, both in (("moco_v2", False), ("moco_v2_symmetric", True), ("moco_v3", True)):
        views = [{"x": view["x"].requires_grad_()} for view in batch()["views"]]
        build(name)({"views": views}).value.backward()
        assert views[0]["x"].grad is not None, name
        assert (views[1]["x"].grad is not None) == both, name


def test_moco_v3_puts_each_views_query_against_the_other_views_key() -> None:
    objective = build("moco_v3").eval()
    assert isinstance(objective, moco_v3.MoCoV3)
    first, second = batch()["views"]
    with torch.no_grad():
        for p in objective.key_backbone.parameters():
            p.add_(0.1)  # so that the two encoders differ
        q1, q2, k1, k2 = objective.query(first), objective.query(second), objective.key(first), objective.key(second)
        wanted = moco_v3.contrast(q1, k2, 0.2) + moco_v3.contrast(q2, k1, 0.2)
        torch.testing.assert_close(objective({"views": [first, second]}).value, wanted)
    assert not objective.projector[-1].affine  # type: ignore[union-attr]


# -- queues ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moco_v2", "moco_v2_symmetric", "nnclr"])
def test_a_queue_is_read_before_it_gets_the_batch(name: str) -> None:
    """The loss must be that of the queue as it was; a second pass over the same batch meets its own rows."""
    objective, again = build(name), build(name)
    data = batch()
    seen = objective(data).value
    again.queue.put = lambda _: None  # type: ignore[method-assign, union-attr, assignment]
    torch.testing.assert_close(seen, again(data).value)
    place = {"moco_v2": 6, "moco_v2_symmetric": 12, "nnclr": 6}[name]
    assert int(objective.queue.place) == place  # type: ignore[union-attr, arg-type]
    held = objective.queue.rows  # type: ignore[union-attr]
    assert not torch.equal(held[:place], again.queue.rows[:place])  # type: ignore[union-attr, index]
    torch.testing.assert_close(held.norm(dim=1), torch.ones(16))  # type: ignore[operator, union-attr]


def test_a_queue_holds_the_keys_of_the_second_view_for_moco_and_the_first_views_embedding_for_nnclr() -> None:
    data = batch()
    moco, twin = build("moco_v2"), build("moco_v2")
    moco(data)
    assert isinstance(moco, moco_v2.MoCoV2)
    assert isinstance(twin, moco_v2.MoCoV2)
    torch.testing.assert_close(moco.queue.rows[:6], twin.key(data["views"][1]))
    objective, copy = build("nnclr"), build("nnclr")
    objective(data)
    assert isinstance(objective, nnclr.NNCLR)
    assert isinstance(copy, nnclr.NNCLR)
    z = copy.projector(copy.backbone(**data["views"][0]))
    torch.testing.assert_close(objective.queue.rows[:6], F.normalize(z.detach(), dim=1))


@pytest.mark.parametrize("name", ["moco_v2", "moco_v2_symmetric", "nnclr", "inst_disc"])
def test_evaluation_writes_nothing(name: str) -> None:
    objective = build(name).eval()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    data = batch()
    objective({**data, "views": data["views"][: objective.views]})
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())


def test_nnclr_learns_through_predictions_and_not_through_neighbours() -> None:
    objective = build("nnclr")
    assert isinstance(objective, nnclr.NNCLR)
    z = rows(3, 0, 4).requires_grad_()
    assert not nnclr.nearest(z, objective.queue.rows).requires_grad
    assert not objective.queue.rows.requires_grad
    objective(batch()).value.backward()
    assert not objective.queue.rows.requires_grad
    assert all(p.grad is not None for p in objective.parameters())


def test_nnclr_pairs_a_views_neighbour_with_the_other_views_prediction() -> None:
    objective = build("nnclr").eval()
    assert isinstance(objective, nnclr.NNCLR)
    data = batch()
    z1, z2 = (objective.projector(objective.backbone(**view)) for view in data["views"])
    near1, near2 = nnclr.nearest(z1, objective.queue.rows), nnclr.nearest(z2, objective.queue.rows)
    one = nnclr.contrast(near1, objective.predictor(z2), 0.1)
    two = nnclr.contrast(near2, objective.predictor(z1), 0.1)
    torch.testing.assert_close(objective(data).value, (one + two) / 2)


# -- memory ---------------------------------------------------------------------------------------------------


def test_inst_disc_writes_its_features_after_use_and_keeps_the_first_z() -> None:
    objective = build("inst_disc")
    assert isinstance(objective, inst_disc.InstDisc)
    data: Batch = {"views": batch()["views"][:1], "index": batch()["index"]}
    index = data["index"]
    old = objective.memory.clone()
    loss, log = objective(data)
    feature = objective.memory[index]
    assert not torch.equal(feature, old[index])
    drift = (feature - old[index]).square().sum(1).mean()
    torch.testing.assert_close(log["drift"], drift)  # against the rows of before
    torch.testing.assert_close(loss.detach(), log["nce"] + 30 * drift)
    untouched = [n for n in range(20) if n not in index.tolist()]
    assert torch.equal(objective.memory[untouched], old[untouched])
    torch.testing.assert_close(objective.memory.norm(dim=1), torch.ones(20))
    z = objective.z.clone()
    assert z > 0
    objective(data)
    assert torch.equal(objective.z, z)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_inst_disc_memory_keeps_a_share_of_itself(momentum: float) -> None:
    torch.manual_seed(0)
    objective = inst_disc.InstDisc(Flat(), samples=20, dim=4, noise=8, momentum=momentum)
    data = batch()
    old = objective.memory.clone()
    feature = unit(objective.embedding(objective.backbone(**data["views"][0])).detach())
    objective({"views": data["views"][:1], "index": data["index"]})
    for row, where in zip(feature, data["index"].tolist(), strict=True):
        mixed = [momentum * a + (1 - momentum) * b for a, b in zip(old[where].tolist(), row, strict=True)]
        torch.testing.assert_close(objective.memory[where], torch.tensor(unit(torch.tensor([mixed]))[0]).float())


def test_inst_disc_z_may_follow_the_features() -> None:
    torch.manual_seed(0)
    objective = inst_disc.InstDisc(Flat(), samples=20, dim=4, noise=8, z_momentum=0.75)
    data: Batch = {"views": batch()["views"][:1], "index": batch()["index"]}
    expected = 0.0
    for seed in range(3):
        memory = objective.memory.clone()
        torch.manual_seed(seed)
        drawn = memory[torch.randint(20, (8,))]
        feature = F.normalize(objective.embedding(objective.backbone(**data["views"][0])).detach(), dim=1)
        estimate = inst_disc.partition(feature, drawn, 20, 0.07).item()
        expected = estimate if seed == 0 else 0.75 * expected + 0.25 * estimate
        torch.manual_seed(seed)
        objective(data)
        assert objective.z.item() == pytest.approx(expected, rel=1e-5)
