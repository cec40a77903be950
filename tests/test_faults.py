"""Promises of docs/correctness.md that no other file holds: what scripts/faults.py puts in must be seen by a test."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_runner import runs, stages
from ssl_runner.callbacks import Checkpoints
from ssl_runner.checkpoint import load_checkpoint
from ssl_runner.data import DataModule
from ssl_runner.datasets.fake import Fake
from ssl_runner.durations import Clock
from ssl_runner.errors import RequestError, RunError
from ssl_runner.learner import Learner
from ssl_runner.objectives import dcl, moco_v3, nnclr, simclr, supcon, triplet
from ssl_runner.optim.recipe import SGD
from ssl_runner.optim.schedules import Constant
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Backbone, Batch, Loss, Objective, TokenBackbone, as_float
from ssl_runner.views import HorizontalFlip
from ssl_runner.views.base import Branch, Views
from tests import test_contract as contract
from tests.conftest import TINY, process

Call = Callable[..., tuple[int, str, str]]
BASE = [*TINY, "evaluators=none"]


def learner(objective: Objective) -> Learner:
    return Learner(
        objective,
        Views(branches={"plain": Branch(transforms={})}),
        optim=SGD(lr=0.1),
        schedule=Constant(),
        clock=Clock(samples=64, global_batch=16, duration="1 epoch"),
        seed=3,
    )


# -- many devices ----------------------------------------------------------------------------------------------


def test_two_ranks_through_the_runner_learn_what_one_does(ssl_run: Call, tmp_path: Path) -> None:
    """Gathered loss, synchronised BatchNorm, slices of a batch and learning rate, all at once: the same weights."""
    args = [a for a in BASE if not a.startswith(("backbone", "duration"))]
    args += ["backbone=resnet_tiny", "views=plain", "views.branches.plain.copies=2", "optim=sgd", "optim.lr=1"]
    args += ["duration=3 steps", "schedule=constant"]
    assert ssl_run("pretrain", "task=simclr", *args, "hydra.run.dir=one")[0] == 0
    two = ["device=ddp", "device.accelerator=cpu", "device.devices=2", "hydra.run.dir=two"]
    found = process("pretrain", "task=simclr", *args, *two, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    one, both = (load_file(str(tmp_path / name / runs.BACKBONE)) for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(both[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


CONTRASTS: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "simclr": (simclr, lambda a, b, label: simclr.nt_xent(a, b, 0.5)),
    "dcl": (dcl, lambda a, b, label: dcl.decoupled(a, b, 0.5)),
    "supcon": (supcon, lambda a, b, label: supcon.supervised_contrast(a, b, label, 0.5)),
    "triplet": (triplet, lambda a, b, label: triplet.triplet(a, b, 0.2)),
    "moco_v3": (moco_v3, lambda a, b, label: moco_v3.contrast(a, b, 0.5)),
    "nnclr": (nnclr, lambda a, b, label: nnclr.contrast(a, b, 0.5)),
}


@pytest.mark.parametrize("name", CONTRASTS)
def test_each_rank_knows_its_own_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over ranks of a loss is that of the joined batch, for rows among which every mistake shows."""
    module, loss = CONTRASTS[name]
    torch.manual_seed(0)
    a, label = torch.randn(12, 4), torch.arange(12) % 5
    b = a + 0.5 * torch.randn(12, 4)
    joined = loss(a, b, label)
    rows = [nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1), label]
    found = []
    for rank in range(3):
        part = slice(4 * rank, 4 * rank + 4)

        def gather(x: Tensor, part: slice = part) -> Tensor:
            return next(r for r in rows if r.shape[1:] == x.shape[1:] and torch.allclose(r[part], x))

        monkeypatch.setattr(module, "gather", gather)
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        found.append(loss(a[part], b[part], label[part]))
    torch.testing.assert_close(torch.stack(found).mean(), joined)


PAIRS = [(o, b) for o, b in contract.CASES if contract.target(o).views == 2]


@pytest.mark.parametrize(("name", "backbone"), PAIRS)
def test_two_views_pass_the_backbone_one_by_one(name: str, backbone: str) -> None:
    """Each by the statistics of its own batch, as in SimCLR, BYOL, MoCo and the others that take a pair."""
    objective = contract.build(name, backbone)
    rows: list[int] = []
    note = lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["x"]))  # noqa: E731
    objective.backbone.register_forward_pre_hook(note, with_kwargs=True)
    if isinstance(objective.backbone, TokenBackbone):  # some work on tokens alone
        encode = objective.backbone.encode
        objective.backbone.encode = lambda tokens, *args: rows.append(len(tokens)) or encode(tokens, *args)  # type: ignore
    objective(contract.batch_of(objective))
    assert rows == [contract.BATCH] * len(rows)
    assert rows


JOINED = {"barlow_twins", "vicreg", "vicregl", "w_mse", "swav", "deepcluster_v2"}
"""Losses of a whole batch that have no negatives: statistics, and codes that balance over it."""


@pytest.mark.parametrize("name", [o for o, b in PAIRS if b == "convolutions"])
def test_objectives_with_negatives_in_the_batch_say_so(name: str) -> None:
    """Where the loss of a batch is not the mean of its halves', accumulation changes it: `contrasts` warns of that."""
    objective = contract.build(name, "convolutions").eval()
    whole = contract.batch_of(objective)

    def loss(part: slice) -> float:
        batch: Batch = {
            "views": [{"x": view["x"][part]} for view in whole["views"]],
            "label": whole["label"][part],
            "index": whole["index"][part],
        }
        torch.manual_seed(5)
        with torch.no_grad(), contract.joined_draws(part) if part.start is not None else contract.nullcontext():
            return objective(batch).value.item()

    halves = (loss(slice(0, 4)) + loss(slice(4, 8))) / 2
    joined = abs(loss(slice(None)) - halves) > 1e-3
    if name not in JOINED:
        assert objective.contrasts == joined


class Rowwise(Objective):
    """Its loss is the mean of its samples, of which validation must count each alike."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch) -> Loss:
        return Loss(batch["views"][0]["x"].mean() * self.weight)


def test_validation_weighs_a_smaller_last_batch_by_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    each = learner(Rowwise())
    monkeypatch.setattr(Learner, "global_rank", property(lambda self: 0))
    x = torch.arange(5.0)[:, None]
    for n, part in enumerate((x[:4], x[4:])):
        each.validation_step({"inputs": [{"x": part}], "index": torch.arange(len(part))}, n)
    assert each._val_mean.take() == {"loss": 2.0}


# -- optimiser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["cls_token", "pos_embed", "mask_token", "reg_token", "dist_token"])
def test_no_token_decays(token: str) -> None:
    module = nn.Module()
    module.register_parameter(token, nn.Parameter(torch.ones(1, 1, 4)))
    module.linear = nn.Linear(2, 2)
    (plain,) = (g for g in SGD(lr=1.0, weight_decay=0.1).groups(module, 256) if g["weight_decay"] == 0)
    assert any(p is module.get_parameter(token) for p in plain["params"])


def test_moco_v2_decays_everything_and_others_do_not() -> None:
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        found = {t: compose("pretrain", [f"+task={t}"]).optim.get("decay") for t in ("moco_v2_cifar10", "byol_cifar10")}
    assert found == {"moco_v2_cifar10": "all", "byol_cifar10": None}


# -- teachers --------------------------------------------------------------------------------------------------


class Overflowing(Objective):
    """The second batch has a finite loss and a gradient that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.weight = nn.Parameter(torch.ones(()))
        self.steps: list[Tensor] = []

    def forward(self, batch: Batch) -> Loss:
        overflow = (batch["index"] == 1).any().float()
        root = (self.weight * (1 - overflow)).sqrt()  # of 0 the slope is infinite, and times 0 not a number
        return Loss(root * batch["views"][0]["x"].mean())

    def after_step(self, progress: float) -> None:
        self.steps.append(self.weight.detach().clone())


@pytest.mark.filterwarnings("ignore")
def test_a_skipped_overflow_moves_no_teacher(tmp_path: Path) -> None:
    import pytorch_lightning as pl
    from pytorch_lightning.plugins.precision import MixedPrecision

    objective = Overflowing()
    batches = [{"inputs": [{"x": torch.ones(2, 1)}], "index": torch.tensor([n, n])} for n in range(4)]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],  # type: ignore[arg-type]
    )
    trainer.fit(learner(objective), torch.utils.data.DataLoader(batches, batch_size=None))
    assert len(objective.steps) == 3
    assert len(set(map(float, objective.steps))) == 3, "each after a step that moved the weight"


TAUGHT = [(o, b) for o, b in contract.CASES if any(isinstance(m, Teacher) for m in contract.build(o, b).modules())]


@pytest.mark.parametrize(("name", "backbone"), TAUGHT)
def test_a_teacher_that_differs_from_its_student_moves_after_the_step_alone(name: str, backbone: str) -> None:
    objective = contract.build(name, backbone)
    with torch.no_grad():
        for p in objective.parameters():
            if p.requires_grad:
                p.add_(0.1)

    def slow() -> list[Tensor]:
        teachers = [m for m in objective.modules() if isinstance(m, Teacher)]
        return [p.clone() for m in teachers for p in m.parameters()]

    before = slow()
    objective(contract.batch_of(objective)).value.backward()
    assert all(map(torch.equal, slow(), before))
    objective.after_step(0.5)
    assert not any(map(torch.equal, slow(), before))


def test_a_teachers_statistics_are_averaged_as_its_weights_are() -> None:
    online = nn.BatchNorm1d(2)
    teacher = Teacher(online, 0.9)
    online.running_mean.fill_(5.0)  # type: ignore[union-attr]
    teacher.update(online, 0.0)
    torch.testing.assert_close(teacher.copy.running_mean, torch.full((2,), 0.5))


def test_a_low_precision_teacher_is_rounded_once() -> None:
    torch.manual_seed(0)
    online = nn.Linear(64, 64).to(torch.bfloat16)
    teacher = Teacher(online, 0.9)
    with torch.no_grad():
        online.weight.normal_()
    old, new = teacher.copy.weight.double(), online.weight.detach().double()
    teacher.update(online, 0.0)
    wanted = (0.9 * old + 0.1 * new).to(torch.bfloat16)
    assert (teacher.copy.weight != wanted).double().mean() < 0.05  # near ties, in fp32 too; in bf16 it is a third


# -- evaluation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", contract.BACKBONES)
def test_evaluators_get_a_backbone_at_rest(backbone: str) -> None:
    """In evaluation mode: a feature depends on its sample alone, and no statistics move. Without gradients."""
    net = contract.BACKBONES[backbone]().train()
    before = copy.deepcopy(net.state_dict())
    embed = stages.frozen(net)
    x = contract.inputs(backbone, 6)
    whole = embed({"x": x})
    assert not whole.requires_grad
    torch.testing.assert_close(torch.cat([embed({"x": x[:1]}), embed({"x": x[1:]})]), whole)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_features_are_of_the_plain_view() -> None:
    source = Fake(samples=100, shape=(1, 4, 4))
    views = Views(branches={"flipped": Branch(transforms={"flip": HorizontalFlip(p=1.0)})})
    data = DataModule(source, views, split="train", plain_val=True, per_rank=8, batches=0, seed=0)
    x, _ = data.features(lambda view: view["x"].flatten(1), "test")
    torch.testing.assert_close(x, as_float(source.split("test").x).flatten(1))  # type: ignore[union-attr]


def test_the_settings_of_knn_are_on_record(ssl_run: Call, tmp_path: Path) -> None:
    assert ssl_run("pretrain", "task=simclr", *TINY, "duration=1 steps", "evaluators=[knn]", "hydra.run.dir=r")[0] == 0
    stored = yaml.safe_load((tmp_path / "r" / runs.CONFIG).read_text())["evaluators"]["knn"]
    assert {"k", "temperature"} <= set(stored)


@pytest.mark.parametrize(("name", "backbone"), contract.CASES)
def test_all_that_changes_is_in_the_checkpoint(name: str, backbone: str) -> None:
    objective = contract.build(name, backbone)

    def unsaved() -> dict[str, Tensor]:
        parts = objective.named_modules()
        found = {f"{path}.{k}": v for path, m in parts for k, v in vars(m).items() if isinstance(v, Tensor)}
        held = objective.state_dict()
        found |= {k: v for k, v in objective.named_buffers() if k not in held}
        return {k: v.clone() for k, v in found.items()}

    before = unsaved()
    contract.steps(objective, contract.optimizer_for(objective), range(2), 2)
    after = unsaved()
    assert before.keys() == after.keys()
    assert [k for k, v in after.items() if not torch.equal(v, before[k])] == []


# -- state -----------------------------------------------------------------------------------------------------


def test_the_end_is_saved_whatever_the_interval(ssl_run: Call, tmp_path: Path) -> None:
    args = ["duration=5 steps", "checkpoint_every=2 steps", "hydra.run.dir=r"]
    assert ssl_run("pretrain", "task=simclr", *BASE, *args)[0] == 0
    assert load_checkpoint(tmp_path / "r" / runs.CHECKPOINTS / runs.LAST)["global_step"] == 5


def test_weights_behind_a_broken_loss_are_not_saved(tmp_path: Path) -> None:
    saved: list[Path] = []
    each = learner(Rowwise())
    each._terms, each._bad = ("loss",), torch.tensor([1, 7, 0])
    saving = Checkpoints(tmp_path, every=1, monitor="-val/loss", config={})
    with pytest.raises(RunError, match="batch 7"):
        saving._save(SimpleNamespace(save_checkpoint=saved.append), each, runs.LAST)  # type: ignore[arg-type]
    assert saved == []


def test_a_resumed_run_remembers_its_best(tmp_path: Path) -> None:
    saved: list[str] = []

    def checkpoints() -> Checkpoints:
        callback = Checkpoints(tmp_path, every=1, monitor="-val/loss", config={})
        callback._save = lambda trainer, learner, name: saved.append(name)  # type: ignore[method-assign]
        return callback

    before, after = checkpoints(), checkpoints()
    before.on_validation_end(SimpleNamespace(), SimpleNamespace(val_metrics={"val/loss": 1.0}))  # type: ignore[arg-type]
    after.load_state_dict(before.state_dict())
    after.on_validation_end(SimpleNamespace(), SimpleNamespace(val_metrics={"val/loss": 2.0}))  # type: ignore[arg-type]
    assert saved == [runs.BEST]


def test_a_resumed_run_keeps_its_id_with_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_runner.loggers import Wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = {Wandb().make(tmp_path, "x", {}).version for _ in range(2)}
    assert ids == {(tmp_path / "wandb_id.txt").read_text()}


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("plain") / "r"
    from ssl_runner import cli

    torch.set_num_threads(1)
    assert cli.answer(["ssl-run", "pretrain", "task=simclr", *BASE, "duration=2 steps", f"hydra.run.dir={folder}"]) == 0
    return load_file(str(folder / runs.BACKBONE))


@pytest.mark.parametrize("change", ["seed=1", "clip=0.001", "batch_size=8", "accumulate=2", "schedule=constant"])
def test_a_top_level_key_takes_effect(change: str, plain_run: dict[str, Tensor], ssl_run: Call, tmp_path: Path) -> None:
    assert ssl_run("pretrain", "task=simclr", *BASE, "duration=2 steps", change, "hydra.run.dir=r")[0] == 0
    found = load_file(str(tmp_path / "r" / runs.BACKBONE))
    assert any(not torch.equal(found[k], v) for k, v in plain_run.items())


NEAR = {
    "teacher_warmup": 0.8,
    "frozen": 0.6,
    "queue_start": 0.9,
    "context_scale": (0.4, 0.5),
    "heads": 1,
    "large": 1,
    "span": 1.0,
}
NEAR |= {"grid": 2, "top": 1, "iterations": 1, "tile": 4, "patch": 4, "block": 4, "scale": 4, "rows": 4, "queue": 8}
NEAR |= {"clips": 2, "end": 3.0}
"""Other values than a half or two more, for arguments that would show nothing so soon, or would be refused."""


def another(key: str, value: Any, annotation: Any) -> Any:
    """A value of the same kind that must make a difference."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if key in NEAR:
        return NEAR[key]
    if typing.get_origin(annotation) is typing.Literal:
        return next(choice for choice in typing.get_args(annotation) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(v / 2 for v in value)
    if isinstance(value, int):
        return value + 2
    return value / 2 if value > 0.01 else 0.6


def arguments(name: str) -> dict[str, Any]:
    """An objective's optional arguments, small."""
    parameters = inspect.signature(contract.target(name)).parameters
    on_frames = all(backbone == "frames" for objective, backbone in contract.CASES if objective == name)
    sizes = {**contract.SMALL, **(contract.SMALL_ON_FRAMES if on_frames else {}), **contract.OWN.get(name, {})}
    small = {k: sizes.get(k, p.default) for k, p in parameters.items()}
    return {k: v for k, v in small.items() if v is not inspect.Parameter.empty}


ELSEWHERE = {("hubert", "features"), ("hubert", "layer"), ("ctc", "beams"), ("forecast", "season")}
"""Tested with the objective: a module, a layer that a backbone of one block lacks, and what scores alone tell."""
SETTINGS = [(name, key) for name in contract.OBJECTIVES for key in arguments(name) if (name, key) not in ELSEWHERE]


def losses(name: str, backbone: str, **changed: Any) -> list[float]:
    torch.manual_seed(0)
    given = {**contract.required(name, backbone), **arguments(name), **changed}
    objective = contract.target(name)(contract.BACKBONES[backbone](), **given)
    return contract.steps(objective, contract.optimizer_for(objective), range(6), 6)


as_built = functools.cache(losses)


@pytest.mark.parametrize(("name", "key"), SETTINGS)
def test_every_argument_of_an_objective_takes_effect(name: str, key: str) -> None:
    """On one of the backbones at least: some arguments are about kinds of backbone."""
    hints = typing.get_type_hints(contract.target(name).__init__, include_extras=True)
    value = TypeAdapter(hints[key]).validate_python(another(key, arguments(name)[key], hints[key]))
    for backbone in (b for o, b in reversed(contract.CASES) if o == name):
        with contextlib.suppress(RequestError):
            if losses(name, backbone, **{key: value}) != as_built(name, backbone):
                return
    pytest.fail(f"{name}: {key} changes nothing")
