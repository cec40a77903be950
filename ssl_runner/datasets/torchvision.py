"""What torchvision's data sets share: their files, how they are provided, and the part held out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import metadata
from types import ModuleType
from typing import TypeVar

from ssl_runner.datasets.base import Arrays, Split
from ssl_runner.datasets.splits import stratified
from ssl_runner.errors import RequestError

T = TypeVar("T")


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


def hold_out(whole: Arrays, share: float = 0.1) -> dict[Split, Arrays]:
    """Labelled training data -> its parts, a fixed stratified `share` of it for validation."""
    assert whole.label is not None
    train, val = (Arrays(whole.x[i], whole.label[i]) for i in stratified(whole.label, (1 - share, share)))
    return {"pretrain": train, "train": train, "val": val}
