"""Methods on clips: tubes, the order of clips, motion; retrieval of a class; backbones for clips."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stacked import Stacked
from ssl_runner.backbones.stems import Continuous, Discrete
from ssl_runner.backbones.torchvision import VideoResNet
from ssl_runner.errors import RequestError
from ssl_runner.evaluators.recall import Recall, ahead
from ssl_runner.objectives.clip_order import ClipOrder, cut, shuffled
from ssl_runner.objectives.mae import MAE
from ssl_runner.objectives.motion import Motion, flow, lit, statistics
from ssl_runner.objectives.next_patch import NextPatch
from ssl_runner.parts.masking import tube_mask
from ssl_runner.types import Backbone

CLIP = (3, 6, 8, 8)


def encoder(block: tuple[int, ...] = (2, 4, 4), shape: tuple[int, ...] = CLIP) -> Encoder:
    torch.manual_seed(0)
    return Encoder(stem=Continuous(shape=shape, block=block, dim=16), depth=1, heads=2)


# -- tubes -----------------------------------------------------------------------------------------------------


@given(
    grid=st.lists(st.integers(1, 4), min_size=2, max_size=3).filter(lambda g: math.prod(g[1:]) > 1),
    ratio=st.floats(0.05, 0.95),
)
@settings(max_examples=40)
def test_tubes_hide_the_same_places_at_all_times(grid: list[int], ratio: float) -> None:
    steps, places = grid[0], math.prod(grid[1:])
    mask = tube_mask(5, tuple(grid), ratio, torch.device("cpu"))
    assert mask.shape == (5, steps * places)
    by_time = mask.view(5, steps, places)
    assert by_time.equal(by_time[:, :1].expand_as(by_time))
    hidden = min(max(round(ratio * places), 1), places - 1)
    assert by_time[:, 0].sum(1).eq(hidden).all()


def test_tubes_differ_from_clip_to_clip() -> None:
    torch.manual_seed(0)
    assert len({tuple(row.tolist()) for row in tube_mask(30, (2, 3, 3), 0.5, torch.device("cpu"))}) > 10


def test_mae_on_tubes_sees_whole_tubes_alone() -> None:
    """What is under a hidden tube reaches no prediction, at any time; the mask lies on the backbone's own grid."""
    objective = MAE(encoder(), shape=CLIP, mask="tubes", ratio=0.5, dim=16, depth=1, heads=2).eval()
    x = torch.randn(2, *CLIP)
    patches = objective.backbone.patchify(x)
    torch.manual_seed(1)
    mask = objective.masks(patches)
    assert mask.view(2, 3, 4).eq(mask.view(2, 3, 4)[:, :1]).all()
    other = torch.where(mask[..., None], torch.randn_like(patches), patches)
    seen = objective.predict(patches, mask)
    torch.testing.assert_close(objective.predict(other, mask), seen)
    place = objective.backbone.unpatchify(mask[..., None].expand_as(patches).float())
    assert place.eq(place[:, :, :1]).all()  # in pixels: the same squares in all frames


def test_tubes_need_a_first_axis_of_several() -> None:
    flat = Encoder(stem=Continuous(shape=(1, 8), block=(2,), dim=16), depth=1, heads=2)
    with pytest.raises(RequestError, match=r"objective\.mask=tubes.*lie as \[4\].*objective\.mask=random"):
        MAE(flat, shape=(1, 8), mask="tubes", dim=16, depth=1, heads=2)
    with pytest.raises(RequestError, match="tubes"):
        MAE(encoder((1, 8, 8)), shape=CLIP, mask="tubes", dim=16, depth=1, heads=2)


# -- whole frames as patches -----------------------------------------------------------------------------------


def test_the_next_frame_is_predicted_from_those_before() -> None:
    objective = NextPatch(encoder((1, 8, 8)), shape=CLIP, hidden=16).eval()
    x = torch.randn(2, *CLIP)
    patches = objective.backbone.patchify(x)
    assert patches.shape == (2, 6, 3 * 64)
    assert patches[:, 2].equal(x[:, :, 2].flatten(1))
    told = objective.predict(patches)
    later = patches.clone()
    later[:, 4:] += 1
    torch.testing.assert_close(objective.predict(later)[:, :4], told[:, :4])
    assert not torch.allclose(objective.predict(later)[:, 4:], told[:, 4:])


# -- the order of clips ----------------------------------------------------------------------------------------


class Mean(Backbone):
    """What there is of each channel, on average, and at which time."""

    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.scale * x.flatten(2).mean(2)


@pytest.mark.parametrize(("length", "clips"), [(6, 3), (12, 3), (16, 4), (9, 2)])
def test_clips_are_cut_from_their_share_of_time_and_do_not_touch(length: int, clips: int) -> None:
    x = torch.arange(float(length)).view(1, 1, length, 1, 1).repeat(200, 2, 1, 2, 2)
    torch.manual_seed(0)
    pieces = cut(x, clips)
    assert pieces.shape == (200, clips, 2, length, 2, 2)
    frames = pieces[:, :, 0, :, 0, 0]
    share = length // clips
    size = max(2, share * 3 // 4)
    for n in range(clips):
        found = {tuple(row.unique().int().tolist()) for row in frames[:, n]}
        assert found == {tuple(range(n * share + s, n * share + s + size)) for s in range(share - size + 1)}
    assert (frames.diff(dim=2) >= 0).all()


def test_the_order_is_that_in_which_the_clips_are_shuffled() -> None:
    objective = ClipOrder(Mean(), shape=CLIP, hidden=8)
    assert [tuple(order) for order in objective.orders.tolist()] == list(itertools.permutations(range(3)))
    pieces = torch.arange(3.0).view(1, 3, 1).repeat(6, 1, 2)
    assert shuffled(pieces, objective.orders)[..., 0].long().equal(objective.orders)


def test_the_logits_are_the_papers() -> None:
    """Each pair of clips' features through one shared layer, all pairs' outputs through another."""
    objective = ClipOrder(Mean(), shape=CLIP, hidden=5)
    pieces = torch.randn(4, 3, *CLIP)
    f = [objective.backbone(pieces[:, n]) for n in range(3)]
    layer = objective.pair[0]
    h = [torch.relu(layer(torch.cat([f[i], f[j]], 1))) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(objective.scores(pieces), objective.head(torch.cat(h, 1)))


def test_the_order_of_clips_is_learned() -> None:
    torch.manual_seed(0)
    objective = ClipOrder(Mean(), shape=CLIP, hidden=32)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(150):
        x = torch.randn(32, *CLIP) * 0.1 + torch.arange(6.0).view(6, 1, 1)
        loss = objective({"views": [{"x": x}], "index": torch.arange(32)})
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert loss.log["accuracy"] > 0.9


def test_what_is_told_is_shown_in_its_place() -> None:
    class Knows(ClipOrder):
        def scores(self, pieces: Tensor) -> Tensor:
            seen = pieces.flatten(2).mean(2).argsort(1).argsort(1)  # clips get brighter with time
            return (self.orders == seen[:, None]).all(2).float()

    x = torch.arange(12.0).view(1, 1, 12, 1, 1).repeat(8, 1, 1, 2, 2)
    objective = Knows(Mean(), shape=(1, 12, 2, 2))
    torch.manual_seed(0)
    whole, seen, told = (c[:, 0, :, 0, 0] for c in objective.show({"views": [{"x": x}]})["clip_order"])
    assert whole.equal(x[:, 0, :, 0, 0])
    assert told.shape == (8, 12)
    assert (told.diff(dim=1) >= 0).all()
    assert (seen.diff(dim=1) < 0).any()


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8, 8)])
def test_clip_order_needs_time(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"objective\.clips=3.*data\.frames"):
        ClipOrder(Mean(), shape=shape)


# -- motion ----------------------------------------------------------------------------------------------------


def drift(right: float, down: float, side: int = 24, frames: int = 4) -> Tensor:
    """(1, 1, T, side, side): a smooth pattern that moves."""
    t = torch.arange(float(frames)).view(-1, 1, 1)
    v, u = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    return torch.stack([((u - right * t) * 0.4).sin() + ((v - down * t) * 0.5).cos()], 0)[None]


@pytest.mark.parametrize(("right", "down"), [(0.5, 0.0), (-0.4, 0.3), (0.0, -0.6), (0.3, 0.3)])
def test_a_block_moves_as_it_was_moved(right: float, down: float) -> None:
    _, vector = flow(drift(right, down), 2)
    torch.testing.assert_close(vector[0], torch.tensor([right, down]).expand(4, 2), atol=0.08, rtol=0.1)


def test_flow_is_lucas_and_kanades() -> None:
    """The least squares solution of Ix u + Iy v = -It over each block, written out."""
    x = drift(0.3, -0.2, side=8) + 0.1 * torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    change, vector = flow(x, 2)
    grey = x[0, 0]
    for n in range(4):
        rows, columns = slice(4 * (n // 2), 4 * (n // 2) + 4), slice(4 * (n % 2), 4 * (n % 2) + 4)
        a, b = [], []
        for t in range(3):
            down, right = torch.gradient((grey[t] + grey[t + 1]) / 2, dim=(0, 1))
            a.append(torch.stack([right[rows, columns].flatten(), down[rows, columns].flatten()], 1))
            b.append(-(grey[t + 1] - grey[t])[rows, columns].flatten())
        expected = torch.linalg.lstsq(torch.cat(a), torch.cat(b)[:, None]).solution[:, 0]
        torch.testing.assert_close(vector[0, n], expected, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(change[0, n], torch.cat(b).square().mean())


@pytest.mark.parametrize("sector", range(8))
def test_the_place_of_most_change_and_its_direction(sector: int) -> None:
    angle = 2 * math.pi * sector / 8
    still = drift(0.0, 0.0)
    moving = drift(0.5 * math.cos(angle), 0.5 * math.sin(angle))
    x = still.clone()
    x[..., 6:12, 12:18] = moving[..., 6:12, 12:18]
    place, way = statistics(x, 4, 8)
    assert place.item() == 1 * 4 + 2
    assert way.item() == sector


def test_nothing_moves_where_nothing_is() -> None:
    x = torch.zeros(2, 3, 4, 16, 16)
    change, vector = flow(x, 4)
    assert change.eq(0).all()
    assert vector.eq(0).all()
    assert flow(x.bfloat16(), 4)[1].dtype == torch.float32


def test_a_block_alone_is_lit() -> None:
    x = torch.ones(2, 3, 4, 8, 8)
    seen = lit(x, torch.tensor([0, 6]), 4)
    assert seen[0].sum() == seen[1].sum() == 3 * 4 * 4
    assert seen[1, :, :, 2:4, 4:6].eq(1).all()


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 8, 8), (3, 4, 6, 8)])
def test_motion_needs_clips(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"objective\.grid=4"):
        Motion(Mean(), shape=shape)


# -- retrieval of a class --------------------------------------------------------------------------------------


def test_recall_by_hand() -> None:
    torch.manual_seed(0)
    query, bank = torch.randn(20, 4), torch.randn(30, 4)
    label, bank_label = torch.randint(3, (20,)), torch.randint(3, (30,))
    found = ahead(query, label, bank, bank_label)
    for n in range(20):
        order = sorted(range(30), key=lambda m: -torch.cosine_similarity(query[n], bank[m], dim=0).item())
        assert found[n] == next(place for place, m in enumerate(order) if bank_label[m] == label[n])


def test_recall_counts_equals_against_itself() -> None:
    """With features that are all the same nothing is found, but by taking as many as there are."""
    same = torch.ones(6, 2)
    label = torch.tensor([0, 1, 1, 1, 2, 0])
    assert ahead(same[:2], torch.tensor([0, 3]), same, label).tolist() == [4, 6]


class Data:
    num_classes = 2

    def features(self, embed: object, split: str) -> tuple[Tensor, Tensor]:
        bank = torch.eye(4)
        if split == "train":
            return bank, torch.tensor([0, 0, 1, 1])
        return bank + 0.1 * bank.roll(1, 1), torch.tensor([0, 1, 1, 1])


def test_recall_is_a_share_of_the_test_part() -> None:
    scores = Recall(ks=(1, 2, 3))(None, Data())  # type: ignore[arg-type]
    assert scores == {"at_1": 0.75, "at_2": 1.0, "at_3": 1.0}


# -- backbones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_torchvisions_networks_embed_clips(name: str) -> None:
    net = VideoResNet(name=name, shape=(3, 4, 16, 16)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        assert net(torch.randn(2, 3, 4, 16, 16)).shape == (2, net.dim) == (2, 512)
    assert not any("fc" in key for key in net.state_dict())
    with pytest.raises(RequestError, match="padding"):
        net(torch.randn(2, 3, 4, 16, 16), torch.zeros(2, 16, dtype=torch.bool))


def test_video_networks_are_for_clips() -> None:
    with pytest.raises(RequestError, match=r"\(3, 32, 32\).*data of clips"):
        VideoResNet(name="r3d_18", shape=(3, 32, 32))
    with pytest.raises(RequestError, match=r"\(3, 32, 32\).*backbone=timm"):
        Stacked(name="resnet10t", shape=(3, 32, 32))


def test_frames_are_stacked_in_the_channels() -> None:
    net = Stacked(name="resnet10t", shape=(3, 4, 32, 32), options={"stem_width": 8, "channels": [8, 8, 16, 16]}).eval()
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert net(x).shape == (2, net.dim) == (2, 16)
        torch.testing.assert_close(net(x), net.model(x.reshape(2, 12, 32, 32)))
        assert not torch.allclose(net(x), net(x.flip(2)))  # time is seen
        assert net.maps(x).shape[1:] == net.map_shape()


def test_a_transformer_of_blocks_of_time_and_space_has_a_grid() -> None:
    net = encoder()
    assert net.grid == (3, 2, 2)
    assert net(torch.randn(2, *CLIP)).shape == (2, 16)
    assert Encoder(stem=Discrete(vocab=3, length=4, dim=16), depth=1, heads=2).grid is None
