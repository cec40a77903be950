"""From files to samples: decoding images, serving samples of many sizes, and torchvision's data sets."""

from __future__ import annotations

import os
import shlex
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssl_runner.datasets.base import Arrays, BrokenSample, Key, Ragged, Split
from ssl_runner.datasets.splits import stratified
from ssl_runner.errors import RequestError, RunError
from ssl_runner.types import Samples

T = TypeVar("T")

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


def hold_out(whole: Arrays, share: float = 0.1) -> dict[Split, Arrays]:
    """Labelled training data -> its parts, a fixed stratified `share` of it for validation."""
    assert whole.label is not None
    train, val = (Arrays(whole.x[i], whole.label[i]) for i in stratified(whole.label, (1 - share, share)))
    return {"pretrain": train, "train": train, "val": val}


# --- images ---------------------------------------------------------------------------------------------


class Images(Ragged):
    """Image files of any size.

    root: the folder the names are relative to. files: N names. label: (N,) int64, or None.
    channels: 3 for colour, 1 for grey, whatever the files hold.
    """

    def __init__(self, root: str, files: Sequence[str], label: Tensor | None, channels: Literal[1, 3] = 3):
        self.root, self.label, self.channels = root, label, channels
        # One block of bytes: each worker would copy a list of strings, by counting references to them.
        self._files = np.array([os.fsencode(f) for f in files], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self._files[index])))

    def read(self, index: int) -> Tensor:
        return read_image(self.name(index), self.channels)

    def part(self, index: Tensor) -> Images:
        """The samples at these positions, (n,) int64."""
        files = [os.fsdecode(bytes(f)) for f in self._files[index.numpy()]]
        return Images(self.root, files, None if self.label is None else self.label[index], self.channels)


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


def read_image(file: str, channels: Literal[1, 3] = 3) -> Tensor:
    """(channels, h, w) uint8, upright.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8, and colour turns
    to grey, or grey to colour, as asked. Of an animation the first frame is read. Raises BrokenSample for
    what is no image, is cut short or has more than PIL.Image.MAX_IMAGE_PIXELS pixels.
    """
    from PIL import Image, ImageOps

    with _opened(file) as image:
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
def _opened(file: str) -> Iterator[Any]:
    """An image with its header read and judged; every fault of the file in the body becomes BrokenSample."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"its {image.width} x {image.height} pixels are more than the limit of {limit}")
            yield image
    except UnidentifiedImageError as error:
        raise BrokenSample(f"{file!r} can't be read: it is no image, or its header is damaged") from error
    except (*DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenSample(f"{file!r} can't be read: {error}") from error


# --- samples of many sizes ------------------------------------------------------------------------------


class Reading(Dataset):
    """Serves a Ragged to a DataLoader whose batch sampler yields lists of keys (position, seed).

    crops: one sample (C, h, w) -> its crops, the n-th of the same size for all samples. Random draws come
    from torch's CPU generator, set from the key's seed: what a key gives does not depend on which worker
    serves it, or with which other keys.
    on_broken: "stop" raises RunError at a file that can't be read; "skip" names it once on stderr and goes
    on. replace: whether the next readable sample then takes its place (training: the batch size must hold),
    or the batch gets smaller, down to none (evaluation: no sample may count twice).
    """

    def __init__(
        self,
        dataset: Ragged,
        crops: Callable[[Tensor], list[Tensor]],
        on_broken: Literal["skip", "stop"],
        replace: bool,
    ):
        self.dataset, self.crops, self.on_broken, self.replace = dataset, crops, on_broken, replace
        # What has been warned of: shared by all workers, so that there is one line for each file.
        self._named = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> Samples:
        """Samples of B keys, with (B, C, S, S) uint8 for each crop.

        Raises RunError when nothing in the dataset can be read, and RequestError when the crops of two
        samples differ in size.
        """
        with torch.random.fork_rng(devices=[]), quiet_pillow():
            drawn = [self._draw(key, self.replace) for key in keys]
            rows = [row for row in drawn if row is not None]
            if rows:
                return self._collate(rows)
            # Nothing left: an empty batch still has the shape of the others.
            spare = self._draw(keys[0], replace=True)
            assert spare is not None
            empty = self._collate([spare])
        for view in empty["inputs"]:
            view["x"] = view["x"][:0]
        empty["index"] = empty["index"][:0]
        if "label" in empty:
            empty["label"] = empty["label"][:0]
        return empty

    def _draw(self, key: Key, replace: bool) -> tuple[int, list[Tensor]] | None:
        """The position that was read, which is another than asked for if that is broken, and its crops."""
        index, seed = key
        for place in range(index, index + (len(self) if replace else 1)):
            place %= len(self)
            try:
                sample = self.dataset.read(place)
            except BrokenSample as error:
                self._report(place, error)
                continue
            # torch.manual_seed would seed the accelerator too
            torch.default_generator.manual_seed(seed)
            return place, self.crops(sample)
        if replace:
            raise RunError(f"none of the {len(self)} samples can be read; the last one tried: {self._name(place)}")
        return None

    def _report(self, index: int, error: BrokenSample) -> None:
        if self.on_broken == "stop":
            raise RunError(f"{error}; mend or remove it, or set data.on_broken=skip") from error
        if not self._named[index]:
            self._named[index] = True
            print(f"warning: skipped a broken sample: {error}", file=sys.stderr)

    def _name(self, index: int) -> str:
        return repr(self.dataset.name(index))

    def _collate(self, rows: list[tuple[int, list[Tensor]]]) -> Samples:
        index = torch.tensor([place for place, _ in rows], dtype=torch.int64)
        inputs = []
        for crops in zip(*(crops for _, crops in rows), strict=True):
            odd = next((n for n, crop in enumerate(crops) if crop.shape != crops[0].shape), None)
            if odd is not None:
                raise RequestError(
                    "views: the samples differ in size and the views leave them so "
                    f"({self._name(rows[0][0])} gives {tuple(crops[0].shape)}, "
                    f"{self._name(rows[odd][0])} {tuple(crops[odd].shape)}): "
                    "begin every branch with a random crop or a resize, or set views.fit"
                )
            inputs.append({"x": torch.stack(crops)})
        samples: Samples = {"inputs": inputs, "index": index, "cropped": True}
        if self.dataset.label is not None:
            samples["label"] = self.dataset.label[index]
        return samples


# --- torchvision's data sets ----------------------------------------------------------------------------


def torchvision_datasets() -> ModuleType:
    """torchvision.datasets. Raises RequestError where it is missing or was built for another torch."""
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        have = {name: _version(name) for name in ("torch", "torchvision")}
        number, _, build = (have["torch"] or "").partition("+")
        command = f"pip install --force-reinstall torch=={number} torchvision"
        if build:  # a build from PyTorch's own index: for one CUDA version, or for none
            command += f" --index-url https://download.pytorch.org/whl/{build}"
        found = ", ".join(f"{name} {version or 'not'} installed" for name, version in have.items())
        raise RequestError(f"torchvision can't be loaded ({error}); {found}; run `{command}`") from error
    return torchvision.datasets


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Published:
    """The files of one of torchvision's data sets.

    title: its name for a reader. root: torchvision's root folder. files: path under root -> MD5.
    command: a shell command that fetches them.
    """

    def __init__(self, *, title: str, root: str, files: Mapping[str, str], command: str):
        self.title, self.root, self.files, self.command = title, root, files, command

    def provide(self, download: Callable[[], object] | None) -> None:
        """Sees that all files are there, with `download` where one is missing. Raises RequestError."""
        missing = [f for f in self.files if not os.path.isfile(os.path.join(self.root, f))]
        if missing and download is None:
            raise RequestError(
                f"data.root={self.root!r}: {self.title} is not there ({missing[0]!r} is missing); add "
                f"data.download=true, run `{self.command}`, or set data.root to the folder that has it"
            )
        if missing and download is not None:
            try:
                download()
            except (OSError, RuntimeError, EOFError) as error:
                raise RequestError(
                    f"data.download=true: {self.title} could not be fetched ({error}); run `{self.command}`"
                ) from error

    def load(self, loader: Callable[[], T]) -> T:
        """What `loader` gives. Raises RequestError that names the file that is not as published."""
        try:
            return loader()
        except (OSError, RuntimeError, EOFError) as error:
            from torchvision.datasets.utils import check_integrity

            paths = {os.path.join(self.root, f): md5 for f, md5 in self.files.items()}
            bad = [path for path, md5 in paths.items() if not check_integrity(path, md5)]
            if not bad:
                raise RequestError(f"data.root={self.root!r}: {self.title} can't be read: {error}") from error
            raise RequestError(
                f"{bad[0]!r} is corrupt: its MD5 is not the published one; remove it and run `{self.command}`"
            ) from error


def fetch_and_unpack(url: str, root: str) -> str:
    """The shell command that puts a .tar.gz from the web into root."""
    folder = shlex.quote(root)
    return f"mkdir -p {folder} && curl -L {url} | tar xz -C {folder}"


def home(root: str) -> str:
    """root, with ~ spelled out."""
    return str(Path(root).expanduser())
