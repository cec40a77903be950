"""Sentence embeddings: how they are scored by pairs, what dropout alone tells apart, and ids in another order."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Discrete
from ssl_runner.config import plain
from ssl_runner.data import DataModule
from ssl_runner.datasets.base import Source
from ssl_runner.datasets.fake import Fake
from ssl_runner.datasets.text_pairs import TextPairs
from ssl_runner.errors import RunError
from ssl_runner.evaluators.similarity import Similarity, correlation, ranks
from ssl_runner.objectives.simclr import nt_xent
from ssl_runner.types import Embed, View
from ssl_runner.views.base import Branch, Views
from ssl_runner.views.words import ShuffleIds

Call = Callable[..., tuple[int, str, str]]

# --- the figures ------------------------------------------------------------------------------------------------


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-2, 2)), min_size=1, max_size=30))
def test_rank_correlation_is_as_scipy_has_it(pairs: list[tuple[int, int]]) -> None:
    from scipy import stats

    x, y = (torch.tensor(each).double() for each in zip(*pairs, strict=True))
    assert ranks(x).tolist() == stats.rankdata(x.numpy()).tolist()
    found = correlation(ranks(x), ranks(y))
    if len(x.unique()) == 1 or len(y.unique()) == 1:
        assert found == 0.0
    else:
        assert found == pytest.approx(stats.spearmanr(x.numpy(), y.numpy()).statistic)
        assert correlation(x, y) == pytest.approx(stats.pearsonr(x.numpy(), y.numpy()).statistic)


def sts(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("sentence1", "sentence2", "score"), *rows])
    return path


def module(source: TextPairs, last: dict[str, torch.nn.Module] | None = None) -> DataModule:
    views = Views(branches={"plain": Branch(transforms={})}, last=last)  # type: ignore[arg-type]
    return DataModule(source, views, split="train", plain_val=True, per_rank=2, batches=0, seed=0)


ROWS = [(f"{'a' * n}{'b' * (7 - n)}", "a" * 7, float(n**3)) for n in range(7)]


def angle(view: View) -> Tensor:
    """Sentences of a and b on the unit circle, ever nearer to (0, 1) the more of them is a."""
    share = (view["x"] == 3 + ord("a")).sum(1) / 7
    return torch.stack([torch.cos(share * math.pi / 2), torch.sin(share * math.pi / 2)], 1)


def test_a_pair_is_as_alike_as_the_cosine_of_its_embeddings(tmp_path: Path) -> None:
    """Every pair counts once, with its own second sentence, in as many batches as there are."""
    rows = ROWS * 100  # more than a batch
    source = TextPairs(root=str(sts(tmp_path / "a.csv", rows)), tokenizer="bytes", length=9)
    figures = Similarity()(Embed(angle), module(source))
    assert figures["spearman"] == pytest.approx(1.0)
    cosine = torch.tensor([math.cos((1 - n / 7) * math.pi / 2) for n in range(7)] * 100)
    assert figures["pearson"] == pytest.approx(correlation(cosine, torch.tensor([row[2] for row in rows])))
    assert figures["pearson"] < 0.97, "the scores do not grow with the cosine, but with its order"


def test_both_sentences_are_seen_as_evaluation_sees_samples(tmp_path: Path) -> None:
    class Swap(torch.nn.Module):
        def forward(self, view: View) -> View:
            return {**view, "x": torch.where(view["x"] == 3 + ord("a"), 3 + ord("b"), view["x"])}

    source = TextPairs(root=str(sts(tmp_path / "a.csv", ROWS)), tokenizer="bytes", length=9)
    seen: list[Tensor] = []
    Similarity()(Embed(lambda view: seen.append(view["x"]) or angle(view)), module(source, {"swap": Swap()}))
    assert len(seen) == 2
    assert not any((x == 3 + ord("a")).any() for x in seen)


def test_the_order_of_a_test_part_is_of_all_of_it(tmp_path: Path) -> None:
    """Two batches, each in order within itself but one far above the other, are not in order together."""
    rows = [("a" * n + "b" * (7 - n), "a" * 7, float(n + 100 * (n < 3))) for n in range(7) for _ in range(100)]
    source = TextPairs(root=str(sts(tmp_path / "a.csv", rows)), tokenizer="bytes", length=9)
    found = Similarity()(Embed(angle), module(source))["spearman"]
    from scipy import stats

    assert found == pytest.approx(
        stats.spearmanr(list(range(7)) * 100, [n + 100 * (n < 3) for n in range(7)] * 100).statistic
    )


def test_what_is_not_finite_has_no_correlation(tmp_path: Path) -> None:
    source = TextPairs(root=str(sts(tmp_path / "a.csv", ROWS)), tokenizer="bytes", length=9)
    with pytest.raises(RunError, match="7 of 7 pairs"):
        Similarity()(Embed(lambda view: angle(view) * math.nan), module(source))


def test_what_is_no_pairs_is_refused_and_pairs_are_not(tmp_path: Path) -> None:
    source = TextPairs(root=str(sts(tmp_path / "a.csv", ROWS)), tokenizer="bytes", length=9)
    assert Similarity().refusal(source) is None
    assert "data=text_pairs" in str(Similarity().refusal(Fake()))
    table = Source()
    table.valued = True
    assert "data=text_pairs" in str(Similarity().refusal(table)), "values alone are no pairs"


# --- SimCSE -----------------------------------------------------------------------------------------------------


def encoder(dropout: float) -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Discrete(vocab=30, length=8, dim=16), depth=2, heads=2, dropout=dropout)


def sentences(n: int = 6) -> View:
    x = torch.randint(3, 30, (n, 8), generator=torch.Generator().manual_seed(1))
    pad = torch.arange(8) >= 8 - torch.arange(n)[:, None] % 4
    return {"x": x.masked_fill(pad, 0), "pad": pad}


def two_ids() -> Views:
    import ssl_runner.build as build

    return build.make(yaml.safe_load((Path(__file__).parent.parent / "conf/views/two_ids.yaml").read_text()))


def test_two_copies_of_the_same_ids_meet_other_dropout() -> None:
    """The views are the same; the two passes are not, nor are two sentences' masks in one pass."""
    one = sentences()
    views = two_ids()({"inputs": [one], "index": torch.arange(6)})
    assert len(views) == 2
    assert all(torch.equal(view["x"], one["x"]) and torch.equal(view["pad"], one["pad"]) for view in views)
    backbone = encoder(0.1)
    torch.manual_seed(0)
    a, b = (backbone(**view) for view in views)
    assert not torch.isclose(a, b).all(1).any(), "every sentence has another mask"
    twin = {name: values[:1].expand(2, -1) for name, values in one.items()}
    first, second = backbone(**twin)
    assert not torch.isclose(first, second).all()
    backbone.eval()
    assert torch.equal(*(backbone(**view) for view in views))


def test_without_dropout_nothing_is_to_be_learned_from_two_copies() -> None:
    backbone = encoder(0.0)
    a, b = (backbone(**view) for view in two_ids()({"inputs": [sentences()], "index": torch.arange(6)}))
    assert torch.equal(a, b)


def cosine(x: Tensor, y: Tensor) -> float:
    dot = sum(float(p) * float(q) for p, q in zip(x, y, strict=True))
    return dot / math.sqrt(sum(float(p) ** 2 for p in x)) / math.sqrt(sum(float(q) ** 2 for q in y))


def test_simclrs_loss_is_simcses_with_the_own_sides_sentences_among_the_negatives() -> None:
    """SimCSE: -log exp(sim(h_i, h'_i) / t) / sum_j exp(sim(h_i, h'_j) / t), over the other pass of all sentences.

    SimCLR's sum also runs over h_j of the same pass, j != i, and its mean over the sentences of both passes.
    """
    torch.manual_seed(0)
    h, other, t, n = torch.randn(5, 8), torch.randn(5, 8), 0.05, 5

    def simcse(h: Tensor, other: Tensor, own: bool) -> float:
        total = 0.0
        for i in range(n):
            across = [math.exp(cosine(h[i], other[j]) / t) for j in range(n)]
            within = [math.exp(cosine(h[i], h[j]) / t) for j in range(n) if j != i]
            total -= math.log(across[i] / (sum(across) + (sum(within) if own else 0.0)))
        return total / n

    found = nt_xent(h, other, t).item()
    assert found == pytest.approx((simcse(h, other, True) + simcse(other, h, True)) / 2, rel=1e-5)
    assert found > (simcse(h, other, False) + simcse(other, h, False)) / 2, "it is no less strict"


@pytest.mark.parametrize("name", ["simcse", "simcse_wikipedia"])
def test_the_recipes_have_nothing_but_dropout_to_tell_two_passes_apart(name: str) -> None:
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        config = plain(compose("pretrain", [f"+task={name}"]))
    assert config["objective"]["_target_"].endswith(".SimCSE")
    assert [(each["copies"], each["transforms"]) for each in config["views"]["branches"].values()] == [(2, {})]
    if name != "simcse_wikipedia":  # there it is BERT's own, which is 0.1
        assert config["backbone"]["dropout"] > 0


def test_a_run_is_scored_by_pairs_in_its_own_ids(ssl_run: Call, tmp_path: Path) -> None:
    text = [f"{word} {other} and {word}" for word in ("cats", "dogs", "hats") for other in ("big", "small", "old")]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "all.txt").write_text("\n".join(text * 6))
    data = ["data=text", "data.root=text", "data.cache=cache", "data.val=0", "data.test=0", "data.length=16"]
    data += ["data.tokenizer=wordpiece", "data.vocab_size=60", "data.pretrain=lines", "evaluators=none"]
    small = ["backbone.depth=1", "backbone.heads=2", "backbone.stem.dim=16", "batch_size=8", "duration=4 steps"]
    small += ["precision=32", "hydra.run.dir=r"]
    code, _, err = ssl_run("pretrain", "+task=simcse", *data, *small)
    assert code == 0, err
    tokenizer = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["data"]["tokenizer"]
    assert Path(tokenizer).is_file()

    sts(tmp_path / "sts.csv", [("big cats", "old cats", 3), ("big cats", "small hats", 1), ("dogs", "dogs", 5)])
    call = ["evaluate", "from=r", "data=text_pairs", "data.root=sts.csv", "evaluators=similarity", "hydra.run.dir=e"]
    code, _, err = ssl_run(*call, "data.length=16")
    assert code == 2
    assert "data.tokenizer: must be given" in err
    code, _, err = ssl_run(*call, "data.length=16", "data.tokenizer=bytes")
    assert code == 2
    assert "vocab" in err, "other ids are not taken for the run's"
    code, _, err = ssl_run(*call, "data.length=16", f"data.tokenizer={tokenizer}")
    assert code == 0, err
    scores = json.loads((tmp_path / "e" / "metrics.json").read_text())
    for suffix in ("", "/untrained", "/raw"):
        assert -1 <= scores[f"similarity/spearman{suffix}"] <= 1
    assert scores["similarity/spearman/raw"] == pytest.approx(1.0), "shared words are in the order of the scores"

    code, _, err = ssl_run("evaluate", "from=r", "evaluators=similarity", "hydra.run.dir=f")
    assert code == 2
    assert "evaluators.similarity: needs pairs" in err


# --- ids in another order -----------------------------------------------------------------------------------------

PAD, END, MASK = 0, 1, 2


@settings(max_examples=60, derandomize=True)
@given(
    ids=st.lists(st.lists(st.integers(1, 9), min_size=9, max_size=9), min_size=1, max_size=4),
    reach=st.integers(1, 4),
    padding=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_ids_move_within_reach_and_document_and_the_rest_stays(
    ids: list[list[int]], reach: int, padding: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.tensor(ids)
    pad = (torch.arange(9) >= 9 - padding).expand_as(x)
    # what moves is given a number of its own, to be known again
    told = torch.where((x > MASK) & ~pad, 100 + torch.arange(x.numel()).view_as(x), x).masked_fill(pad, PAD)
    view = ShuffleIds(special=(PAD, MASK), separator=END, reach=reach)({"x": told, "pad": pad})
    assert torch.equal(view["pad"], pad)
    for before, after in zip(told.tolist(), view["x"].tolist(), strict=True):
        assert sorted(before) == sorted(after)
        movers = [n for n, each in enumerate(before) if each >= 100]
        assert [n for n, each in enumerate(after) if each >= 100] == movers, "what stays, stays where it is"
        assert all(a == b for a, b in zip(before, after, strict=True) if b < 100)
        for here, place in enumerate(movers):
            came = before.index(after[place])
            assert abs(movers.index(came) - here) <= reach
            assert before[:came].count(END) == before[:place].count(END), "no id moves into another document"


def test_all_orders_within_reach_come_and_samples_differ() -> None:
    torch.manual_seed(0)
    x = torch.tensor([3, 4, 5]).expand(4000, 3)
    shuffle = ShuffleIds(special=(PAD,), separator=None, reach=1)
    after = shuffle({"x": x})
    assert set(after) == {"x"}
    orders = {tuple(row) for row in after["x"].tolist()}
    assert orders == {(3, 4, 5), (4, 3, 5), (3, 5, 4)}
    # sorted by i + u with u in [0, 2): two neighbours change places when their u differ by more than 1
    assert (after["x"][:, 0] == 4).float().mean() == pytest.approx(1 / 8, abs=0.04)
