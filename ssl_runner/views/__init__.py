"""Batched augmentations. Each is one nn.Module over a whole batch, with parameters drawn per sample."""

from ssl_runner.views.base import Branch, Views
from ssl_runner.views.colour import ColorJitter, Grayscale, Solarize
from ssl_runner.views.crop import RandomCrop, RandomResizedCrop, Resize
from ssl_runner.views.filters import GaussianBlur, GaussianNoise
from ssl_runner.views.geometry import Affine, HorizontalFlip, VerticalFlip
from ssl_runner.views.mixing import Cutout, Mixup
from ssl_runner.views.normalise import Normalize

__all__ = [
    "Affine",
    "Branch",
    "ColorJitter",
    "Cutout",
    "GaussianBlur",
    "GaussianNoise",
    "Grayscale",
    "HorizontalFlip",
    "Mixup",
    "Normalize",
    "RandomCrop",
    "RandomResizedCrop",
    "Resize",
    "Solarize",
    "VerticalFlip",
    "Views",
]
