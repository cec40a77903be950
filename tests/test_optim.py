"""Optimisers and schedules against what the papers and torch say, written out."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import pytest
import timm
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous
from ssl_runner.config import check
from ssl_runner.errors import RequestError
from ssl_runner.objectives.simsiam import SimSiam
from ssl_runner.objectives.supervised import Supervised
from ssl_runner.optim import lars
from ssl_runner.optim.recipe import LARS, SGD, AdamW, Optim
from ssl_runner.optim.rules import Rule
from ssl_runner.optim.schedules import Constant, Cosine, Schedule, Step

CONF = Path(__file__).parents[1] / "conf"


def names(module: nn.Module, params: list[Tensor]) -> set[str]:
    known = {id(p): n for n, p in module.named_parameters()}
    return {known[id(p)] for p in params}


def by_name(module: nn.Module, optim: Optim, batch: int = 256) -> dict[str, set[str]]:
    return {g["name"]: names(module, g["params"]) for g in optim.groups(module, batch)}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for n in range(start, start + steps):
        torch.manual_seed(100 + n)
        optimizer.zero_grad()
        model(torch.randn(16, 5)).square().sum().backward()
        optimizer.step()


def written_out(p, g, v, *, lr, wd, momentum, trust, clip, adapt):
    """One step on one tensor, by Python numbers: the equations of ssl_runner.optim.lars."""
    p, g, v = p.double().flatten().tolist(), g.double().flatten().tolist(), v.double().flatten().tolist()
    d = [gi + wd * pi for gi, pi in zip(g, p, strict=True)]
    size_p, size_d = math.sqrt(sum(x * x for x in p)), math.sqrt(sum(x * x for x in d))
    if adapt and size_p > 0 and size_d > 0:
        local = trust * size_p / size_d
        ratio = min(local, lr) / lr if clip else local
        d = [ratio * x for x in d]
    v = [momentum * vi + di for vi, di in zip(v, d, strict=True)]
    return [pi - lr * vi for pi, vi in zip(p, v, strict=True)], v


# -- LARS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("trust", "decay"), [(0.001, "weights"), (0.02, "weights"), (0.02, "all"), (5.0, "all")])
def test_lars_is_the_papers_update(clip, trust, decay):
    model = net()
    with torch.no_grad():
        model[3].weight.zero_()  # a zero norm
    optimizer = LARS(lr=0.3, weight_decay=0.1, trust=trust, clip=clip, decay=decay)(model, 256)
    settings = {"wd": 0.1, "momentum": 0.9, "trust": trust, "clip": clip}
    moved = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * (1 - step / 5)  # a schedule acts at once
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(16, 5)).square().sum().backward()
        if step == 2:
            model[0].weight.grad.zero_()
        expected = {}
        for name, p in model.named_parameters():
            left_out = decay == "weights" and p.ndim == 1
            here = {**settings, "wd": 0.0} if left_out else settings
            lr = optimizer.param_groups[0]["lr"]
            expected[name], v = written_out(p.detach(), p.grad, moved[name], lr=lr, adapt=not left_out, **here)
            moved[name] = torch.tensor(v)
        optimizer.step()
        for name, p in model.named_parameters():
            wanted = torch.tensor(expected[name]).float()
            torch.testing.assert_close(p.detach().flatten(), wanted, rtol=1e-4, atol=1e-6)


def test_lars_without_adaptation_is_sgd():
    ours, torchs = net(), net()
    mine = lars.LARS([{"params": list(ours.parameters()), "adapt": False}], 0.05, weight_decay=0.01)
    theirs = torch.optim.SGD(torchs.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    train(ours, mine, 5)
    train(torchs, theirs, 5)
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("clip", [False, True])
def test_lars_takes_zeros_and_a_learning_rate_of_zero(clip):
    weight = nn.Parameter(torch.zeros(3, 2))
    weight.grad = torch.zeros(3, 2)
    optimizer = lars.LARS([weight], 0.0, weight_decay=0.1, clip=clip)
    optimizer.step()
    assert torch.equal(weight, torch.zeros(3, 2))
    weight.grad = torch.ones(3, 2)
    optimizer.step()
    assert torch.equal(weight, torch.zeros(3, 2))  # lr 0
    optimizer.param_groups[0]["lr"] = 0.5
    weight.grad = torch.zeros(3, 2)
    optimizer.step()
    assert weight.isfinite().all()
    assert (weight < 0).all()  # the momentum of the gradient, taken as it was since the weight's norm was 0
    still = nn.Parameter(torch.ones(3, 2))
    still.grad = torch.zeros(3, 2)
    lars.LARS([still], 0.5, clip=clip).step()
    assert torch.equal(still, torch.ones(3, 2))


def test_lars_clip_never_exceeds_the_global_rate():
    """With a large trust, clipped LARS is plain SGD; with a small one the local rate is used."""
    for trust, local in ((1e6, 0.1), (0.01, 0.01 * 3.0 / 4.0)):
        weight = nn.Parameter(torch.tensor([[3.0, 0.0]]))
        weight.grad = torch.tensor([[0.0, 4.0]])
        lars.LARS([weight], 0.1, trust=trust, clip=True).step()
        torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, -local * 4.0]]))


def test_lars_evaluates_a_closure_with_gradients():
    model = net()
    optimizer = LARS(lr=0.1)(model, 256)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 5)).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert torch.equal(loss, net()(torch.ones(4, 5)).square().sum())
    assert not torch.equal(model[3].weight, net()[3].weight)


def test_lars_leaves_parameters_without_gradient_alone():
    model = net()
    optimizer = LARS(lr=0.1, weight_decay=0.5)(model, 256)
    train(model, optimizer, 2)
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    model[3].weight.grad = torch.ones_like(model[3].weight)
    optimizer.step()
    assert torch.equal(model[0].weight, before)  # neither decay nor momentum acts
    assert not torch.equal(model[3].weight, net()[3].weight)


@pytest.mark.parametrize("optim", [SGD(lr=0.1, weight_decay=0.1), AdamW(lr=0.01), LARS(lr=0.1, trust=0.02)])
def test_state_round_trips_bit_for_bit(optim, tmp_path):
    straight = net()
    train(straight, optim(straight, 256), 6)
    first = net()
    optimizer = optim(first, 256)
    train(first, optimizer, 3)
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    second = net(seed=1)
    second.load_state_dict(saved["model"])
    again = optim(second, 256)
    again.load_state_dict(saved["optimizer"])
    train(second, again, 3, start=3)
    for a, b in zip(straight.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    kept = {"name", "base_lr", "lr", "weight_decay"}
    assert all(kept <= g.keys() for g in again.param_groups)


# -- groups ----------------------------------------------------------------------------------------------


def test_learning_rate_is_scaled_once():
    model = net()
    assert LARS(lr=0.3).scaled_lr(4096) == pytest.approx(4.8)
    assert LARS(lr=0.5, reference_batch=512).scaled_lr(256) == pytest.approx(0.25)
    assert LARS(lr=0.3, reference_batch=None).scaled_lr(4096) == 0.3
    for optim in (SGD(lr=0.03), AdamW(lr=0.03), LARS(lr=0.03)):
        for group in optim(model, 1024).param_groups:
            assert group["lr"] == group["base_lr"] == pytest.approx(0.12)


def test_options_reach_the_optimiser():
    model = net()
    sgd = SGD(lr=1.0, momentum=0.5, nesterov=True, weight_decay=0.2)(model, 256)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.5, True)
    adamw = AdamW(lr=1.0, betas=(0.8, 0.95), eps=1e-6)(model, 256)
    assert (adamw.param_groups[0]["betas"], adamw.param_groups[0]["eps"]) == ((0.8, 0.95), 1e-6)
    adapted = LARS(lr=1.0, momentum=0.7, trust=0.02, clip=True)(model, 256).param_groups[0]
    assert (adapted["momentum"], adapted["trust"], adapted["clip"]) == (0.7, 0.02, True)
    assert [g["weight_decay"] for g in sgd.param_groups] == [0.2, 0.0]
    listed = AdamW(lr=1.0, betas=[0.8, 0.95])(model, 256)  # type: ignore[arg-type]  # as YAML gives it
    train(model, listed, 1)


def test_resnet_groups():
    model = timm.create_model("resnet10t", num_classes=3)
    found = by_name(model, LARS(lr=0.1))
    convolutions = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert found["decayed"] == convolutions
    assert found["excluded"] == {n for n, _ in model.named_parameters()} - convolutions
    assert [g["adapt"] for g in LARS(lr=0.1)(model, 256).param_groups] == [True, False]
    assert all("adapt" not in g for g in SGD(lr=0.1)(model, 256).param_groups)


def test_vit_groups():
    model = timm.create_model("test_vit", num_classes=0, img_size=32, reg_tokens=2, class_token=True)
    found = by_name(nn.ModuleDict({"backbone": model}), AdamW(lr=0.1))
    tokens = {"backbone.cls_token", "backbone.reg_token", "backbone.pos_embed"}
    assert tokens <= found["excluded"]
    assert all("weight" in n for n in found["decayed"])
    assert "backbone.patch_embed.proj.weight" in found["decayed"]
    assert "backbone.blocks.0.norm1.weight" in found["excluded"]


class Listing(nn.Module):
    """Names a table, by timm's convention, relative to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4, 4))
        self.weight = nn.Parameter(torch.ones(4, 4))

    def no_weight_decay(self) -> set[str]:
        return {"table"}


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Listing())
        self.table = nn.Parameter(torch.ones(2, 2))  # the same last name, but not in a module that lists it
        self.tokens = nn.Module()
        self.tokens.mask_token = nn.Parameter(torch.ones(1, 1, 4))
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.LayerNorm(3)
        self.linear = nn.Linear(2, 2)


def test_each_exclusion():
    found = by_name(Everything(), SGD(lr=1.0))
    assert found["decayed"] == {"inner.0.weight", "table", "linear.weight"}
    assert found["excluded"] == {
        "inner.0.table",
        "tokens.mask_token",
        "scale",
        "norm.weight",
        "norm.bias",
        "linear.bias",
    }


def test_decay_all_leaves_nothing_out():
    model = Everything()
    (group,) = LARS(lr=1.0, weight_decay=0.1, decay="all")(model, 256).param_groups
    assert names(model, group["params"]) == {n for n, _ in model.named_parameters()}
    assert (group["name"], group["weight_decay"], group["adapt"]) == ("decayed", 0.1, True)


def test_only_what_trains_each_once_and_no_empty_group():
    model = net()
    model[0].requires_grad_(False)
    shared = nn.ModuleList([model, model[3]])  # the same parameters under two names
    groups = SGD(lr=1.0).groups(shared, 256)
    params = [p for g in groups for p in g["params"]]
    assert len(params) == len({id(p) for p in params}) == 4
    model[1].requires_grad_(False)
    model[3].bias.requires_grad_(False)
    assert [g["name"] for g in SGD(lr=1.0).groups(model, 256)] == ["decayed"]
    model.requires_grad_(False)
    with pytest.raises(RequestError, match="nothing to train"):
        SGD(lr=1.0)(model, 256)


# -- rules -----------------------------------------------------------------------------------------------


def encoder(depth: int = 2) -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Continuous(shape=(1, 4, 4), block=(2, 2), dim=8), depth=depth, heads=2)


def siamese() -> SimSiam:
    return SimSiam(encoder(), hidden=8, dim=8, width=4)


def rates(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Parameter name -> its learning rate now; each parameter in one group."""
    known = {id(p): n for n, p in module.named_parameters()}
    pairs = [(known[id(p)], g["lr"]) for g in optimizer.param_groups for p in g["params"]]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def steps_of(objective: SimSiam, optim: Optim, optimizer: torch.optim.Optimizer, numbers: range, total: int) -> None:
    """As the learner trains: paced by the step."""
    for n in numbers:
        optim.pace(optimizer, Cosine()(n / total, 0.2), n / total)
        torch.manual_seed(n)
        optimizer.zero_grad()
        objective({"views": [{"x": torch.randn(6, 1, 4, 4)} for _ in range(2)]}).value.backward()
        optimizer.step()


def test_simsiams_predictor_learns_at_a_constant_rate():
    """Section 4.2's table: a predictor whose learning rate is not decayed."""
    objective = siamese()
    optim = SGD(lr=0.05, reference_batch=256, rules={"predictor": Rule(match="predictor.*", scheduled=False)})
    optimizer = optim(objective, 512)
    for step in range(20):
        factor = Cosine()(step / 20, 0.1)
        optim.pace(optimizer, factor, step / 20)
        for name, lr in rates(objective, optimizer).items():
            assert lr == pytest.approx(0.1 if name.startswith("predictor.") else 0.1 * factor), (name, step)


def test_barlows_biases_and_norms_have_a_rate_of_their_own():
    """Section 3.2 of Barlow Twins: 0.2 for weights, 0.0048 for biases and norms, times batch / 256."""
    objective = siamese()
    optim = LARS(lr=0.2, weight_decay=1e-6, rules={"biases": Rule(match="*", kind="excluded", lr=0.0048)})
    optimizer = optim(objective, 2048)
    optim.pace(optimizer, 0.5, 0.3)
    excluded = by_name(objective, LARS(lr=1.0))["excluded"]
    assert excluded
    for name, lr in rates(objective, optimizer).items():
        assert lr == pytest.approx(0.5 * 8 * (0.0048 if name in excluded else 0.2))
    assert [(g["name"], g["adapt"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("decayed", True, 1e-6),
        ("excluded/biases", False, 0.0),
    ]


def test_dinos_weight_decay_grows_on_the_decayed_parameters_alone():
    model = net()
    optim = AdamW(lr=1e-3, weight_decay=0.04, weight_decay_end=0.4, rules={"last": Rule(match="3.*", lr=0.1)})
    optimizer = optim(model, 256)
    for progress, wanted in ((0.0, 0.04), (0.25, 0.4 - 0.36 * (2 + math.sqrt(2)) / 4), (0.5, 0.22), (1.0, 0.4)):
        optim.pace(optimizer, 1.0, progress)
        found = {g["name"]: g["weight_decay"] for g in optimizer.param_groups}
        decayed = pytest.approx(wanted)
        assert found == {"decayed": decayed, "excluded": 0.0, "decayed/last": decayed, "excluded/last": 0.0}


def test_decay_of_each_layer_in_numbers():
    """MAE's finetuning: with 2 blocks the last has 0.65, the first 0.65^2, the stem 0.65^3."""
    objective = Supervised(encoder(), num_classes=3)
    optim = AdamW(lr=0.5, layer_decay=0.65, reference_batch=None)
    found = rates(objective, optim(objective, 256))
    assert set(found) == {n for n, _ in objective.named_parameters()}
    scales = {"backbone.blocks.1": 0.65, "backbone.blocks.0": 0.4225, "backbone.stem": 0.274625}
    scales |= {"backbone.norm": 1.0, "head": 1.0}
    for name, lr in found.items():
        (scale,) = [value for part, value in scales.items() if name.startswith(f"{part}.")]
        assert lr == pytest.approx(0.5 * scale), name
    first = optim(objective, 256).param_groups[0]
    assert (first["name"], first["lr"]) == ("decayed", 0.5)


def test_layers_of_a_timm_transformer():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.model = timm.create_model("test_vit", num_classes=0, img_size=32, reg_tokens=2)
            self.head = nn.Linear(2, 2)

    objective = Wrapped()
    depth = len(objective.backbone.model.blocks)
    found = rates(objective, AdamW(lr=1.0, layer_decay=0.5, reference_batch=None)(objective, 256))
    model = "backbone.model."
    for name in ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        assert found[model + name] == 0.5 ** (depth + 1)
    for n in range(depth):
        block = f"{model}blocks.{n}."
        assert found[block + "attn.qkv.weight"] == found[block + "norm1.bias"] == 0.5 ** (depth - n)
    assert found[model + "norm.weight"] == found["head.weight"] == 1.0
    objective.backbone = net()
    with pytest.raises(RequestError, match="Sequential has no row of blocks"):
        AdamW(lr=1.0, layer_decay=0.5)(objective, 256)


def test_every_trained_parameter_is_in_exactly_one_group_and_the_last_rule_decides():
    objective = siamese()
    rules = {
        "biases": Rule(match="*", kind="excluded", lr=0.01),
        "predictor": Rule(match="predictor.*", lr=0.3, scheduled=False),
        "patches": Rule(match="backbone.*proj*", frozen=True),
        "first": Rule(match="backbone.blocks.0.*", kind="decayed", lr=0.7),
    }
    objective.projector[0].weight.requires_grad_(False)
    proj = {n for n, _ in objective.backbone.named_parameters(prefix="backbone") if "proj" in n}
    assert proj
    optim = AdamW(lr=1.0, weight_decay=0.1, layer_decay=0.9, rules=rules, reference_batch=None)
    found = rates(objective, optim(objective, 256))
    assert set(found) == {n for n, _ in objective.named_parameters()} - proj - {"projector.0.weight"}
    for name, parameter in objective.named_parameters():
        if name in found:
            lr = 1.0 if parameter.ndim > 1 and not name.endswith("pos_embed") else 0.01
            lr = 0.3 if name.startswith("predictor.") else lr
            first = name.startswith("backbone.blocks.0.")
            lr = 0.7 if first and lr == 1.0 else lr
            lr *= 0.81 if first else 0.9 if name.startswith("backbone.blocks.1.") else 1
            lr *= 0.729 if name.startswith("backbone.stem.") else 1
            assert found[name] == pytest.approx(lr), name


@pytest.mark.parametrize("optim", [SGD, AdamW, LARS])
def test_a_frozen_parameter_keeps_every_bit(optim):
    objective = siamese()
    rule = Rule(match="backbone.stem.*", frozen=True)
    recipe = optim(lr=0.5, weight_decay=0.3, weight_decay_end=0.5, decay="all", rules={"patches": rule})
    before = {n: p.detach().clone() for n, p in objective.named_parameters()}
    steps_of(objective, recipe, recipe(objective, 256), range(1, 6), 6)
    moved = {n for n, p in objective.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if not n.startswith("backbone.stem.")}
    assert all(p.grad is None for n, p in objective.named_parameters() if n not in moved)


def test_a_resumed_run_with_rules_goes_on_bit_identically():
    rules = {
        "predictor": Rule(match="predictor.*", scheduled=False),
        "patches": Rule(match="backbone.stem.*", frozen=True),
    }
    optim = AdamW(lr=0.05, weight_decay=0.04, weight_decay_end=0.4, layer_decay=0.8, rules=rules)
    whole = siamese()
    optimizer = optim(whole, 256)
    steps_of(whole, optim, optimizer, range(3), 6)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    steps_of(whole, optim, optimizer, range(3, 6), 6)
    resumed = siamese()
    again = optim(resumed, 256)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    steps_of(resumed, optim, again, range(3, 6), 6)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"a": {"match": "predictr.*", "lr": 0.1}}, "optim.rules.a.match='predictr.*': .* did you mean 'predictor'"),
        ({"a": {"match": "backbone.norm.*", "kind": "decayed", "lr": 1.0}}, "no parameter that trains and is decayed"),
        ({"a": {"match": "still.*", "lr": 0.1}}, "no parameter that trains; there are: backbone, predictor, projector"),
        (
            {"a": {"match": "predictor.*", "lr": 0.1}, "b": {"match": "*", "scheduled": False}},
            "optim.rules.a: a later rule decides about all that it matches",
        ),
    ],
)
def test_a_rule_that_decides_about_nothing_is_refused(rules, words):
    objective = siamese()
    objective.still = nn.Linear(2, 2).requires_grad_(False)  # such as a teacher
    for refused in (SGD(lr=1.0, rules=rules).freeze, lambda m: SGD(lr=1.0, rules=rules)(m, 256)):
        with pytest.raises(RequestError, match=words):
            refused(objective)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"match": "p.*", "schedulled": False}, "x.schedulled: a rule has no such key; did you mean 'scheduled'?"),
        ({"match": "p.*"}, "changes nothing; say lr=... or scheduled=false, or else frozen=true"),
        ({"match": "p.*", "frozen": True, "lr": 0.1}, "freezes what it also gives a learning rate"),
        ({"lr": 0.1}, "ield required"),
        ({"match": "p.*", "lr": 0}, "must be greater than 0"),
        ({"match": "p.*", "kind": "decay", "lr": 1.0}, "must be 'decayed' or 'excluded'"),
        ({"match": "p.*", "scheduled": "no"}, "must be a boolean"),
        (3, "must be an object"),
    ],
)
def test_a_wrong_rule_is_a_fault_of_the_config(rule, words):
    node = {**OmegaConf.to_container(OmegaConf.load(CONF / "optim" / "sgd.yaml")), "rules": {"x": rule}}
    with pytest.raises(RequestError) as error:
        check({"optim": node})
    fault = next(line for line in str(error.value).splitlines() if "optim.rules" in line)
    assert words in fault


def test_rules_come_from_yaml_as_plain_mappings():
    rules = "{predictor: {match: 'predictor.*', scheduled: false}}"
    node = OmegaConf.create(f"{{_target_: ssl_runner.optim.recipe.SGD, lr: 0.05, rules: {rules}}}")
    assert instantiate(node, _convert_="all").rules == {"predictor": Rule(match="predictor.*", scheduled=False)}


# -- configs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optim", "key", "value"),
    [
        (SGD, "lr", 0.0),
        (SGD, "lr", -1.0),
        (SGD, "lr", float("nan")),
        (SGD, "weight_decay", -0.1),
        (SGD, "momentum", 1.0),
        (SGD, "reference_batch", 0),
        (SGD, "weight_decay_end", -0.1),
        (SGD, "layer_decay", 0.0),
        (SGD, "layer_decay", 1.1),
        (SGD, "decay", "none"),
        (AdamW, "betas", [0.9, 1.0]),
        (AdamW, "betas", [0.9]),
        (AdamW, "eps", 0.0),
        (LARS, "trust", 0.0),
        (Step, "milestones", [0.5, 1.5]),
        (Step, "gamma", 0.0),
        (Cosine, "end", 1.1),
        (Cosine, "warmup", "ten epochs"),
    ],
)
def test_annotations_refuse_what_makes_no_sense(optim, key, value):
    hint = get_type_hints(optim.__init__, include_extras=True)[key]
    with pytest.raises(ValidationError):
        TypeAdapter(hint).validate_python(value)


@pytest.mark.parametrize("path", sorted((CONF / "optim").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_build_an_optimiser(path):
    optim = instantiate(OmegaConf.load(path), _convert_="all")
    train(net(), optim(net(), 256), 1)


@pytest.mark.parametrize("path", sorted((CONF / "schedule").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_build_a_schedule(path):
    schedule = instantiate(OmegaConf.load(path), _convert_="all")
    assert schedule(0.5, 0.5) == pytest.approx(1.0)


# -- schedules -------------------------------------------------------------------------------------------

shares = st.floats(0, 1)
schedules = st.one_of(
    st.builds(Cosine, end=shares),
    st.just(Constant()),
    st.builds(Step, milestones=st.lists(shares, max_size=4).map(tuple), gamma=st.floats(0.01, 1)),
)


@given(schedule=schedules, warmup=shares, points=st.lists(shares, min_size=2, max_size=20).map(sorted))
def test_schedule_stays_in_bounds_and_moves_one_way(schedule: Schedule, warmup, points):
    factors = [schedule(p, warmup) for p in points]
    assert all(0 <= f <= 1 for f in factors)
    warm = [f for p, f in zip(points, factors, strict=True) if p >= warmup]
    assert all(a >= b - 1e-12 for a, b in pairwise(warm))
    if not isinstance(schedule, Step):
        cold = [f for p, f in zip(points, factors, strict=True) if p < warmup]
        assert all(a <= b for a, b in pairwise(cold))


@given(schedule=st.one_of(st.builds(Cosine, end=shares), st.just(Constant())), warmup=shares, at=shares)
def test_schedule_is_continuous(schedule: Schedule, warmup, at):
    near = 1e-7
    slope = max(1 / warmup if warmup > 0 else 0, 1.6 / (1 - warmup) if warmup < 1 else 0)
    a, b = max(0.0, at - near), min(1.0, at + near)
    assert abs(schedule(a, warmup) - schedule(b, warmup)) <= min(1.0, slope * (b - a)) + 1e-9


@given(warmup=shares, end=shares)
def test_schedule_is_exact_at_its_ends(warmup, end):
    cosine = Cosine(end=end)
    assert cosine(warmup, warmup) == 1.0
    assert cosine(1.0, warmup) == (end if warmup < 1 else 1.0)
    assert Constant()(1.0, warmup) == Constant()(warmup, warmup) == 1.0
    for schedule in (cosine, Constant(), Step(milestones=(0.5,))):
        assert schedule(0.0, warmup) == (0.0 if warmup > 0 else 1.0)


def test_schedule_values():
    assert Cosine()(0.55, 0.1) == pytest.approx(0.5)
    assert Cosine(end=0.2)(0.55, 0.1) == pytest.approx(0.6)
    assert Cosine()(0.1 + 0.9 / 3, 0.1) == pytest.approx(0.75)
    assert Cosine()(0.025, 0.1) == pytest.approx(0.25)
    moco = Step()
    steps = [moco(epoch / 200, 0.0) for epoch in (0, 119, 120, 159, 160, 200)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert moco(0.05, 0.1) == pytest.approx(0.5)
    assert Step(milestones=(0.05,))(0.05, 0.1) == pytest.approx(0.05)


def test_schedule_agrees_with_torchs_cosine():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.1)
    for step in range(51):
        assert Cosine(end=0.1)(step / 50, 0.0) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
