"""data2vec and iBOT: losses against the papers' equations in loops, and what student and teacher may see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.errors import RequestError
from ssl_runner.objectives import data2vec, ibot
from ssl_runner.objectives.data2vec import Data2Vec
from ssl_runner.objectives.ibot import IBOT
from ssl_runner.parts import distillation
from ssl_runner.parts.masking import block_mask
from ssl_runner.types import Batch, TokenBackbone


def series(dropout: float = 0.0) -> Encoder:
    return Encoder(stem=Continuous(shape=(2, 24), block=(4,), dim=8), depth=2, heads=2, dropout=dropout)


def words() -> Encoder:
    return Encoder(stem=Discrete(vocab=9, length=6, dim=8), depth=1, heads=2)


# -- masks in blocks -----------------------------------------------------------------------------------------


@given(
    grid=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_block_masks_hide_each_rows_share(grid: list[int], shares: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    length, share = math.prod(grid), torch.tensor(shares)
    mask = block_mask(share, tuple(grid))
    assert mask.shape == (len(shares), length)
    assert mask.sum(1).tolist() == (share * length).round().int().tolist()


def test_a_small_block_mask_is_one_box() -> None:
    """A box has at least a twelfth of the tokens, so that less than that is cut from a single one, row by row."""
    torch.manual_seed(0)
    for mask in block_mask(torch.full((50,), 0.06), (12, 12)).view(50, 12, 12):
        rows, columns = mask.nonzero().unbind(1)
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert int(mask.sum()) == 9
        assert height * width - 9 < width  # only the last row is cut


# -- data2vec ------------------------------------------------------------------------------------------------


def test_data2vec_regression_is_smooth_l1_on_hidden_tokens() -> None:
    torch.manual_seed(0)
    y, f, beta = 2 * torch.randn(3, 5, 4), torch.randn(3, 5, 4), 0.7
    hidden = torch.rand(3, 5) < 0.5
    total, count = 0.0, 0
    for i in range(3):
        for j in range(5):
            if not hidden[i, j]:
                continue
            count += 1
            for a, b in zip(y[i, j].tolist(), f[i, j].tolist(), strict=True):
                gap = abs(a - b)
                total += (gap**2 / (2 * beta) if gap <= beta else gap - beta / 2) / 4
    found = data2vec.regression(f, y, hidden, beta)
    torch.testing.assert_close(found, torch.tensor(total / count), atol=1e-5, rtol=1e-5)


def test_data2vec_regression_of_nothing_is_zero() -> None:
    f = torch.randn(2, 3, 4, requires_grad=True)
    loss = data2vec.regression(f, torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool), 1.0)
    loss.backward()
    assert loss.item() == 0
    assert f.grad is not None
    assert f.grad.abs().sum() == 0


def test_data2vec_student_sees_positions_and_no_content_of_hidden_tokens() -> None:
    torch.manual_seed(0)
    objective = Data2Vec(series())
    mask = torch.tensor([[True, False, False, True, False, True]]).expand(2, -1)
    x = torch.randn(2, 2, 24)
    blocks = mask.repeat_interleave(4, 1)[:, None]
    for other in (x, torch.where(blocks, torch.randn_like(x), x)):
        patches = objective.backbone.patchify(other)
        tokens = objective.backbone.embed(patches)
        hidden = objective.hide(tokens, patches, mask)
        stem = objective.backbone.stem
        assert torch.equal(hidden[~mask], tokens[~mask])
        wanted = objective.mask_token + stem.project.bias + stem.pos_embed[0, mask[0]]
        torch.testing.assert_close(hidden[mask], wanted.repeat(2, 1))


@pytest.mark.parametrize(("top", "blocks"), [(1, [2]), (2, [1, 2]), (6, [0, 1, 2])])
def test_data2vec_targets_are_the_mean_of_the_top_blocks_of_the_whole_sample(top: int, blocks: list[int]) -> None:
    torch.manual_seed(0)
    backbone = Encoder(stem=Continuous(shape=(2, 24), block=(4,), dim=8), depth=3, heads=2, dropout=0.5)
    objective = Data2Vec(backbone, top=top).train()
    with torch.no_grad():
        for p in objective.teacher.parameters():
            p.add_(0.3 * torch.randn_like(p))
    tokens = backbone.embed(backbone.patchify(torch.randn(3, 2, 24)))
    target = objective.targets(tokens, None)
    assert not target.requires_grad
    torch.testing.assert_close(target, objective.targets(tokens, None), msg="the teacher drops nothing")
    state, outputs = tokens, []
    for block in objective.teacher.copy.blocks:
        state = block(state, None, False)
        outputs.append(state.double())
    for i in range(3):
        for j in range(6):
            rows = [outputs[n][i, j] for n in blocks]
            wanted = sum((row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt() for row in rows) / len(rows)
            torch.testing.assert_close(target[i, j].double(), wanted, atol=1e-5, rtol=1e-4)


def test_data2vec_targets_of_a_backbone_that_tells_no_blocks_are_its_last_output() -> None:
    torch.manual_seed(0)

    class Whole(Encoder):
        layers = TokenBackbone.layers

        def encode(
            self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
        ) -> Tensor:
            return self.norm(tokens)

    objective = Data2Vec(Whole(stem=Continuous(shape=(2, 24), block=(4,), dim=8), depth=1, heads=2))
    tokens = torch.randn(3, 6, 8)
    wanted = torch.nn.functional.layer_norm(tokens, (8,))
    torch.testing.assert_close(objective.targets(tokens, None), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("masking", ["blocks", "tokens"])
def test_data2vec_hides_its_ratio_in_blocks_or_one_by_one(masking: Any) -> None:
    """Blocks have more neighbours that are both hidden than tokens drawn one by one."""
    torch.manual_seed(0)
    backbone = Encoder(stem=Continuous(shape=(1, 16, 16), block=(2, 2), dim=8), depth=1, heads=2)
    objective = Data2Vec(backbone, ratio=0.5, masking=masking)
    mask = objective.draw_mask(torch.zeros(200, 64, 8)).view(200, 8, 8)
    assert mask.sum((1, 2)).tolist() == [32] * 200
    together = (mask[:, 1:] & mask[:, :-1]).float().mean().item()
    assert (together > 0.33) if masking == "blocks" else (0.2 < together < 0.3)


def test_data2vec_logs_how_far_features_spread_over_hidden_tokens() -> None:
    torch.manual_seed(0)
    x, hidden = torch.randn(3, 5, 4), torch.rand(3, 5) < 0.6
    wanted = x[hidden].std(0, unbiased=False).mean()
    torch.testing.assert_close(data2vec.deviation(x, hidden), wanted)
    assert data2vec.deviation(torch.ones(3, 5, 4), hidden).item() == pytest.approx(0, abs=1e-5)


def test_data2vec_shows_what_the_student_may_read_and_nothing_of_ids() -> None:
    torch.manual_seed(0)
    x = 1 + torch.rand(3, 2, 24)
    whole, seen = Data2Vec(series(), ratio=0.5).show({"views": [{"x": x}]})["masked"]
    assert torch.equal(whole, x)
    blank = (seen == 0).view(3, 2, 6, 4).all(3).all(1)
    assert blank.sum(1).tolist() == [3] * 3
    assert torch.equal(seen[seen != 0], x[seen != 0])
    assert Data2Vec(words()).show({"views": [{"x": torch.randint(9, (3, 6))}]}) == {}


def test_data2vec_never_asks_for_padding() -> None:
    torch.manual_seed(0)
    objective = Data2Vec(words(), ratio=0.8).eval()
    ids, pad = torch.randint(9, (4, 6)), torch.zeros(4, 6, dtype=torch.bool)
    pad[:, 3:] = True

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same mask
        return objective({"views": [{"x": x, "pad": pad}]}).value

    torch.testing.assert_close(loss(ids), loss(ids.masked_fill(pad, 0)))


def test_data2vec_learns_with_all_but_its_teacher() -> None:
    torch.manual_seed(0)
    for backbone, x in [(series(), torch.randn(5, 2, 24)), (words(), torch.randint(9, (5, 6)))]:
        objective = Data2Vec(backbone, momentum=0.9, momentum_end=0.9)
        start = {n: p.clone() for n, p in objective.teacher.named_parameters()}
        objective({"views": [{"x": x}]}).value.backward()
        for name, p in objective.named_parameters():
            assert (p.grad is not None) is not name.startswith("teacher"), name
        with torch.no_grad():
            for p in backbone.parameters():
                p.add_(1.0)
        assert all(torch.equal(p, start[n]) for n, p in objective.teacher.named_parameters())
        objective.after_step(0.3)
        for name, p in objective.teacher.copy.named_parameters():
            old = start[f"copy.{name}"]
            torch.testing.assert_close(p, 0.9 * old + 0.1 * (old + 1.0))


# -- iBOT ----------------------------------------------------------------------------------------------------


def ibot_small(backbone: Encoder, **options: Any) -> IBOT:
    return IBOT(backbone, hidden=10, dim=5, prototypes=7, **options)


def two_series(rows: int = 4) -> Batch:
    return {"views": [{"x": torch.randn(rows, 2, 24)} for _ in range(2)]}


def test_ibot_masked_tokens_is_equation_2() -> None:
    torch.manual_seed(0)
    student, target = torch.randn(3, 5, 4), torch.randn(3, 5, 4).softmax(2)
    hidden = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]).bool()
    total = 0.0
    for i in range(3):
        for j in range(5):
            if not hidden[i, j]:
                continue
            powers = [math.exp(x / 0.1) for x in student[i, j].tolist()]
            row = zip(target[i, j].tolist(), powers, strict=True)
            total -= sum(p * math.log(q / sum(powers)) for p, q in row) / int(hidden[i].sum()) / 3
    found = ibot.masked_tokens(student, target, hidden, 0.1)
    torch.testing.assert_close(found, torch.tensor(total), atol=1e-5, rtol=1e-5)


@given(
    length=st.integers(2, 30),
    low=st.floats(0, 0.5),
    more=st.floats(0, 0.5),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_ibot_masks_each_sample_by_its_own_share(length: int, low: float, more: float, masked: float) -> None:
    counts = ibot.draw(40, (length,), low, low + more, masked).sum(1).tolist()
    allowed = range(round(low * length - 0.501), round((low + more) * length + 0.501) + 1)
    assert all(n in allowed or (masked < 1 and n == 0) for n in counts)
    if masked == 0:
        assert not any(counts)


def test_ibot_teacher_sees_whole_views_and_the_student_masked_ones() -> None:
    torch.manual_seed(0)
    objective = ibot_small(series(dropout=0.5), masked=1.0, ratio_low=0.5, ratio_high=0.5)
    view = two_series()["views"][0]
    whole, tokens = objective.teach([view])
    again, _ = objective.teach([view])
    torch.testing.assert_close(whole[0], again[0], msg="the teacher drops nothing and draws no mask")
    assert tokens[0].shape == (4, 6, 7)
    assert not tokens[0].requires_grad
    _, hidden = objective.read_masked(view)
    assert hidden.sum(1).tolist() == [3] * 4


def test_ibot_student_reads_nothing_of_hidden_tokens() -> None:
    torch.manual_seed(0)
    objective = ibot_small(series(), masked=1.0, ratio_low=0.5, ratio_high=0.5).eval()
    view = two_series()["views"][0]
    torch.manual_seed(1)
    tokens, hidden = objective.read_masked(view)
    other = torch.where(hidden.repeat_interleave(4, 1)[:, None], torch.randn_like(view["x"]), view["x"])
    torch.manual_seed(1)
    torch.testing.assert_close(objective.read_masked({"x": other})[0], tokens)


def test_ibot_without_masks_is_dino_on_mean_tokens() -> None:
    torch.manual_seed(0)
    objective, batch = ibot_small(series(), masked=0.0).eval(), two_series()
    with torch.no_grad():
        objective.teacher_head.copy.last.weight.add_(torch.randn(7, 5))
    student = [objective.head(objective.backbone(**v)) for v in batch["views"]]
    teacher = [objective.teacher_head(objective.teacher_backbone(**v)) for v in batch["views"]]
    wanted = distillation.cross_view(student, [(t / 0.04).softmax(1) for t in teacher], 0.1)
    loss, log = objective(batch)
    torch.testing.assert_close(loss, wanted)
    assert log["within"] == 0


def test_ibot_centres_move_after_use_in_training_only_and_skip_padding() -> None:
    torch.manual_seed(0)
    objective = ibot_small(words(), centre_momentum=0.8)
    pad = torch.zeros(3, 6, dtype=torch.bool)
    pad[0, 2:] = True
    batch: Batch = {"views": [{"x": torch.randint(9, (3, 6)), "pad": pad} for _ in range(2)]}
    whole, tokens = objective.teach(batch["views"])
    objective.eval()(batch)
    assert not objective.centre.any()
    objective.train()(batch)
    torch.testing.assert_close(objective.centre, 0.2 * torch.cat(whole).mean(0))
    torch.testing.assert_close(objective.token_centre, 0.2 * torch.cat([t[~pad] for t in tokens]).mean(0))


def test_ibot_learns_with_all_but_its_teacher() -> None:
    torch.manual_seed(0)
    objective = ibot_small(series(), momentum=1.0, masked=1.0)
    objective.after_step(0.5)
    start = {n: v.clone() for n, v in objective.state_dict().items() if n.startswith("teacher_")}
    objective(two_series()).value.backward()
    for name, p in objective.named_parameters():
        assert (p.grad is not None) is not name.startswith("teacher_"), name
    assert all(torch.equal(v, start[n]) for n, v in objective.state_dict().items() if n in start)
    objective.teacher_backbone.start = objective.teacher_head.start = 0.0
    with torch.no_grad():
        for p in [*objective.backbone.parameters(), *objective.head.parameters()]:
            p.add_(1.0)
    objective.after_step(0.0)
    assert torch.equal(objective.teacher_head.copy.last.weight, objective.head.last.weight)
    assert torch.equal(objective.teacher_backbone.copy.norm.bias, objective.backbone.norm.bias)


def test_ibot_shows_what_the_student_may_read_of_the_first_view() -> None:
    torch.manual_seed(0)
    objective, batch = ibot_small(series(), masked=1.0, ratio_low=0.5, ratio_high=0.5), two_series()
    whole, seen = objective.show(batch)["masked"]
    assert torch.equal(whole, batch["views"][0]["x"])
    blank = (seen == 0).view(4, 2, 6, 4).all(3).all(1)
    assert blank.sum(1).tolist() == [3] * 4


def test_ibot_says_how_many_views_it_needs() -> None:
    with pytest.raises(RequestError, match="views: iBOT needs 2"):
        ibot_small(series())({"views": two_series()["views"][:1]})
