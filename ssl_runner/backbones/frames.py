"""Backbones on frames: convolutions along time, and a transformer or a recurrent network on what they make.

Baevski, Zhou, Mohamed, Auli, wav2vec 2.0, NeurIPS 2020 (https://arxiv.org/abs/2006.11477).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal, cast

import torch.nn.functional as F
from annotated_types import Ge, Gt, MinLen
from torch import Tensor, nn

from ssl_runner.backbones.encoder import Encoder, Rate
from ssl_runner.backbones.stems import Stem
from ssl_runner.errors import RequestError
from ssl_runner.parts.pooling import mean_token
from ssl_runner.types import FrameBackbone

Count = Annotated[int, Gt(0)]
Counts = Annotated[tuple[Count, ...], MinLen(1)]


class Frames(Stem):
    """Section 2, "Feature encoder": convolutions with GELU and a norm, along the last axis of (C, n) signals.

    shape: (C, n) of one sample, or (C, mels, n) of a spectrogram, whose bands are channels then; any other n will do as
    well. dim: of a token. width: P, channels of each convolution.
    kernels, strides: of the convolutions, from the input on; the paper's give a frame of 400 values every 320.
    norm: "group" takes each channel's mean and variance over all of a sample, once, behind the first convolution, as
    the paper's BASE model does, so that frames tell of the whole sample, padding too; "layer" takes them over the
    channels of each place, behind every convolution, as its LARGE model does. A causal objective wants "layer".
    positions: kernel of the grouped convolution over tokens that tells positions (Section 2, "Contextualized
    representations with Transformers"); 0: none, as for a recurrent network. groups: of that convolution.

    A frame is padding if any value that it sees is, so that lengths are those behind the convolutions.
    Raises RequestError for data of other axes, and for samples that are too short for two frames.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        dim: Count,
        width: Count = 512,
        kernels: Counts = (10, 3, 3, 3, 3, 2, 2),
        strides: Counts = (5, 2, 2, 2, 2, 2, 2),
        norm: Literal["group", "layer"] = "group",
        positions: Annotated[int, Ge(0)] = 128,
        groups: Count = 16,
    ):
        super().__init__()
        if len(shape) not in (2, 3):
            raise RequestError(
                f"backbone.stem: convolves along time, (C, n) or (C, mels, n), and samples are {tuple(shape)}"
            )
        if len(kernels) != len(strides):
            raise RequestError(f"backbone.stem.strides={list(strides)}: give as many as kernels, {len(kernels)}")
        if positions and dim % groups:
            raise RequestError(f"backbone.stem.groups={groups}: does not divide dim={dim}")
        self.dim, self.frame_dim, self.strides, self.positions = dim, width, tuple(strides), positions
        self.hop, self.reach = hop_and_reach(kernels, strides)
        self.grid = ((shape[-1] - self.reach) // self.hop + 1,)
        if self.grid[0] < 2:
            raise RequestError(
                f"backbone.stem: a frame sees {self.reach} values and the next begins {self.hop} on, and samples have "
                f"{shape[-1]}; give fewer or smaller strides and kernels, or longer samples"
            )
        wide, layered = [math.prod(shape[:-1]), *[width] * len(kernels)], norm == "layer"
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, kernel, stride, bias=layered)
            for a, b, kernel, stride in zip(wide, wide[1:], kernels, strides, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in kernels if layered)
        self.group_norm = None if layered else nn.GroupNorm(width, width)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, dim)
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(cast(nn.Conv1d, convolution).weight)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.convolved = None
        if positions:
            convolution = nn.Conv1d(dim, dim, positions, groups=groups)
            nn.init.normal_(convolution.weight, std=2 / math.sqrt(positions * dim))
            nn.init.zeros_(cast(Tensor, convolution.bias))
            self.convolved = nn.utils.parametrizations.weight_norm(convolution, dim=2)

    def patchify(self, x: Tensor) -> Tensor:
        """(B, C, n) or (B, C, mels, n) -> (B, L, P)."""
        x = x.flatten(1, -2)
        for n, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if self.norms:
                x = self.norms[n](x.transpose(1, 2)).transpose(1, 2)
            elif n == 0 and self.group_norm is not None:
                x = self.group_norm(x)
            x = F.gelu(x)
        return x.transpose(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        raise RequestError(
            "objective: rebuilds its input, and this backbone's frames are learned; use a Continuous stem"
        )

    def padding(self, pad: Tensor) -> Tensor:
        return framed_padding(pad, self.hop, self.reach)

    def normalise(self, frames: Tensor) -> Tensor:
        """(B, L, P) -> the same, each frame by the mean and variance of its channels."""
        return self.norm(frames)

    def project(self, frames: Tensor) -> Tensor:
        """(B, L, P) -> (B, L, dim)."""
        return self.projection(frames)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, L, P) -> (B, L, dim), without positions."""
        return self.project(self.normalise(patches))

    def placed(self, tokens: Tensor, pad: Tensor | None, causal: bool) -> Tensor:
        """(B, L, dim) tokens -> the same, positions added. causal: each from those up to it."""
        if self.convolved is None:
            return tokens
        if pad is not None:
            tokens = tokens.masked_fill(pad[..., None], 0.0)
        before = self.positions - 1 if causal else self.positions // 2
        around = F.pad(tokens.transpose(1, 2), (before, self.positions - 1 - before))
        return tokens + F.gelu(self.convolved(around)).transpose(1, 2)


def hop_and_reach(kernels: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """How many values lie between the beginnings of two frames, and how many a frame sees, behind convolutions."""
    hop, reach = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        reach += (kernel - 1) * hop
        hop *= stride
    return hop, reach


def framed_padding(pad: Tensor, hop: int, reach: int) -> Tensor:
    """(B, n) bool, True at padding -> (B, L), True at the frames that see some."""
    return F.max_pool1d(pad[:, None].float(), reach, hop)[:, 0] > 0


class FrameEncoder(Encoder, FrameBackbone):
    """A transformer on frames: see Encoder for its arguments, and Frames for the stem.

    Norms come before each part of a block, as in the paper's LARGE model. A backbone of transformers has BASE's order.
    """

    stem: Frames

    def __init__(
        self,
        *,
        stem: Frames,
        depth: Count = 12,
        heads: Count = 12,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        dropout: Rate = 0.0,
        drop_path: Rate = 0.0,
        causal: bool = False,
    ):
        super().__init__(
            stem=stem,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            drop_path=drop_path,
            causal=causal,
        )
        self.hop, self.reach, self.frame_dim = stem.hop, stem.reach, stem.frame_dim

    def normalise(self, frames: Tensor) -> Tensor:
        return self.stem.normalise(frames)

    def project(self, frames: Tensor) -> Tensor:
        return self.stem.project(frames)

    def layers(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, L, dim) without positions -> the (B, L, dim) behind each block."""
        yield from super().layers(self.stem.placed(tokens, pad, causal or self.causal), pad, causal, part)


class FrameRecurrent(FrameBackbone):
    """A recurrent network on frames: causal by itself, as the context network of CPC (van den Oord et al., 2018).

    stem: Frames with positions=0, for order tells them. depth: layers of gated recurrent units, as wide as the stem's
    dim. The embedding is the mean over the tokens that are not padding.
    Raises RequestError for a stem that adds positions.
    """

    def __init__(self, *, stem: Frames, depth: Count = 1):
        super().__init__()
        if stem.positions:
            raise RequestError("backbone.stem.positions: a recurrent network tells order itself; set it to 0")
        self.stem, self.dim, self.grid = stem, stem.dim, stem.grid
        self.hop, self.reach, self.frame_dim = stem.hop, stem.reach, stem.frame_dim
        self.recurrent = nn.GRU(stem.dim, stem.dim, depth, batch_first=True)

    def patchify(self, x: Tensor) -> Tensor:
        return self.stem.patchify(x)

    def unpatchify(self, patches: Tensor) -> Tensor:
        return self.stem.unpatchify(patches)

    def padding(self, pad: Tensor) -> Tensor:
        return self.stem.padding(pad)

    def normalise(self, frames: Tensor) -> Tensor:
        return self.stem.normalise(frames)

    def project(self, frames: Tensor) -> Tensor:
        return self.stem.project(frames)

    def encode(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Tensor:
        """(B, L, dim) -> (B, L, dim), each of those up to it. Padding lies behind, where nothing follows.

        Raises RequestError for parts, between which nothing would reset it.
        """
        if part is not None:
            raise RequestError("backbone: a recurrent network can't keep parts of a sample apart; use FrameEncoder")
        return self.recurrent(tokens)[0]

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, C, n) -> (B, dim)."""
        return mean_token(self.tokens(x, pad), pad)
