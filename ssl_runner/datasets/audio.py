"""Audio files: decoded with care, as far as they are needed, at one rate."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.errors import RequestError

RATES = (1_000, 384_000)  # values a second; what lies outside is taken for a damaged header
CHANNELS = 32  # the same of channels
ZEROS, ROLLOFF, BETA = 16, 0.94, 9.0  # of the filter that resamples: crossings to each side, cutoff, Kaiser's beta
UNKNOWN = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # sizes that a program writes which does not know how much will follow


class Heard(NamedTuple):
    """What a file's header says: its values of one channel, and how many of these are a second."""

    frames: int
    rate: int


def header(file: str, content: bytes | None = None) -> Heard:
    """content: what is in the file, where it is none of its own. Raises BrokenSample for what is no audio, is empty or
    has a header that can't be right."""
    with _opened(file, content) as sound:
        return Heard(sound.frames, sound.samplerate)


def read_audio(
    file: str,
    rate: int,
    longest: int | None = None,
    start: Callable[[int], int] = lambda spare: 0,
    content: bytes | None = None,
) -> Tensor:
    """(1, n) float32 in [-1, 1]: the mean of the channels, `rate` values a second.

    longest: how many values are read at most. start: of a longer file, how many values there are to spare -> the one
    to begin at; only what is needed is decoded. content: as in `header`. Raises BrokenSample for what is no audio, is
    empty, ends before its header says, has a header that can't be right or holds values that are no numbers.
    """
    with _opened(file, content) as sound:
        up, down = ratio(sound.samplerate, rate)
        whole = -(-sound.frames * up // down)
        n = whole if longest is None else min(whole, longest)
        first = start(whole - n) if n < whole else 0
        begin = first * down // up
        count = min(sound.frames - begin, -(-n * down // up) + 1) if n < whole else sound.frames
        if begin:
            sound.seek(begin)
        values = sound.read(count, dtype="float32", always_2d=True)
        if len(values) < count:
            raise ValueError(f"its header claims {sound.frames} values, and it ends at {begin + len(values)}")
    x = torch.from_numpy(values).mean(1)[None]
    if not x.isfinite().all():
        raise BrokenSample(f"{file!r} can't be read: it holds values that are no numbers")
    return resample(x, up, down)[:, :n]


@contextmanager
def _opened(file: str, content: bytes | None) -> Iterator[Any]:
    """A file with its header read and judged; every fault of the file in the body becomes BrokenSample."""
    soundfile = library()
    try:
        if content is None:
            os.stat(file)  # libsndfile would not say that a file is not there
        with soundfile.SoundFile(file if content is None else io.BytesIO(content)) as sound:
            if not RATES[0] <= sound.samplerate <= RATES[1]:
                raise ValueError(f"its header claims {sound.samplerate} values a second")
            if sound.channels > CHANNELS:
                raise ValueError(f"its header claims {sound.channels} channels")
            if sound.frames < 1:
                raise ValueError("it holds no sound")
            if sound.format in ("WAV", "WAVEX"):
                with open(file, "rb") if content is None else io.BytesIO(content) as riff:
                    _whole(riff)
            yield sound
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError, struct.error) as error:
        raise BrokenSample(f"{file!r} can't be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """In a person's words, without the file's name."""
    told = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error) or "out of memory"
    return told.rstrip(".")


def library() -> Any:
    """soundfile. Raises RequestError where it is missing."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise RequestError(
            f"audio is read with the package soundfile, which can't be loaded ({error}); run "
            "`pip install 'ssl-runner[audio]'`"
        ) from error
    return soundfile


def _whole(riff: BinaryIO) -> None:
    """Raises ValueError where a RIFF file ends before its samples do, which libsndfile makes nothing of.

    The format (Microsoft, "Multimedia Programming Interface and Data Specifications 1.0", 1991): chunks of a name of
    four bytes, a little-endian 32-bit size and as many bytes, filled up to an even number.
    """
    end, place = riff.seek(0, os.SEEK_END), 12
    while place + 8 <= end:
        riff.seek(place)
        name, size = struct.unpack("<4sI", riff.read(8))
        if name == b"data":
            if size not in UNKNOWN and place + 8 + size > end:
                raise ValueError(f"its header claims {size} bytes of sound, and {end - place - 8} are there")
            return
        place += 8 + size + size % 2


# --- another rate -------------------------------------------------------------------------------------------


def ratio(source: int, rate: int) -> tuple[int, int]:
    """(up, down): rate / source as a fraction, with a denominator of at most 1000. That is exact for the usual rates,
    and off by a millionth or so for others."""
    fraction = Fraction(rate, source).limit_denominator(1000)
    return fraction.numerator, fraction.denominator


@lru_cache(maxsize=16)
def taps(up: int, down: int) -> Tensor:
    """(2 half + 1,) float64, the low-pass filter at `up` times the source's rate: a sinc, windowed by Kaiser's window.

    Its cutoff is ROLLOFF of the lower of both rates' halves, and it has ZEROS zero crossings to each side.
    """
    wider = max(up, down)
    half = ZEROS * wider
    place = torch.arange(-half, half + 1, dtype=torch.float64)
    window = torch.special.i0(BETA * (1 - (place / half).square()).clamp(min=0).sqrt())
    filter = torch.sinc(ROLLOFF * place / wider) * window
    return filter * (up / filter.sum())


@lru_cache(maxsize=16)
def _phases(up: int, down: int) -> tuple[Tensor, int]:
    """(up, 1, K) float32 kernels, one for each of `up` successive values, and how far they reach before the first."""
    filter, half = taps(up, down), ZEROS * max(up, down)
    reach = half // up + 1
    k = torch.arange(-reach, down + reach + 1)
    place = torch.arange(up)[:, None] * down - k * up  # between value i and source value k, at `up` times its rate
    inside = place.abs() <= half
    kernels = torch.where(inside, filter[(place + half).clamp(0, 2 * half)], 0.0)
    return kernels[:, None].float(), reach


def resample(x: Tensor, up: int, down: int) -> Tensor:
    """(1, n) float32 -> (1, ceil(n up / down)), low-passed so that nothing is folded back.

    Polyphase filtering: value m is the sum over k of x[k] h[m down - k up], with h of ``taps``; outside, x is 0.
    """
    if up == down:
        return x
    kernels, reach = _phases(up, down)
    length = -(-x.shape[1] * up // down)
    blocks = math.ceil(length / up)
    short = (blocks - 1) * down + kernels.shape[2] - reach - x.shape[1]
    padded = F.pad(x, (reach, max(0, short)))
    return F.conv1d(padded[None], kernels, stride=down)[0, :, :blocks].T.reshape(1, -1)[:, :length]
