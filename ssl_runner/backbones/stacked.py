"""Image models of timm on clips: the frames are the channels of one image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssl_runner.backbones.timm import Timm
from ssl_runner.errors import RequestError


class Stacked(Timm):
    """A clip's frames, one behind the other in the channels of an image: (B, C, T, H, W) -> (B, dim).

    The first convolution sees all times at once, the others see places alone ("early fusion": Karpathy et al.,
    Large-scale Video Classification with Convolutional Neural Networks, CVPR 2014). Small and quick; it is for short
    clips of a fixed length.
    name, small_stem, options: as at Timm, of the image model. shape: (C, T, H, W) of the clips. Raises RequestError for
    other samples.
    """

    def __init__(
        self,
        *,
        name: str,
        shape: tuple[int, ...],
        small_stem: bool = False,
        options: dict[str, Any] | None = None,
    ):
        if len(shape) != 4:
            raise RequestError(
                f"backbone.shape: stacks the frames of clips (channels, frames, height, width), and the data is "
                f"{tuple(shape)}; use backbone=timm for images"
            )
        channels, frames, height, width = shape
        super().__init__(name=name, shape=(channels * frames, height, width), small_stem=small_stem, options=options)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, dim)."""
        return super().forward(x.flatten(1, 2), pad)

    def maps(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), or (B, C T, H, W) -> (B, channels, h, w)."""
        return super().maps(x.flatten(1, -3))
