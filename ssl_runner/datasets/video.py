"""A user's own videos, in folders."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ssl_runner.datasets.base import BrokenSample, Ragged, Source, Split
from ssl_runner.datasets.clips import animate, clip_facts, look_and_motion
from ssl_runner.datasets.files import Files, hold_out
from ssl_runner.datasets.layout import class_names, find_files, label_of, lay_out
from ssl_runner.datasets.published import home
from ssl_runner.datasets.reading import read_all, readable
from ssl_runner.errors import RequestError
from ssl_runner.types import View

EXTENSIONS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
KIND = "videos"
# Formats that hold their own frames. Not playlists, for one: those would have other files and addresses opened.
FORMATS = "avi,gif,matroska,mov"
LARGEST = 1 << 26  # pixels of a frame: 8192 x 8192
CACHE = 1 << 30  # bytes of decoded frames that are held in memory
SLACK = 1e-6  # seconds by which times may be off


class VideoFolder(Source):
    """Videos of any size, length and rate, in one of three layouts:

      <root>/<class>/...                    split here, each class alike
      <root>/{train,val,test}/<class>/...   where there is no val or test folder, it is split off from train
      <root>/*.mp4                          no labels; the same for parts without class folders

    Files deeper down belong to the class of their top folder, and names are taken in sorted order.

    A file is one sample: `stretch` times the length of a clip, from a random place that is drawn anew in each epoch,
    and is always the same in evaluation; of a shorter file all there is, with its last frame held. Views cut clips of
    it, (3, frames, size, size). Two views from different times need a stretch of more than 1.
    frames, fps: of a clip, by time: of a file with more frames a second some are left out, of one with fewer some are
    repeated. size: the side a backbone sees; frames are read with a shorter side of 8/7 of it, or their own if less.
    val, test: shares, used where the layout has no such part.
    on_broken: leave out a file that can't be read, with a warning, or stop the run.
    cache: "auto" decodes everything once where all frames (at `fps`, and as small as they are read) take 1 GiB at most,
    as headers have it. "no" reads each file every time, as far as is needed.
    mean, std: one for each channel, on the scale 0..1; None takes ImageNet's.
    Raises RequestError where no video is found or the layout can't be told, and RunError, from `split`, where a whole
    part is broken.
    """

    labelled: bool | None = None  # type: ignore[misc]  # set by what is found

    def __init__(
        self,
        *,
        root: str,
        size: Annotated[int, Gt(0)] = 112,
        frames: Annotated[int, Gt(0)] = 16,
        fps: Annotated[float, Gt(0)] = 8.0,
        stretch: Annotated[float, Ge(1)] = 1.0,
        val: Annotated[float, Ge(0), Lt(1)] = 0.1,
        test: Annotated[float, Ge(0), Lt(1)] = 0.1,
        on_broken: Literal["skip", "stop"] = "skip",
        cache: Literal["auto", "no"] = "auto",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ):
        if val + test >= 1:
            raise RequestError(f"data.val={val}, data.test={test}: give shares that leave some for training")
        needs_av()
        self.on_broken, self._cache = on_broken, cache
        found, self.classes = self.find(home(root))
        self.labelled = bool(self.classes)
        side = round(size * 8 / 7)
        parts = {
            name: Videos(folder, files, label, frames=math.ceil(frames * stretch), fps=fps, side=side)
            for name, (folder, files, label) in found.items()
        }
        self._parts = hold_out(parts, {"val": val, "test": test})
        self._opened: dict[str, Videos | Decoded] = {}
        self.facts = clip_facts(
            frames=frames,
            size=size,
            mean=mean or (0.485, 0.456, 0.406),
            std=std or (0.229, 0.224, 0.225),
            classes=len(self.classes),
        )

    def find(self, root: str) -> tuple[dict[str, tuple[str, list[str], Tensor | None]], tuple[str, ...]]:
        """For each part that the layout has its folder, its files within that and their labels; and the classes."""
        found = lay_out(root, list(find_files(root, EXTENSIONS, KIND)), EXTENSIONS, KIND)
        classes = class_names(root, found, KIND)
        parts = {
            name: (os.path.join(root, folder), files, label_of(files, classes))
            for name, (folder, files) in found.items()
        }
        return parts, classes

    def split(self, name: Split) -> Videos | Decoded:
        part = "train" if name == "pretrain" else name
        if part not in self._opened:
            videos = self._parts[part]
            self._opened[part] = decode_all(videos, self.on_broken) if self._fits and len(videos) else videos
        return self._opened[part]

    @cached_property
    def _fits(self) -> bool:
        """Whether the decoded frames of all videos fit in the cache, as headers have it."""
        if self._cache == "no":
            return False
        total = 0.0
        for videos in self._parts.values():
            for file in map(videos.name, range(len(videos))):
                try:
                    total += decoded_bytes(file, videos.fps, videos.side)
                except BrokenSample:
                    continue  # met again, and reported, when it is decoded
                if total > CACHE:
                    return False
        return True

    def raw(self, view: View) -> Tensor:
        return look_and_motion(view)

    def write(self, columns: Sequence[Tensor], path: Path) -> Path | None:
        return animate(columns, path) or super().write(columns, path)


class Videos(Files):
    """Video files of any size. frames, fps: of the stretch that is read. side: the shorter one of its frames, at most.

    A sample is (3, frames, h, w) uint8, from a random place of the file; fewer frames where that is shorter.
    """

    def __init__(self, root: str, files: Sequence[str], label: Tensor | None, *, frames: int, fps: float, side: int):
        super().__init__(root, files, label)
        self.frames, self.fps, self.side = frames, fps, side

    def read(self, index: int) -> Tensor:
        where = torch.rand((), dtype=torch.float64).item()
        return read_video(self.name(index), fps=self.fps, side=self.side, frames=self.frames, where=where)


class Decoded(Ragged):
    """Videos that were decoded: (3, N, h, w) uint8 each. The rest as in Videos."""

    def __init__(self, clips: list[Tensor], names: list[str], label: Tensor | None, frames: int):
        self.clips, self.names, self.label, self.frames = clips, names, label, frames

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> Tensor:
        whole = self.clips[index]
        start = int(torch.randint(max(0, whole.shape[1] - self.frames) + 1, ()))
        return whole[:, start : start + self.frames]


def decode_all(videos: Videos, on_broken: Literal["skip", "stop"]) -> Decoded:
    """All videos, whole. Broken ones are left out, with one warning for all of them. Raises RunError at the first with
    on_broken="stop", and where none is left."""

    found = read_all(lambda n: read_video(videos.name(n), fps=videos.fps, side=videos.side), len(videos))
    kept = readable(found, on_broken)
    clips = [each for each in found if isinstance(each, Tensor)]
    names = [videos.name(int(n)) for n in kept.nonzero()]
    return Decoded(clips, names, None if videos.label is None else videos.label[kept], videos.frames)


# --- decoding -------------------------------------------------------------------------------------------


def read_video(file: str, *, fps: float, side: int, frames: int | None = None, where: float = 0.0) -> Tensor:
    """(3, T, h, w) uint8, upright: what is to be seen at `fps` moments a second.

    frames: T at most; None reads the whole file, or as much of it as CACHE bytes hold. where: from 0, the first moment
    that leaves room for them, to 1, the last. side: of the shorter side, if the video's is longer. Raises BrokenSample
    for what is no video, is damaged, has no frames or larger ones than LARGEST.
    """
    with _opened(file) as (container, stream):
        first = float((stream.start_time or 0) * stream.time_base)
        width, height = _fitted(stream.width, stream.height, side)
        most = CACHE // (3 * width * height) if frames is None else frames
        room = 0.0 if frames is None else max(0.0, _seconds(container, stream) - frames / fps)
        for begin in (room * where, 0.0):  # a header may claim more than there is: then from the first frame on
            if begin > 0:
                container.seek(int((first + begin) / stream.time_base), stream=stream)
            elif room * where > 0:
                container.seek(stream.start_time or 0, stream=stream)
            pictures = list(_moments(container.decode(stream), first + begin, fps, most, side))
            if pictures:
                return torch.stack(pictures, 1)
        raise ValueError("it has no frames")


def decoded_bytes(file: str, fps: float, side: int) -> float:
    """What a whole video takes in memory, by its header. Raises BrokenSample, also where that tells no length."""
    with _opened(file) as (container, stream):
        seconds, (width, height) = _seconds(container, stream), _fitted(stream.width, stream.height, side)
        if seconds == 0:
            raise ValueError("its header tells no length")
        return 3.0 * width * height * max(1.0, seconds * fps)


def _moments(decoded: Iterable[Any], begin: float, fps: float, count: int, side: int) -> Iterator[Tensor]:
    """(3, h, w), what is to be seen `begin` seconds in and each 1 / fps later: the frame that came last. Ends with the
    frames, or after `count`. Where the first frame comes late it is seen from the beginning."""
    made, last, picture, time = 0, None, None, 0.0
    for frame in decoded:
        if frame.time is None:
            raise ValueError("its frames tell no times")
        while last is not None and made != count and begin + made / fps < frame.time - SLACK:
            picture = _picture(last, side) if picture is None else picture
            made += 1
            yield picture
        if made == count:
            return
        last, picture, time = frame, None, frame.time
    while last is not None and made != count and (made == 0 or begin + made / fps <= time + SLACK):
        picture = _picture(last, side) if picture is None else picture
        made += 1
        yield picture


def _picture(frame: Any, side: int) -> Tensor:
    width, height = _fitted(frame.width, frame.height, side)
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24", width=width, height=height)).permute(2, 0, 1)
    return torch.rot90(pixels, round(frame.rotation / 90) % 4, (1, 2)).contiguous()  # as phones have it, in a note


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """The size with a shorter side of at most `side`."""
    scale = min(1.0, side / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _seconds(container: Any, stream: Any) -> float:
    """The length that the header tells; 0 where it tells none."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return 0.0 if container.duration is None else container.duration / 1e6


def needs_av() -> None:
    """Raises RequestError where PyAV, which decodes, is missing: before a data worker meets it."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"data: videos are decoded by the package av ({error}); run `pip install 'ssl-runner[video]'`"
        ) from error


@contextmanager
def _opened(file: str) -> Iterator[tuple[Any, Any]]:
    """A video with its header read and judged; every fault of the file in the body becomes BrokenSample."""
    import av

    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(file, options=options) as container:
            if not container.streams.video:
                raise ValueError("it holds no pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("how its pictures are coded can't be told")
            if min(stream.width, stream.height) < 1 or stream.width * stream.height > LARGEST:
                raise ValueError(f"its frames are of {stream.width} x {stream.height} pixels")
            yield container, stream
    except (av.error.FFmpegError, OSError, ValueError, LookupError, ArithmeticError) as error:
        raise BrokenSample(f"{file!r} can't be read: {getattr(error, 'strerror', None) or error}") from error
