"""What objectives on ids share: which part of a sample an id belongs to, the scores of every id for a token, and their
loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.patches import masked_mean
from ssl_runner.types import TokenBackbone


def parts_of(ids: Tensor, separator: int | None) -> Tensor | None:
    """(B, L): the number of the document that each id belongs to, from 1; a document ends with its separator.

    None without a separator, where a sample is one document.
    """
    if separator is None:
        return None
    ends = (ids == separator).long()
    return 1 + ends.cumsum(1) - ends


def vocabulary_of(backbone: TokenBackbone, *, as_wide: bool) -> Tensor:
    """(V, width), the embeddings of the ids. as_wide: they are to score the backbone's tokens as they are.

    Raises RequestError for a backbone whose input is no ids, or whose embeddings are narrower than that.
    """
    table = backbone.vocabulary()
    if table is None:
        raise RequestError("objective: predicts ids, and this backbone takes values; use a Discrete stem")
    if as_wide and table.shape[1] != backbone.dim:
        raise RequestError(
            f"objective: scores ids by their embeddings, which are {table.shape[1]} wide in this backbone, and its "
            f"tokens {backbone.dim}; use one whose embeddings are as wide as its tokens"
        )
    return table


class IdHead(nn.Module):
    """(..., dim) tokens -> (..., V) logits, by the backbone's own embeddings of the ids and a bias.

    Under autocast these are products as others, for they take most of the time; make losses of them in fp32.
    transform: a layer with GELU and LayerNorm comes first, as in BERT.
    Raises RequestError as `vocabulary_of`.
    """

    def __init__(self, backbone: TokenBackbone, *, transform: bool):
        super().__init__()
        table = vocabulary_of(backbone, as_wide=not transform)
        width = table.shape[1]
        self.transform = nn.Sequential()
        if transform:
            self.transform = nn.Sequential(nn.Linear(backbone.dim, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(len(table))) if transform else None

    def forward(self, tokens: Tensor, table: Tensor) -> Tensor:
        """table: (V, dim), the backbone's, which is handed over so that it is one parameter and not two."""
        return F.linear(self.transform(tokens), table, self.bias)

    def at(self, place: Tensor, tokens: Tensor, backbone: TokenBackbone) -> Tensor:
        """(B, K) places of the (B, L, dim) tokens -> (B, K, V): logits only where they count."""
        table = backbone.vocabulary()
        assert table is not None  # or the backbone had been refused
        return self(tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[2])), table)


def cross_entropy(logits: Tensor, wanted: Tensor, told: Tensor) -> Tensor:
    """-log p of the hidden ids, averaged over those that are told, of all ranks. In fp32.

    logits: (B, K, V). wanted: (B, K) ids. told: (B, K) bool.
    """
    losses = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
    return masked_mean(losses.view(told.shape), told)
