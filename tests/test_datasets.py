"""Every data source on small files in its real layout; the reading of images; broken files; splits."""

import gzip
import hashlib
import inspect
import io
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import typing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from ssl_runner.datasets import fashion_mnist, folder, published, torchvision
from ssl_runner.datasets import images as decoding
from ssl_runner.datasets.archives import Archives
from ssl_runner.datasets.audio_folder import AudioFolder
from ssl_runner.datasets.base import Arrays, BrokenSample, Ragged, Source
from ssl_runner.datasets.cifar import CIFAR10, CIFAR100
from ssl_runner.datasets.digits import Digits
from ssl_runner.datasets.fake import Fake
from ssl_runner.datasets.fashion_mnist import FashionMNIST, read_idx
from ssl_runner.datasets.folder import Folder
from ssl_runner.datasets.imagenet import ImageNet
from ssl_runner.datasets.images import Images, read_image
from ssl_runner.datasets.memmap import Memmap
from ssl_runner.datasets.pairs import Pairs
from ssl_runner.datasets.reading import Reading
from ssl_runner.datasets.row_groups import Parquet
from ssl_runner.datasets.series import Series
from ssl_runner.datasets.shards import Shards
from ssl_runner.datasets.stl10 import STL10
from ssl_runner.datasets.svhn import SVHN
from ssl_runner.datasets.table import Table
from ssl_runner.datasets.text import Text
from ssl_runner.datasets.text_pairs import TextPairs
from ssl_runner.datasets.torchvision import torchvision_datasets
from ssl_runner.datasets.video import VideoFolder
from ssl_runner.errors import RequestError, RunError
from ssl_runner.types import View

REPO = Path(__file__).parents[1]
SPLITS = ("pretrain", "train", "val", "test")
fuzz = settings(
    max_examples=150,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """(count, *shape) random bytes; no two alike."""
    return np.random.RandomState(seed).randint(0, 256, (count, *shape), dtype=np.uint8)


def same_samples(parts: list[torch.Tensor], whole: np.ndarray) -> None:
    """The parts hold every sample of `whole` once."""
    held = [p.numpy().tobytes() for part in parts for p in part]
    assert len(set(held)) == len(held), "the parts overlap"
    assert sorted(held) == sorted(w.tobytes() for w in whole)


@pytest.fixture
def publish(monkeypatch):
    """Writes files as the publisher did: torchvision's check passes for these bytes, and for no others."""
    from torchvision.datasets import utils

    published = {}

    def check_md5(fpath, md5, **_):
        return published.get(str(fpath)) == hashlib.md5(Path(fpath).read_bytes()).hexdigest()

    def write(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        published[str(path)] = hashlib.md5(data).hexdigest()

    monkeypatch.setattr(utils, "check_md5", check_md5)
    return write


# --- the published data sets ------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def write_fashion(root: Path, train: int = 100, test: int = 20) -> tuple[np.ndarray, np.ndarray]:
    x, t = images(train, 28, 28), images(test, 28, 28, seed=1)
    write_idx(root / "train-images-idx3-ubyte.gz", x)
    write_idx(root / "train-labels-idx1-ubyte.gz", (np.arange(train) % 10).astype(np.uint8))
    write_idx(root / "t10k-images-idx3-ubyte.gz", t)
    write_idx(root / "t10k-labels-idx1-ubyte.gz", (np.arange(test) % 10).astype(np.uint8))
    return x, t


@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path, inside):
    x, t = write_fashion(tmp_path / inside)
    source = FashionMNIST(root=str(tmp_path), size=32)
    assert source.facts == {
        "shape": (1, 32, 32),
        "size": 32,
        "mean": (0.2860,),
        "std": (0.3530,),
        "num_classes": 10,
    }
    train, val, test = (source.split(s) for s in ("train", "val", "test"))
    assert (train.x.shape, val.x.shape, test.x.shape) == ((90, 1, 28, 28), (10, 1, 28, 28), (20, 1, 28, 28))
    assert train.x.dtype == torch.uint8
    assert train.label.dtype == torch.int64
    assert train.label.bincount().tolist() == [9] * 10
    assert source.split("pretrain") is train
    same_samples([train.x, val.x], x[:, None])
    assert torch.equal(test.x, torch.from_numpy(t[:, None]))
    by_bytes = {image.tobytes(): n % 10 for n, image in enumerate(x)}
    assert [by_bytes[image.numpy().tobytes()] for image in val.x] == val.label.tolist()


def test_fashion_mnist_from_the_debian_package(tmp_path, monkeypatch):
    write_fashion(tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "DEBIAN", str(tmp_path / "debian"))
    assert len(FashionMNIST(root=str(tmp_path / "none")).split("train")) == 90


def test_fashion_mnist_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", str(tmp_path / "debian"))
    with pytest.raises(RequestError, match="apt-get install dataset-fashion-mnist") as error:
        FashionMNIST(root=str(tmp_path))
    assert "data.download=true" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_fashion_mnist_downloads_only_when_asked_and_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", str(tmp_path / "debian"))
    calls = []

    def fetch(root, download):
        calls.append(download)
        write_fashion(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision_datasets(), "FashionMNIST", fetch)
    for _ in range(2):
        assert len(FashionMNIST(root=str(tmp_path), download=True).split("test")) == 20
    assert calls == [True]


def test_fashion_mnist_failed_download_names_the_package(tmp_path, monkeypatch):
    def fetch(root, download):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(fashion_mnist, "DEBIAN", str(tmp_path / "debian"))
    monkeypatch.setattr(torchvision_datasets(), "FashionMNIST", fetch)
    with pytest.raises(RequestError, match=r"Error downloading.*apt-get install dataset-fashion-mnist"):
        FashionMNIST(root=str(tmp_path), download=True)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("train-images-idx3-ubyte.gz", images(100, 27, 28), "27 x 28, not 28 x 28"),
        ("train-labels-idx1-ubyte.gz", np.zeros(99, np.uint8), "each of 100 images"),
        ("train-labels-idx1-ubyte.gz", np.full(100, 10, np.uint8), "label from 0 to 9"),
        ("t10k-labels-idx1-ubyte.gz", images(20, 2), "1 dimensions"),
    ],
)
def test_fashion_mnist_corrupt_file_is_named(tmp_path, name, values, said):
    write_fashion(tmp_path)
    write_idx(tmp_path / name, values)
    with pytest.raises(RequestError, match=said) as error:
        FashionMNIST(root=str(tmp_path)).split("train")
    assert name in str(error.value)


def idx_file(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


GOOD = gzip.compress(idx_file(images(3, 4, 5)), mtime=0)


@fuzz
@given(
    data=st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(gzip.compress)),
    dims=st.sampled_from([1, 3]),
)
def test_idx_of_random_bytes_is_a_request_error(tmp_path, data, dims):
    file = tmp_path / "x.gz"
    file.write_bytes(data)
    with pytest.raises(RequestError, match=r"x\.gz"):
        read_idx(str(file), dims=dims)


@fuzz
@given(kept=st.integers(0, len(GOOD) - 1))
def test_idx_cut_short_is_a_request_error(tmp_path, kept):
    file = tmp_path / "x.gz"
    file.write_bytes(GOOD[:kept])
    with pytest.raises(RequestError, match=r"x\.gz"):
        read_idx(str(file), dims=3)


@fuzz
@given(place=st.integers(0, 15 + 60), value=st.integers(0, 255), extra=st.binary(max_size=3))
def test_idx_with_a_wrong_byte_or_tail(tmp_path, place, value, extra):
    """A wrong value can't be told; a wrong header or length always is."""
    good = idx_file(images(3, 4, 5))
    bad = good[:place] + bytes([value]) + good[place + 1 :] + extra
    file = tmp_path / "x.gz"
    file.write_bytes(gzip.compress(bad))
    if bad[:16] == good[:16] and not extra:
        assert read_idx(str(file), dims=3).numpy().tobytes() == bad[16:]
    else:
        with pytest.raises(RequestError, match=r"x\.gz"):
            read_idx(str(file), dims=3)


@fuzz
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_idx_of_any_shape_comes_back(tmp_path, shape):
    values = images(*shape)
    write_idx(tmp_path / "x.gz", values)
    assert np.array_equal(read_idx(str(tmp_path / "x.gz"), dims=len(shape)).numpy(), values)


def test_idx_that_claims_more_than_there_could_be(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12 + b"abc"))
    with pytest.raises(RequestError, match="claims a size of"):
        read_idx(str(tmp_path / "x.gz"), dims=3)


def write_cifar10(root: Path, publish) -> np.ndarray:
    """Five batches of 20 for training and one for testing; an image is 3072 bytes, plane by plane."""
    base = root / "cifar-10-batches-py"
    x = images(120, 3072)
    for n in range(6):
        name = f"data_batch_{n + 1}" if n < 5 else "test_batch"
        batch = {
            "batch_label": name,
            "labels": [i % 10 for i in range(20)],
            "data": x[20 * n : 20 * n + 20],
            "filenames": ["x.png"] * 20,
        }
        publish(base / name, pickle.dumps(batch, protocol=2))
    meta = {"label_names": list(CIFAR10.classes), "num_cases_per_batch": 20, "num_vis": 3072}
    publish(base / "batches.meta", pickle.dumps(meta, protocol=2))
    return x.reshape(-1, 3, 32, 32)


def test_cifar10(tmp_path, publish):
    x = write_cifar10(tmp_path, publish)
    source = CIFAR10(root=str(tmp_path))
    assert source.facts["shape"] == (3, 32, 32)
    assert source.facts["num_classes"] == len(source.classes) == 10
    train, val, test = (source.split(s) for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (90, 10, 20)
    same_samples([train.x, val.x], x[:100])
    assert torch.equal(test.x, torch.from_numpy(x[100:]))
    assert test.label.tolist() == [i % 10 for i in range(20)]
    assert source.split("pretrain") is train


def test_cifar100(tmp_path, publish):
    base = tmp_path / "cifar-100-python"
    x = images(300, 3072)
    for name, part in (("train", slice(0, 200)), ("test", slice(200, 300))):
        fine = [i % 100 for i in range(300)][part]
        batch = {"filenames": [], "fine_labels": fine, "coarse_labels": [0] * len(fine), "data": x[part]}
        publish(base / name, pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": list(CIFAR100.classes), "coarse_label_names": []}
    publish(base / "meta", pickle.dumps(meta, protocol=2))
    source = CIFAR100(root=str(tmp_path), size=40)
    assert source.facts["shape"] == (3, 40, 40)
    assert source.facts["num_classes"] == len(set(source.classes)) == 100
    train, val = source.split("train"), source.split("val")
    same_samples([train.x, val.x], x[:200].reshape(-1, 3, 32, 32))
    assert source.split("test").label.tolist() == list(range(100))


def test_cifar_classes_are_in_label_order():
    """Labels number the sorted names."""
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert list(CIFAR10.classes) == sorted(CIFAR10.classes)
    assert CIFAR10.classes[3] == "cat"
    assert CIFAR100.classes[99] == "worm"


def test_stl10(tmp_path, publish):
    base = tmp_path / "stl10_binary"
    # The binary files hold each plane column by column: the second axis on disk is the image's x.
    sets = {"train": images(20, 3, 96, 96), "test": images(10, 3, 96, 96, seed=1)}
    sets["unlabeled"] = images(7, 3, 96, 96, seed=2)
    for name, x in sets.items():
        publish(base / f"{name}_X.bin", x.transpose(0, 1, 3, 2).tobytes())
    for name in ("train", "test"):
        publish(base / f"{name}_y.bin", (np.arange(len(sets[name])) % 10 + 1).astype(np.uint8).tobytes())
    (base / "class_names.txt").write_text("\n".join(STL10.classes))
    source = STL10(root=str(tmp_path))
    train, val, test, pretrain = (source.split(s) for s in ("train", "val", "test", "pretrain"))
    assert (len(train), len(val), len(test), len(pretrain)) == (20, 0, 10, 27)  # 2 of a class: 1.8 is 2
    assert torch.equal(test.x, torch.from_numpy(sets["test"]))
    assert test.label.tolist() == list(range(10))
    assert pretrain.label is None
    same_samples([pretrain.x], np.concatenate([sets["unlabeled"], sets["train"]]))
    assert source.facts["shape"] == (3, 96, 96)
    assert source.split("pretrain") is pretrain


def test_svhn(tmp_path, publish):
    from scipy.io import savemat

    x = {"train": images(100, 32, 32, 3), "test": images(20, 32, 32, 3, seed=1)}
    for name, part in x.items():
        file = io.BytesIO()
        y = np.arange(len(part)) % 10
        y[y == 0] = 10  # the file's label of the digit 0
        savemat(file, {"X": part.transpose(1, 2, 3, 0), "y": y[:, None].astype(np.uint8)})
        publish(tmp_path / f"{name}_32x32.mat", file.getvalue())
    source = SVHN(root=str(tmp_path))
    train, val, test = (source.split(s) for s in ("train", "val", "test"))
    same_samples([train.x, val.x], x["train"].transpose(0, 3, 1, 2))
    assert len(val) == 10
    assert torch.equal(test.x, torch.from_numpy(x["test"].transpose(0, 3, 1, 2)))
    assert test.label.tolist() == list(range(10)) * 2
    assert test.label.dtype == torch.int64


@pytest.mark.parametrize(
    ("kind", "file", "url"),
    [
        (CIFAR10, "data_batch_1", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        (CIFAR100, "train", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
        (STL10, "train_X.bin", "stl10_binary.tar.gz"),
        (SVHN, "train_32x32.mat", "http://ufldl.stanford.edu/housenumbers/train_32x32.mat"),
    ],
)
def test_missing_data_names_file_and_command(tmp_path, monkeypatch, kind, file, url):
    root = str(tmp_path / "no such place")
    with pytest.raises(RequestError) as error:
        kind(root=root)
    message = str(error.value)
    for part in (root, file, "data.download=true", "curl -L", url, f"'{root}'"):
        assert part in message

    def fetch(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision_datasets(), kind.__name__, published_like(kind.__name__, fetch))
    with pytest.raises(RequestError, match=r"data\.download=true: .*no network.*curl -L"):
        kind(root=root, download=True)


def published_like(name: str, fetch):
    """torchvision's class with its lists of files, and `fetch` as what building it does."""
    real = getattr(torchvision_datasets(), name)
    return type(name, (real,), {"__init__": lambda self, *args, **kwargs: fetch(*args, **kwargs)})


def test_corrupt_data_names_the_file(tmp_path, publish):
    write_cifar10(tmp_path, publish)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RequestError, match=r"data_batch_3.* is corrupt.*remove it and run"):
        CIFAR10(root=str(tmp_path)).split("train")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_command_to_fetch_works(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    subprocess.run(["tar", "czf", tmp_path / "a.tar.gz", "-C", tmp_path, "folder"], check=True)
    command = published.fetch_and_unpack(f"file://{tmp_path}/a.tar.gz", str(tmp_path / "it's new"))
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert (tmp_path / "it's new" / "folder" / "file").read_text() == "x"


@pytest.mark.parametrize("build", ["", "+cpu"])
def test_torchvision_of_another_torch(monkeypatch, build):
    versions = {"torch": f"2.14.1{build}", "torchvision": "0.20.0"}
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setattr(torchvision.metadata, "version", versions.__getitem__)
    with pytest.raises(RequestError) as error:
        torchvision_datasets()
    message = str(error.value)
    assert f"torch 2.14.1{build} installed" in message
    assert "torchvision 0.20.0 installed" in message
    assert "pip install --force-reinstall torch==2.14.1 torchvision" in message
    assert ("--index-url https://download.pytorch.org/whl/cpu" in message) == bool(build)


# --- ImageNet ---------------------------------------------------------------------------------------------

WNIDS = ("n01440764", "n01443537", "n02012849")


def write_imagenet(root: Path, per_class: int = 100) -> None:
    for part, count in (("train", per_class), ("val", 2)):
        for wnid in WNIDS:
            (root / part / wnid).mkdir(parents=True)
            for n in range(count):
                (root / part / wnid / f"{wnid}_{n}.JPEG").write_bytes(b"")


@pytest.mark.parametrize("described", [False, True])
def test_imagenet(tmp_path, described):
    write_imagenet(tmp_path)
    if described:  # what torchvision writes: (wnid -> names, wnid of each validation image)
        names = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",), "n02012849": ("crane",)}
        torch.save((names, [WNIDS[0]]), tmp_path / "meta.bin")
    source = ImageNet(root=str(tmp_path), on_broken="stop")
    assert source.classes == (("tench, Tinca tinca", "goldfish", "crane") if described else WNIDS)
    assert source.facts["num_classes"] == 3
    assert source.facts["shape"] == (3, 224, 224)
    assert source.on_broken == "stop"
    parts = {s: source.split(s) for s in SPLITS}
    assert parts["pretrain"] is parts["train"]
    files = {s: [p.name(i) for i in range(len(p))] for s, p in parts.items()}
    assert (len(files["train"]), len(files["val"]), len(files["test"])) == (297, 3, 6)
    assert not set(files["train"]) & set(files["val"])
    for name, part in parts.items():
        assert [WNIDS[n] for n in part.label] == [Path(f).parent.name for f in files[name]]
        assert all(os.path.isfile(f) for f in files[name])
    assert all(f"{os.sep}val{os.sep}" in f for f in files["test"])
    assert parts["val"].label.tolist() == [0, 1, 2]


def test_imagenet_lists_the_same_with_and_without_meta(tmp_path):
    write_imagenet(tmp_path, 30)
    plain = ImageNet(root=str(tmp_path)).split("train")
    torch.save(({wnid: (wnid,) for wnid in WNIDS}, []), tmp_path / "meta.bin")
    described = ImageNet(root=str(tmp_path)).split("train")
    assert [plain.name(i) for i in range(len(plain))] == [described.name(i) for i in range(len(described))]


def test_imagenet_missing(tmp_path):
    with pytest.raises(RequestError, match=r"ILSVRC2012_img_train\.tar.*run `python -c"):
        ImageNet(root=str(tmp_path))


def test_imagenet_with_flat_validation_images(tmp_path):
    write_imagenet(tmp_path, 2)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(RequestError, match=r"val.*no class folders"):
        ImageNet(root=str(tmp_path))


def test_imagenet_classes_must_agree(tmp_path):
    write_imagenet(tmp_path, 2)
    shutil.rmtree(tmp_path / "val" / WNIDS[1])
    with pytest.raises(RequestError, match=f"{WNIDS[1]}.*only one of train and val"):
        ImageNet(root=str(tmp_path))


@pytest.mark.parametrize("described", [False, True])
def test_imagenet_with_an_empty_class_folder(tmp_path, described):
    write_imagenet(tmp_path, 2)
    for file in (tmp_path / "train" / WNIDS[1]).iterdir():
        file.unlink()
    if described:
        torch.save(({wnid: (wnid,) for wnid in WNIDS}, []), tmp_path / "meta.bin")
    with pytest.raises(RequestError):
        ImageNet(root=str(tmp_path)).split("train")


# --- a user's folder --------------------------------------------------------------------------------------


def picture(path: Path, size: tuple[int, int] = (6, 4), seed: int = 0) -> None:
    """A PNG of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images(size[1], size[0], 3, seed=seed)).save(path, "PNG")


def names(part: Ragged) -> list[str]:
    return [part.name(i) for i in range(len(part))]


def test_folder_of_classes(tmp_path):
    for n in range(20):
        for c in ("cat", "dog"):
            picture(tmp_path / c / f"{n}.png", (6 + n, 4), seed=n)
    source = Folder(root=str(tmp_path), size=16)
    assert source.classes == ("cat", "dog")
    assert source.labelled is True
    assert source.facts == {
        "shape": (3, 16, 16),
        "size": 16,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": 2,
    }
    parts = {s: source.split(s) for s in SPLITS}
    assert {s: len(p) for s, p in parts.items()} == {"pretrain": 32, "train": 32, "val": 4, "test": 4}
    assert parts["pretrain"] is parts["train"]
    every = sorted(itertools.chain.from_iterable(names(parts[s]) for s in ("train", "val", "test")))
    assert every == sorted(str(p) for p in tmp_path.rglob("*.png"))
    for part in parts.values():
        assert [source.classes[n] for n in part.label] == [Path(f).parent.name for f in names(part)]
    assert part.read(0).dtype == torch.uint8
    with Image.open(part.name(0)) as image:
        assert part.read(0).shape == (3, image.height, image.width)


def test_folder_with_parts(tmp_path):
    for part, count in (("train", 20), ("val", 3), ("test", 2)):
        for c in ("a", "b"):
            for n in range(count):
                picture(tmp_path / part / c / f"{n}.png", (5 + n, 5))
    source = Folder(root=str(tmp_path))
    assert {s: len(source.split(s)) for s in SPLITS} == {"pretrain": 40, "train": 40, "val": 6, "test": 4}
    for s in ("train", "val", "test"):
        assert all(f"{os.sep}{s}{os.sep}" in f for f in names(source.split(s)))
    shutil.rmtree(tmp_path / "val")
    source = Folder(root=str(tmp_path), val=0.25)
    assert {s: len(source.split(s)) for s in ("train", "val", "test")} == {"train": 30, "val": 10, "test": 4}
    assert not set(names(source.split("train"))) & set(names(source.split("val")))
    shutil.rmtree(tmp_path / "test")
    source = Folder(root=str(tmp_path), val=0.25, test=0.25)
    assert {s: len(source.split(s)) for s in ("train", "val", "test")} == {"train": 20, "val": 10, "test": 10}


@pytest.mark.parametrize("inside", ["", "train"])
def test_folder_without_classes(tmp_path, inside):
    for n in range(20):
        picture(tmp_path / inside / f"{n}.png", (5 + n, 5))
    source = Folder(root=str(tmp_path))
    assert source.labelled is False
    assert source.classes == ()
    assert source.facts["num_classes"] == 0
    assert {s: len(source.split(s)) for s in ("train", "val", "test")} == {"train": 16, "val": 2, "test": 2}
    assert all(source.split(s).label is None for s in SPLITS)
    assert len({f for s in ("train", "val", "test") for f in names(source.split(s))}) == 20


def test_folder_with_everything_ugly(tmp_path):
    for n in range(10):
        picture(tmp_path / "écrevisse" / f"日本 {n}.png", (5 + n, 5))
        picture(tmp_path / "cat" / "deep" / "er" / f"{n}.PNG", (5 + n, 5))
    picture(tmp_path / "single" / "one.png", (9, 9))
    picture(tmp_path / ".hidden" / "x.png")
    picture(tmp_path / "cat" / ".hidden.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "README").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "empty.png").write_bytes(b"")
    (tmp_path / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n oh no")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")  # a folder in itself
    os.makedirs(os.fsencode(tmp_path) + b"/latin\xe9")
    Image.new("RGB", (7, 7)).save(tmp_path / "x.png")
    os.rename(os.fsencode(tmp_path / "x.png"), os.fsencode(tmp_path) + b"/latin\xe9/\xff.png")
    source = Folder(root=str(tmp_path))
    assert [os.fsencode(c) for c in source.classes] == [b"cat", b"latin\xe9", b"single", "écrevisse".encode()]
    parts = [source.split(s) for s in ("train", "val", "test")]
    assert sum(len(p) for p in parts) == 10 + 3 + 1 + 1 + 10
    for lonely in (1, 2):
        assert [int((p.label == lonely).sum()) for p in parts] == [1, 0, 0]
    readable, broken = [], []
    for part in parts:
        for i in range(len(part)):
            try:
                readable.append(part.read(i))
            except BrokenSample:
                broken.append(Path(part.name(i)).name)
    assert sorted(broken) == ["broken.png", "empty.png", "gone.png"]
    assert len(readable) == 22


def test_folder_splits_never_change(tmp_path):
    """The ids of each part are pinned: a score is only comparable on the same samples."""
    for c in "abc":
        (tmp_path / c).mkdir()
        for n in range(20):
            (tmp_path / c / f"{n:02d}.jpg").write_bytes(b"")
    source = Folder(root=str(tmp_path), cache="no")
    listed = [[os.path.relpath(f, tmp_path) for f in names(source.split(s))] for s in ("train", "val", "test")]
    assert [len(part) for part in listed] == [48, 6, 6]
    digest = hashlib.sha256("|".join(",".join(part) for part in listed).encode()).hexdigest()
    assert digest == "d19dc42d57b411b5e2cffaf23ae7e0195863c4546029cf07cb4f61845961efa5"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no images"),
        (["notes.txt"], "no images"),
        (["a/1.png", "2.png"], r"2\.png' stands beside class folders"),
        (["train/a/1.png", "test/b/1.png"], r"test' has the class 'b', which .*train' has not"),
        (["train/1.png", "test/b/1.png"], r"test' has the class 'b', which .*train' has not"),
        (["train/a/1.png", "val/1.png"], r"val' has images without classes"),
        (["val/a/1.png", "test/a/1.png"], "but no train folder"),
        (["train/a/1.png", "valid/a/1.png"], "beside train there is 'valid'.*did you mean 'val'"),
        (["train/a/1.png", "test/a/1.png", "docs/1.png"], "beside train there is 'docs'"),
        (["train/a/1.png", "1.png"], r"'1\.png' is in none of the parts"),
    ],
)
def test_folder_layouts_that_are_not_understood(tmp_path, files, said):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(RequestError, match=said) as error:
        Folder(root=str(tmp_path))
    assert str(tmp_path) in str(error.value)
    if said == "no images":
        assert "<root>/<class>/, <root>/{train,val,test}/<class>/ or" in str(error.value)


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match=r"nowhere.*can't be read.*<root>/<class>/"):
        Folder(root=str(tmp_path / "nowhere"))


def test_a_class_may_be_named_train(tmp_path):
    for c in ("bus", "train"):
        picture(tmp_path / c / "1.png")
    assert Folder(root=str(tmp_path)).classes == ("bus", "train")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"val": 0.5, "test": 0.5}, "data.val"),
        ({"test": -0.1}, "data.test"),
        ({"mean": (0.5,)}, "data.mean"),
        ({"std": (0.5, 0.0, 0.5)}, "data.std"),
        ({"size": 0}, "data.size"),
    ],
)
def test_folder_refuses(tmp_path, arguments, key):
    picture(tmp_path / "a" / "1.png")
    with pytest.raises(RequestError, match=key):
        Folder(root=str(tmp_path), **arguments)


def test_folder_of_grey(tmp_path):
    picture(tmp_path / "a" / "1.png")
    source = Folder(root=str(tmp_path), channels=1, mean=(0.4,), cache="no")
    assert source.facts["shape"] == (1, 224, 224)
    assert source.facts["mean"] == (0.4,)
    assert source.facts["std"] == (0.226,)
    assert source.split("train").read(0).shape == (1, 4, 6)


def test_folder_reads_the_extensions_asked_for(tmp_path):
    for file in ("a/1.png", "a/2.bmp", "a/3.xyz"):
        picture(tmp_path / file)
    assert len(Folder(root=str(tmp_path), val=0, test=0).split("train")) == 2
    assert len(Folder(root=str(tmp_path), val=0, test=0, extensions=(".bmp",)).split("train")) == 1


def test_folder_of_one_size_is_held_in_memory(tmp_path, monkeypatch):
    for n in range(20):
        picture(tmp_path / "a" / f"{n:02d}.png", seed=n)
        picture(tmp_path / "b" / f"{n:02d}.png", seed=n + 100)
    held = Folder(root=str(tmp_path))
    read = Folder(root=str(tmp_path), cache="no")
    for s in SPLITS:
        arrays, ragged = held.split(s), read.split(s)
        assert isinstance(arrays, Arrays)
        assert isinstance(ragged, Images)
        assert torch.equal(arrays.x, torch.stack([ragged.read(i) for i in range(len(ragged))]))
        assert torch.equal(arrays.label, ragged.label)
    assert held.split("train") is held.split("pretrain")
    monkeypatch.setattr(folder, "CACHE", 40 * 3 * 6 * 4 - 1)  # one byte less than they take
    assert isinstance(Folder(root=str(tmp_path)).split("train"), Images)
    monkeypatch.setattr(folder, "CACHE", 40 * 3 * 6 * 4)
    assert isinstance(Folder(root=str(tmp_path)).split("train"), Arrays)
    picture(tmp_path / "b" / "99.png", (6, 5))
    assert isinstance(Folder(root=str(tmp_path)).split("train"), Images)


def test_folder_whose_headers_mislead_is_read_one_by_one(tmp_path):
    """All headers say 6 x 4, but EXIF turns one image: the set is ragged after all."""
    for n in range(3):
        picture(tmp_path / f"{n}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(images(4, 6, 3)).save(tmp_path / "turned.jpg", exif=exif)
    source = Folder(root=str(tmp_path), val=0, test=0)
    assert isinstance(source.split("train"), Images)
    assert source.split("train").read(3).shape == (3, 6, 4)


def test_broken_files_are_left_out_of_the_cache(tmp_path, capsys):
    for n in range(12):
        picture(tmp_path / "a" / f"{n:02d}.png", seed=n)
    good = (tmp_path / "a" / "00.png").read_bytes()
    (tmp_path / "a" / "05.png").write_bytes(good[:-40])  # the header is fine
    (tmp_path / "a" / "07.png").write_bytes(b"")
    train = Folder(root=str(tmp_path), val=0, test=0).split("train")
    assert isinstance(train, Arrays)
    assert len(train) == len(train.label) == 10
    kept = [read_image(str(tmp_path / "a" / f"{n:02d}.png")) for n in range(12) if n not in (5, 7)]
    assert torch.equal(train.x, torch.stack(kept))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "left out 2 broken samples" in said[0]
    assert "05.png" in said[0]
    assert "07.png" in said[0]
    with pytest.raises(RunError, match=r"05\.png.*data\.on_broken=skip"):
        Folder(root=str(tmp_path), val=0, test=0, on_broken="stop").split("train")


def test_a_part_that_is_all_broken(tmp_path):
    for part in ("train", "test"):
        picture(tmp_path / part / "a" / "1.png")
    file = tmp_path / "test" / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:-40])
    source = Folder(root=str(tmp_path), val=0)
    assert len(source.split("train")) == 1
    with pytest.raises(RunError, match=r"none of the 1 samples.*1\.png"):
        source.split("test")


part_names = st.text("abctrainvlest.", min_size=1, max_size=5).filter(lambda s: not s.startswith("."))


@fuzz
@given(paths=st.sets(st.lists(part_names, min_size=1, max_size=3).map(os.sep.join), min_size=1, max_size=8))
def test_any_layout_is_understood_or_refused(paths):
    """Every file lands in one part under its class, or there is a RequestError; never anything else."""
    files = sorted(paths)
    try:
        found = folder.lay_out("root", files, (".png",))
        classes = folder.class_names("root", found)
    except RequestError:
        return
    assert "train" in found
    assert sorted(os.path.join(f, p) for f, within in found.values() for p in within) == files
    for _, within in found.values():
        label = folder.label_of(within, classes)
        if classes:
            assert [p.split(os.sep)[0] for p in within] == [classes[n] for n in label]
        else:
            assert label is None
            assert not any(os.sep in p for p in within)


# --- reading an image -------------------------------------------------------------------------------------


def read(image: Image.Image, path: Path, channels: typing.Literal[1, 3] = 3, **save) -> np.ndarray:
    """Saved and read again: (h, w, channels)."""
    image.save(path, **save)
    return read_image(str(path), channels).permute(1, 2, 0).numpy()


def test_colour_and_grey(tmp_path):
    rgb = images(4, 6, 3)
    assert np.array_equal(read(Image.fromarray(rgb), tmp_path / "a.png"), rgb)
    # ITU-R 601-2, as Pillow's documentation gives it for "L"
    luma = (rgb @ np.array([299, 587, 114])) / 1000
    grey = read(Image.fromarray(rgb), tmp_path / "a.png", 1)
    assert grey.shape == (4, 6, 1)
    assert np.abs(grey[..., 0] - luma).max() <= 1
    assert np.array_equal(read(Image.fromarray(grey[..., 0]), tmp_path / "g.png"), grey.repeat(3, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_over_white(tmp_path, channels):
    rgba = images(4, 6, 4)
    rgba[..., :3] = rgba[..., :1]  # grey, so that both ways of reading are easy to tell
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :channels] * alpha + 255 * (1 - alpha)
    assert np.abs(read(Image.fromarray(rgba), tmp_path / "a.png", channels) - expected).max() <= 1
    la = Image.fromarray(rgba).convert("LA")
    assert np.abs(read(la, tmp_path / "la.png", channels) - expected).max() <= 1


def test_palettes(tmp_path):
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(indices)
    image = image.convert("P")
    image.putdata(indices.flatten().tolist())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    assert np.array_equal(read(image, tmp_path / "p.png"), colours[indices])
    assert np.array_equal(read(image, tmp_path / "p.gif"), colours[indices])
    colours[1] = 255  # see-through: white
    assert np.array_equal(read(image, tmp_path / "t.png", transparency=1), colours[indices])
    assert np.array_equal(read(image, tmp_path / "t.png", transparency=bytes([255, 0, 255])), colours[indices])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    deep = np.array([[0, 128, 129, 256, 257], [32768, 65279, 65406, 65407, 65535]], np.uint16)
    expected = np.array([[0, 0, 1, 1, 1], [128, 254, 254, 255, 255]], np.uint8)  # rounded v / 257
    assert np.array_equal(read(Image.fromarray(deep), tmp_path / f"a.{suffix}", 1)[..., 0], expected)
    assert np.array_equal(read(Image.fromarray(deep), tmp_path / f"a.{suffix}"), expected[..., None].repeat(3, 2))


def test_black_and_white(tmp_path):
    bits = np.array([[0, 255, 0, 255]], np.uint8)
    assert np.array_equal(read(Image.fromarray(bits).convert("1"), tmp_path / "a.png", 1)[..., 0], bits)


def test_cmyk(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    red = read(cmyk, tmp_path / "a.jpg", quality=100).astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 3


UPRIGHT = {  # how to turn the stored pixels, by the EXIF standard's table of the tag Orientation
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
    99: lambda x: x,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation(tmp_path, orientation, suffix):
    rgb = images(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == "webp" else {}
    upright = read(Image.fromarray(rgb), tmp_path / f"a.{suffix}", exif=exif, **lossless)
    assert np.array_equal(upright, UPRIGHT[orientation](rgb))


def bytes_of(kind: str, image: Image.Image | None = None) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    (image or Image.fromarray(images(12, 10, 3))).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_file_cut_short_is_broken(tmp_path, kind):
    data = bytes_of(kind)
    file = tmp_path / "a.img"
    for kept in (0, 1, 10, len(data) // 2, len(data) - 40):
        file.write_bytes(data[:kept])
        with decoding.quiet_pillow(), pytest.raises(BrokenSample, match=r"a\.img.*can't be read"):
            read_image(str(file))


def test_what_is_no_image_is_broken(tmp_path):
    (tmp_path / "t.png").write_bytes(b"hello, world")
    for name in ("t.png", "nothing.png"):
        with pytest.raises(BrokenSample, match=name):
            read_image(str(tmp_path / name))


def test_a_program_in_a_file_is_not_run(tmp_path, monkeypatch):
    """PostScript is a program: Pillow would hand it to Ghostscript, whatever the file's name."""
    from PIL import EpsImagePlugin

    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    calls = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *args: calls.append(args) or Image.core.new("RGB", (4, 4))
    )
    with Image.open(tmp_path / "a.png") as image:
        image.load()
    assert len(calls) == 1, "the file is none that starts Ghostscript"
    with pytest.raises(BrokenSample, match=r"a\.png"):
        read_image(str(tmp_path / "a.png"))
    assert len(calls) == 1


def test_floating_point_pixels_are_broken(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(BrokenSample, match="floating-point"):
        read_image(str(tmp_path / "f.tif"))


@pytest.mark.parametrize("limit", [9, 29, 59])
def test_a_decompression_bomb_is_broken(tmp_path, monkeypatch, limit):
    """Pillow itself only warns below twice its limit."""
    picture(tmp_path / "big.png", (10, 6))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with decoding.quiet_pillow(), pytest.raises(BrokenSample, match=r"big\.png"):
        read_image(str(tmp_path / "big.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    assert read_image(str(tmp_path / "big.png")).shape == (3, 6, 10)


WHOLE = {kind: bytes_of(kind) for kind in decoding.FORMATS}


@fuzz
@given(
    kind=st.sampled_from(decoding.FORMATS),
    wrong=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5),
    channels=st.sampled_from([1, 3]),
)
def test_a_damaged_image_is_read_or_broken(tmp_path, kind, wrong, channels):
    data = bytearray(WHOLE[kind])
    for place, value in wrong:
        data[place % len(data)] = value
    (tmp_path / "a.img").write_bytes(data)
    with decoding.quiet_pillow(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # a header may claim much: keep the test small
        try:
            x = read_image(str(tmp_path / "a.img"), channels)
        except BrokenSample:
            return
    assert x.dtype == torch.uint8
    assert x.ndim == 3
    assert len(x) == channels


# --- serving samples of many sizes ------------------------------------------------------------------------


class Ragged12(Ragged):
    """Twelve samples, the n-th (1, n + 3, n + 4) and filled with n; those in `broken` can't be read."""

    def __init__(self, broken: tuple[int, ...] = (), labelled: bool = True):
        self.broken = broken
        self.label = torch.arange(12) * 10 if labelled else None

    def __len__(self) -> int:
        return 12

    def name(self, index: int) -> str:
        return f"file{index}.png"

    def read(self, index: int) -> torch.Tensor:
        if index in self.broken:
            raise BrokenSample(f"{self.name(index)!r} can't be read: it is a test")
        return torch.full((1, index + 3, index + 4), index, dtype=torch.uint8)


def two_crops(inputs: list[View]) -> list[View]:
    """The sample's number plus noise, 2 x 2 and 3 x 3."""
    noise = [torch.randint(0, 100, (1, s, s), dtype=torch.uint8) for s in (2, 3)]
    return [{"x": inputs[0]["x"][:, :1, :1] + n} for n in noise]


def first_pixel(inputs: list[View]) -> list[View]:
    return [{"x": inputs[0]["x"][:, :1, :1]}]


def as_fetched(samples):
    return samples


KEYS = [(i, 1000 + 7 * i) for i in range(12)]


def gathered(batches) -> dict[str, torch.Tensor]:
    batches = list(batches)
    both = [torch.cat([b["inputs"][n]["x"] for b in batches]) for n in (0, 1)]
    index, label = (torch.cat([b[key] for b in batches]) for key in ("index", "label"))
    order = index.argsort()
    return {"a": both[0][order], "b": both[1][order], "index": index[order], "label": label[order]}


def test_reading_gives_samples():
    samples = Reading(Ragged12(), two_crops, "skip", True).__getitems__(KEYS[:5])
    assert samples["cropped"] is True
    assert [view["x"].shape for view in samples["inputs"]] == [(5, 1, 2, 2), (5, 1, 3, 3)]
    assert samples["inputs"][0]["x"].dtype == torch.uint8
    assert samples["index"].tolist() == [0, 1, 2, 3, 4]
    assert samples["label"].tolist() == [0, 10, 20, 30, 40]
    assert "label" not in Reading(Ragged12(labelled=False), two_crops, "skip", True).__getitems__(KEYS[:5])


def test_a_sample_does_not_depend_on_its_batch_or_worker():
    served = Reading(Ragged12(), two_crops, "skip", True)
    expected = gathered([served.__getitems__(KEYS)])
    divisions = [[[key] for key in KEYS], [KEYS[5:], KEYS[:5]], [KEYS[::-1]], [KEYS[::2], KEYS[1::2]]]
    for n, division in enumerate(divisions):
        torch.manual_seed(n)
        got = gathered(served.__getitems__(keys) for keys in division)
        assert all(torch.equal(got[k], expected[k]) for k in expected)
    for workers in (1, 2):
        loader = DataLoader(served, batch_sampler=divisions[3], collate_fn=as_fetched, num_workers=workers)
        got = gathered(loader)
        assert all(torch.equal(got[k], expected[k]) for k in expected)
    other = gathered([served.__getitems__([(i, seed + 1) for i, seed in KEYS])])
    assert not torch.equal(other["a"], expected["a"])


def test_reading_leaves_the_generator_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Reading(Ragged12(), two_crops, "skip", True).__getitems__(KEYS)
    assert torch.equal(before, torch.get_rng_state())


def test_training_replaces_a_broken_sample_by_the_next_readable_one(capsys):
    served = Reading(Ragged12(broken=(2, 3, 11)), first_pixel, "skip", True)
    for _ in range(2):
        samples = served.__getitems__([(1, 0), (2, 0), (3, 0), (11, 0)])
        assert samples["index"].tolist() == [1, 4, 4, 0]
        assert samples["label"].tolist() == [10, 40, 40, 0]
        assert samples["inputs"][0]["x"].flatten().tolist() == [1, 4, 4, 0]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3  # once a file, though met twice
    assert all(f"file{n}.png" in line for n, line in zip((2, 3, 11), said, strict=True))


def test_a_replacement_gets_the_draws_of_its_place():
    whole = Reading(Ragged12(), two_crops, "skip", True).__getitems__([(4, 77)])
    replaced = Reading(Ragged12(broken=(3,)), two_crops, "skip", True).__getitems__([(3, 77)])
    assert torch.equal(whole["inputs"][1]["x"], replaced["inputs"][1]["x"])


def test_evaluation_leaves_a_broken_sample_out(capsys):
    served = Reading(Ragged12(broken=(2, 3)), first_pixel, "skip", False)
    samples = served.__getitems__(KEYS)
    assert samples["index"].tolist() == [0, 1, *range(4, 12)]
    assert samples["label"].tolist() == [n * 10 for n in samples["index"].tolist()]
    assert len(samples["inputs"][0]["x"]) == 10
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_batch_of_broken_samples_is_empty_and_keeps_its_shape():
    samples = Reading(Ragged12(broken=(10, 11)), two_crops, "skip", False).__getitems__(KEYS[10:])
    assert [view["x"].shape for view in samples["inputs"]] == [(0, 1, 2, 2), (0, 1, 3, 3)]
    assert samples["index"].shape == samples["label"].shape == (0,)
    assert samples["index"].dtype == samples["label"].dtype == torch.int64


@pytest.mark.parametrize("replace", [True, False])
def test_nothing_readable_is_a_run_error(replace):
    served = Reading(Ragged12(broken=tuple(range(12))), first_pixel, "skip", replace)
    with pytest.raises(RunError, match="none of the 12 samples can be read"):
        served.__getitems__(KEYS[:3])


@pytest.mark.parametrize("replace", [True, False])
def test_stop_names_the_file(replace):
    served = Reading(Ragged12(broken=(1,)), first_pixel, "stop", replace)
    with pytest.raises(RunError, match=r"file1\.png.*data\.on_broken=skip"):
        served.__getitems__(KEYS[:3])


def test_workers_together_name_a_broken_file_once(capfd):
    served = Reading(Ragged12(broken=(2,)), first_pixel, "skip", True)
    for _ in range(2):
        list(DataLoader(served, batch_sampler=[KEYS[:4]], collate_fn=as_fetched, num_workers=1))
    assert capfd.readouterr().err.count("file2.png") == 1


def test_views_that_leave_sizes_differing_are_a_request_error():
    with pytest.raises(RequestError, match=r"views: .*file0\.png.*file1\.png.*crop"):
        Reading(Ragged12(), lambda inputs: inputs, "skip", True).__getitems__(KEYS)


def test_reading_is_quiet_about_what_pillow_thinks(tmp_path, monkeypatch, capsys):
    picture(tmp_path / "a" / "big.png", (10, 6))
    picture(tmp_path / "a" / "fine.png", (5, 6))
    part = Folder(root=str(tmp_path), val=0, test=0, cache="no").split("train")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = Reading(part, first_pixel, "skip", False).__getitems__([(0, 0), (1, 0)])
    assert samples["index"].tolist() == [1]
    assert "big.png" in capsys.readouterr().err


# --- what all have in common ------------------------------------------------------------------------------


def test_fake():
    source = Fake(samples=100, shape=(2, 8, 12), num_classes=5)
    parts = {s: source.split(s) for s in SPLITS}
    assert {s: len(p) for s, p in parts.items()} == {"pretrain": 80, "train": 80, "val": 10, "test": 10}
    assert parts["train"].x.shape == (80, 2, 8, 12)
    assert parts["train"].x.dtype == torch.uint8
    assert source.facts["shape"] == (2, 8, 12)
    assert source.facts["size"] == 12
    assert parts["train"].label.bincount().tolist() == [16] * 5
    assert torch.equal(parts["val"].x, Fake(samples=100, shape=(2, 8, 12), num_classes=5).split("val").x)
    every = torch.cat([parts[s].x for s in ("train", "val", "test")])
    assert len(every.flatten(1).unique(dim=0)) == 100


def test_fake_has_a_weak_signal_and_the_stated_statistics():
    source = Fake(samples=2000)
    train, test = source.split("train"), source.split("test")
    x = train.x.float() / 255
    assert x.mean((0, 2, 3)).sub(torch.tensor(source.facts["mean"])).abs().max() < 0.02
    assert x.std((0, 2, 3)).sub(torch.tensor(source.facts["std"])).abs().max() < 0.02
    centres = torch.stack([x[train.label == c].mean(0) for c in range(10)]).flatten(1)
    nearest = torch.cdist(test.x.float().flatten(1) / 255, centres).argmin(1)
    assert (nearest == test.label).float().mean() > 0.9
    one_pixel = torch.cdist(test.x[:, 0, :1, 0].float() / 255, centres[:, :1]).argmin(1)
    assert (one_pixel == test.label).float().mean() < 0.4


@pytest.mark.parametrize("arguments", [{"samples": 5}, {"num_classes": 0}, {"shape": (3, 0, 8)}])
def test_fake_refuses(arguments):
    with pytest.raises(RequestError, match=r"data\.(num_classes|shape)"):
        Fake(**arguments)


def test_digits():
    source = Digits()
    sizes = [len(source.split(s)) for s in ("train", "val", "test")]
    assert sum(sizes) == 1797
    assert source.facts["shape"] == (1, 8, 8)


@pytest.mark.parametrize("file", sorted((REPO / "conf" / "data").glob("*.yaml")), ids=lambda f: f.stem)
def test_config_files_bind(file):
    text = file.read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    for base in config.pop("defaults", []):
        if base != "_self_":
            config = {**yaml.safe_load(file.with_name(f"{base}.yaml").read_text()), **config}
    module, _, name = config.pop("_target_").rpartition(".")
    kind = getattr(__import__(module, fromlist=[name]), name)
    assert issubclass(kind, Source)
    parameters = inspect.signature(kind).parameters
    assert set(config) <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert set(parameters) <= set(typing.get_type_hints(kind.__init__))
    if "root" in parameters:
        users = (AudioFolder, Folder, Pairs, Series, Shards, Table, Text, TextPairs, VideoFolder)
        own = kind in (*users, Archives, Memmap, Parquet)
        assert config["root"] == ("???" if own else "${oc.env:SSL_RUNNER_DATA,data}")


def test_a_signature_can_be_read_for_free():
    code = """
import pkgutil, sys, importlib, ssl_runner.datasets as d
for m in pkgutil.iter_modules(d.__path__): importlib.import_module(f"ssl_runner.datasets.{m.name}")
heavy = {"pytorch_lightning", "timm", "transformers", "torchvision", "torchmetrics", "sklearn", "PIL"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout.strip() == "[]"
