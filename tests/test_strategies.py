"""How training is carried out: averaged weights, and what else changes nothing of what is learned."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ssl_runner import devices, finders, parallel, runs
from ssl_runner.checkpoint import load_checkpoint, read_backbone
from ssl_runner.errors import RequestError
from ssl_runner.learner import Learner
from ssl_runner.optim.recipe import SGD
from ssl_runner.parts.batchnorm import synchronise
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Objective
from ssl_runner.views.base import Branch, Views
from tests import test_contract as contract
from tests.conftest import TINY, environment, process


@pytest.fixture(autouse=True)
def _rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps the rank of the last strategy it built for the whole process: later tests would log nothing."""
    monkeypatch.setattr(rank_zero_only, "rank", 0)


Call = Callable[..., tuple[int, str, str]]
BASE = [*TINY, "evaluators=none"]
BACKBONE = "objective.backbone."


def trained(folder: Path) -> dict[str, Tensor]:
    """A backbone's weights as the last step left them."""
    state = load_checkpoint(folder / runs.CHECKPOINTS / runs.LAST)["state_dict"]
    return {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}


def kept(folder: Path) -> dict[str, Tensor]:
    return load_file(str(folder / runs.BACKBONE))


# -- averaged weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "second"), [(0.999, 2 / 11), (0.15, 0.15)])
def test_kept_are_averaged_weights_that_forget_their_start(
    decay: float, second: float, ssl_run: Call, tmp_path: Path
) -> None:
    general = [*BASE, "schedule=constant", f"engine.average={decay}"]
    for steps in (1, 2):
        args = [f"duration={steps} steps", f"hydra.run.dir={steps}"]
        assert ssl_run("pretrain", "task=simclr", *general, *args)[0] == 0
    one, two, last = kept(tmp_path / "1"), kept(tmp_path / "2"), trained(tmp_path / "2")
    for name, value in two.items():
        torch.testing.assert_close(value, second * one[name] + (1 - second) * last[name], msg=name)
    assert any(not torch.allclose(value, last[name], atol=1e-4) for name, value in two.items())


def test_averaging_changes_nothing_of_the_training_and_is_what_validation_and_evaluators_see(
    ssl_run: Call, tmp_path: Path
) -> None:
    args = [*TINY, "evaluators=[knn]", "optim.lr=0.1"]
    assert ssl_run("pretrain", "task=simclr", *args, "hydra.run.dir=plain")[0] == 0
    assert ssl_run("pretrain", "task=simclr", *args, "engine.average=0.9", "hydra.run.dir=averaged")[0] == 0
    plain, averaged = trained(tmp_path / "plain"), trained(tmp_path / "averaged")
    assert all(torch.equal(value, averaged[name]) for name, value in plain.items())
    before, after = (json.loads((tmp_path / name / runs.METRICS).read_text()) for name in ("plain", "averaged"))
    assert before["train/loss"] == after["train/loss"]
    assert before["val/loss"] != after["val/loss"]
    assert before["val/feature_rank"] != after["val/feature_rank"]
    assert ssl_run("evaluate", "from=averaged", "precision=32", "hydra.run.dir=again")[0] == 0
    again = json.loads((tmp_path / "again" / runs.METRICS).read_text())
    scores = {name: value for name, value in after.items() if name.startswith("knn/")}
    assert scores == {name: again[name] for name in scores}
    checkpoint = read_backbone(tmp_path / "averaged" / runs.CHECKPOINTS / runs.LAST)
    assert all(torch.equal(value, checkpoint[name]) for name, value in kept(tmp_path / "averaged").items())


def test_a_finetuning_is_tested_with_the_averaged_weights_of_its_best_epoch(ssl_run: Call, tmp_path: Path) -> None:
    args = [*(a for a in TINY if not a.startswith(("views", "objective"))), "engine.average=0.9"]
    assert ssl_run("finetune", "from=null", *args, "hydra.run.dir=r")[0] == 0
    best = load_checkpoint(tmp_path / "r" / runs.CHECKPOINTS / runs.BEST)["state_dict"]
    averaged = {k.replace("/", "."): v for k, v in best.items() if k.startswith("average.")}
    for name, value in kept(tmp_path / "r").items():
        torch.testing.assert_close(value, averaged.get(f"average.backbone.{name}", value), rtol=0, atol=0)
    assert averaged


def test_a_weight_of_two_names_is_averaged_under_both(tmp_path: Path) -> None:
    weight, other = torch.ones(2), torch.zeros(2)
    state = {f"{BACKBONE}one": weight, f"{BACKBONE}two": weight, f"{BACKBONE}count": other}
    torch.save({"state_dict": {**state, "average.backbone/one": 3 * weight}}, tmp_path / "x.ckpt")
    found = read_backbone(tmp_path / "x.ckpt")
    assert {name: value.tolist() for name, value in found.items()} == {
        "one": [3, 3],
        "two": [3, 3],
        "count": [0, 0],
    }


# -- every objective, however it is trained --------------------------------------------------------------------

STEPS = 5
WIDEST = dict(contract.CASES)
"""A backbone for each objective: the last that it takes, so that each kind has its turn."""
each = pytest.mark.parametrize("name", WIDEST)


def part_of(batch: Any, part: slice) -> Any:
    rows = {key: value[part] for key, value in batch.items() if isinstance(value, Tensor)}
    return {**rows, "views": [{key: value[part] for key, value in view.items()} for view in batch["views"]]}


def learn(
    name: str,
    backbone: str,
    how: str,
    *,
    parts: tuple[slice, ...] = (slice(None),),
    mode: str = "32",
    mesh: DeviceMesh | None = None,
    steps: int = STEPS,
) -> Objective:
    """An objective behind some optimiser steps. Whatever the parts of a batch, its samples and what is drawn for each
    of them are the same.

    how: "one", "ddp", "fsdp", "checkpointing" or "compile". parts: of each batch that this process sees, one
    micro-batch after another.
    """
    objective = contract.build(name, backbone)
    draw = getattr(objective, "draw", None)  # masks of I-JEPA: drawn in a loop of no fixed shape
    if mode == "bf16-true":
        parallel.in_bf16(objective)
    if mode == "fp8":
        parallel.in_fp8(objective, emulate=True)
    model: nn.Module = objective
    if how == "checkpointing":
        parallel.forget(objective)
    elif how == "compile":
        objective.compile(dynamic=False, backend="eager")  # what may fail is that the code can't be followed
    elif how == "fsdp":
        assert mesh is not None
        parallel.shard(synchronise(objective), mesh)
    elif how == "ddp":
        model = DistributedDataParallel(synchronise(objective), broadcast_buffers=False)
    learning = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.05, momentum=0.9)
    for n in range(steps):
        optimizer.zero_grad()
        for part in parts:
            torch.manual_seed(50 + n)
            whole = part == slice(None)
            if draw is not None and not whole:
                objective.draw = lambda batch, part=part: tuple(each[part] for each in draw(contract.BATCH))
            batch = contract.batch_of(objective, seed=n)
            low = torch.autocast("cpu", torch.bfloat16, enabled=mode != "32")
            with nullcontext() if whole else contract.joined_draws(part), low:
                loss = model(batch if whole else part_of(batch, part)).value / len(parts)
            loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        objective.after_step((n + 1) / steps)
    return objective


def state_of(objective: nn.Module) -> dict[str, Tensor]:
    """On all ranks at once, where it is cut."""
    state = objective.state_dict().items()
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for k, v in state}


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """What is not the same, up to the order in which numbers are added."""
    assert found.keys() == wanted.keys()
    return [k for k, v in wanted.items() if not torch.allclose(found[k].double(), v.double(), rtol=1e-3, atol=5e-5)]


HALVES = (slice(0, contract.BATCH // 2), slice(contract.BATCH // 2, contract.BATCH))


def worker(rank: int, folder: str, cases: list[tuple[str, str, str]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found: dict[tuple[str, str, str], Any] = {}
    for name, how, mode in cases:
        try:
            steps = STEPS if mode == "32" else 2
            objective = learn(name, WIDEST[name], how, parts=(HALVES[rank],), mode=mode, mesh=mesh, steps=steps)
            found[name, how, mode] = state_of(objective)
        except Exception:  # told by this case's own test, so that the others' are not lost
            found[name, how, mode] = traceback.format_exc()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def two_ranks(folder: Path, cases: list[tuple[str, str, str]]) -> list[dict[tuple[str, str, str], Any]]:
    """What each of two processes has of every case: a state, or the traceback of what failed."""
    torch.multiprocessing.spawn(worker, (str(folder), cases), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str, str], Any]]:
    return two_ranks(tmp_path_factory.mktemp("ranks"), [(n, how, "32") for n in WIDEST for how in ("ddp", "fsdp")])


@each
def test_on_two_ranks_it_learns_what_it_learns_on_one(name: str, ranks: list[dict[Any, Any]]) -> None:
    """Every parameter and buffer, on both ranks, without any buffer being sent from one to the other."""
    alone = state_of(learn(name, WIDEST[name], "one"))
    for how in ("ddp", "fsdp"):
        for found in ranks:
            state = found[name, how, "32"]
            assert not isinstance(state, str), state
            assert apart(state, alone) == [], how


@pytest.mark.parametrize(("name", "backbone"), contract.CASES)
def test_micro_batches_add_up_or_the_objective_says_why_not(name: str, backbone: str) -> None:
    whole, halves = learn(name, backbone, "one"), learn(name, backbone, "one", parts=HALVES)
    if parallel.indivisible(whole) is None:
        assert apart(state_of(halves), state_of(whole)) == []


@each
def test_the_reason_why_micro_batches_do_not_add_up_is_true(name: str) -> None:
    """On one of its backbones at least: where all samples have as many tokens, a mean over tokens divides."""
    for backbone in (b for o, b in contract.CASES if o == name):
        whole = learn(name, backbone, "one")
        if parallel.indivisible(whole) is None:
            return
        if apart(state_of(learn(name, backbone, "one", parts=HALVES)), state_of(whole)):
            return
    pytest.fail(f"{name} divides; take its reason away")


STACKED = [(o, b) for o, b in contract.CASES if parallel.blocks(contract.BACKBONES[b]())]


@pytest.mark.parametrize("name", dict(STACKED))
def test_what_is_computed_again_is_what_was_forgotten(name: str) -> None:
    backbone = dict(STACKED)[name]
    plain, forgetful = learn(name, backbone, "one", steps=2), learn(name, backbone, "checkpointing", steps=2)
    wanted = state_of(plain)
    assert [k for k, v in state_of(forgetful).items() if not torch.equal(v, wanted[k])] == []


@each
def test_with_weights_in_bf16_it_learns_and_its_teachers_stay_fine(name: str) -> None:
    objective = learn(name, WIDEST[name], "one", mode="bf16-true", steps=2)
    learning = [p for p in objective.parameters() if p.requires_grad]
    assert {p.dtype for p in learning if p.ndim > 1} == {torch.bfloat16}
    assert all(p.isfinite().all() for p in learning)
    for teacher in (m for m in objective.modules() if isinstance(m, Teacher)):
        assert {p.dtype for p in teacher.parameters()} == {torch.float32}


# -- blocks ----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.Dropout(0.5)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return x + scale * self.drop(self.norm(self.conv(x)))


def test_blocks_are_modules_that_stand_beside_their_own_kind() -> None:
    stack = nn.ModuleList(Residual() for _ in range(2))
    stage = nn.Sequential(Residual(), Residual())
    stages = nn.Sequential(stage, nn.Sequential(Residual()))
    mixed = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())  # parts of a whole, and leaves
    found = parallel.blocks(nn.ModuleDict({"stack": stack, "stages": stages, "mixed": mixed, "head": nn.Linear(4, 2)}))
    assert found == [*stack, *stage, *stages[1], *stages]  # inner ones first
    assert parallel.blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []


def test_statistics_count_a_batch_once_that_is_computed_twice_and_dropout_drops_the_same() -> None:
    def run(forgetful: bool) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        net = nn.ModuleList([Residual()])
        if forgetful:
            parallel.forget(net)
        x = torch.randn(6, 4, 3, 3, requires_grad=True)
        (net[0](x, scale=2.0).square().mean() + net[0](x + 1).square().mean()).backward()  # two views
        assert x.grad is not None
        return x.grad, *(p.grad for p in net.parameters()), *net.buffers()

    for found, wanted in zip(run(True), run(False), strict=True):
        assert torch.equal(found, wanted)


def test_a_block_that_forgets_keeps_no_more_than_its_input() -> None:
    def kept(forgetful: bool) -> int:
        net = nn.ModuleList([nn.Sequential(*(nn.Tanh() for _ in range(6)), nn.Linear(8, 8))])
        if forgetful:
            parallel.forget(net)
        rows: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (rows.append(len(x)), x)[1], lambda x: x):
            net[0](torch.randn(16, 8, requires_grad=True))
        return rows.count(16)

    assert (kept(False), kept(True)) == (7, 1)


def test_without_blocks_checkpointing_is_refused() -> None:
    with pytest.raises(RequestError, match="no stack of blocks"):
        parallel.forget(contract.build("simclr", "convolutions"))


def test_what_can_not_be_cut_is_named() -> None:
    module = nn.Linear(2, 2)
    module.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(RequestError, match="scale has no dimension"):
        parallel.shard(module, None)  # type: ignore[arg-type]


# -- through the runner ----------------------------------------------------------------------------------------

PLAIN = [a for a in TINY if not a.startswith(("validate_every", "checkpoint_every", "duration"))]
PLAIN += ["evaluators=none", "views=plain", "views.branches.plain.copies=2", "schedule=constant", "optim.lr=0.01"]
PLAIN += ["duration=4 steps", "validate_every=3 steps", "engine.average=0.9", "clip=1.0", "backbone.depth=2"]
"""Views that draw nothing, since what is drawn depends on the rank. The best checkpoint is that of step 3."""
CUT = ["device=fsdp", "device.accelerator=cpu"]


def same(found: Path, wanted: Path) -> None:
    for state, other in ((kept(found), kept(wanted)), (trained(found), trained(wanted))):
        for name, value in other.items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for mine, theirs in zip(momenta(found), momenta(wanted), strict=True):
        assert (mine - theirs).norm() < 0.01 * theirs.norm() + 1e-4


def momenta(folder: Path) -> list[Tensor]:
    """What the optimiser keeps of each weight; its steps of a run so short are too small to tell from the weights."""
    (states,) = load_checkpoint(folder / runs.CHECKPOINTS / runs.LAST)["optimizer_states"]
    found = [value for each in states["state"].values() for value in each.values() if value.ndim]
    assert found
    return found


def back_to_step_3(folder: Path, **device: Any) -> None:
    """A run as it was when it stopped there, to be resumed elsewhere."""
    (folder / runs.CHECKPOINTS / runs.BEST).replace(folder / runs.CHECKPOINTS / runs.LAST)
    (folder / runs.METRICS).unlink()
    (folder / runs.BACKBONE).unlink()
    config = yaml.safe_load((folder / runs.CONFIG).read_text())
    config["device"] |= device
    (folder / runs.CONFIG).write_text(yaml.safe_dump(config))


@pytest.fixture
def alone(ssl_run: Call, tmp_path: Path) -> Path:
    assert ssl_run("pretrain", "task=byol", *PLAIN, "hydra.run.dir=alone")[0] == 0
    return tmp_path / "alone"


def test_a_run_in_pieces_is_kept_whole_and_goes_on_in_one_process(alone: Path, ssl_run: Call, tmp_path: Path) -> None:
    """Teachers, averaged weights, clipping and the optimiser's state are in pieces too, and in the checkpoint whole."""
    args = ["task=byol", *PLAIN, *CUT, "device.devices=2", "hydra.run.dir=two"]
    found = process("pretrain", *args, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    same(tmp_path / "two", alone)
    back_to_step_3(tmp_path / "two", strategy="auto", devices=1)
    assert ssl_run("resume", "two")[0] == 0
    same(tmp_path / "two", alone)


def test_a_run_of_one_process_goes_on_in_pieces(alone: Path, ssl_run: Call, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    shutil.copytree(alone, tmp_path / "again" / "alone")
    back_to_step_3(tmp_path / "again" / "alone", strategy="fsdp", devices=2)
    found = process("resume", "again/alone", cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    same(tmp_path / "again" / "alone", alone)


def test_weights_in_bf16_are_kept_in_fp32(ssl_run: Call, tmp_path: Path) -> None:
    args = ["task=byol", *PLAIN, "precision=bf16-true", "hydra.run.dir=r"]
    assert ssl_run("pretrain", *[a for a in args if a != "precision=32"])[0] == 0
    assert {value.dtype for value in kept(tmp_path / "r").values()} == {torch.float32}
    assert torch.bfloat16 in {value.dtype for value in trained(tmp_path / "r").values()}


@pytest.mark.parametrize("key", ["engine.checkpointing=true", "precision=bf16-mixed"])
def test_a_way_to_train_takes_effect(key: str, ssl_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    forget, autocast = parallel.forget, torch.autocast.__enter__
    monkeypatch.setattr("ssl_runner.stages.forget", lambda objective: called.append("forget") or forget(objective))
    monkeypatch.setattr(torch.autocast, "__enter__", lambda self: called.append(str(self.fast_dtype)) or autocast(self))
    args = [a for a in PLAIN if not a.startswith("precision")]
    assert ssl_run("pretrain", "task=simclr", *args, key, "duration=1 steps", "hydra.run.dir=r")[0] == 0
    assert {"engine.checkpointing=true": "forget"}.get(key, "torch.bfloat16") in called


def nodes(folder: Path, args: list[str], **env: str) -> list[tuple[int, str]]:
    """torchrun as two machines, of two processes each, over loopback: exit code and what was said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ["--nnodes=2", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *own, f"--node_rank={n}", "-m", "ssl_runner.cli", *args],
            cwd=folder,
            env=environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n in range(2)
    ]
    said = [each.communicate(timeout=500)[0] for each in started]
    return [(each.returncode, text) for each, text in zip(started, said, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_nodes_of_two_processes_under_torchrun(strategy: str, alone: Path, tmp_path: Path) -> None:
    where = ["device=multi-node", "device.num_nodes=2", "device.devices=2", "device.accelerator=cpu"]
    args = ["pretrain", "task=byol", *PLAIN, *where, f"device.strategy={strategy}", "hydra.run.dir=four"]
    for code, said in nodes(tmp_path, args):
        assert code == 0, said[-3000:]
    same(tmp_path / "four", alone)


@pytest.mark.slow
@pytest.mark.parametrize("device", [["device=ddp", "device.accelerator=cpu"], CUT], ids=["ddp", "fsdp"])
def test_four_processes(device: list[str], alone: Path, tmp_path: Path) -> None:
    args = ["task=byol", *PLAIN, *device, "device.devices=4", "hydra.run.dir=four"]
    found = process("pretrain", *args, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    same(tmp_path / "four", alone)


@pytest.mark.slow
def test_compiled_it_learns_the_same(alone: Path, ssl_run: Call, tmp_path: Path) -> None:
    """By the compiler itself, which makes other sums of the same numbers."""
    assert ssl_run("pretrain", "task=byol", *PLAIN, "engine.compile=true", "hydra.run.dir=compiled")[0] == 0
    same(tmp_path / "compiled", alone)


@pytest.mark.slow
@each
def test_the_compiler_can_follow_it(name: str) -> None:
    plain, compiled = (state_of(learn(name, WIDEST[name], how, steps=2)) for how in ("one", "compile"))
    torch._dynamo.reset()
    assert apart(compiled, plain) == []


def test_processes_that_were_started_together_must_be_told_their_folder(
    ssl_run: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = ssl_run("pretrain", "task=simclr", *PLAIN)
    assert (code, "need one folder for all; name it" in err) == (2, True)


# -- what a run finds out before it begins ---------------------------------------------------------------------


def test_a_found_learning_rate_is_one_at_which_the_loss_falls_and_is_noted(ssl_run: Call, tmp_path: Path) -> None:
    args = ["task=simclr", *PLAIN, "optim.lr=1e-3", "engine.find_lr=true", "duration=2 steps"]
    code, out, _ = ssl_run("pretrain", *args, "hydra.run.dir=r")
    assert code == 0
    config = yaml.safe_load((tmp_path / "r" / runs.CONFIG).read_text())
    assert 1e-4 < config["optim"]["lr"] < 0.1
    assert config["optim"]["lr"] != 1e-3
    assert f"found: optim.lr={config['optim']['lr']:.3g}" in out
    assert config["engine"]["find_lr"] is False


def test_the_lowest_loss_is_taken_unless_it_is_the_first_noise() -> None:
    assert finders.lowest([3.0] * 12 + [2.0, 1.0, 1.5, float("nan")]) == 13
    with pytest.raises(RequestError, match="falls at no learning rate"):
        finders.lowest([3.0, 2.0, *[4.0] * 20])


def test_the_fewest_micro_batches_that_fit_are_taken() -> None:
    tried: list[int] = []

    def step(count: int) -> None:
        tried.append(count)
        if 48 // count > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert finders.find_accumulate(step, 48, start=2) == 6
    assert tried == [2, 3, 4, 6]
    with pytest.raises(RequestError, match="not even one sample"):
        finders.find_accumulate(lambda count: step(1), 48, start=1)


def test_a_trial_leaves_no_trace() -> None:
    objective = contract.build("byol", "encoder")
    before = state_of(objective)
    views = Views(branches={"both": Branch(transforms={}, copies=2)})
    settings: dict[str, Any] = {"global_batch": 4, "seed": 0, "device": torch.device("cpu"), "context": nullcontext}
    trial = finders.Trial(objective, views, SGD(lr=0.1), **settings)
    samples: Any = {"inputs": [{"x": torch.randn(4, 3, 8, 8)}], "index": torch.arange(4)}
    trial.step([samples], 0, 1.0)
    assert apart(state_of(objective), before) == []
    assert apart(state_of(trial.objective), before) != []


# -- hardware that is not here ---------------------------------------------------------------------------------


def trainer(tmp_path: Path, accelerator: str, precision: str, **device: Any) -> Any:
    """Lightning's Trainer with the strategy that a config asks for, as `fit` makes it."""
    from ssl_runner import stages

    full = {
        "accelerator": accelerator,
        "devices": "auto",
        "num_nodes": 1,
        "strategy": "auto",
        "sync_batchnorm": True,
        **device,
    }
    config = {"device": full, "accumulate": 1, "clip": None}
    general: dict[str, Any] = {"validate_every": 1, "loggers": [], "callbacks": []}
    return stages.trainer_for(config, tmp_path, accelerator=accelerator, precision=precision, **general)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("lightning_fabric.accelerators.cuda.num_cuda_devices", lambda: 4)


@pytest.mark.parametrize(
    ("device", "strategy", "ranks"),
    [
        ({}, "DDPStrategy", 4),
        ({"devices": 1}, "SingleDeviceStrategy", 1),
        ({"devices": [1, 3], "strategy": "ddp"}, "DDPStrategy", 2),
        ({"strategy": "fsdp"}, "Sharded", 4),
        ({"strategy": "fsdp", "devices": 1}, "Sharded", 1),
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gpus_get_the_strategy_that_is_asked_for(
    device: dict[str, Any], strategy: str, ranks: int, precision: str, tmp_path: Path, four_gpus: None
) -> None:
    found = trainer(tmp_path, "gpu", precision, **device)
    assert (type(found.strategy).__name__, found.world_size, found.precision) == (strategy, ranks, precision)
    if strategy == "Sharded":
        assert found.strategy._data_parallel_size == ranks
    if strategy == "DDPStrategy":
        assert found.strategy._ddp_kwargs == {"broadcast_buffers": False}


SLURM = {"NTASKS": "8", "NTASKS_PER_NODE": "4", "JOB_ID": "7", "JOB_NAME": "train", "NNODES": "2", "PROCID": "5"}
SLURM |= {"LOCALID": "1", "NODEID": "1", "NODELIST": "a[1-2]", "JOB_NODELIST": "a[1-2]"}
TORCHRUN = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("given", "kind"),
    [({f"SLURM_{k}": v for k, v in SLURM.items()}, "SLURMEnvironment"), (TORCHRUN, "TorchElasticEnvironment")],
    ids=["slurm", "torchrun"],
)
def test_of_several_nodes_each_process_knows_its_place(
    given: dict[str, str],
    kind: str,
    strategy: str,
    tmp_path: Path,
    four_gpus: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    found = trainer(tmp_path, "gpu", "bf16-mixed", strategy=strategy, num_nodes=2)
    assert type(found.strategy.cluster_environment).__name__ == kind
    assert (found.world_size, found.global_rank, found.local_rank, found.node_rank) == (8, 5, 1, 1)
    assert not runs.is_main()
    assert runs.started_together()


@pytest.mark.parametrize(
    ("mode", "device", "wanted"),
    [("bf16-true", "cpu", "bf16-mixed"), ("bf16-true", "tpu", "bf16-true"), ("fp8", "gpu", "bf16-mixed")],
)
def test_what_of_a_number_format_is_lightnings(mode: str, device: str, wanted: str) -> None:
    assert devices.autocast(mode, device) == wanted


@pytest.mark.parametrize(("capability", "fits"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_is_for_hardware_that_has_it(
    capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some Card")
    if fits:
        assert devices.precision("fp8", "gpu") == ("fp8", "as asked")
    else:
        with pytest.raises(RequestError, match=r"capability 8\.9 on, and this is Some Card"):
            devices.precision("fp8", "gpu")


def test_draws_on_a_tpu_follow_the_seed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch_xla only its generator, which torch.manual_seed does not know; scripts/xla.py runs all of it."""
    told: list[tuple[int, str]] = []
    xm = ModuleType("torch_xla.core.xla_model")
    xm.set_rng_state = lambda seed, device: told.append((seed, device))  # type: ignore[attr-defined]
    for name, module in {
        "torch_xla": ModuleType("torch_xla"),
        "torch_xla.core": ModuleType("core"),
        xm.__name__: xm,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["torch_xla.core"], "xla_model", xm, raising=False)
    for device, wanted in ((torch.device("xla:0"), [(7, "xla:0")]), (torch.device("cpu"), [])):
        told.clear()
        Learner._seed_draws(SimpleNamespace(device=device), 7)  # type: ignore[arg-type]
        assert told == wanted
        drawn = torch.rand(3)
        torch.manual_seed(7)
        assert torch.equal(drawn, torch.rand(3))


def test_in_fp8_the_linear_layers_that_fit_learn_with_its_rounding() -> None:
    plain, low = (learn("simclr", "encoder", "one", mode=mode, steps=2) for mode in ("bf16-mixed", "fp8"))
    kinds = {type(m).__name__ for m in low.backbone.modules()}
    assert "Float8Linear" in kinds
    wanted = state_of(plain)
    assert all(v.isfinite().all() for v in state_of(low).values())
    assert apart(state_of(low), wanted) != []
