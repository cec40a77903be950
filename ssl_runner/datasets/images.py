"""Image files: decoded with care, and served as samples of many sizes."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.files import Files
from ssl_runner.errors import RequestError

# What Pillow reads within this process. Not EPS, for one: that starts Ghostscript on the file's own program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


# What Pillow was seen to raise, or may, on damaged files (bytes flipped and cut in every format above).
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


def image_facts(
    *, channels: int, size: int, mean: Sequence[float], std: Sequence[float], num_classes: int
) -> dict[str, Any]:
    """The facts of a source of square images. Raises RequestError for a size below 1."""
    if size < 1:
        raise RequestError(f"data.size={size}: give the side of an image in pixels, 1 or more")
    return {
        "shape": (channels, size, size),
        "size": size,
        "mean": tuple(mean),
        "std": tuple(std),
        "num_classes": num_classes,
    }


class Images(Files):
    """Image files of any size. channels: 3 for colour, 1 for grey, whatever they hold. The rest as at Files."""

    packed_as = "tar"

    def __init__(self, root: str, files: Sequence[str], label: Tensor | None, channels: Literal[1, 3] = 3):
        super().__init__(root, files, label)
        self.channels = channels

    def read(self, index: int) -> Tensor:
        return read_image(self.name(index), self.channels)

    def reading(self) -> AbstractContextManager:
        return quiet_pillow()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's warnings of damaged metadata, which is no fault here, and of huge images, which are
    broken samples. Put it around a whole batch: warning filters belong to the process, not to a thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def image_size(file: str) -> tuple[int, int]:
    """(width, height) from the file's header, before EXIF rotation. Raises BrokenSample."""
    with _opened(file) as image:
        return image.size


def read_image(file: str, channels: Literal[1, 3] = 3, content: BinaryIO | None = None) -> Tensor:
    """(channels, h, w) uint8, upright. content: what is in the file, where it is none of its own.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8, and colour turns
    to grey, or grey to colour, as asked. Of an animation the first frame is read. Raises BrokenSample for
    what is no image, is cut short or has more than PIL.Image.MAX_IMAGE_PIXELS pixels.
    """
    from PIL import Image, ImageOps

    with _opened(file, content) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers, with no fixed range")
        if image.mode.startswith("I"):
            # Pillow would clip at 255. The 32-bit mode is how older versions open 16-bit files.
            deep = np.asarray(image).astype(np.int64).clip(0, 65535)
            image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()


@contextmanager
def _opened(file: str, content: BinaryIO | None = None) -> Iterator[Any]:
    """An image with its header read and judged; every fault of the file in the body becomes BrokenSample."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(content or file, formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"its {image.width} x {image.height} pixels are more than the limit of {limit}")
            yield image
    except UnidentifiedImageError as error:
        raise BrokenSample(f"{file!r} can't be read: it is no image, or its header is damaged") from error
    except (*DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenSample(f"{file!r} can't be read: {error or 'out of memory'}") from error
