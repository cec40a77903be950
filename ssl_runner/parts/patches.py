"""What objectives on patches share: how many there are, their values relative to themselves, means over some."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.parts.gather import world_size
from ssl_runner.types import FrameBackbone, TokenBackbone


def patch_sizes(backbone: TokenBackbone, shape: tuple[int, ...]) -> tuple[int, int]:
    """(L, P): how many patches a sample of this shape has, and how many values a patch.

    Raises RequestError where patches are ids or learned, and where there are fewer than two.
    """
    if isinstance(backbone, FrameBackbone):
        raise RequestError(
            "objective: predicts the input's values, and here patches are learned; use a Continuous stem"
        )
    patches = backbone.patchify(torch.zeros(1, *shape))
    if patches.ndim != 3:
        raise RequestError("objective: predicts real values, and this backbone cuts its input into ids")
    if patches.shape[1] < 2:
        raise RequestError("objective: needs two patches or more, and the backbone makes one; give it smaller blocks")
    return patches.shape[1], patches.shape[2]


def normalised(patches: Tensor) -> Tensor:
    """Each (B, L, P) patch minus its mean, over the root of its variance, divided by P - 1 as in the code of MAE's
    authors, plus 1e-6. In fp32.

    Raises RequestError for patches of one or two values, of which this leaves nothing, or nothing but signs.
    """
    if patches.shape[2] < 3:
        raise RequestError(
            f"objective.normalise=true: a patch has {patches.shape[2]} values, too few to be taken relative to their "
            "own mean and deviation; set it to false"
        )
    patches = patches.float()
    var, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def denormalised(values: Tensor, patches: Tensor) -> Tensor:
    """The inverse of `normalised`: (B, L, P) values with the mean and deviation of the patches they stand for."""
    var, mean = torch.var_mean(patches.float(), dim=2, keepdim=True)
    return values * (var + 1e-6).sqrt() + mean


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the (B, L) values where the mask is True, over all ranks' places of that kind.

    Ranks may hold different numbers of them: the average of the ranks' results, and so of their gradients, is the
    mean over the joined batch. Zero where no place is True.
    """
    count = mask.sum().to(values.dtype)
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    total = values.masked_fill(~mask, 0.0).sum()
    return total / count.clamp(min=1 / world_size())
