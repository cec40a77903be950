"""A light transformer between an encoder's tokens and what they predict: MAE's decoder, I-JEPA's predictor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Stem
from ssl_runner.errors import RequestError


class _Positions(Stem):
    """(B, L, dim) tokens get learned positions."""

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.dim = dim
        self.pos_embed = nn.Parameter(torch.empty(1, length, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        return patches + self.pos_embed


class Decoder(nn.Module):
    """A light transformer of its own width between an encoder's tokens and what they predict.

    length: L. width: of the encoder's tokens. dim, depth, heads: of the decoder. out: width of a prediction.

    `enter` and `leave` are its linear ends, `mask_token` (dim,) stands for a token that is to be predicted, and
    `trunk` has positions (`embed`) and blocks (`encode`). Raises RequestError when heads does not divide dim.
    """

    def __init__(self, *, length: int, width: int, dim: int, out: int, depth: int, heads: int):
        super().__init__()
        if dim % heads:
            raise RequestError(f"objective.heads={heads}: does not divide objective.dim={dim}")
        self.enter, self.leave = nn.Linear(width, dim), nn.Linear(dim, out)
        self.mask_token = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.trunk = Encoder(stem=_Positions(length, dim), depth=depth, heads=heads)
