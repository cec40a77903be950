"""The end of every view: values on the scale that a network wants."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.types import Transform


class Normalize(Transform):
    """(x - mean) / std, per channel.

    mean, std: one value per channel, or one for all; on the scale 0..1 where samples are intensities.
    Raises RequestError where their number is neither.
    """

    def __init__(self, *, mean: tuple[float, ...], std: tuple[Annotated[float, Gt(0)], ...]):
        super().__init__()
        # no buffers: they are constants of the config, and a half-precision model would round them
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, ...) float -> the same."""
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, x.shape[1]):
                raise RequestError(f"Normalize: {key} has {len(values)} values for samples of {x.shape[1]} channels")
        shape = (-1, *[1] * (x.ndim - 2))
        mean, scale = self.mean.to(x).view(shape), self.std.reciprocal().to(x).view(shape)
        return torch.addcmul(-mean * scale, x, scale)
