"""Colourisation: Colorful Image Colorization.

Zhang, Isola, Efros, ECCV 2016. https://arxiv.org/abs/1603.08511
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.parts.gather import all_reduce, world_size
from ssl_runner.parts.upsampling import Decoder
from ssl_runner.types import Backbone, Batch, Loss, Objective


class Colourisation(Objective):
    """Section 2: from the lightness of an image, tell the distribution of its colours at each place.

    shape: (3, H, W) of the images. mean, std: with which views were normalised. width: channels of the decoder.
    balance: lambda of Equation 4, the uniform share in the prior that rare colours are weighted by; 1 weights none.

    The colours' prior (Section 2.2) is that of the training images seen so far, smoothed as the targets are.
    Colours are predicted at a quarter of the resolution, as there. Raises RequestError for images that are not RGB.
    """

    views = 1
    bins: Tensor
    seen: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        width: int = 64,
        balance: Annotated[float, Ge(0), Le(1)] = 0.5,
    ):
        super().__init__()
        if shape[0] != 3:
            raise RequestError(
                "objective: Colourisation needs images of red, green and blue, and the data's shape is "
                f"{tuple(shape)}; use colour images, such as data=cifar10"
            )
        self.backbone, self.mean, self.std, self.balance = backbone, tuple(mean), tuple(std), balance
        self.register_buffer("bins", gamut())
        self.register_buffer("seen", torch.zeros(len(self.bins)))  # colours of the training images so far
        self.size = ((shape[1] + 3) // 4, (shape[2] + 3) // 4)
        self.decoder = Decoder(backbone.dim, (len(self.bins), *self.size), width)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        lab, grey = self._parted(view["x"])
        logits = self.decoder(self.backbone(grey)).permute(0, 2, 3, 1).flatten(0, 2)
        colour = F.interpolate(lab[:, 1:], size=self.size, mode="area").permute(0, 2, 3, 1).flatten(0, 2)
        target = soft_encode(colour, self.bins)
        loss = colour_loss(logits, target, rarity(self.seen, self.balance))
        if self.training:
            self.seen += all_reduce(target.mean(0)) / world_size()  # after its use
        return Loss(loss)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The grey image, with the colours that were expected of it, and as it was."""
        x = batch["views"][0]["x"]
        lab, grey = self._parted(x)
        colour = expected_colour(self.decoder(self.backbone(grey)), self.bins)
        colour = F.interpolate(colour, size=x.shape[2:], mode="bilinear")
        mean, std = self._scale(x)
        return {"colourisation": [grey, (lab_to_rgb(torch.cat([lab[:, :1], colour], 1)) - mean) / std, x]}

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), normalised -> its CIE Lab, and a grey image of its lightness, normalised as views are, which
        is what a backbone is used to seeing."""
        mean, std = self._scale(x)
        lab = rgb_to_lab((x.float() * std + mean).clamp(0, 1))
        return lab, ((lab[:, :1] / 100 - mean) / std).to(x.dtype)

    def _scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (x.new_tensor(v).float().view(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std


def rgb_to_lab(x: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB in 0..1 -> CIE L in 0..100, a and b (IEC 61966-2-1; CIE 15, white point D65). In fp32."""
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = _mixed(_to_xyz(), linear)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-6) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; a colour that sRGB does not have becomes one at its edge."""
    y = (lab[:, 0] + 16) / 116
    f = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], 1)
    xyz = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = _mixed(_to_xyz().inverse(), xyz).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear)


def _to_xyz() -> Tensor:
    """(3, 3): from linear sRGB to CIE XYZ, scaled so that white is (1, 1, 1)."""
    rows = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    matrix = torch.tensor(rows, dtype=torch.float32)
    return matrix / matrix.sum(1, keepdim=True)


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    """(B, 3, H, W) -> the same, each colour times the (3, 3) matrix. Not as a matrix product, which autocast and
    TF32 would round."""
    red, green, blue = matrix.to(x).T[:, :, None, None]  # (3, 1, 1) each
    return red * x[:, 0:1] + green * x[:, 1:2] + blue * x[:, 2:3]


def gamut() -> Tensor:
    """(Q, 2): the points of a grid of step 10 in the a, b plane that are nearest to some sRGB colour (Section 2.1).

    The paper's grid has 313 points, found in another way.
    """
    level = torch.linspace(0, 1, 52)
    ab = rgb_to_lab(torch.cartesian_prod(level, level, level).T[None, :, :, None])[0, 1:, :, 0]
    return (ab.T / 10).round().unique(dim=0) * 10


def soft_encode(colour: Tensor, bins: Tensor) -> Tensor:
    """Section 2.1: (N, 2) colours and the (Q, 2) bins -> (N, Q) shares of the 5 nearest bins, by a Gaussian of 5."""
    near = (colour[:, None] - bins).square().sum(2).topk(5, dim=1, largest=False)
    share = torch.softmax(-near.values / (2 * 5**2), dim=1)
    return share.new_zeros(len(colour), len(bins)).scatter(1, near.indices, share)


def expected_colour(logits: Tensor, bins: Tensor) -> Tensor:
    """Section 2.3, "Class Probabilities to Point Estimates": (B, Q, h, w) and the (Q, 2) bins -> (B, 2, h, w), the
    annealed mean of the distribution, at the paper's temperature of 0.38."""
    share = (logits.float() / 0.38).softmax(1)
    return torch.einsum("bqhw,qc->bchw", share, bins.float())


def rarity(seen: Tensor, balance: float) -> Tensor:
    """Equation 4: (Q,) frequencies of any scale -> (Q,) weights, whose mean over the prior is 1. All 1 before any."""
    prior = torch.where(seen.sum() > 0, seen / seen.sum().clamp(min=1e-12), 1 / len(seen))
    weight = 1 / ((1 - balance) * prior + balance / len(seen)).clamp(min=1e-12)
    return weight / (prior * weight).sum()


def colour_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Equations 2 and 3, averaged over places: cross-entropy, weighted by the rarity of the likeliest true colour.

    logits, target: (N, Q); weight: (Q,). In fp32.
    """
    entropy = -(target * logits.float().log_softmax(1)).sum(1)
    return (weight[target.argmax(1)] * entropy).mean()
