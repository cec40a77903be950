"""TS2Vec, TS-TCC, forecasting and anomalies against what their papers say, written out in loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_runner.backbones.dilated import DilatedCNN
from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous
from ssl_runner.errors import RequestError, RunError
from ssl_runner.evaluators.anomaly import Anomaly, figures, nearest
from ssl_runner.objectives import ts_tcc
from ssl_runner.objectives.forecast import Forecast, naive
from ssl_runner.objectives.ts2vec import TS2Vec, draw_crops, hierarchical, instance_loss, pooled, shared, temporal_loss
from ssl_runner.objectives.ts_tcc import TSTCC
from ssl_runner.types import Embed


def dilated(**choices: Any) -> DilatedCNN:
    return DilatedCNN(**{"shape": (2, 16), "dim": 8, "hidden": 6, "depth": 2, **choices})


# --- the dilated convolutions -----------------------------------------------------------------------------------


def test_a_moment_sees_as_far_as_the_dilations_reach() -> None:
    """Three blocks of two convolutions with dilations 1, 2, 4: 2 (1 + 2 + 4) = 14 to each side."""
    torch.manual_seed(0)
    backbone = dilated(shape=(1, 41))
    x = torch.randn(1, 1, 41, requires_grad=True)
    tokens = backbone.encode(backbone.embed(backbone.patchify(x)))
    (grad,) = torch.autograd.grad(tokens[0, 20].sum(), x)
    assert grad[0, 0].nonzero()[:, 0].tolist() == [*range(6, 35)]
    causal = backbone.encode(backbone.embed(backbone.patchify(x)), causal=True)
    (grad,) = torch.autograd.grad(causal[0, 35].sum(), x)
    assert grad[0, 0].nonzero()[:, 0].tolist() == [*range(7, 36)]


def test_the_embedding_is_the_largest_value_over_time_and_ignores_padding() -> None:
    torch.manual_seed(0)
    backbone = dilated()
    x = torch.randn(3, 2, 16)
    tokens = backbone.encode(backbone.embed(backbone.patchify(x)))
    torch.testing.assert_close(backbone(x), tokens.amax(1))
    pad = torch.arange(16).expand(3, -1) >= torch.tensor([[10], [16], [0]])
    filled = backbone(x.masked_fill(pad[:, None], 9.0), pad)
    torch.testing.assert_close(filled, backbone(x.masked_fill(pad[:, None], -3.0), pad))
    torch.testing.assert_close(filled[0], backbone(x[:1, :, :10])[0])
    assert filled[2].eq(0).all()
    assert backbone.unpatchify(backbone.patchify(x)).equal(x)


def test_dilated_convolutions_refuse_what_they_can_not_do() -> None:
    with pytest.raises(RequestError, match="can't keep parts"):
        dilated().encode(torch.zeros(1, 4, 6), part=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(RequestError, match="channels, places"):
        DilatedCNN(shape=(3, 8, 8))
    with pytest.raises(RequestError, match="2 channels"):
        dilated()(torch.zeros(1, 3, 16))


# --- TS2Vec -----------------------------------------------------------------------------------------------------


def ts2vec_by_hand(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Equations 1 and 2 and Algorithm 1, number by number: the mean over scales of the instance-wise and the temporal
    loss, each the mean over samples, moments and both directions."""
    instance: list[float] = []
    temporal: list[float] = []
    while True:
        n, length = a.shape[:2]
        told_instance, told_temporal = [], []
        for one, other in ((a, b), (b, a)):
            for i in range(n):
                for t in range(length):
                    r, positive = one[i, t], float(one[i, t] @ other[i, t])
                    against = [float(r @ other[j, t]) for j in range(n)]
                    against += [float(r @ one[j, t]) for j in range(n) if j != i]
                    told_instance.append(math.log(sum(map(math.exp, against))) - positive)
                    against = [float(r @ other[i, s]) for s in range(length)]
                    against += [float(r @ one[i, s]) for s in range(length) if s != t]
                    told_temporal.append(math.log(sum(map(math.exp, against))) - positive)
        instance.append(sum(told_instance) / len(told_instance))
        temporal.append(sum(told_temporal) / len(told_temporal) if length > 1 else 0.0)
        if length == 1:
            return sum(instance) / len(instance), sum(temporal) / len(temporal)
        a, b = (torch.stack([x[:, 2 * t : 2 * t + 2].amax(1) for t in range(length // 2)], 1) for x in (a, b))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_ts2vecs_loss_is_the_papers(length: int) -> None:
    torch.manual_seed(length)
    a, b = torch.randn(3, length, 4), torch.randn(3, length, 4)
    instance, temporal = hierarchical(a, b)
    expected = ts2vec_by_hand(a, b)
    assert (instance.item(), temporal.item()) == pytest.approx(expected, rel=1e-5)


def test_ts2vec_leaves_padding_out() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[:, 4:] = False
    for loss in (instance_loss, temporal_loss):
        whole = loss(a[:, :4], b[:, :4], valid[:, :4])
        a[:, 4:], b[:, 4:] = 50.0, -50.0
        torch.testing.assert_close(loss(a, b, valid), whole)
    uneven = valid.clone()
    uneven[1] = False
    alone = instance_loss(a, b, uneven)
    assert alone.item() == pytest.approx(0, abs=1e-5), "a sample that is alone has no negatives"
    assert all(term.isfinite() for term in hierarchical(a, b, torch.zeros_like(valid)))
    x, kept = torch.full((1, 4, 2), -7.0), torch.tensor([[True, False, False, False]])
    assert pooled(x, kept).tolist() == [[[-7, -7], [0, 0]]]


def test_crops_overlap_and_stay_inside() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([draw_crops(12, 2) for _ in range(2000)])
    assert drawn.sum(1).max() == 12
    assert drawn[:, 1].unique().tolist() == [*range(2, 13)]
    assert drawn[:, [0, 2]].amax(0).tolist() == [10, 10]
    assert (drawn >= 0).all()


def test_both_crops_see_the_same_moments() -> None:
    """With a backbone that gives back its tokens, each sample's overlap is the same in both crops."""
    seen: list[Tensor] = []

    class Same(DilatedCNN):
        def encode(
            self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
        ) -> Tensor:
            seen.append(tokens)
            return tokens

    backbone = Same(shape=(1, 16), dim=1, hidden=1, depth=1)
    torch.nn.init.ones_(backbone.project.weight)
    torch.nn.init.zeros_(backbone.project.bias)
    objective = TS2Vec(backbone, masked=0.0)
    x = torch.arange(16.0).expand(64, 1, 16)
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        seen.clear()
        left, overlap, right = draw_crops(16, 2).tolist()
        torch.manual_seed(seed)
        objective({"views": [{"x": x}]})
        first, second = seen
        assert first.shape[1:] == (left + overlap, 1)
        assert second.shape[1:] == (overlap + right, 1)
        assert first[:, left:].equal(second[:, :overlap])
        assert (first.diff(dim=1) == 1).all()
        starts |= set(first[:, 0, 0].tolist())
    assert len(starts) > 8, "crops lie at other places in other samples"


def draw_on(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    drawn = [shared(draw_crops(40, 2), torch.device("cpu")) for _ in range(5)]
    torch.save(drawn, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_that_draw_differently_crop_alike(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(draw_on, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one == two
    torch.manual_seed(1)
    assert draw_crops(40, 2).tolist() != one[0]


def test_ts2vec_masks_about_half_of_the_tokens_in_each_crop() -> None:
    torch.manual_seed(0)
    objective = TS2Vec(dilated(shape=(1, 400), hidden=1))
    taken: list[Tensor] = []
    objective.backbone.encode = lambda tokens, pad=None: taken.append(tokens) or tokens  # type: ignore[assignment]
    objective.crop(torch.ones(4, 400, 1), None, torch.zeros(4, 1, dtype=torch.int64), 400)
    assert 0.45 < taken[0].eq(0).float().mean() < 0.55
    assert not taken[0][0].equal(taken[0][1])


# --- TS-TCC -----------------------------------------------------------------------------------------------------


def test_ts_tccs_temporal_loss_is_the_papers() -> None:
    torch.manual_seed(0)
    told, behind = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    present = torch.ones(4, 3, dtype=torch.bool)
    present[1, 2] = present[3, 0] = False
    terms = []
    for k in range(3):
        for i in range(4):
            if present[i, k]:
                against = [float(told[i, k] @ behind[j, k]) for j in range(4) if present[j, k]]
                terms.append(math.log(sum(map(math.exp, against))) - float(told[i, k] @ behind[i, k]))
    assert ts_tcc.temporal_loss(told, behind, present).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_ts_tcc_sums_up_nothing_behind_the_moment() -> None:
    torch.manual_seed(0)
    objective = TSTCC(dilated(), shape=(2, 16), dim=8, depth=2, heads=2).eval()
    tokens, present = torch.randn(3, 16, 8), torch.ones(3, 16, dtype=torch.bool)
    moment = torch.tensor([3, 7, 9])
    before = objective.sum_up(tokens, present, moment)
    later = torch.arange(16) > moment[:, None]
    torch.testing.assert_close(objective.sum_up(tokens.masked_fill(later[..., None], 7.0), present, moment), before)
    tokens[0, 3] += 1
    assert not torch.allclose(objective.sum_up(tokens, present, moment)[0], before[0])
    assert objective.steps == 6


def test_ts_tcc_tells_the_other_views_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """One temporal term has what is told of the strong view and the weak view's tokens, the other the reverse."""
    torch.manual_seed(0)
    objective = TSTCC(dilated(), shape=(2, 16), dim=8, depth=1, heads=2)
    weak, strong = torch.randn(4, 2, 16), torch.randn(4, 2, 16)
    contexts: list[Tensor] = []
    moments: list[Tensor] = []
    told: list[tuple[Tensor, Tensor]] = []
    sum_up, temporal_loss = objective.sum_up, ts_tcc.temporal_loss

    def summed(tokens: Tensor, present: Tensor, moment: Tensor) -> Tensor:
        contexts.append(sum_up(tokens, present, moment))
        moments.append(moment)
        return contexts[-1]

    def noted(predicted: Tensor, behind: Tensor, present: Tensor) -> Tensor:
        told.append((predicted, behind))
        return temporal_loss(predicted, behind, present)

    monkeypatch.setattr(objective, "sum_up", summed)
    monkeypatch.setattr(ts_tcc, "temporal_loss", noted)
    loss = objective({"views": [{"x": weak}, {"x": strong}]})
    tokens = [objective.backbone.tokens(x) for x in (weak, strong)]
    assert moments[0].equal(moments[1])
    assert moments[0].max() + objective.steps < 16
    for (predicted, behind), own, other in zip(told, (0, 1), (1, 0), strict=True):
        torch.testing.assert_close(predicted, objective.predictors(contexts[other]).view(4, 6, 8))
        for i, moment in enumerate(moments[0].tolist()):
            torch.testing.assert_close(behind[i], tokens[own][i, moment + 1 : moment + 7])
    assert loss.value.item() == pytest.approx(loss.log["temporal"].item() + 0.7 * loss.log["contextual"].item())


def test_ts_tcc_says_which_heads_do_not_fit() -> None:
    with pytest.raises(RequestError, match="does not divide"):
        TSTCC(dilated(), shape=(2, 16), dim=9, heads=2)


# --- forecasting ------------------------------------------------------------------------------------------------


def encoder() -> Encoder:
    return Encoder(stem=Continuous(shape=(2, 8), block=(2,), dim=8), depth=1, heads=2)


def test_baselines_say_the_last_value_or_season_again() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert naive(x, 3, 1).tolist() == [[[4, 4, 4]]]
    assert naive(x, 5, 2).tolist() == [[[3, 4, 3, 4, 3]]]


def test_forecasts_are_scored_beside_the_baselines_in_units_of_the_training_part() -> None:
    torch.manual_seed(0)
    objective = Forecast(encoder(), shape=(2, 8), horizon=3, mean=(1.0, 2.0), std=(2.0, 4.0), season=2).eval()
    x = torch.randn(5, 2, 8)
    target = torch.randn(5, 2, 3)
    target[0, 0, 0] = float("nan")
    batches = [{"views": [{"x": x[a:b]}], "target": target[a:b]} for a, b in ((0, 2), (2, 5))]
    with torch.no_grad():
        found = objective.scores(batches)  # type: ignore[arg-type]
        predicted = objective.predict({"x": x})
    wanted = (target - torch.tensor([1.0, 2.0])[:, None]) / torch.tensor([2.0, 4.0])[:, None]
    for name, told in (("", predicted), ("_naive", naive(x, 3, 1)), ("_seasonal", naive(x, 3, 2))):
        off = [float(o) for o in (told - wanted).flatten() if not o.isnan()]
        assert len(off) == 29
        assert found[f"mse{name}"] == pytest.approx(sum(o * o for o in off) / 29, rel=1e-5)
        assert found[f"mae{name}"] == pytest.approx(sum(map(abs, off)) / 29, rel=1e-5)
    loss = objective({"views": [{"x": x}], "target": target}).value
    assert loss.item() == pytest.approx(found["mse"], rel=1e-5)


def test_a_relative_forecast_follows_a_shift_of_the_series() -> None:
    torch.manual_seed(0)
    objective = Forecast(encoder(), shape=(2, 8), horizon=3, mean=(0.0,) * 2, std=(1.0,) * 2).eval()
    torch.nn.init.zeros_(objective.head.weight)
    torch.nn.init.zeros_(objective.head.bias)
    x = torch.randn(2, 2, 8)
    assert objective.predict({"x": x}).equal(naive(x, 3, 1))
    with pytest.raises(RequestError, match="season=9"):
        Forecast(encoder(), shape=(2, 8), horizon=3, mean=(0.0,) * 2, std=(1.0,) * 2, season=9)


def test_a_frozen_backbone_gets_no_gradient() -> None:
    objective = Forecast(encoder(), shape=(2, 8), horizon=3, mean=(0.0,) * 2, std=(1.0,) * 2, freeze=True).train()
    assert not objective.backbone.training
    assert [n for n, p in objective.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def waves(path: Path, rows: int) -> str:
    noise = np.random.RandomState(0).randn(rows) * 0.05
    lines = [f"{n},{math.sin(n * 0.5) + noise[n]:.4f},{math.cos(n * 0.5):.4f}" for n in range(rows)]
    path.write_text("\n".join(["t,a,b", *lines]))
    return str(path)


def test_a_long_table_is_pretrained_on_and_then_forecast(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    root = waves(tmp_path / "waves.csv", 400)
    code, _, err = ssl_run(
        "pretrain",
        "data=series",
        f"data.root={root}",
        "data.time=t",
        "data.window=20",
        "data.stride=2",
        "data.horizon=4",
        "views=series",
        "backbone=encoder_series",
        "backbone.depth=1",
        "backbone.stem.dim=16",
        "backbone.stem.block=[4]",
        "objective=mae",
        "objective.dim=16",
        "objective.depth=1",
        "objective.heads=2",
        "objective.normalise=false",
        "evaluators=none",
        "batch_size=32",
        "duration=6 steps",
        "precision=32",
        "hydra.run.dir=r",
    )
    assert code == 0, err
    assert list((tmp_path / "r").rglob("*.csv"))
    code, _, err = ssl_run(
        *("finetune", "from=r", "objective=forecast", "objective.season=13", "duration=60 steps", "batch_size=32"),
        *("optim.lr=0.02", "precision=32", "hydra.run.dir=f"),
    )
    assert code == 0, err
    scores = json.loads((tmp_path / "f" / "metrics.json").read_text())
    assert scores["finetune/mse"] < 0.5 * scores["finetune/mse_naive"]
    assert {"finetune/mae", "finetune/mae_naive", "finetune/mse_seasonal"} <= set(scores)


def test_forecasting_without_a_horizon_is_a_wrong_request(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    root = waves(tmp_path / "waves.csv", 100)
    code, _, err = ssl_run(
        *("finetune", "from=null", "objective=forecast", "data=series", f"data.root={root}", "data.window=10"),
        *("views=series", "backbone=dilated"),
    )
    assert code == 2
    assert "objective.horizon: Forecast needs it" in err


# --- anomalies --------------------------------------------------------------------------------------------------


def test_auroc_and_average_precision_pair_by_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    distance = torch.randint(8, (40,), generator=generator).float()  # with equals
    odd = torch.rand(40, generator=generator) < 0.3
    won = [float(a > b) + 0.5 * float(a == b) for a in distance[odd] for b in distance[~odd]]
    found = figures(distance, odd)
    assert found["auroc"] == pytest.approx(sum(won) / len(won))
    precision, hits = 0.0, 0
    for value in sorted(set(distance.tolist()), reverse=True):
        here = int(odd[distance == value].sum())
        hits += here
        precision += here / int(odd.sum()) * hits / int((distance >= value).sum())
    assert found["average_precision"] == pytest.approx(precision)
    with pytest.raises(RunError, match="0 of the 40"):
        figures(distance, torch.zeros_like(odd))


def test_the_distance_is_the_mean_of_the_nearest() -> None:
    bank = torch.tensor([[0.0], [1.0], [5.0]])
    assert nearest(torch.tensor([[0.0], [9.0]]), bank, 2).tolist() == [0.5, 6.0]
    assert nearest(torch.tensor([[0.0]]), bank, 9).tolist() == [2.0]


def test_anomalies_are_found_without_reading_training_labels() -> None:
    torch.manual_seed(0)
    bank, query = torch.randn(60, 3), torch.randn(30, 3)
    odd = torch.arange(30) % 5 == 0
    query[odd] += 6
    parts = {"train": (bank, torch.zeros(60)), "test": (query, odd.long())}
    data = SimpleNamespace(features=lambda _, part: parts[part])
    assert Anomaly()(Embed(lambda view: view["x"]), data)["auroc"] == 1.0
    assert "two classes" in str(Anomaly().refusal(SimpleNamespace(classes=("a", "b", "c"))))
    assert Anomaly().refusal(SimpleNamespace(classes=("normal", "anomaly"))) is None
