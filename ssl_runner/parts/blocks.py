"""Signals of any rank cut into equal blocks, and put together again."""

from __future__ import annotations

from torch import Tensor


def cut(x: Tensor, block: tuple[int, ...]) -> Tensor:
    """(B, C, d1, ..., dr), each d divided by its b of (b1, ..., br) -> (B, L, P): blocks in row-major order, each as
    (C, b1, ..., br)."""
    channels, *sides = x.shape[1:]
    woven = [n for side, b in zip(sides, block, strict=True) for n in (side // b, b)]
    rank = len(block)
    grid, inner = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    blocks = x.reshape(len(x), channels, *woven).permute(0, *grid, 1, *inner)
    return blocks.reshape(len(x), blocks.shape[1 : 1 + rank].numel(), -1)


def joined(blocks: Tensor, shape: tuple[int, ...], block: tuple[int, ...]) -> Tensor:
    """(B, L, P) -> (B, C, d1, ..., dr), of this shape: the inverse of `cut`."""
    channels, *sides = shape
    grid = [side // b for side, b in zip(sides, block, strict=True)]
    rank = len(block)
    apart = blocks.reshape(len(blocks), *grid, channels, *block)
    woven = [axis for n in range(rank) for axis in (1 + n, 2 + rank + n)]
    return apart.permute(0, 1 + rank, *woven).reshape(len(blocks), *shape)
