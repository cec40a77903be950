"""Tables: every column a token, or the whole row through an MLP."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor, nn

from ssl_runner.backbones.stems import Stem
from ssl_runner.errors import RequestError
from ssl_runner.parts.columns import joined, spread, useful, width
from ssl_runner.types import Backbone

Counts = Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)]
"""For each column its number of categories, 0 where it holds numbers."""


class Columns(Stem):
    """The feature tokenizer of FT-Transformer: Gorishniy, Rubachev, Khrulkov, Babenko, Revisiting Deep Learning Models
    for Tabular Data, NeurIPS 2021. https://arxiv.org/abs/2106.11959

    columns: of a row, 0 for numbers and K for K categories. dim: of a token.

    A number's token is value * weight, a category's a row of its column's table, and a missing value's a vector of its
    column, which the paper has not; to each, what is called the bias there is added, one vector for every column.
    A patch holds a column's value as `ssl_runner.parts.columns.spread` writes it, so a patch of zeros is no value at
    all, and what rebuilds patches predicts numbers, probabilities of categories, and whether a value is missing.
    """

    counts: Tensor

    def __init__(self, *, columns: Counts, dim: Annotated[int, Gt(0)]):
        super().__init__()
        self.dim, self.patch_dim = dim, width(columns)
        self.register_buffer("counts", torch.tensor(columns), persistent=False)  # a constant of the config
        self.weight = nn.Parameter(torch.empty(len(columns), self.patch_dim, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, len(columns), dim))
        for parameter in (self.weight, self.pos_embed):
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)

    def patchify(self, x: Tensor) -> Tensor:
        """(B, C) rows -> (B, C, P)."""
        if x.shape[1:] != self.counts.shape:
            raise RequestError(
                f"backbone.stem.columns: built for rows of {len(self.counts)} columns, and got samples of "
                f"{tuple(x.shape[1:])}"
            )
        return spread(x, self.counts, self.patch_dim)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, C, P) -> (B, C) rows: the likeliest category, and NaN where more than half says that it is missing."""
        return joined(patches, self.counts)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, C, P), all columns -> (B, C, dim)."""
        return torch.einsum("bcp,cpd->bcd", patches, self.weight) + self.pos_embed


class MLP(Backbone):
    """Linear layers with ReLU behind each, on numbers, categories as 0 or 1, and whether a value is missing.

    columns: of a row, 0 for numbers and K for K categories. dim: of every layer and of the embedding. depth: layers.
    dropout: behind each ReLU. The defaults are the encoder of SCARF (Bahri et al., 2022).
    """

    counts: Tensor
    kept: Tensor

    def __init__(
        self,
        *,
        columns: Counts,
        dim: Annotated[int, Gt(0)] = 256,
        depth: Annotated[int, Gt(0)] = 4,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ):
        super().__init__()
        self.dim, self.wide = dim, width(columns)
        self.register_buffer("counts", torch.tensor(columns), persistent=False)  # constants of the config
        self.register_buffer("kept", useful(columns), persistent=False)
        layers: list[nn.Module] = []
        for given in [len(self.kept), *[dim] * (depth - 1)]:
            layers += [nn.Linear(given, dim), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, C) rows -> (B, dim)."""
        if x.shape[1:] != self.counts.shape:
            raise RequestError(
                f"backbone.columns: built for rows of {len(self.counts)} columns, and got samples of "
                f"{tuple(x.shape[1:])}"
            )
        return self.layers(spread(x, self.counts, self.wide).flatten(1)[:, self.kept])
