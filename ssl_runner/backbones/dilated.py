"""TS2Vec's encoder: dilated convolutions over time.

Yue, Wang, Duan, Yang, Huang, Tong, Xu, TS2Vec: Towards Universal Representation of Time Series, AAAI 2022.
https://arxiv.org/abs/2106.10466
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.types import TokenBackbone

Width = Annotated[int, Gt(0)]


class DilatedCNN(TokenBackbone):
    """(B, C, n) -> (B, dim), the largest value of each feature over time; a token for each moment.

    shape: (C, n) of a sample; n does not matter to the weights. dim: of the output. hidden: of what is between.
    depth: residual blocks, the k-th with a dilation of 2^k, and one more that widens to dim; TS2Vec has 10 of width 64,
    and an output of 320. A block is GELU and a convolution of 3 places, twice.

    A convolution sees places, not who stands there: it can't keep parts of a sample apart.
    """

    def __init__(self, *, shape: tuple[int, ...], dim: Width = 320, hidden: Width = 64, depth: Width = 10):
        super().__init__()
        if len(shape) != 2:
            raise RequestError(f"backbone: DilatedCNN is for series of (channels, places), and these are {shape}")
        self.channels, self.dim = shape[0], dim
        self.project = nn.Linear(self.channels, hidden)
        blocks = [_Block(hidden, hidden, 2**k) for k in range(depth)]
        self.blocks = nn.ModuleList([*blocks, _Block(hidden, dim, 2**depth)])

    def patchify(self, x: Tensor) -> Tensor:
        """(B, C, n) -> (B, n, C)."""
        if x.shape[1] != self.channels:
            raise RequestError(f"backbone.shape: built for {self.channels} channels, and got {x.shape[1]}")
        return x.transpose(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, n, C) -> (B, C, n)."""
        return patches.transpose(1, 2)

    def embed(self, patches: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, hidden): the input projection. Convolutions need no positions."""
        return self.project(patches)

    def encode(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Tensor:
        """(B, L, hidden) -> (B, L, dim). pad: (B, L), read as zeros. causal: a moment sees none behind it."""
        *_, last = self.layers(tokens, pad, causal, part)
        return last

    def layers(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, L, hidden) -> the (B, L, hidden) behind each block, and the (B, L, dim) behind the last.

        Raises RequestError for a `part`.
        """
        if part is not None:
            raise RequestError("backbone: DilatedCNN can't keep parts of a sample apart; use backbone=encoder")
        x = tokens.transpose(1, 2)
        kept = None if pad is None else ~pad[:, None]
        for block in self.blocks:
            x = block(x, kept, causal)
            yield x.transpose(1, 2)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, C, n) -> (B, dim): the maximum over all moments that are not padding; zeros where there is none."""
        tokens = self.tokens(x, pad)
        if pad is None:
            return tokens.amax(1)
        most = tokens.masked_fill(pad[..., None], -torch.inf).amax(1)
        return most.masked_fill(pad.all(1, keepdim=True), 0.0)


class _Block(nn.Module):
    def __init__(self, width: int, out: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.first = nn.Conv1d(width, out, 3, dilation=dilation)
        self.second = nn.Conv1d(out, out, 3, dilation=dilation)
        self.shortcut = nn.Conv1d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor, kept: Tensor | None, causal: bool) -> Tensor:
        """(B, width, L) -> (B, out, L). kept: (B, 1, L) bool; what is not reads as zero."""
        both = 2 * self.dilation
        around = (both, 0) if causal else (self.dilation, self.dilation)
        inner = x
        for layer in (self.first, self.second):
            inner = F.gelu(inner)
            if kept is not None:
                inner = inner.masked_fill(~kept, 0.0)
            inner = layer(F.pad(inner, around))
        return inner + self.shortcut(x)
