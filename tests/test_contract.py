"""What every objective keeps, whatever its paper: one contract over all of conf/objective and several backbones."""

from __future__ import annotations

import copy
import inspect
import traceback
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from hydra.utils import get_class
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_runner.backbones.columns import Columns
from ssl_runner.backbones.dilated import DilatedCNN
from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.frames import FrameEncoder, Frames
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.backbones.towers import Towers
from ssl_runner.backbones.vit import ViT
from ssl_runner.parts.batchnorm import synchronise
from ssl_runner.types import Backbone, Batch, FrameBackbone, MapBackbone, Objective, TokenBackbone, seen_by

CONF = Path(__file__).parent.parent / "conf" / "objective"
OBJECTIVES = sorted(p.stem for p in CONF.glob("[!_]*.yaml"))
SMALL = {
    "hidden": 16,
    "dim": 8,
    "queue": 32,
    "prototypes": 6,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "codes": 8,
    "noise": 16,
}
SMALL |= {"permutations": 8}
SMALL |= {"bias": 0.0}  # with SigLIP's own, -10, what is no pair hardly counts at first
FACTS = {"shape": (3, 8, 8), "size": 8, "num_classes": 3, "samples": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3}
FACTS |= {"vocab": 11, "mask": 10, "special": (0,), "separator": 1, "length": 12}
FACTS |= {"columns": (0, 3, 0, 0, 2), "label_mean": 1.0, "label_std": 1.0}
SMALL_ON_FRAMES = {"span": 3, "codes": 8, "code_dim": 8, "negatives": 6, "clusters": 4, "bank": 40, "steps": 2}
OWN = {"best_rq": {"span": 2, "noise": 0.1}}
"""Sizes that one objective needs smaller than its own, and others have by the same name."""
BATCH, STEPS = 8, 30
ADVERSARIAL = {"bigan": {"discriminator": ["discriminator"], "encoder_generator": ["backbone", "head", "generator"]}}
"""Games: the loss is a sum of terms, each lowered by its own players alone, and least where nobody has learned."""


class ConvNet(MapBackbone):
    """Convolutions, a global average, BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 12
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.maps(x).mean((2, 3))

    def maps(self, x: Tensor) -> Tensor:
        return self.body(x)

    def map_shape(self) -> tuple[int, int, int]:
        return 12, 8, 8


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "convolutions": ConvNet,
    "encoder": lambda: Encoder(stem=Continuous(shape=(3, 8, 8), block=(2, 2), dim=16), depth=1, heads=2),
    "vit": lambda: ViT(
        name="test_vit", shape=(3, 8, 8), options={"patch_size": 2, "embed_dim": 16, "depth": 2, "reg_tokens": 1}
    ),
    "ids": lambda: Encoder(stem=Discrete(vocab=11, length=12, dim=16), depth=1, heads=2),
    "towers": lambda: Towers(first=BACKBONES["convolutions"](), second=BACKBONES["ids"]()),
    "columns": lambda: Encoder(stem=Columns(columns=FACTS["columns"], dim=16), depth=1, heads=2),
}
BACKBONES["frames"] = lambda: FrameEncoder(
    stem=Frames(shape=(2, 66), dim=16, width=12, kernels=(4, 2), strides=(2, 2), norm="layer", positions=4, groups=4),
    depth=1,
    heads=2,
)
FACTS |= {"alphabet": ("", "a", "b", "c", "d")}
OF_FRAMES = ("ctc",)  # and of nothing else
ON_FRAMES = (*OF_FRAMES, "simclr", "data2vec")
CLIP = (3, 6, 8, 8)
BACKBONES["clips"] = lambda: Encoder(stem=Continuous(shape=CLIP, block=(2, 4, 4), dim=16), depth=1, heads=2)
OF_CLIPS = ("clip_order", "motion")  # and of nothing else
ON_CLIPS = (*OF_CLIPS, "simclr", "mae")
SERIES = (2, 20)
BACKBONES["series"] = lambda: DilatedCNN(shape=SERIES, dim=16, hidden=8, depth=2)
FACTS |= {"horizon": 5}
OF_SERIES = ("forecast", "ts2vec", "ts_tcc")  # and of nothing else
ON_SERIES = (*OF_SERIES, "simclr")
ON_COLUMNS = ("vime", "simclr", "byol", "barlow_twins", "vicreg", "data2vec")
ON_IDS = (
    "simclr",
    "simcse",
    "byol",
    "barlow_twins",
    "data2vec",
)  # written for images, and to serve words and items unchanged


def target(name: str) -> type[Objective]:
    return get_class(yaml.safe_load((CONF / f"{name}.yaml").read_text())["_target_"])  # type: ignore[return-value]


def fits(name: str, backbone: str) -> bool:
    """Whether the objective takes it; of a vision transformer, for time's sake, those that ask for tokens and a few."""
    wanted = typing.get_type_hints(target(name).__init__)["backbone"]
    if backbone == "towers" or wanted is Towers:
        return backbone == "towers" and wanted is Towers
    if "separator" in inspect.signature(target(name)).parameters:
        return backbone == "ids"
    if backbone == "ids":
        return name in ON_IDS
    if backbone == "frames" or wanted is FrameBackbone or name in OF_FRAMES:
        return backbone == "frames" and (wanted is FrameBackbone or name in ON_FRAMES)
    if backbone == "clips" or name in OF_CLIPS:
        return backbone == "clips" and name in ON_CLIPS
    if backbone == "series" or name in OF_SERIES:
        return backbone == "series" and name in ON_SERIES
    if backbone == "columns" or name == "vime":
        return backbone == "columns" and name in ON_COLUMNS
    if wanted is TokenBackbone:
        return backbone != "convolutions"
    return backbone != "vit" or name in ("byol", "dino", "simmim")


CASES = [(o, b) for o in OBJECTIVES for b in BACKBONES if fits(o, b)]
cases = pytest.mark.parametrize(("name", "backbone"), CASES)


def required(name: str, backbone: str) -> dict[str, Any]:
    """What an objective asks for beside its backbone: the data's facts, and a model of its own."""
    parameters = inspect.signature(target(name)).parameters
    facts = {key: FACTS[key] for key, p in parameters.items() if p.default is p.empty and key in FACTS}
    if "shape" in facts:
        facts["shape"] = {"clips": CLIP, "series": SERIES}.get(backbone, facts["shape"])
    if "horizon" in facts:
        facts |= {"mean": (0.5,) * 2, "std": (0.2,) * 2}
    return {**facts, "generator": BACKBONES["ids"]()} if "generator" in parameters else facts


def build(name: str, backbone: str) -> Objective:
    """Small and deterministic: the same arguments give the same weights."""
    torch.manual_seed(0)
    cls = target(name)
    sizes = {**SMALL, **(SMALL_ON_FRAMES if backbone == "frames" else {}), **OWN.get(name, {})}
    small = {key: sizes[key] for key in inspect.signature(cls).parameters if key in sizes}
    return cls(BACKBONES[backbone](), **{**required(name, backbone), **small})


def inputs(backbone: str, n: int) -> Tensor:
    """Samples that a backbone takes, without meaning."""
    if backbone == "columns":
        counts = torch.tensor(FACTS["columns"])
        return torch.where(counts > 0, (torch.rand(n, len(counts)) * counts).floor(), torch.randn(n, len(counts)))
    if backbone == "frames":
        return torch.randn(n, 2, 66)
    if backbone == "clips":
        return torch.randn(n, *CLIP)
    if backbone == "series":
        return torch.randn(n, *SERIES)
    return torch.randint(11, (n, 12)) if backbone == "ids" else torch.randn(n, 3, 8, 8)


def batch_of(objective: Objective, n: int = BATCH, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    base = torch.randn(n, 3, 8, 8, generator=generator) + label.view(-1, 1, 1, 1)
    count = objective.views or 2
    if isinstance(objective.backbone, Towers):
        ids = torch.where(torch.rand(n, 12, generator=generator) < 0.5, 2 + label[:, None], 1)
        second = {"x": ids, "pad": torch.arange(12) >= 12 - torch.arange(n)[:, None] % 3}
        return {"views": [{"x": base}, second], "label": label, "index": torch.arange(n)}
    if isinstance(objective.backbone, Encoder) and isinstance(objective.backbone.stem, Discrete):
        ids = torch.randint(1, 10, (n, 12), generator=generator)  # 1 ends a document
        ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.5, 2 + label[:, None], ids)
        keep = [torch.rand(ids.shape, generator=generator) < 0.9 for _ in range(count)]
        pad = torch.arange(12) >= 12 - torch.arange(n)[:, None] % 3
        views = [{"x": torch.where(each, ids, 9).masked_fill(pad, 0), "pad": pad} for each in keep]
        unit = (torch.arange(12) // 2).expand(n, -1)
        return {"views": views, "label": label, "index": torch.arange(n), "unit": unit}
    if isinstance(objective.backbone, Encoder) and isinstance(objective.backbone.stem, Columns):
        numbers = torch.randn(n, 5, generator=generator) + label[:, None]
        row = torch.where(torch.tensor(FACTS["columns"]) > 0, label[:, None] % 2, numbers)
        kept = [torch.rand(row.shape, generator=generator) < 0.9 for _ in range(count)]
        views = [{"x": row.masked_fill(~each, float("nan"))} for each in kept]
        return {"views": views, "label": label, "index": torch.arange(n)}
    if isinstance(objective.backbone, FrameBackbone):
        tone = (torch.arange(66) * (0.3 + 0.3 * label[:, None])).sin()[:, None].expand(-1, 2, -1)
        pad = torch.arange(66) >= 66 - 8 * (torch.arange(n)[:, None] % 3)
        heard = [tone + 0.3 * torch.randn(tone.shape, generator=generator) for _ in range(count)]
        views = [seen_by(objective.backbone, {"x": x.masked_fill(pad[:, None], 0.0), "pad": pad}) for x in heard]
        told = torch.stack([1 + label, 1 + label, torch.where(label > 0, 4, -1)], 1)
        return {"views": views, "label": label, "index": torch.arange(n), "target": told}
    if isinstance(objective.backbone, DilatedCNN):
        wave = (torch.arange(25) * (0.3 + 0.3 * label[:, None])).sin()[:, None].expand(-1, 2, -1)
        pad = torch.arange(20) >= 20 - 3 * (torch.arange(n)[:, None] % 3)
        seen = [wave[..., :20] + 0.3 * torch.randn(n, 2, 20, generator=generator) for _ in range(count)]
        target = wave[..., 20:].masked_fill(torch.rand(n, 2, 5, generator=generator) < 0.2, float("nan"))
        views = [{"x": x.masked_fill(pad[:, None], 0.0), "pad": pad} for x in seen]
        return {"views": views, "label": label, "index": torch.arange(n), "target": target}
    if isinstance(objective.backbone, Encoder) and len(objective.backbone.grid or ()) == 3:
        time = torch.arange(CLIP[1]).view(-1, 1, 1) / CLIP[1]
        base = base[:, :, None] * (1 - time) + base.roll(1, 3)[:, :, None] * time  # what moves down, and fades
    views = [{"x": base + 0.3 * torch.randn(base.shape, generator=generator)} for _ in range(count)]
    return {"views": views, "label": label, "index": torch.arange(n)}


def optimizer_for(objective: Objective) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)


def steps(objective: Objective, optimizer: torch.optim.Optimizer, numbers: range, total: int) -> list[float]:
    """Training as the learner does it: seeded by the step, after_step behind each."""
    losses = []
    for n in numbers:
        torch.manual_seed(100 + n)
        loss = objective(batch_of(objective)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step((n + 1) / total)
        losses.append(loss.item())
    return losses


@cases
def test_the_loss_is_a_finite_scalar_with_detached_terms(name: str, backbone: str) -> None:
    objective = build(name, backbone)
    torch.manual_seed(2)
    loss = objective(batch_of(objective))
    assert loss.value.shape == ()
    assert loss.value.isfinite()
    assert all(v.shape == () and not v.requires_grad for v in loss.log.values())
    assert all(0 < v <= 1 + 1e-6 for name, v in loss.log.items() if name.endswith("_used")), "shares, as they are told"


@cases
def test_gradients_reach_what_learns_and_nothing_else(name: str, backbone: str) -> None:
    objective = build(name, backbone)
    torch.manual_seed(2)
    objective(batch_of(objective)).value.backward()
    learns = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    assert [n for n, p in objective.named_parameters() if not p.requires_grad and p.grad is not None] == []
    assert [n for n, p in learns.items() if p.grad is None] == []
    own = [n for n, p in objective.backbone.named_parameters() if p.requires_grad]
    assert own, "a backbone that learns nothing"


@pytest.mark.parametrize(("name", "backbone"), [case for case in CASES if case[0] not in ADVERSARIAL])
def test_training_lowers_the_loss_on_a_fixed_batch(name: str, backbone: str) -> None:
    """Against what it would be with the first weights and all other state (teacher, centre, queue) as it is now: a
    teacher that moves may well raise the loss itself."""
    objective = build(name, backbone)
    first = {n: p.detach().clone() for n, p in objective.named_parameters() if p.requires_grad}
    steps(objective, optimizer_for(objective), range(STEPS), STEPS)
    untrained = copy.deepcopy(objective)
    untrained.load_state_dict({**untrained.state_dict(), **first})
    losses = []
    for each in (objective, untrained):
        torch.manual_seed(3)
        losses.append(each(batch_of(each)).value.item())
    assert losses[0] < losses[1]


@pytest.mark.parametrize(("name", "backbone", "term"), [(*c, t) for c in CASES for t in ADVERSARIAL.get(c[0], {})])
def test_training_lowers_a_players_own_term_while_the_others_rest(name: str, backbone: str, term: str) -> None:
    objective = build(name, backbone)
    own = [p for n, p in objective.named_parameters() if n.partition(".")[0] in ADVERSARIAL[name][term]]

    def now() -> float:
        torch.manual_seed(3)
        return objective(batch_of(objective)).log[term].item()

    before = now()
    steps(objective, torch.optim.AdamW(own, lr=3e-3, weight_decay=0.0), range(STEPS), STEPS)
    assert now() < before


@cases
def test_a_resumed_objective_goes_on_bit_identically(name: str, backbone: str) -> None:
    whole = build(name, backbone)
    optimizer = optimizer_for(whole)
    steps(whole, optimizer, range(3), 6)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    expected = steps(whole, optimizer, range(3, 6), 6)

    resumed = build(name, backbone)
    again = optimizer_for(resumed)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert steps(resumed, again, range(3, 6), 6) == expected
    for (key, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@cases
def test_bf16_is_finite_and_near_fp32(name: str, backbone: str) -> None:
    objective = build(name, backbone)
    full, low = copy.deepcopy(objective), copy.deepcopy(objective)
    torch.manual_seed(2)
    wanted = full(batch_of(objective)).value
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = low(batch_of(objective)).value
    assert found.isfinite()
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.05)


@cases
def test_evaluation_changes_no_state(name: str, backbone: str) -> None:
    objective = build(name, backbone).eval()
    before = copy.deepcopy(objective.state_dict())
    with torch.no_grad():
        objective(batch_of(objective))
    assert [k for k, v in objective.state_dict().items() if not torch.equal(v, before[k])] == []


# -- two ranks -------------------------------------------------------------------------------------------------


@contextmanager
def joined_draws(part: slice) -> Iterator[None]:
    """Within it this process draws for the whole batch and keeps its own rows, so that equally seeded ranks use the
    very numbers that one process would. A draw counts as one per sample if its first dimension is the batch."""
    half = BATCH // 2
    real = {kind: getattr(torch, kind) for kind in ("rand", "randn", "randint", "rand_like", "randn_like")}

    def patched(kind: str) -> Callable[..., Tensor]:
        def drawn(*args: Any, **kwargs: Any) -> Tensor:
            at = next((n for n, a in enumerate(args) if isinstance(a, (tuple, list, torch.Size))), None)
            given = list(args if at is None else args[at])
            if (kind == "randint" and at is None) or not given or given[0] != half:
                return real[kind](*args, **kwargs)
            whole = [BATCH, *given[1:]]
            before, after = ((), ()) if at is None else (args[:at], args[at + 1 :])
            return real[kind](*before, whole, *after, **kwargs)[part]

        return drawn

    try:
        for kind in ("rand", "randn", "randint"):
            setattr(torch, kind, patched(kind))
        torch.rand_like = lambda x, **k: torch.rand(x.shape, **k)  # type: ignore[assignment]
        torch.randn_like = lambda x, **k: torch.randn(x.shape, **k)  # type: ignore[assignment]
        yield
    finally:
        for kind, function in real.items():
            setattr(torch, kind, function)


def rank_step(name: str, backbone: str, part: slice | None) -> dict[str, Tensor]:
    """Two optimiser steps; with a part, of a batch that the ranks share."""
    objective = build(name, backbone)
    model: nn.Module = objective
    if part is not None:
        model = DistributedDataParallel(synchronise(objective), find_unused_parameters=True)
        if hasattr(objective, "draw"):  # masks of I-JEPA: drawn in a loop of no fixed shape
            draw = objective.draw
            objective.draw = lambda batch: tuple(each[part] for each in draw(BATCH))
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
    for n in range(2):
        batch = batch_of(objective, seed=n)
        if part is not None:
            of_all = {k: v[part] for k, v in batch.items() if isinstance(v, Tensor)}
            batch = {**of_all, "views": [{k: v[part] for k, v in view.items()} for view in batch["views"]]}
        torch.manual_seed(50 + n)
        with nullcontext() if part is None else joined_draws(part):
            loss = model(batch).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step((n + 1) / 2)
    return {k: v.clone() for k, v in objective.state_dict().items()}


def worker(rank: int, folder: str, names: list[tuple[str, str]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = BATCH // 2
    found: dict[tuple[str, str], Any] = {}
    for case in names:
        try:
            found[case] = rank_step(*case, slice(rank * half, rank * half + half))
        except Exception:  # told by this case's own test, so that the others' are not lost
            found[case] = traceback.format_exc()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (str(folder), CASES), nprocs=2)
    return [torch.load(folder / f"{r}.pt") for r in range(2)]


@cases
def test_two_ranks_learn_what_one_learns_from_the_joined_batch(
    name: str, backbone: str, ranks: list[dict[tuple[str, str], dict[str, Tensor]]]
) -> None:
    alone = rank_step(name, backbone, None)
    for found in ranks:
        assert not isinstance(found[name, backbone], str), found[name, backbone]
        for key, value in found[name, backbone].items():
            torch.testing.assert_close(value, alone[key], rtol=1e-3, atol=5e-5, msg=lambda m, k=key: f"{k}: {m}")
