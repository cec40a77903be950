"""The video networks of torchvision (https://github.com/pytorch/vision), for clips."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.types import Backbone


class VideoResNet(Backbone):
    """A ResNet-18 of Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition, CVPR 2018,
    without its classifier: (B, 3, T, H, W) -> (B, 512).

    name: all convolutions over space and time together (r3d_18), those of the first layers alone (mc3_18), or over
    space and time in turn (r2plus1d_18). shape: (3, T, H, W) of the clips. Space is reduced 16 times and time 8 times
    before the mean over both is taken.
    Raises RequestError for other samples, and where torchvision can't be loaded.
    """

    def __init__(self, *, name: Literal["r3d_18", "mc3_18", "r2plus1d_18"], shape: tuple[int, ...]):
        super().__init__()
        if len(shape) != 4 or shape[0] != 3:
            raise RequestError(
                f"backbone.shape: {name} takes clips (3, frames, height, width), and the data is {tuple(shape)}; use "
                "backbone=encoder, or data of clips"
            )
        try:
            from torchvision.models import video
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            raise RequestError(f"backbone.name={name}: torchvision can't be loaded ({error}); install it") from error
        self.model = getattr(video, name)(weights=None)
        self.dim = self.model.fc.in_features
        self.model.fc = nn.Identity()

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, 3, T, H, W) -> (B, 512). Raises RequestError for padding."""
        if pad is not None:
            raise RequestError("backbone: video networks can't leave padding out; use backbone=encoder for this data")
        return self.model(x)
