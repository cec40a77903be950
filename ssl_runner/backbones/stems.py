"""The only parts that know a modality: how an input becomes patches, and patches become tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.blocks import cut, joined


class Stem(nn.Module):
    """Input -> patches -> tokens of width `dim`, positions added."""

    dim: int

    def patchify(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, L, P) values, or (B, L) ids."""
        raise NotImplementedError

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of patchify."""
        raise NotImplementedError

    def forward(self, patches: Tensor) -> Tensor:
        """Patches -> (B, L, dim)."""
        raise NotImplementedError

    def vocabulary(self) -> Tensor | None:
        """(V, dim), the embedding of each id; None where patches are values."""
        return None

    def padding(self, pad: Tensor) -> Tensor:
        """(B, n) bool along the input's last axis, True at padding -> (B, L), which patches hold nothing else."""
        return pad


class Continuous(Stem):
    """Real-valued signals of any rank (series, audio, images, video), cut into equal blocks.

    shape: (C, d1, ..., dr) of one sample. block: (b1, ..., br), each a divisor of its d. dim: of a token.

    grid: (d1 / b1, ..., dr / br), blocks along each axis; L is their product. patch_dim: P = C b1 ... br.
    Raises RequestError when the blocks do not divide the shape.
    """

    def __init__(self, *, shape: tuple[int, ...], block: tuple[int, ...], dim: int):
        super().__init__()
        channels, *sides = shape
        if len(block) != len(sides):
            raise RequestError(
                f"backbone.stem.block={list(block)}: the data has {len(sides)} axes after its channels, "
                f"{tuple(sides)}; give a block with as many"
            )
        if any(b < 1 or side % b for side, b in zip(sides, block, strict=True)):
            raise RequestError(
                f"backbone.stem.block={list(block)}: does not divide the data's {tuple(sides)} evenly; "
                "give divisors of these"
            )
        self.shape, self.block, self.dim = tuple(shape), tuple(block), dim
        self.grid = tuple(side // b for side, b in zip(sides, block, strict=True))
        self.patch_dim = channels * math.prod(block)
        self.project = nn.Linear(self.patch_dim, dim)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid), dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def patchify(self, x: Tensor) -> Tensor:
        """(B, C, d1, ..., dr) -> (B, L, P): blocks in row-major order, each as (C, b1, ..., br)."""
        if tuple(x.shape[1:]) != self.shape:
            raise RequestError(f"backbone.stem.shape: built for {self.shape}, and got samples of {tuple(x.shape[1:])}")
        return cut(x, self.block)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, P) -> (B, C, d1, ..., dr): the inverse of patchify."""
        return joined(patches, self.shape, self.block)

    def padding(self, pad: Tensor) -> Tensor:
        """(B, dr) -> (B, L): a block is padding if all of its places along the last axis are."""
        ends = pad.view(len(pad), self.grid[-1], self.block[-1]).all(2)
        return ends.repeat(1, math.prod(self.grid[:-1]))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, L, P), all blocks -> (B, L, dim)."""
        return self.project(patches) + self.pos_embed


class Discrete(Stem):
    """Ids: words, items, codes.

    vocab: ids are 0 .. vocab - 1. length: the most ids in a sample. dim: width of a token.
    """

    def __init__(self, *, vocab: int, length: int, dim: int):
        super().__init__()
        self.vocab, self.length, self.dim = vocab, length, dim
        self.table = nn.Embedding(vocab, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, length, dim))
        nn.init.trunc_normal_(self.table.weight, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def patchify(self, x: Tensor) -> Tensor:
        """(B, L) ids, as they are."""
        return x

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L) ids, as they are."""
        return patches

    def forward(self, patches: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, dim). Raises RequestError when L exceeds `length`."""
        count = patches.shape[1]
        if count > self.length:
            raise RequestError(
                f"backbone.stem.length={self.length}: got a sample of {count} ids; raise it or cut samples"
            )
        return self.table(patches) + self.pos_embed[:, :count]

    def vocabulary(self) -> Tensor | None:
        return self.table.weight
