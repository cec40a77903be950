"""A transformer decoder that reads an encoder's tokens: the second half of a sequence-to-sequence model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.attention import attend, visible


class Reader(nn.Module):
    """Blocks of causal self-attention, attention to an encoder's tokens and an MLP (Vaswani et al., 2017, Section 3.1).

    length: the most tokens. width: of the encoder's tokens. dim: of its own. Norms come before each sublayer, and
    positions are learned. Raises RequestError when heads does not divide dim.
    """

    def __init__(self, *, length: int, width: int, dim: int, depth: int, heads: int):
        super().__init__()
        if dim % heads:
            raise RequestError(f"objective.heads={heads}: does not divide the width of the embeddings, {dim}")
        self.pos_embed = nn.Parameter(torch.empty(1, length, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(_Block(width, dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, pad: Tensor, read: Tensor, unread: Tensor) -> Tensor:
        """(B, T, dim) tokens, each of which sees itself and those before it -> (B, T, dim).

        pad: (B, T) bool, those that no other may see. read: (B, M, width), the encoder's tokens. unread: (B, M) bool,
        those of them that are not to be read.
        """
        seen = visible(tokens, pad, True, None)
        # where there is nothing to read, all is read: attention to nothing is not a number
        reads = (~unread | unread.all(1, keepdim=True))[:, None, None]
        tokens = tokens + self.pos_embed[:, : tokens.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, seen, read, reads)
        return self.norm(tokens)


class _Block(nn.Module):
    def __init__(self, width: int, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.keys_values, self.answer = nn.Linear(dim, dim), nn.Linear(width, 2 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        for layer in (self.qkv, self.out, self.query, self.keys_values, self.answer, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, seen: Tensor | None, read: Tensor, reads: Tensor) -> Tensor:
        """seen: (B, 1, T, T) bool, True where a token sees another. reads: (B, 1, 1, M), True where one is read."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, 2)
        x = x + self.out(self._mixed(q, k, v, seen))
        k, v = self.keys_values(read).chunk(2, 2)
        x = x + self.answer(self._mixed(self.query(self.norm2(x)), k, v, reads))
        return x + self.down(F.gelu(self.up(self.norm3(x))))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        q, k, v = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))
        return attend(q, k, v, seen).transpose(1, 2).flatten(2)
