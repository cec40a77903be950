"""Motion statistics: Self-Supervised Spatio-Temporal Representation Learning for Videos by Predicting Motion and
Appearance Statistics.

Wang, Jiao, Bao, He, Liu, Liu, CVPR 2019. https://arxiv.org/abs/1904.03597
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.choice import choice_loss
from ssl_runner.types import Backbone, Batch, Loss, Objective


class Motion(Objective):
    """In which block of the picture does most change, and which way does it move?

    shape: of a sample, (C, T, H, W). grid: blocks along each side. directions: sectors of the circle.

    The paper asks this of the boundaries of optical flow that was computed beforehand, for three ways of cutting the
    picture, and as a regression; it also asks where colours are most alike and which they are. Here the flow is that of
    Lucas & Kanade (IJCAI 1981), one vector for a block, from the clip itself; the picture is cut one way, both
    questions are choices among classes, and colours are left out.
    Raises RequestError for samples that are no clips, or too small for the grid.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, ...],
        grid: Annotated[int, Ge(2)] = 4,
        directions: Annotated[int, Ge(2)] = 8,
    ):
        super().__init__()
        if len(shape) != 4 or shape[1] < 2 or min(shape[2:]) < 2 * grid:
            raise RequestError(
                f"objective.grid={grid}: asks where clips of (channels, frames, height, width) move, in blocks of 2x2 "
                f"pixels or more; samples are {tuple(shape)}"
            )
        self.backbone, self.grid, self.directions = backbone, grid, directions
        self.place, self.way = nn.Linear(backbone.dim, grid**2), nn.Linear(backbone.dim, directions)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        place, way = statistics(view["x"], self.grid, self.directions)
        features = self.backbone(**view)
        where, which = choice_loss(self.place(features), place), choice_loss(self.way(features), way)
        return Loss(where.value + which.value, {"place": where.log["accuracy"], "direction": which.log["accuracy"]})

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The clip, the block of it in which most changes, and the block that was told."""
        view = batch["views"][0]
        place, _ = statistics(view["x"], self.grid, self.directions)
        told = self.place(self.backbone(**view)).argmax(1)
        return {"motion": [view["x"], *(lit(view["x"], each, self.grid) for each in (place, told))]}


def statistics(x: Tensor, grid: int, directions: int) -> tuple[Tensor, Tensor]:
    """(B, C, T, H, W) -> (B,) the block whose brightness changes most from frame to frame, by its mean square, and (B,)
    in which sector of the circle that block moves: 0 is about straight to the right, the next ones follow clockwise."""
    change, vector = flow(x, grid)
    place = change.argmax(1)
    right, down = vector[torch.arange(len(x), device=x.device), place].unbind(1)
    turn = torch.atan2(down, right) / (2 * math.pi)
    return place, (turn * directions).round().long() % directions


def flow(x: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """(B, C, T, H, W) -> (B, grid^2), how much each block changes in a frame, and (B, grid^2, 2), how far it moves to
    the right and down, in pixels. In fp32.

    With Ix, Iy, It the changes of brightness along the axes, Lucas & Kanade's vector v solves S v = -b, where S is the
    sum over the block, and over time, of [[Ix^2, Ix Iy], [Ix Iy, Iy^2]] and b that of (Ix It, Iy It). A little is added
    to the diagonal of S: where there is nothing to be seen nothing moves.
    """
    grey = x.float().mean(1)
    now, then = grey[:, :-1], grey[:, 1:]
    down, right = torch.gradient((now + then) / 2, dim=(2, 3))
    change = then - now

    def block(values: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(values.mean(1), grid).flatten(1)

    xx, yy, xy = block(right * right), block(down * down), block(right * down)
    xt, yt = block(right * change), block(down * change)
    little = 1e-3 * (xx + yy).mean(1, keepdim=True) + 1e-8
    xx, yy = xx + little, yy + little
    vector = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], 2) / (xx * yy - xy * xy)[:, :, None]
    return block(change * change), vector


def lit(x: Tensor, place: Tensor, grid: int) -> Tensor:
    """(B, C, T, H, W) and a (B,) block of it -> the same with 0 everywhere else."""
    block = F.one_hot(place, grid**2).view(-1, 1, 1, grid, grid).to(x.dtype)
    return x * F.interpolate(block, size=(1, *x.shape[3:]), mode="nearest")
