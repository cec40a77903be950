"""BEST-RQ against its paper: which codes are told, of what, and from what."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Continuous
from ssl_runner.errors import RequestError
from ssl_runner.objectives import best_rq
from ssl_runner.objectives.best_rq import BestRQ, nearest_code, standardised
from ssl_runner.types import Loss

SHAPE, BLOCK, LENGTH = (1, 3, 24), (3, 2), 12


def make(**arguments: float) -> BestRQ:
    torch.manual_seed(0)
    encoder = Encoder(stem=Continuous(shape=SHAPE, block=BLOCK, dim=16), depth=1, heads=2)
    settings = {"codes": 32, "span": 3, "noise": 0.0, **arguments}
    return BestRQ(encoder, shape=SHAPE, **settings)  # type: ignore[arg-type]


def signals(count: int = 4) -> Tensor:
    torch.manual_seed(1)
    return 5 + 3 * torch.randn(count, *SHAPE)


def padding() -> Tensor:
    """(4, L) True behind 12, 9, 5 and 3 tokens."""
    return torch.arange(LENGTH) >= torch.tensor([12, 9, 5, 3])[:, None]


def code_of(values: list[float], projection: Tensor, codebook: Tensor) -> int:
    """Equation 1 as it stands: argmin over i of || norm(c_i) - norm(A x) ||."""
    mapped = [sum(v * a for v, a in zip(values, column, strict=True)) for column in projection.T.tolist()]
    length = math.sqrt(sum(v * v for v in mapped))
    best, nearest = math.inf, -1
    for n, code in enumerate(codebook.tolist()):
        size = math.sqrt(sum(c * c for c in code))
        distance = sum((c / size - v / length) ** 2 for c, v in zip(code, mapped, strict=True))
        if distance < best:
            best, nearest = distance, n
    return nearest


def test_codes_are_those_of_equation_1() -> None:
    objective = make()
    x = torch.randn(5, objective.projection.shape[0])
    wanted = [code_of(row, objective.projection, objective.codebook) for row in x.tolist()]
    assert nearest_code(x, objective.projection, objective.codebook).tolist() == wanted
    assert len(set(wanted)) > 1


def test_values_are_standardised_over_the_real_tokens_of_their_sample() -> None:
    patches, real = 2 + 3 * torch.randn(4, LENGTH, 6), ~padding()
    found = standardised(patches, real)
    for row, there, got in zip(patches, real, found, strict=True):
        known = row[there]
        for value in range(6):
            column = known[:, value].tolist()
            mean = sum(column) / len(column)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in column) / len(column))
            expected = torch.tensor([(v - mean) / (deviation + 1e-5) for v in column])
            torch.testing.assert_close(got[there][:, value], expected, atol=1e-4, rtol=1e-4)


def known_mask(monkeypatch: pytest.MonkeyPatch, padded: Tensor | None = None) -> Tensor:
    """(4, L) True where hidden, put in place of a random one."""
    mask = torch.zeros(4, LENGTH, dtype=torch.bool)
    mask[0, 2:5] = mask[1, 4:7] = mask[2, 0:3] = mask[3, 0] = True
    monkeypatch.setattr(best_rq, "span_mask", lambda may, ratio, span: mask & may)
    return mask if padded is None else mask & ~padded


@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_of_the_codes_of_hidden_tokens(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    objective, x, pad = make(), signals(), padding() if padded else None
    mask = known_mask(monkeypatch, pad)
    view = {"x": x} if pad is None else {"x": x, "pad": pad}
    loss: Loss = objective({"views": [view]})

    patches = objective.backbone.patchify(x)
    whole = torch.zeros(4, LENGTH, dtype=torch.bool) if pad is None else pad
    codes = standardised(patches, ~whole)
    hidden = patches.masked_fill(mask[..., None], 0.0)
    logits = objective.head(objective.backbone.encode(objective.backbone.embed(hidden), pad))
    losses, right = [], []
    for row in range(4):
        for place in range(LENGTH):
            if mask[row, place]:
                wanted = code_of(codes[row, place].tolist(), objective.projection, objective.codebook)
                losses.append(-logits[row, place].log_softmax(0)[wanted].item())
                right.append(logits[row, place].argmax().item() == wanted)
    assert loss.value.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert loss.log["accuracy"].item() == pytest.approx(sum(right) / len(right))


def test_what_is_hidden_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, x = make(noise=0.1), signals()
    mask = known_mask(monkeypatch)
    seen: list[Tensor] = []
    embed = objective.backbone.embed
    monkeypatch.setattr(objective.backbone, "embed", lambda patches: embed(seen.append(patches) or patches))
    objective({"views": [{"x": x}]})
    patches = objective.backbone.patchify(x)
    assert torch.equal(seen[0][~mask], patches[~mask])
    hidden = seen[0][mask]
    assert hidden.abs().max() < 1
    assert 0.05 < hidden.std() < 0.2


def test_the_quantiser_is_kept_and_never_trained() -> None:
    objective = make()
    assert {"projection", "codebook"} <= set(objective.state_dict())
    assert not {"projection", "codebook"} & {name for name, _ in objective.named_parameters()}
    torch.testing.assert_close(objective.codebook.norm(dim=1), torch.ones(32))


def test_an_offset_does_not_take_codes_away() -> None:
    """Section 3.1: without standardised values nearly all get the same code."""
    objective = make(codes=16, ratio=1.0)
    log = objective({"views": [{"x": 100 + signals(64)}]}).log
    assert log["codes_used"] > 0.9


def test_ids_have_no_codes() -> None:
    from ssl_runner.backbones.stems import Discrete

    with pytest.raises(RequestError, match="real values"):
        BestRQ(Encoder(stem=Discrete(vocab=9, length=8, dim=16), depth=1, heads=2), shape=(8,))
