"""A transformer encoder on any stem: one trunk for every modality."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from ssl_runner.backbones.stems import Stem
from ssl_runner.errors import RequestError
from ssl_runner.parts.attention import attend, visible
from ssl_runner.parts.pooling import mean_token
from ssl_runner.types import TokenBackbone

Rate = Annotated[float, Ge(0), Lt(1)]


class Encoder(TokenBackbone):
    """Pre-norm transformer (Vaswani et al., 2017; norms as in ViT: Dosovitskiy et al., 2021, Section 3.1).

    stem: how the input becomes tokens; its dim is the trunk's. depth: blocks. heads: divides dim.
    mlp_ratio: hidden width of a block's MLP over dim. dropout: of the tokens as they come in
    and of what each sublayer adds, per element (Section 5.4). drop_path: of what sublayers add, per sample, growing
    linearly to this rate at the last block (Huang et al., 2016).

    alibi: attention falls with distance (Press, Smith, Lewis, Train Short, Test Long, ICLR 2022; here to both sides): a
    token k places off scores slope * k less, where this is the first head's slope and each further head has half of the
    one before. Places are counted in the tokens that are given, so it is for rows of them, and for objectives that
    leave none out. None: nothing falls.
    causal: a token never sees those behind it, in the embedding too: for objectives that predict what follows.

    The embedding is the mean over the tokens that are not padding. `pad` counts tokens, not raw samples.
    Raises RequestError when heads does not divide dim.
    """

    def __init__(
        self,
        *,
        stem: Stem,
        depth: Annotated[int, Gt(0)] = 6,
        heads: Annotated[int, Gt(0)] = 4,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        dropout: Rate = 0.0,
        drop_path: Rate = 0.0,
        alibi: Annotated[float, Gt(0)] | None = None,
        causal: bool = False,
    ):
        super().__init__()
        if stem.dim % heads:
            raise RequestError(f"backbone.heads={heads}: does not divide the stem's dim, {stem.dim}")
        self.causal, self.alibi, self.heads = causal, alibi, heads
        self.stem, self.dim, self.grid = stem, stem.dim, getattr(stem, "grid", None)
        rates = [drop_path * n / max(1, depth - 1) for n in range(depth)]
        hidden = int(self.dim * mlp_ratio)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(self.dim, heads, hidden, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(self.dim)

    def patchify(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, L, P) values, or (B, L) ids."""
        return self.stem.patchify(x)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of patchify."""
        return self.stem.unpatchify(patches)

    def embed(self, patches: Tensor) -> Tensor:
        """Patches -> (B, L, dim) tokens, positions added."""
        return self.stem(patches)

    def encode(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Tensor:
        """(B, L, dim) -> (B, L, dim). What sees what: see ssl_runner.parts.attention.visible."""
        for output in self.layers(tokens, pad, causal, part):
            tokens = output
        return self.norm(tokens)

    def layers(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, L, dim) -> the (B, L, dim) behind each block."""
        causal = causal or self.causal
        # the kernels have this case built in
        plain = causal and pad is None and part is None and self.alibi is None
        seen = None if plain else visible(tokens, pad, causal, part)
        if self.alibi is not None:
            seen = nearness(tokens, self.alibi, self.heads, seen)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens, seen, plain)
            yield tokens

    def vocabulary(self) -> Tensor | None:
        return self.stem.vocabulary()

    def padding(self, pad: Tensor) -> Tensor:
        return self.stem.padding(pad)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, ...) -> (B, dim). pad: (B, L), True at padding; a sample of nothing else gives zeros."""
        return mean_token(self.tokens(x, pad), pad)


def nearness(tokens: Tensor, slope: float, heads: int, seen: Tensor | None) -> Tensor:
    """What is added to the scores of attention, (1 or B, heads, L, L), for (B, L, dim) tokens: -slope * distance, a
    slope for each head, and -inf where `seen`, (1 or B, 1, L, L) bool, is False."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    slopes = slope * 0.5 ** torch.arange(heads, device=tokens.device)
    fall = -slopes[:, None, None] * (place[:, None] - place).abs()
    return fall[None] if seen is None else fall[None].masked_fill(~seen, float("-inf"))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, drop_path: float):
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.qkv, self.out, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
        x = x + self._drop(self._attend(self.norm1(x), seen, causal))
        return x + self._drop(self.down(F.gelu(self.up(self.norm2(x)))))

    def _attend(self, x: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
        """seen: (B, 1, L, L) bool, True where a query (third axis) sees a key (fourth); or what is added to scores."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, seen, causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, dim))

    def _drop(self, x: Tensor) -> Tensor:
        """Dropout by element, then by sample; what stays is scaled up, so that the mean stays."""
        x = self.dropout(x)
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)
