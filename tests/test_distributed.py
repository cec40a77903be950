"""Two real processes against one on the joined batch. One spawn runs all; the tests read what it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_runner.objectives import simclr
from ssl_runner.parts.batchnorm import SyncBatchNorm, synchronise
from ssl_runner.parts.gather import all_reduce, gather, rank, world_size
from ssl_runner.types import Backbone, Batch

RANKS = 2
NORMS = {
    "1d": (lambda: nn.BatchNorm1d(3), ()),
    "sequence": (lambda: nn.BatchNorm1d(3), (4,)),
    "2d": (lambda: nn.BatchNorm2d(3, eps=1e-3, momentum=0.3), (4, 2)),
    "3d": (lambda: nn.BatchNorm3d(3, momentum=None), (2, 2, 2)),
    "without affine": (lambda: nn.BatchNorm2d(3, affine=False), (4, 2)),
    "without tracking": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (4, 2)),
    "fused": (lambda: NormAct(3), (4, 2)),
}
UNEVEN = (5, 2)  # samples of each rank


class NormAct(nn.BatchNorm2d):
    """A norm with a dropout and an activation inside, as timm makes them."""

    def __init__(self, width: int):
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class ConvNet(Backbone):
    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3),
            nn.BatchNorm2d(6),
        )

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.layers(x).relu().mean((2, 3))


def objective() -> simclr.SimCLR:
    torch.manual_seed(0)
    return simclr.SimCLR(ConvNet(), hidden=16, dim=8, temperature=0.2)


def joined_views() -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(12, 2, 8, 8)
    return [x + 0.3 * torch.randn_like(x) for _ in range(2)]


def batch(part: slice) -> Batch:
    return {"views": [{"x": x[part]} for x in joined_views()]}


def simclr_step(model: nn.Module, part: slice) -> dict[str, Any]:
    """Loss, gradients and running statistics of one step."""
    loss = model(batch(part)).value
    loss.backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return {
        "loss": loss.detach(),
        "grads": {n: p.grad for n, p in inner.named_parameters()},
        "buffers": dict(inner.named_buffers()),
    }


def norm_data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    x = 3 + 2 * torch.randn(sum(UNEVEN), 3, *shape)
    return x, torch.randn_like(x)


def norm_steps(norm: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Any]:
    """Three steps of a loss that sums over samples; what the last one gives."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in norm.parameters():
            p.uniform_(0.5, 1.5)
    for scale in (1.0, 2.0, 0.5):
        norm.zero_grad()
        x = x.detach().requires_grad_()
        y = norm(x * scale)
        (y * weight).sum().backward()
    return {
        "y": y.detach(),
        "x.grad": x.grad,
        "grads": {n: p.grad for n, p in norm.named_parameters()},
        "buffers": dict(norm.named_buffers()),
        "eval": norm.eval()(x).detach(),
    }


def blind_gather(x: Tensor) -> Tensor:
    """The fault: an all_gather through which no gradient passes."""
    parts = [torch.empty_like(x) for _ in range(RANKS)]
    dist.all_gather(parts, x.detach())
    return torch.cat(parts)


def local_gather(x: Tensor) -> Tensor:
    """The subtler fault: one's own rows keep their gradient, and that of the other ranks' losses is lost."""
    parts = list(blind_gather(x).chunk(RANKS))
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def worker(me: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=me, world_size=RANKS)
    found: dict[str, Any] = {"rank": rank(), "world_size": world_size()}
    part = slice(6 * me, 6 * me + 6)

    found["simclr"] = simclr_step(DistributedDataParallel(synchronise(objective())), part)
    unsynchronised = DistributedDataParallel(objective(), broadcast_buffers=False)
    found["local norms"] = simclr_step(unsynchronised, part)
    for fault in (blind_gather, local_gather):
        simclr.gather = fault  # this process ends with this function
        found[fault.__name__] = simclr_step(DistributedDataParallel(synchronise(objective())), part)
    simclr.gather = gather

    x = torch.arange(6.0).view(2, 3).add(10 * me).requires_grad_()
    rows = gather(x)
    weight = torch.arange(12.0).view(4, 3) * (me + 1)
    (rows * weight).sum().backward()
    found["gather"] = (rows.detach(), x.grad)
    two = [torch.ones(1, requires_grad=True) for _ in range(2)]
    (
        (gather(two[0]) + gather(two[1])) * torch.ones(2)
    ).sum().backward()  # autograd hands one and the same gradient to both
    found["shared gradient"] = [t.grad for t in two]
    y = torch.tensor([1.0, 2.0]).mul(me + 1).requires_grad_()
    total = all_reduce(y)
    (total.square() * (me + 1)).sum().backward()
    found["all_reduce"] = (total.detach(), y.grad)

    first = sum(UNEVEN[:me])
    mine = slice(first, first + UNEVEN[me])
    for name, (make, shape) in NORMS.items():
        x, weight = norm_data(shape)
        found[f"norm {name}"] = norm_steps(synchronise(make()), x[mine], weight[mine])
    x, weight = norm_data((4, 2))
    norm = synchronise(nn.BatchNorm2d(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = norm(1000 + x[mine].bfloat16())
    found["autocast"] = (low.dtype, norm.running_mean, norm.running_var, norm.running_var.dtype)

    torch.save(found, f"{folder}/{me}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{n}.pt", weights_only=False) for n in range(RANKS)]


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[n] - expected[n]).abs().max()) for n in expected)


def test_ranks_know_themselves(ranks):
    assert [(r["rank"], r["world_size"]) for r in ranks] == [(0, 2), (1, 2)]
    assert (rank(), world_size()) == (0, 1)


def test_simclr_on_two_ranks_is_simclr_on_the_joined_batch(ranks):
    single = simclr_step(objective(), slice(None))
    loss = torch.stack([r["simclr"]["loss"] for r in ranks]).mean()
    torch.testing.assert_close(loss, single["loss"], rtol=0, atol=1e-5)
    for each in ranks:
        assert furthest(each["simclr"]["grads"], single["grads"]) < 1e-5
        assert furthest(each["simclr"]["buffers"], single["buffers"]) < 1e-5
    assert max(float(g.abs().max()) for g in single["grads"].values()) > 0.01  # not all zeros


@pytest.mark.parametrize("fault", ["blind_gather", "local_gather", "local norms"])
def test_the_comparison_above_sees_faults(ranks, fault):
    """Each is as good a training run to look at: the loss is right, or nearly."""
    single = simclr_step(objective(), slice(None))
    for each in ranks:
        assert furthest(each[fault]["grads"], single["grads"]) > 1e-3
    if fault != "local norms":
        loss = torch.stack([r[fault]["loss"] for r in ranks]).mean()
        torch.testing.assert_close(loss, single["loss"], rtol=0, atol=1e-5)


def test_gather(ranks):
    a = torch.arange(6.0).view(2, 3)
    weight = torch.arange(12.0).view(4, 3)
    for n, each in enumerate(ranks):
        rows, grad = each["gather"]
        assert torch.equal(rows, torch.cat([a, a + 10]))
        assert torch.equal(grad, 3 * weight.chunk(2)[n])  # 1 x from the first rank's loss, 2 x from the second's


def test_gather_leaves_a_shared_gradient_alone(ranks):
    for each in ranks:
        assert [g.item() for g in each["shared gradient"]] == [2.0, 2.0]


def test_all_reduce(ranks):
    y = torch.tensor([1.0, 2.0])
    for each in ranks:
        total, grad = each["all_reduce"]
        assert torch.equal(total, 3 * y)
        assert torch.equal(grad, 2 * 3 * y * (1 + 2))


def test_undistributed_collectives_are_the_identity():
    x = torch.ones(2, 3)
    assert gather(x) is x
    assert all_reduce(x) is x


@pytest.mark.parametrize("name", NORMS)
def test_norm_over_uneven_ranks_is_the_norm_of_the_joined_batch(ranks, name):
    make, shape = NORMS[name]
    single = norm_steps(make(), *norm_data(shape))
    found = [r[f"norm {name}"] for r in ranks]
    for key in ("y", "x.grad"):
        torch.testing.assert_close(torch.cat([f[key] for f in found]), single[key], rtol=1e-4, atol=1e-5)
    if name != "without tracking":  # there evaluation sees a rank's own samples, and no more, as in torch
        torch.testing.assert_close(torch.cat([f["eval"] for f in found]), single["eval"], rtol=1e-4, atol=1e-5)
    for n, grad in single["grads"].items():
        torch.testing.assert_close(sum(f["grads"][n] for f in found), grad, rtol=1e-4, atol=1e-4)
    for each in found:
        assert each["buffers"].keys() == single["buffers"].keys()
        for n, value in single["buffers"].items():
            torch.testing.assert_close(each["buffers"][n], value, rtol=1e-5, atol=1e-6)


def test_norm_keeps_its_statistics_in_float32(ranks):
    x = (1000 + norm_data((4, 2))[0].bfloat16()).float()
    for each in ranks:
        dtype, mean, var, kept = each["autocast"]
        assert (dtype, kept) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(mean, 0.1 * x.mean((0, 2, 3)))
        torch.testing.assert_close(var, 0.9 + 0.1 * x.var((0, 2, 3)))


@pytest.mark.parametrize("name", NORMS)
def test_norm_in_one_process_is_batchnorm(name):
    make, shape = NORMS[name]
    single, ours = norm_steps(make(), *norm_data(shape)), norm_steps(synchronise(make()), *norm_data(shape))
    assert torch.equal(single["y"], ours["y"])
    assert torch.equal(single["x.grad"], ours["x.grad"])
    assert torch.equal(single["eval"], ours["eval"])


def test_synchronise_moves_everything_over():
    model = objective().eval()
    model.backbone.layers[1].weight.requires_grad_(False)
    before = {n: id(p) for n, p in model.named_parameters()}
    keys, norms = list(model.state_dict()), [type(m) for m in model.modules()].count(nn.BatchNorm2d)
    assert synchronise(model) is model
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    assert norms == 2
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in model.modules())
    assert sum(isinstance(m, SyncBatchNorm) for m in model.modules()) == 3
    assert not model.backbone.layers[1].training
    assert not model.backbone.layers[1].weight.requires_grad
    norm = model.backbone.layers[1]
    assert synchronise(model).backbone.layers[1] is norm  # a second time changes nothing
    objective().load_state_dict(model.state_dict())


def test_synchronise_keeps_timms_activation():
    import timm

    model = timm.create_model("test_efficientnet", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    keys = list(model.state_dict())
    torch.testing.assert_close(synchronise(model)(x), expected)
    assert list(model.state_dict()) == keys
    assert any(isinstance(m, SyncBatchNorm) for m in model.modules())


def test_synchronise_refuses_a_norm_it_does_not_know():
    class Doubling(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(TypeError, match="Doubling"):
        synchronise(nn.Sequential(Doubling(3)))
