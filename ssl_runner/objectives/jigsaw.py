"""Jigsaw: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles.

Noroozi, Favaro, ECCV 2016. https://arxiv.org/abs/1603.09246
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.choice import choice_loss
from ssl_runner.parts.heads import mlp
from ssl_runner.parts.tiles import crops, side_of
from ssl_runner.types import Backbone, Batch, Loss, Objective


class Jigsaw(Objective):
    """The tiles of an image are shuffled by one of a fixed set of permutations. By which?

    hidden, dim: widths of fc7 and, for each tile, fc6 of the paper's context-free network.
    grid: tiles a side. permutations: how many there are to choose from.
    tile: the side to which tiles are resized (64 in the paper). None: the image's, which any backbone takes.

    A tile is cut at a random place of its cell, 64/75 of the cell's side, and normalised by itself: so
    neither edges that go on nor brightness give its place away. Images are square; another shape raises
    RequestError. The tiles are encoded one by one, so shuffling their features is shuffling them.
    """

    views = 1
    table: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: int = 4096,
        dim: int = 1024,
        grid: Annotated[int, Ge(2), Le(3)] = 3,
        permutations: Annotated[int, Ge(2)] = 1000,
        tile: Annotated[int, Gt(0)] | None = None,
    ):
        super().__init__()
        self.backbone, self.grid, self.tile = backbone, grid, tile
        self.register_buffer("table", distant_permutations(permutations, grid**2))
        self.fc6 = nn.Sequential(nn.Linear(backbone.dim, dim), nn.ReLU())
        self.head = mlp([grid**2 * dim, hidden, permutations])

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        x = view["x"]
        tiles = cut(x, self.grid)
        choice = torch.randint(len(self.table), (len(x),)).to(x.device)
        return choice_loss(self.scores(tiles, choice, self.tile or x.shape[3]), choice)

    def scores(self, tiles: Tensor, choice: Tensor, side: int) -> Tensor:
        """(B, grid^2, C, s, s) tiles in their right order, shuffled by the (B,) chosen permutations and resized to
        `side` -> (B, permutations), the logits of each."""
        seen = F.interpolate(normalised(tiles).to(tiles.dtype).flatten(0, 1), size=(side, side), mode="bilinear")
        features = self.fc6(self.backbone(seen)).unflatten(0, (len(tiles), -1))  # (B, grid^2, dim)
        return self.head(shuffled(features, self.table[choice]).flatten(1))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The shuffled tiles, put together as was told, and the image. Tiles fill the image, without their gaps."""
        x = batch["views"][0]["x"]
        tiles = cut(x, self.grid)
        choice = torch.randint(len(self.table), (len(x),)).to(x.device)
        told = self.table[self.scores(tiles, choice, self.tile or x.shape[3]).argmax(1)]
        seen = shuffled(tiles, self.table[choice])
        together = shuffled(seen, told.argsort(1))  # place told[k] gets the tile at place k
        return {"jigsaw": [*(laid_out(each, x.shape[3]) for each in (seen, together)), x]}


def cut(x: Tensor, grid: int) -> Tensor:
    """(B, C, S, S) -> (B, grid^2, C, s, s): a tile from a random place of each cell, row by row. Draws come from
    torch's global CPU generator. Raises RequestError for images that are not square, or too small."""
    cell = side_of(x, "Jigsaw") // grid
    if cell < 2:
        raise RequestError(f"objective.grid: images of {x.shape[3]} pixels do not divide into {grid} x {grid} tiles")
    side = max(2, min(cell - 1, round(cell * 64 / 75)))  # a tile of one pixel would be 0 once `normalised`
    corner = torch.arange(grid**2) * cell
    top = corner // (grid * cell) * cell + torch.randint(cell - side + 1, (len(x), grid**2))
    left = corner % (grid * cell) + torch.randint(cell - side + 1, (len(x), grid**2))
    return crops(x, top, left, side)


def normalised(tiles: Tensor) -> Tensor:
    """(B, n, C, s, s) -> the same, each tile with mean 0 and deviation 1 in each channel. In fp32."""
    tiles = tiles.float()
    deviation, mean = torch.std_mean(tiles, dim=(3, 4), correction=0, keepdim=True)
    return (tiles - mean) / (deviation + 1e-2)  # an empty tile stays empty


def shuffled(tiles: Tensor, permutation: Tensor) -> Tensor:
    """(B, n, ...) and (B, n): place k gets tile permutation[k]."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], permutation]


def laid_out(tiles: Tensor, side: int) -> Tensor:
    """(B, grid^2, C, s, s), row by row -> (B, C, side, side)."""
    grid = math.isqrt(tiles.shape[1])
    whole = tiles.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return F.interpolate(whole, size=(side, side))


def distant_permutations(count: int, length: int) -> Tensor:
    """Algorithm 1: (count, length) int64, each next one with the largest summed Hamming distance to those before.

    The first and the order of candidates are drawn with a fixed seed, so that every run has the same set. Of more
    than 20,000 permutations 20,000 are candidates, which keeps this under a second.
    Raises RequestError when there are fewer than `count`.
    """
    if count > math.factorial(length):
        raise RequestError(
            f"objective.permutations={count}: {length} tiles have only {math.factorial(length)}; give fewer, "
            "or a larger objective.grid"
        )
    every = torch.tensor(list(itertools.permutations(range(length))), dtype=torch.uint8)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    pool = every[order[: max(20_000, count)]]
    distance = torch.zeros(len(pool), dtype=torch.int64)
    chosen = [0]
    for _ in range(count - 1):
        distance += (pool != pool[chosen[-1]]).sum(1)
        distance[chosen[-1]] = -(count + 1) * length  # never again: it can't add up to 0
        chosen.append(int(distance.argmax()))
    return pool[chosen].long()
