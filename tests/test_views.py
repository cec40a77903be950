"""Views: each transform and its draws against torchvision's, what all transforms must do, and the configs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from ssl_runner import views as ours
from ssl_runner.errors import RequestError
from ssl_runner.types import Samples, Sizer, Transform
from ssl_runner.views import colour, crop, filters, geometry

CONF = Path(__file__).parents[1] / "conf"
PUBLIC = [getattr(ours, name) for name in ours.__all__ if name not in ("Branch", "Views")]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def each(x: Tensor, change: Callable[..., Tensor], *parameters: Any) -> Tensor:
    """torchvision's function, sample by sample."""
    return torch.stack([change(*row) for row in zip(x, *parameters, strict=True)])


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def images(n: int = 12, c: int = 3, h: int = 14, w: int = 17) -> Tensor:
    """Random ones, and what colour formulas stumble over: grey, black, white, pure, equal channels."""
    x = torch.rand(n, c, h, w)
    if c == 3 and n >= 6:
        x[0] = x[0, :1]
        x[1], x[2] = 0, 1
        x[3] = x[3].round()
        x[4, 1] = x[4, 0]
        x[5, 2] = x[5, 1]
    return x


# -- each transform, given its parameters, is torchvision's --------------------------------------------------


@pytest.mark.parametrize("c", [1, 3])
def test_blends_are_brightness_contrast_and_saturation(c: int):
    x, f = images(c=c), torch.rand(12) * 2
    zero = torch.zeros(12)
    factors = f.tolist()
    close(colour.blend_(x.clone(), f, zero, zero), each(x, tv.adjust_brightness, factors))
    close(colour.blend_(x.clone(), f, 1 - f, zero), each(x, tv.adjust_contrast, factors))
    if c == 3:
        close(colour.blend_(x.clone(), f, zero, 1 - f), each(x, tv.adjust_saturation, factors))


@pytest.mark.parametrize("shift", [None, 0.0, 0.5, -0.5, 1 / 3, 1 / 6])
def test_hue(shift: float | None):
    x = images()
    shifts = torch.rand(12) - 0.5 if shift is None else torch.full((12,), shift)
    close(colour.shift_hue_(x.clone(), shifts), each(x, tv.adjust_hue, shifts.tolist()))


def test_jitter_is_its_steps_in_some_order_and_every_order_is_as_likely(monkeypatch: pytest.MonkeyPatch):
    """With fixed factors each sample's result is one of the orders' results, and all 24 come up."""
    n, shift = 2400, 0.15
    brightness, contrast, saturation = 1.3, 0.6, 1.7

    def fixed(row: Tensor, low: float, high: float) -> Tensor:
        middle = {0.7: brightness, 0.6: contrast, 0.3: saturation}
        return row.fill_(middle[round(low, 3)])

    monkeypatch.setattr(torch.Tensor, "uniform_", fixed)
    monkeypatch.setattr(colour, "uniform", lambda n, low, high: torch.full((n,), shift))
    x = torch.rand(1, 3, 2, 2)
    jitter = ours.ColorJitter(brightness=0.3, contrast=0.4, saturation=0.7, hue=0.2, p=1.0)
    got = jitter.transform(x.expand(n, -1, -1, -1))

    steps = {
        "b": lambda x: tv.adjust_brightness(x, brightness),
        "c": lambda x: tv.adjust_contrast(x, contrast),
        "s": lambda x: tv.adjust_saturation(x, saturation),
        "h": lambda x: tv.adjust_hue(x, shift),
    }
    possible = []
    for a in steps:
        for b in set(steps) - {a}:
            for c in set(steps) - {a, b}:
                (d,) = set(steps) - {a, b, c}
                possible.append(steps[d](steps[c](steps[b](steps[a](x[0])))))
    distance = (got[:, None] - torch.stack(possible)).abs().amax((2, 3, 4))  # (n, 24)
    assert distance.amin(1).max() < 1e-5
    distinct = torch.stack(possible).mul(1e4).round().flatten(1).unique(dim=0, return_inverse=True)[1]
    expected = n / 24 * distinct.bincount().float()
    counts = distinct[distance.argmin(1)].bincount(minlength=len(expected))
    assert ((counts - expected) / expected.sqrt()).abs().max() < 4


def test_grey_solarise_and_flips():
    x = images()
    close(ours.Grayscale(p=1.0).transform(x), tv.rgb_to_grayscale(x, num_output_channels=3), 1e-6)
    x[6, :, 0] = 0.25
    close(ours.Solarize(p=1.0, threshold=0.25).transform(x), tv.solarize(x, 0.25), 0)
    assert ours.HorizontalFlip(p=1.0).transform(x).equal(tv.horizontal_flip(x))
    assert ours.VerticalFlip(p=1.0).transform(x).equal(tv.vertical_flip(x))


def test_solarize_threshold_is_128_of_uint8():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    close(ours.Solarize(p=1.0).transform(x / 255), tv.solarize(x, 128) / 255, 1e-6)


@pytest.mark.parametrize(("c", "h", "w", "kernel"), [(3, 14, 17, 3), (1, 8, 8, 7), (2, 20, 12, 23), (3, 32, 32, 1)])
def test_blur(c: int, h: int, w: int, kernel: int):
    x, sigma = images(c=c, h=h, w=w), torch.rand(12) * 2 + 0.1
    expected = each(x, lambda x, s: tv.gaussian_blur(x, [kernel, kernel], [s, s]), sigma.tolist())
    close(filters.blur(x, sigma, kernel), expected)


@pytest.mark.parametrize(("side", "kernel"), [(8, 3), (32, 3), (64, 7), (96, 9), (224, 23)])
def test_blur_kernel_is_a_tenth_of_the_side(side: int, kernel: int):
    x = torch.zeros(1, 1, side, side)
    x[..., side // 2, side // 2] = 1
    blurred = ours.GaussianBlur(sigma=(1e3, 1e3), p=1.0).transform(x)
    assert (blurred > 1e-6).sum() == kernel**2


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize(("h", "w"), [(14, 17), (32, 32), (1, 9)])
def test_affine(interpolation: typing.Literal["bilinear", "nearest"], h: int, w: int):
    x = images(h=h, w=w)
    p = ours.Affine(degrees=170, translate=0.3, scale=(0.5, 2), shear=40).draw(x)

    def expected(x: Tensor, angle: float, shear: float, zoom: float, right: float, down: float) -> Tensor:
        mode = InterpolationMode(interpolation)
        return tv.affine(x, angle, [int(right), int(down)], zoom, [shear, 0.0], interpolation=mode)

    close(geometry.affine(x, p, interpolation, 0.0), each(x, expected, *p.tolist()), 1e-4)
    # with a fill, the image continues as if it had a wide border of that value
    wide = F.pad(x, (40, 40, 40, 40), value=0.7)
    filled = each(wide, expected, *p.tolist())[..., 40:-40, 40:-40]
    close(geometry.affine(x, p, interpolation, 0.7), filled, 1e-4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [5, 14, 40])
def test_resized_crop(interpolation: typing.Literal["bilinear", "bicubic"], size: int, monkeypatch: Any):
    x = images(h=14, w=17)
    transform = ours.RandomResizedCrop(size=size, interpolation=interpolation)
    drawn = crop.boxes(12, 14, 17, (0.01, 1.0), (0.5, 2.0))
    drawn[0] = torch.tensor([0, 0, 14, 17])
    drawn[1] = torch.tensor([13, 16, 1, 1])
    monkeypatch.setattr(crop, "boxes", lambda n, *_: drawn[:n])

    def expected(x: Tensor, *box: int) -> Tensor:
        return tv.resized_crop(x, *box, [size, size], InterpolationMode(interpolation), antialias=True)

    close(transform.transform(x), each(x, expected, *drawn.T.tolist()).clamp(0, 1))

    whole = (x * 255).round().to(torch.uint8)
    for k in range(len(x)):
        monkeypatch.setattr(crop, "boxes", lambda n, *_, k=k: drawn[k : k + 1])
        assert transform.one({"x": whole[k]})["x"].equal(expected(whole[k], *drawn[k].tolist()))
        if interpolation == "bilinear":  # the same crop in both forms, but that bytes are rounded twice
            close(transform.one({"x": whole[k]})["x"] / 255, transform.transform(whole[k : k + 1] / 255)[0], 1.6 / 255)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("share", [1.0, 0.875])
@pytest.mark.parametrize(("h", "w"), [(40, 30), (17, 50), (24, 25), (9, 9)])
def test_resize(h: int, w: int, share: float, interpolation: typing.Literal["bilinear", "bicubic"]):
    x = (torch.rand(2, 3, h, w) * 255).round().to(torch.uint8)
    fit = ours.Resize(size=24, crop=share, interpolation=interpolation)
    mode = InterpolationMode(interpolation)
    expected = tv.center_crop(tv.resize(x, [round(24 / share)], mode, antialias=True), [24, 24])
    assert fit.transform(x).equal(expected)
    assert fit.one({"x": x[0]})["x"].equal(expected[0])
    expected = tv.center_crop(tv.resize(x / 255, [round(24 / share)], mode, antialias=True), [24, 24])
    close(fit.transform(x / 255), expected.clamp(0, 1))


def test_resize_leaves_what_fits():
    x = torch.rand(2, 3, 24, 24)
    assert ours.Resize(size=24, crop=0.5).transform(x) is x


def test_random_crop_is_a_window_of_the_padded_image():
    x = torch.rand(1, 2, 6, 7)
    got = ours.RandomCrop(size=6, padding=1).transform(x.expand(400, -1, -1, -1))
    padded = F.pad(x, (1, 1, 1, 1))[0]
    windows = torch.stack([padded[:, i : i + 6, j : j + 6] for i in range(3) for j in range(4)])
    same = (got[:, None] == windows).all(4).all(3).all(2)
    assert same.any(1).all()
    assert same.sum(0).min() > 10  # 33 each on average


def test_normalize():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    x = images()
    close(ours.Normalize(mean=mean, std=std).transform(x), tv.normalize(x, list(mean), list(std)), 1e-5)
    series = torch.randn(4, 3, 11)
    expected = (series - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
    close(ours.Normalize(mean=mean, std=std).transform(series), expected, 1e-5)
    close(ours.Normalize(mean=(0.5,), std=(0.25,)).transform(series), (series - 0.5) / 0.25, 1e-5)


def test_noise():
    x = torch.rand(64, 3, 16, 16)
    noise = ours.GaussianNoise(std=0.2).transform(x) - x
    assert abs(noise.mean()) < 0.005
    assert abs(noise.std() - 0.2) < 0.005
    assert noise.flatten(1).T.corrcoef().abs().fill_diagonal_(0).max() < 0.75  # no two places share their draw
    assert noise.flatten(1).corrcoef().abs().fill_diagonal_(0).max() < 0.2  # nor two samples


@pytest.mark.parametrize(("h", "w", "share", "side"), [(8, 8, 0.5, 4), (9, 20, 0.3, 3), (5, 7, 0.01, 1)])
def test_cutout_takes_one_square_whose_centre_is_any_pixel(h: int, w: int, share: float, side: int):
    n = 4000
    holes = (ours.Cutout(side=share, fill=7.0).transform(torch.rand(n, 2, h, w)) == 7)[:, 0]
    corners = {(r, c) for r in range(h) for c in range(w)}
    seen = set()
    for hole in holes.unique(dim=0):
        rows, columns = hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0]
        assert hole.sum() == len(rows) * len(columns), "no rectangle"
        assert max(len(rows), len(columns)) <= side
        centres = [
            (r, c)
            for r, c in corners
            if max(0, r - side // 2) == rows[0]
            and max(0, c - side // 2) == columns[0]
            and min(h, r - side // 2 + side) - 1 == rows[-1]
            and min(w, c - side // 2 + side) - 1 == columns[-1]
        ]
        seen.update(centres)
    assert seen == corners
    # the pixel in the middle is in the hole as often as its neighbourhood says
    middle = holes[:, h // 2, w // 2].float().mean()
    assert abs(middle - side * side / (h * w)) < 0.04


def test_mixup_is_a_blend_in_which_the_own_sample_is_the_larger_part():
    x = torch.eye(400)  # each sample is a direction of its own, so a blend shows its shares
    y = ours.Mixup(alpha=0.4).transform(x)
    own, partner = y.diag(), (y - y.diag().diag()).max(1)
    assert (own >= 0.5 - 1e-6).all()
    other = partner.indices[own < 1]
    close((own + partner.values)[own < 1], torch.ones(len(other)), 1e-5)
    assert len(other) > 380
    assert len(other.unique()) == len(other), "everyone is mixed in at most once"
    beta = torch.distributions.Beta(0.4, 0.4).sample((400,))
    assert kolmogorov_smirnov(own, torch.maximum(beta, 1 - beta)) < limit(400)


# -- what is drawn has torchvision's distribution ------------------------------------------------------------


def kolmogorov_smirnov(a: Tensor, b: Tensor) -> float:
    """The largest distance between two samples' distribution functions."""
    values = torch.cat([a, b]).unique()
    below = [torch.searchsorted(x.sort().values, values, right=True) / len(x) for x in (a, b)]
    return float((below[0] - below[1]).abs().max())


def limit(n: int) -> float:
    """For two samples of n: passed by chance once in a hundred thousand."""
    return 2.5 * (2 / n) ** 0.5


@pytest.mark.parametrize(
    ("h", "w", "scale", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (40, 90, (0.3, 1.0), (3 / 4, 4 / 3)),
        (50, 20, (0.05, 0.6), (0.5, 3.0)),
    ],
)
def test_boxes(h: int, w: int, scale: tuple[float, float], ratio: tuple[float, float]):
    n = 3000
    theirs = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.zeros(1, h, w)
    rows = [theirs.make_params([image]) for _ in range(n)]
    expected = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in rows])
    got = crop.boxes(n, h, w, scale, ratio)
    assert (got[:, :2] >= 0).all()
    assert (got[:, 2:] >= 1).all()
    assert (got[:, :2] + got[:, 2:] <= torch.tensor([h, w])).all()
    for measure in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0] / (h - b[:, 2]).clamp(min=1),
        lambda b: b[:, 1] / (w - b[:, 3]).clamp(min=1),
    ):
        assert kolmogorov_smirnov(measure(got), measure(expected)) < limit(n)


@pytest.mark.parametrize(("h", "w"), [(8, 300), (300, 8), (1, 1), (1, 50)])
def test_boxes_where_no_draw_fits(h: int, w: int):
    theirs = v2.RandomResizedCrop(8, scale=(0.9, 1.0)).make_params([torch.zeros(1, h, w)])
    expected = [theirs["top"], theirs["left"], theirs["height"], theirs["width"]]
    assert (crop.boxes(5, h, w, (0.9, 1.0), (3 / 4, 4 / 3)) == torch.tensor(expected)).all()


JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
PAIRS: dict[str, tuple[Transform, v2.Transform]] = {
    "crop": (ours.RandomResizedCrop(size=5), v2.RandomResizedCrop(5, antialias=True)),
    "window": (ours.RandomCrop(size=6, padding=2), v2.RandomCrop(6, padding=2)),
    "flip": (ours.HorizontalFlip(p=0.3), v2.RandomHorizontalFlip(0.3)),
    "upside down": (ours.VerticalFlip(), v2.RandomVerticalFlip()),
    "affine": (
        ours.Affine(degrees=30, translate=0.2, scale=(0.8, 1.3), shear=20),
        v2.RandomAffine(30, (0.2, 0.2), (0.8, 1.3), 20, interpolation=InterpolationMode.BILINEAR, fill=None),
    ),
    "jitter": (ours.ColorJitter(**JITTER), v2.RandomApply([v2.ColorJitter(**JITTER)], 0.8)),
    "strong": (
        ours.ColorJitter(brightness=2, contrast=1.5, p=1.0),
        v2.ColorJitter(brightness=2, contrast=1.5),
    ),
    "grey": (ours.Grayscale(p=0.4), v2.RandomGrayscale(0.4)),
    "blur": (ours.GaussianBlur(kernel=5), v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], 0.5)),
    "solarize": (ours.Solarize(), v2.RandomSolarize(0.5, 0.2)),
    "noise": (ours.GaussianNoise(std=0.3), v2.GaussianNoise(sigma=0.3, clip=False)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_distributed_as_torchvision_s(name: str):
    """The same image many times: each pixel's values over the draws."""
    n = 1000
    mine, theirs = PAIRS[name]
    x = torch.rand(3, 7, 8)
    got = mine.transform(x.expand(n, -1, -1, -1)).flatten(1)
    expected = torch.stack([theirs(x) for _ in range(n)]).flatten(1)
    for place in range(0, got.shape[1], 7):
        a, b = (values[:, place].mul(1e3).round() for values in (got, expected))
        assert kolmogorov_smirnov(a, b) < limit(n)


def test_affine_draws():
    n, image = 3000, torch.zeros(1, 20, 50)
    mine = ours.Affine(degrees=30, translate=0.2, scale=(0.8, 1.3), shear=20).draw(image.expand(n, 1, 20, 50))
    rows = [v2.RandomAffine(30, (0.2, 0.2), (0.8, 1.3), 20).make_params([image]) for _ in range(n)]
    theirs = torch.tensor([[p["angle"], p["shear"][0], p["scale"], *p["translate"]] for p in rows]).T
    for a, b in zip(mine, theirs, strict=True):
        assert kolmogorov_smirnov(a, b.float()) < limit(n)


# -- what every transform must do ----------------------------------------------------------------------------


def some(transform: type[Transform], **given: Any) -> Transform:
    """With its defaults, and what it requires."""
    required = {"size": 6, "mean": (0.5,), "std": 0.2 if transform is ours.GaussianNoise else (0.2,)}
    names = inspect.signature(transform).parameters
    strong = {**JITTER, "degrees": 20}
    return transform(**{k: v for k, v in {**required, **strong, **given}.items() if k in names})


RANDOM = [t for t in PUBLIC if t not in (ours.Normalize, ours.Resize)]


@pytest.mark.parametrize("transform", PUBLIC)
@settings(max_examples=25, derandomize=True)
@given(
    b=st.integers(0, 5),
    c=st.integers(1, 4),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    p=st.sampled_from([0, 0.5, 1]),
)
def test_any_shape(transform: type[Transform], b: int, c: int, h: int, w: int, p: float):
    x = torch.rand(b, c, h, w)
    before = x.clone()
    step = some(transform, p=p, padding=6)
    y = step({"x": x, "pad": torch.zeros(b, 1)})
    sized = isinstance(step, Sizer)
    assert y["x"].shape == ((b, c, 6, 6) if sized else x.shape)
    assert y["x"].dtype == torch.float32
    assert set(y) == {"x", "pad"}
    assert y["x"].isfinite().all()
    if transform not in (ours.Normalize, ours.GaussianNoise):
        assert ((y["x"] > -1e-5) & (y["x"] < 1 + 1e-5)).all()
    assert x.equal(before), "the caller's tensor was written to"


@pytest.mark.parametrize("transform", [t for t in RANDOM if "p" in inspect.signature(t).parameters])
def test_probability(transform: type[Transform]):
    x = torch.rand(800, 3, 8, 8)
    changed = [(some(transform, p=p).transform(x) != x).flatten(1).any(1).float().mean() for p in (0.0, 0.3, 1.0)]
    assert changed[0] == 0
    assert abs(changed[1] - 0.3) < 0.06
    assert changed[2] > 0.9  # a narrow blur or a tiny angle changes nothing


@pytest.mark.parametrize("transform", RANDOM)
def test_rows_differ_and_seeds_decide(transform: type[Transform]):
    x = torch.rand(1, 3, 9, 9).expand(32, -1, -1, -1)
    if transform is ours.Mixup:  # equal samples mixed stay as they are
        x = torch.rand(32, 3, 9, 9)
    step = some(transform)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(step.transform(x))
    assert results[0].equal(results[1])
    assert not results[0].equal(results[2])
    assert len(results[0].flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("transform", [ours.ColorJitter, ours.Grayscale])
def test_colour_steps_on_grey_images(transform: type[Transform]):
    """Saturation, hue and dropping the colour mean nothing there: only brightness and contrast act."""
    x = torch.rand(8, 1, 5, 5)
    assert some(transform, brightness=0.0, contrast=0.0, p=1.0).transform(x).equal(x)


def test_jitter_of_nothing():
    x = torch.rand(4, 3, 5, 5)
    assert ours.ColorJitter(p=1.0).transform(x).equal(x)


@pytest.mark.parametrize("transform", [ours.RandomResizedCrop, ours.GaussianBlur, ours.Affine])
def test_autocast_changes_nothing(transform: type[Transform]):
    x, results = torch.rand(4, 3, 9, 9), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            results.append(some(transform, p=1.0).transform(x))
    assert results[0].equal(results[1])
    assert results[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ours.RandomResizedCrop(size=8, scale=(1.0, 0.2)), "scale"),
        (lambda: ours.RandomResizedCrop(size=8, ratio=(2.0, 1.0)), "ratio"),
        (lambda: ours.Affine(scale=(2.0, 1.0)), "scale"),
        (lambda: ours.GaussianBlur(sigma=(2.0, 0.1)), "sigma"),
        (lambda: ours.GaussianBlur(kernel=4), "kernel"),
        (lambda: ours.RandomCrop(size=20, padding=2).transform(torch.rand(1, 1, 8, 30)), "size"),
        (lambda: ours.Normalize(mean=(0.5,) * 3, std=(0.5,) * 3).transform(torch.rand(2, 4, 8, 8)), "mean"),
        (lambda: ours.Normalize(mean=(), std=(0.5,)).transform(torch.rand(2, 1, 8, 8)), "mean"),
    ],
)
def test_wrong_requests_name_the_key(make: Callable[[], Any], key: str):
    with pytest.raises(RequestError, match=key):
        make()


@pytest.mark.parametrize("transform", PUBLIC)
def test_signatures_are_schemas(transform: type[Transform]):
    hints = typing.get_type_hints(transform.__init__, include_extras=True)
    for name, parameter in inspect.signature(transform).parameters.items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        adapter: TypeAdapter[Any] = TypeAdapter(hints[name])
        if parameter.default is not parameter.empty:
            adapter.validate_python(parameter.default)
        if name in ("p", "hue", "crop", "translate", "size", "std", "padding", "degrees"):
            with pytest.raises(ValidationError):
                adapter.validate_python(-1)


# -- samples of many sizes -----------------------------------------------------------------------------------


SIZERS = [ours.RandomResizedCrop, ours.Resize, ours.RandomCrop]


@pytest.mark.parametrize("transform", SIZERS)
@settings(max_examples=40, derandomize=True)
@given(
    c=st.sampled_from([1, 3]),
    h=st.integers(1, 60),
    w=st.integers(1, 60),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_one_image_of_any_size(transform: type[Sizer], c: int, h: int, w: int, interpolation: str):
    x = torch.randint(0, 256, (c, h, w), dtype=torch.uint8)
    before = x.clone()
    step = some(transform, padding=6, interpolation=interpolation)
    assert isinstance(step, Sizer)
    for layout in (x, x.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        y = step.one({"x": layout})["x"]
        assert (y.shape, y.dtype) == ((c, 6, 6), torch.uint8)
    assert x.equal(before)


@pytest.mark.parametrize(("h", "w"), [(1, 20000), (20000, 1), (3, 9000)])
@pytest.mark.parametrize("transform", [ours.RandomResizedCrop, ours.Resize])
def test_one_image_of_extreme_shape(transform: type[Sizer], h: int, w: int):
    x = torch.full((3, h, w), 200, dtype=torch.uint8)
    y = some(transform, size=64).one({"x": x})["x"]
    assert y.shape == (3, 64, 64)
    assert (y == 200).all()


def test_crops_and_fitted_of_ragged_images():
    built = ours.Views(
        branches={
            "large": ours.Branch(transforms={"crop": ours.RandomResizedCrop(size=16)}, copies=2),
            "small": ours.Branch(transforms={"crop": ours.RandomResizedCrop(size=8), "flip": ours.HorizontalFlip()}),
            "whole": ours.Branch(transforms={"flip": ours.HorizontalFlip()}),
        },
        fit=ours.Resize(size=16, crop=0.875),
    )
    samples = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((30, 20), (9, 50), (16, 16))]
    crops = [built.crops([{"x": x}]) for x in samples]
    inputs = [{"x": torch.stack([view["x"] for view in group])} for group in zip(*crops, strict=True)]
    assert [tuple(v["x"].shape[1:]) for v in inputs] == [(3, 16, 16), (3, 16, 16), (3, 8, 8), (3, 16, 16)]
    assert not inputs[0]["x"].equal(inputs[1]["x"])
    views = built(Samples(inputs=inputs, cropped=True))
    assert views[0]["x"].equal(inputs[0]["x"] / 255) or (views[0]["x"] - inputs[0]["x"] / 255).abs().max() < 1e-6
    (fitted,) = zip(*(built.fitted([{"x": x}]) for x in samples), strict=True)
    plain = built.plain(Samples(inputs=[{"x": torch.stack([view["x"] for view in fitted])}], cropped=True))
    assert plain["x"].shape == (3, 3, 16, 16)
    close(plain["x"][2], samples[2] / 255)


# -- the configs ---------------------------------------------------------------------------------------------


SHAPES = {
    "simclr": [24, 24],
    "weak": [24, 24],
    "asymmetric": [24, 24],
    "multicrop": [24, 24, *[96] * 6],
    "grey": [24, 24],
    "finetune": [24],
    "finetune_grey": [24],
    "plain": [24],
    "symmetric_small": [24, 24],
    "weak_small": [24, 24],
    "asymmetric_small": [24, 24],
    "multicrop_asymmetric": [24, 24, *[96] * 8],
}
ELSEWHERE = {"ids", "dropout_ids", "two_ids", "shuffle_ids", "columns", "corrupt_columns"}
ELSEWHERE |= {"waveform", "two_waveforms", "spectrogram", "two_spectrograms", "byol_a"}
ELSEWHERE |= {"clip", "two_clips", "video_simclr", "image_text", "image_speech", "mu_law", "synonyms"}
ELSEWHERE |= {"series", "two_series", "finetune_series", "ts_tcc"}
"""Those of ids are in tests/test_text.py, tests/test_similarity.py and tests/test_synonyms.py, those of columns in
tests/test_tables.py, of recordings in tests/test_audio_views.py and tests/test_speech.py, of clips in
tests/test_video.py, of series in tests/test_series.py, of pairs in tests/test_pairs.py."""


def composed(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+views={name}", *overrides])
    node = OmegaConf.to_container(config.views, resolve=True)
    assert isinstance(node, dict)
    return node


def filled(node: Any, facts: dict[str, Any]) -> Any:
    """The runner's part: required arguments that the config leaves out and the data knows."""
    if not isinstance(node, dict):
        return node
    below = {key: filled(value, facts) for key, value in node.items()}
    if "_target_" not in node:
        return below
    required = {
        name: facts[name]
        for name, parameter in inspect.signature(get_object(node["_target_"])).parameters.items()
        if parameter.default is parameter.empty and name in facts
    }
    return {**required, **below}


def build(node: dict[str, Any], channels: int = 3) -> ours.Views:
    facts = {"size": 24, "mean": [0.4] * channels, "std": [0.2] * channels}
    return instantiate(filled(node, facts), _convert_="all")


def test_every_config_is_listed_here():
    assert {path.stem for path in (CONF / "views").glob("*.yaml") if path.stem[0] != "_"} == ELSEWHERE | set(SHAPES)
    for path in (CONF / "views").glob("*.yaml"):
        assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_configs_give_views(name: str, channels: int, dtype: torch.dtype):
    built = build(composed(name), channels)
    x = torch.randint(0, 256, (5, channels, 24, 24), dtype=torch.uint8)
    x = x if dtype == torch.uint8 else x / 255
    before = x.clone()
    samples = Samples(inputs=[{"x": x}])
    views = built(samples)
    assert [tuple(v["x"].shape) for v in views] == [(5, channels, s, s) for s in SHAPES[name]]
    assert all(v["x"].isfinite().all() for v in views)
    assert samples["inputs"][0]["x"] is x
    assert x.equal(before), "the samples were written to"
    expected = (before.float() / (255 if dtype == torch.uint8 else 1) - 0.4) / 0.2
    close(built.plain(samples)["x"], expected, 1e-4)
    if name == "plain":
        close(views[0]["x"], expected, 1e-4)
    elif len(views) > 1:
        assert not views[0]["x"].equal(views[1]["x"])
    torch.manual_seed(3)
    first = built(samples)
    torch.manual_seed(3)
    assert all(a["x"].equal(b["x"]) for a, b in zip(first, built(samples), strict=True))


def test_views_of_an_empty_batch_and_of_one():
    built = build(composed("asymmetric"))
    for n in (0, 1):
        views = built(Samples(inputs=[{"x": torch.zeros(n, 3, 30, 30, dtype=torch.uint8)}]))
        assert [len(v["x"]) for v in views] == [n, n]


def test_deltas_reach_the_transforms():
    strong = build(composed("simclr")).branches["both"].transforms
    assert list(strong) == ["crop", "flip", "jitter", "grey", "blur"]
    assert (strong["jitter"].brightness, strong["jitter"].hue, strong["jitter"].p) == (0.8, 0.2, 0.8)
    assert (strong["crop"].scale, strong["grey"].p, strong["blur"].p) == ((0.08, 1.0), 0.2, 0.5)

    weak = build(composed("weak")).branches["both"].transforms
    assert (weak["crop"].scale, weak["jitter"].saturation, weak["jitter"].hue) == ((0.2, 1.0), 0.4, 0.1)

    one, two = (b.transforms for b in build(composed("asymmetric")).branches.values())
    assert list(one) == ["crop", "flip", "jitter", "grey", "blur", "solarize"]
    assert (one["blur"].p, one["solarize"].p) == (1.0, 0.0)
    assert (two["blur"].p, two["solarize"].p) == (0.1, 0.2)
    assert all((t["jitter"].saturation, t["crop"].interpolation) == (0.2, "bicubic") for t in (one, two))

    changed = composed("simclr", "++views.branches.both.transforms.crop.scale=[0.2,1]")
    assert build(changed).branches["both"].transforms["crop"].scale == (0.2, 1)
