"""Clips: decoding, folders of videos, Wesnoth's figures, UCF101's lists, and views that treat all frames alike."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from ssl_runner import build
from ssl_runner.datasets import video as module
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.clips import animate, look_and_motion
from ssl_runner.datasets.reading import Reading
from ssl_runner.datasets.ucf101 import UCF101
from ssl_runner.datasets.video import VideoFolder, decoded_bytes, read_video
from ssl_runner.datasets.wesnoth import Wesnoth, clips
from ssl_runner.errors import RequestError, RunError
from ssl_runner.types import Transform, as_float
from ssl_runner.views import (
    Affine,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
)
from ssl_runner.views.base import Branch, Views
from ssl_runner.views.clips import MiddleFrames, RandomFrames

CODECS = {".avi": "mpeg4", ".mp4": "mpeg4", ".mkv": "mpeg4", ".webm": "libvpx", ".gif": "gif"}
STEP = 10  # of grey, from frame to frame


def film(
    path: Path, count: int = 20, fps: int = 10, size: tuple[int, int] = (48, 32), times: Sequence[int] | None = None
) -> Path:
    """A video whose n-th frame is grey of STEP * n, so that a frame can be told by its grey. times: in 1 / fps s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.lower()
    with av.open(str(path), "w", format={".mkv": "matroska"}.get(kind, kind[1:])) as container:
        stream = container.add_stream(CODECS[kind], rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if kind == ".gif" else "yuv420p"
        if kind != ".gif":
            stream.bit_rate = 2_000_000
        for n in range(count):
            pixels = np.full((size[1], size[0], 3), STEP * n, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = n if times is None else times[n], Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(clip: Tensor) -> list[int]:
    """Which frame each of a clip's is."""
    return (clip.float().mean((0, 2, 3)) / STEP).round().long().tolist()


# -- decoding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".avi", ".mp4", ".mkv", ".webm"])
def test_frames_are_taken_by_time_whatever_the_rate(tmp_path: Path, kind: str) -> None:
    for rate in (10, 20):
        file = film(tmp_path / f"{rate}{kind}", 20, rate)
        each = rate // 5
        assert numbers(read_video(str(file), fps=5, side=32, frames=4)) == [0, each, 2 * each, 3 * each]
        assert numbers(read_video(str(file), fps=2 * rate, side=32, frames=6)) == [0, 0, 1, 1, 2, 2]


def test_the_place_in_time_goes_from_the_first_to_the_last(tmp_path: Path) -> None:
    file = str(film(tmp_path / "a.mp4", 20, 10))  # 2 seconds; half a second is read
    for where, first in ((0.0, 0), (0.4, 6), (1.0, 15)):
        assert numbers(read_video(file, fps=10, side=32, frames=5, where=where)) == list(range(first, first + 5))


def test_frames_of_uneven_length_are_seen_until_the_next(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mkv", 4, 10, times=[0, 1, 5, 6])
    assert numbers(read_video(str(file), fps=10, side=32, frames=7)) == [0, 1, 1, 1, 1, 2, 3]


def test_a_whole_file_and_one_that_is_short(tmp_path: Path) -> None:
    file = str(film(tmp_path / "a.avi", 6, 10))
    assert numbers(read_video(file, fps=10, side=32)) == list(range(6))
    assert numbers(read_video(file, fps=5, side=32)) == [0, 2, 4]
    assert numbers(read_video(file, fps=10, side=32, frames=9)) == list(range(6))


def test_a_gif(tmp_path: Path) -> None:
    file = str(film(tmp_path / "a.gif", 6, 10))
    assert len(numbers(read_video(file, fps=10, side=32))) == 6


@pytest.mark.parametrize(
    ("size", "side", "expected"), [((48, 32), 16, (16, 24)), ((32, 64), 16, (32, 16)), ((48, 32), 99, (32, 48))]
)
def test_frames_are_made_smaller_and_never_larger(
    tmp_path: Path, size: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    file = film(tmp_path / "a.mp4", 3, size=size)
    assert read_video(str(file), fps=10, side=side, frames=2).shape == (3, 2, *expected)


def test_a_phones_video_is_upright(tmp_path: Path) -> None:
    """Its frames lie on the side, and a matrix in the header says by how much."""
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        pixels = np.zeros((32, 48, 3), np.uint8)
        pixels[:, :24] = 255  # what is on the left comes to the top when it is turned clockwise
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(file.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    clip = read_video(str(file), fps=10, side=99, frames=1)[:, 0]
    assert clip.shape == (3, 48, 32)
    assert clip[:, :20].float().mean() > 230
    assert clip[:, 28:].float().mean() < 25


def test_what_is_no_video_is_broken(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4").read_bytes()
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"not a video",
        "cut.mp4": whole[: len(whole) // 2],  # its index is at the end
        "list.mp4": f"ffconcat version 1.0\nfile '{film(tmp_path / 'other.avi').name}'\n".encode(),
    }
    for name, content in contents.items():
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(BrokenSample, match=name):
            read_video(str(file), fps=5, side=32, frames=2)
    with pytest.raises(BrokenSample, match="gone"):
        read_video(str(tmp_path / "gone.mp4"), fps=5, side=32, frames=2)


def test_a_list_of_other_files_would_be_opened_by_the_library_itself(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    film(tmp_path / "other.avi")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile 'other.avi'\n")
    with av.open(str(tmp_path / "list.mp4")) as container:
        assert container.format.name == "concat"


def test_sound_alone_and_absurd_frames_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BrokenSample, match="no pictures"):
        read_video(str(sound), fps=5, side=32)
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(BrokenSample, match="48 x 32"):
        read_video(str(film(tmp_path / "a.mp4")), fps=5, side=32)


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    """An AVI that was cut off keeps its header: what is read then begins at the first frame."""
    data = film(tmp_path / "a.avi", 24, 10).read_bytes()
    file = tmp_path / "cut.avi"
    at = data.index(b"movi")
    file.write_bytes(data[: at + (data.index(b"idx1") - at) // 2])
    clip = read_video(str(file), fps=10, side=32, frames=4, where=1.0)
    assert numbers(clip)[0] < 12
    assert 1 <= clip.shape[1] <= 4


@given(cut=st.integers(0, 3000), flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8))
@example(cut=0, flips=[(737, 0)])  # an .mp4 without a known code for its pictures
@settings(max_examples=40)
@pytest.mark.parametrize("kind", [".avi", ".mp4"])
def test_damage_breaks_a_sample_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, kind: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damage"
    whole = folder / f"whole{kind}"
    if not whole.exists():
        film(whole, 8)
    data = bytearray(whole.read_bytes()[: max(1, 3000 - cut)])
    for place, value in flips:
        data[place % len(data)] = value
    file = folder / f"damaged{kind}"
    file.write_bytes(data)
    try:
        clip = read_video(str(file), fps=10, side=16, frames=4, where=0.5)
    except BrokenSample:
        return
    assert clip.dtype == torch.uint8
    assert clip.shape[0] == 3


def test_memory_is_told_by_the_header(tmp_path: Path) -> None:
    file = str(film(tmp_path / "a.mp4", 20, 10))
    assert decoded_bytes(file, 5, 16) == pytest.approx(3 * 16 * 24 * 10, rel=0.1)
    assert read_video(file, fps=5, side=16).numel() == pytest.approx(3 * 16 * 24 * 10, rel=0.1)


# -- folders ---------------------------------------------------------------------------------------------------


def folder(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        for n in range(count):
            film(root / name / f"{n}.avi", 12, 10, size=(32, 32))
    return root


def test_a_folder_of_classes_is_split_and_read(tmp_path: Path) -> None:
    source = VideoFolder(root=str(folder(tmp_path, {"run": 6, "walk": 6})), size=14, frames=4, fps=5, val=0.2, test=0.2)
    assert source.classes == ("run", "walk")
    assert [len(source.split(part)) for part in ("train", "val", "test")] == [8, 2, 2]
    assert source.facts["shape"] == (3, 4, 14, 14)
    assert source.split("train").read(0).shape == (3, 4, 16, 16)
    assert source.split("train").label.bincount().tolist() == [4, 4]


@pytest.mark.parametrize("cache", ["auto", "no"])
def test_where_a_clip_begins_is_drawn(tmp_path: Path, cache: Any) -> None:
    folder(tmp_path, {"a": 2})
    part = VideoFolder(root=str(tmp_path / "a"), size=28, frames=4, fps=10, val=0, test=0, cache=cache).split("train")
    starts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        clip = numbers(part.read(0))
        assert clip == list(range(clip[0], clip[0] + 4))
        starts.add(clip[0])
        torch.manual_seed(seed)
        assert numbers(part.read(0)) == clip
    assert starts <= set(range(9))
    assert len(starts) > 4


def test_the_cache_holds_what_is_read_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, {"a": 2})
    given = {"root": str(tmp_path / "a"), "size": 28, "frames": 12, "fps": 10, "val": 0, "test": 0}
    held, read = VideoFolder(**given).split("train"), VideoFolder(**given, cache="no").split("train")
    assert type(held) is not type(read)
    assert held.read(1).equal(read.read(1))
    monkeypatch.setattr(module, "CACHE", 1000)
    assert type(VideoFolder(**given).split("train")) is type(read)


@pytest.mark.parametrize("cache", ["auto", "no"])
def test_broken_files_are_left_out_or_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Any
) -> None:
    folder(tmp_path, {"a": 3})
    (tmp_path / "a" / "1.avi").write_bytes(b"nothing")
    given: dict[str, Any] = {"root": str(tmp_path / "a"), "size": 28, "frames": 2, "val": 0, "test": 0, "cache": cache}
    sizer = MiddleFrames(frames=2, each=Resize(size=28))

    def all_of(source: VideoFolder) -> Tensor:
        part = source.split("train")
        reading = Reading(part, lambda inputs: [sizer.one(inputs[0])], source.on_broken, False)
        return reading.__getitems__([(n, n) for n in range(len(part))])["inputs"][0]["x"]

    assert all_of(VideoFolder(**given)).shape == (2, 3, 2, 28, 28)
    assert capsys.readouterr().err.count("1.avi") == 1
    with pytest.raises(RunError, match=r"1\.avi.*skip"):
        all_of(VideoFolder(**given, on_broken="stop"))


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(RequestError, match=r"no videos \(.avi.*put videos in"):
        VideoFolder(root=str(tmp_path))
    with pytest.raises(RequestError, match=r"data\.val=0\.5, data\.test=0\.5"):
        VideoFolder(root=str(tmp_path), val=0.5, test=0.5)


def test_without_pyav_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RequestError, match=r"pip install 'ssl-runner\[video\]'"):
        VideoFolder(root=str(tmp_path))


def test_ucf101_by_its_lists(tmp_path: Path) -> None:
    names = [f"{kind}/v_{kind}_g{g:02}_c01.avi" for kind in ("Archery", "Bowling") for g in (1, 8, 21, 22, 25)]
    source = film(tmp_path / "one.avi", 4)
    for name in names:
        file = tmp_path / "UCF-101" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, file)
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    train, test = [n for n in names if "_g01" not in n], [n for n in names if "_g01" in n]
    (lists / "trainlist01.txt").write_text("".join(f"{n} {1 + n.startswith('B')}\r\n" for n in train))
    (lists / "testlist01.txt").write_text("".join(f"{n}\n" for n in test))
    found = UCF101(root=str(tmp_path), size=28, frames=2)
    assert found.classes == ("Archery", "Bowling")
    parts = {name: found.split(name) for name in ("train", "val", "test")}  # type: ignore[arg-type]
    told = {name: [os.path.basename(part.name(n)) for n in range(len(part))] for name, part in parts.items()}
    assert [n.split("_")[2] for n in told["train"]] == ["g08", "g21"] * 2
    assert [n.split("_")[2] for n in told["val"]] == ["g22", "g25"] * 2
    assert [n.split("_")[2] for n in told["test"]] == ["g01"] * 2
    assert parts["val"].label.tolist() == [0, 0, 1, 1]
    with pytest.raises(RequestError, match=r"trainlist02\.txt.*unrar"):
        UCF101(root=str(tmp_path), fold=2)
    (tmp_path / "UCF-101" / test[0]).unlink()
    with pytest.raises(RequestError, match=r"Archery_g01.*no such video"):
        UCF101(root=str(tmp_path))


# -- Wesnoth ---------------------------------------------------------------------------------------------------


def figures(root: Path, names: dict[str, int], size: tuple[int, int] = (72, 72)) -> Path:
    """Frames as the game has them: cut out, so that a figure is a square of its own size in the middle."""
    units = root / "data" / "core" / "images" / "units"
    for name, count in names.items():
        for n in range(1, count + 1):
            picture = Image.new("RGBA", size, (0, 0, 0, 0))
            picture.paste(
                (10 * n, 0, 200, 255), (size[0] // 2 - 8, size[1] // 2 - 8, size[0] // 2 + 8, size[1] // 2 + 8)
            )
            file = units / f"{name}{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
    return units


REAL = {
    "human-loyalists/spearman-attack-s-": 5,
    "orcs/grunt-ne-die-": 12,
    "orcs/grunt-attack-": 4,
    "drakes/fire-fly-": 3,
    "dwarves/fighter-ne-run": 6,
    "elves-wood/scout/scout-idle-": 7,
    "monsters/stoat/stoat-crouch-": 4,  # says no class
    "orcs/ruler-attack-sword-": 2,  # too short
    "human-magi/mage+female-die-": 3,
    "undead/bat-bob-": 3,
}


def test_a_clip_is_frames_that_differ_in_their_number(tmp_path: Path) -> None:
    units = figures(tmp_path, REAL)
    (units / "orcs" / "grunt.png").write_bytes((units / "orcs" / "grunt-attack-1.png").read_bytes())
    found = clips(str(units))
    assert [(figure, kind, len(files)) for figure, kind, files in found] == [
        ("drakes/fire", "move", 3),
        ("dwarves/fighter", "move", 6),
        ("elves-wood/scout/scout", "idle", 7),
        ("human-loyalists/spearman", "attack", 5),
        ("human-magi/mage", "die", 3),
        ("orcs/grunt", "attack", 4),
        ("orcs/grunt", "die", 12),
        ("undead/bat", "idle", 3),
    ]
    assert [int(f.split("-")[-1][:-4]) for f in found[6][2]] == list(range(1, 13))  # as numbers, not as words


def test_figures_are_drawn_in_the_middle_of_grey(tmp_path: Path) -> None:
    figures(tmp_path, REAL, (100, 60))
    source = Wesnoth(root=str(tmp_path), size=25, frames=4, stretch=1.5)
    assert source.facts["shape"] == (3, 4, 25, 25)
    every = torch.cat([source.split(part).x for part in ("train", "val", "test")])
    assert every.shape == (8, 3, 6, 25, 25)
    assert every[:, :, :, 0, 0].eq(127).all()
    assert every[:, 2, :, 12, 12].eq(200).all()
    run = every[every[:, 0, -1, 12, 12] == 60][0]  # six frames for six moments
    assert run[0, :, 12, 12].tolist() == [10, 20, 30, 40, 50, 60]
    die = every[every[:, 0, -1, 12, 12] == 120][0]  # twelve: the first and the last are kept
    assert die[0, [0, -1], 12, 12].tolist() == [10, 120]
    low, high = (source.facts["mean"][0] - 0.2, source.facts["mean"][0] + 0.2)
    assert low < every[:, 0].float().mean() / 255 < high


def test_wesnoth_tells_how_it_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"apt-get download wesnoth-1\.16-data && dpkg -x"):
        Wesnoth(root=str(tmp_path))


# -- views -----------------------------------------------------------------------------------------------------

ALIKE: list[Transform] = [
    RandomResizedCrop(size=8),
    RandomCrop(size=12, padding=2),
    Resize(size=9, crop=0.8),
    HorizontalFlip(),
    Affine(degrees=30, translate=0.2, scale=(0.8, 1.2), shear=10),
    ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    Grayscale(p=0.5),
    Solarize(p=0.5),
    GaussianBlur(p=0.5),
]


@pytest.mark.parametrize("transform", ALIKE, ids=lambda t: type(t).__name__)
def test_all_frames_of_a_clip_are_treated_alike(transform: Transform) -> None:
    """Of a clip that stands still all frames stay the same, and are what becomes of the image; clips differ."""
    image = torch.rand(6, 3, 12, 12)
    torch.manual_seed(1)
    expected = transform({"x": image.clone()})["x"]
    torch.manual_seed(1)
    clip = transform({"x": image[:, :, None].repeat(1, 1, 4, 1, 1)})["x"]
    assert clip.shape == (*expected.shape[:2], 4, *expected.shape[2:])
    torch.testing.assert_close(clip, expected[:, :, None].expand_as(clip), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizer", [RandomResizedCrop(size=8), Resize(size=9, crop=0.8)])
def test_one_clip_is_sized_as_an_image_is(sizer: Any) -> None:
    image = torch.randint(256, (3, 14, 20), dtype=torch.uint8)
    torch.manual_seed(1)
    expected = sizer.one({"x": image})["x"]
    torch.manual_seed(1)
    clip = sizer.one({"x": image[:, None].repeat(1, 4, 1, 1)})["x"]
    assert clip.dtype == torch.uint8
    assert clip.equal(expected[:, None].expand_as(clip))


def moments(count: int, length: int) -> Tensor:
    """Clips whose frames hold the sample's number and their own."""
    x = torch.zeros(count, 3, length, 4, 4)
    x[:, 0] = torch.arange(length)[:, None, None]
    x[:, 1] = torch.arange(count)[:, None, None, None]
    return x


def test_a_stretch_of_time() -> None:
    each = Resize(size=4)
    x = moments(50, 9)
    middle = MiddleFrames(frames=4, each=each)({"x": x})["x"]
    assert middle[:, 0, :, 0, 0].equal(torch.tensor([2.0, 3, 4, 5]).expand(50, 4))
    some = RandomFrames(frames=4, each=each)({"x": x})["x"]
    starts = some[:, 0, 0, 0, 0]
    assert set(starts.tolist()) == set(range(6))
    assert some[:, 0, :, 0, 0].equal(starts[:, None] + torch.arange(4))
    assert some[:, 1, 0, 0, 0].equal(torch.arange(50.0))
    short = MiddleFrames(frames=12, each=each)({"x": x})["x"]
    assert short[0, 0, :, 0, 0].tolist() == [*range(9), 8, 8, 8]
    assert RandomFrames(frames=9, each=each)({"x": x})["x"].equal(x)


def test_a_stretch_of_one_clip_in_a_worker() -> None:
    x = torch.arange(7, dtype=torch.uint8)[None, :, None, None].repeat(3, 1, 8, 6)
    made = RandomFrames(frames=3, each=RandomResizedCrop(size=4)).one({"x": x})["x"]
    assert made.shape == (3, 3, 4, 4)
    assert made.dtype == torch.uint8
    assert made[0, :, 0, 0].diff().tolist() == [1, 1]
    assert MiddleFrames(frames=9, each=Resize(size=4)).one({"x": x})["x"].shape == (3, 9, 4, 4)


def test_views_of_clips_in_memory_and_in_workers_have_one_size() -> None:
    crop = RandomFrames(frames=3, each=RandomResizedCrop(size=6))
    views = Views(
        branches={"two": Branch(transforms={"crop": crop, "flip": HorizontalFlip()}, copies=2)},
        fit=MiddleFrames(frames=3, each=Resize(size=6)),
    )
    x = torch.randint(256, (5, 3, 5, 8, 8), dtype=torch.uint8)
    assert [v["x"].shape for v in views({"inputs": [{"x": x}]})] == [(5, 3, 3, 6, 6)] * 2
    rows = [views.crops([{"x": each}]) for each in x]
    inputs = [{"x": torch.stack([row[n]["x"] for row in rows])} for n in range(2)]
    assert [v["x"].shape for v in views({"inputs": inputs, "cropped": True})] == [(5, 3, 3, 6, 6)] * 2
    assert views.plain({"inputs": [{"x": x}]})["x"].shape == (5, 3, 3, 6, 6)


@pytest.mark.parametrize(("name", "count"), [("clip", 1), ("two_clips", 2), ("video_simclr", 2)])
def test_configs_give_views_of_clips(name: str, count: int) -> None:
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        node = OmegaConf.to_container(compose(overrides=[f"+views={name}"]).views, resolve=True)
    views = build.make(build.fill(node, {"size": 16, "frames": 4, "mean": [0.5] * 3, "std": [0.2] * 3}))
    x = torch.randint(256, (3, 3, 6, 20, 24), dtype=torch.uint8)
    assert [v["x"].shape for v in views({"inputs": [{"x": x}]})] == [(3, 3, 4, 16, 16)] * count
    assert [v["x"].shape for v in views.crops([{"x": x[0]}])] == [(3, 4, 16, 16)] * count
    assert views.plain({"inputs": [{"x": x}]})["x"].shape == (3, 3, 4, 16, 16)


# -- the raw baseline, and animations --------------------------------------------------------------------------


def test_the_raw_baseline_is_the_mean_frame_and_the_mean_change() -> None:
    x = torch.rand(2, 3, 4, 5, 6)
    raw = look_and_motion({"x": x}).view(2, 6, 5, 6)
    torch.testing.assert_close(raw[:, :3], x.mean(2))
    change = sum((x[:, :, t + 1] - x[:, :, t]).abs() for t in range(3)) / 3
    torch.testing.assert_close(raw[:, 3:], change)
    assert look_and_motion({"x": torch.rand(2, 3, 1, 40, 40)}).shape == (2, 6 * 16 * 16)


def test_an_animation_shows_each_frame(tmp_path: Path) -> None:
    x = torch.zeros(2, 3, 4, 8, 8)
    x[:, 0] = torch.linspace(0, 1, 4)[:, None, None]
    file = animate([x, x[:, :, :2]], tmp_path / "new" / "shown")
    assert file is not None
    with Image.open(file) as picture:
        assert picture.n_frames == 4  # type: ignore[attr-defined]
        picture.seek(2)
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (2 * 68, 2 * 68, 3)
    assert abs(int(pixels[30, 30, 0]) - 170) < 12
    assert abs(int(pixels[30, 68 + 30, 0]) - 85) < 12  # the shorter column stands still on its last frame
    assert animate([torch.zeros(2, 5)], tmp_path / "none") is None
    assert as_float(torch.tensor([255], dtype=torch.uint8)).item() == 1


# -- a hostile folder through a run ----------------------------------------------------------------------------


def hostile(root: Path) -> Path:
    """Unicode names, many sizes, rates and lengths; a class with a single sample; empty, broken and foreign files."""
    film(root / "läuft" / "eins – 1.mp4", 20, 10, size=(48, 32))
    film(root / "läuft" / "zwei" / "ZWEI.AVI", 3, 25, size=(32, 64))
    film(root / "läuft" / "drei.webm", 12, 5, size=(34, 34))
    film(root / "läuft" / "one frame.gif", 1, 10, size=(8, 8))
    for n in range(5):
        film(root / "steht" / f"{n}.mkv", 6 + n, 10 + n, size=(16 + 2 * n, 40))
    film(root / "einmal" / "a.mp4", 9)
    (root / "steht" / "empty.mp4").write_bytes(b"")
    (root / "steht" / "cut.mp4").write_bytes((root / "einmal" / "a.mp4").read_bytes()[:500])
    (root / "steht" / "gone.mkv").symlink_to("nowhere")
    (root / "steht" / "notes.txt").write_text("none")
    (root / ".hidden").mkdir()
    return root


@pytest.mark.parametrize("cache", ["auto", "no"])
def test_a_hostile_folder_is_pretrained_on_and_evaluated(
    ssl_run: Any, tmp_path: Path, cache: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = hostile(tmp_path / "daten ü")
    shared = ["precision=32", "workers=0", "evaluators=[knn,linear,recall]"]
    given = [
        f'data.root="{root}"',
        "data.size=16",
        "data.frames=4",
        "data.stretch=1.5",
        "data.test=0.3",
        "data.val=0.2",
    ]
    small = ["backbone.depth=1", "backbone.stem.dim=16", "backbone.heads=2"]
    code, out, err = ssl_run(
        *("pretrain", "data=video", *given, f"data.cache={cache}", "views=clip", "backbone=encoder_video", *small),
        *("objective=mae", "objective.mask=tubes", "objective.dim=16", "objective.depth=1", "objective.heads=2"),
        *("batch_size=4", "duration=3 steps", *shared, "hydra.run.dir=r"),
    )
    assert code == 0, err
    for name in ("empty.mp4", "cut.mp4", "gone.mkv"):
        assert err.count(f"{name}' can't be read") == 1 or (cache == "no" and name in err), name
    assert "knn/accuracy" in out
    assert "recall/at_1" in out
    shown = list((tmp_path / "r").rglob("*.gif"))
    assert [file.name for file in shown] == ["reconstruction.gif"]
    with Image.open(shown[0]) as picture:
        assert picture.n_frames == 4  # type: ignore[attr-defined]
    assert ssl_run("evaluate", "from=r", "evaluators=[knn]", "hydra.run.dir=e")[0] == 0
