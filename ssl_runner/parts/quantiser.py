"""Product quantisation by a straight-through Gumbel softmax.

Jegou, Douze, Schmid, Product Quantization for Nearest Neighbor Search, 2011; Jang, Gu, Poole, Categorical
Reparameterization with Gumbel-Softmax, ICLR 2017; as in wav2vec 2.0 (Baevski et al., NeurIPS 2020, Section 2,
"Quantization module").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.gather import all_reduce


class Quantised(NamedTuple):
    vectors: Tensor  # (..., dim), the chosen codes of all groups, one after another
    codes: Tensor  # (..., G) int64, which these are
    chances: Tensor  # (..., G, V), the softmax of the scores, in fp32


class Quantiser(nn.Module):
    """(..., width) -> one of `codes` learned vectors from each of `groups` groups; together `dim` wide.

    start, end, decay: the temperature of the softmax, times `decay` after each update and never below `end`. How many
    updates there were is a buffer: a resumed run goes on from it.

    In training Gumbel noise is added to the scores, the best code is taken, and the gradient is that of the softmax.
    In evaluation the best code is taken without noise. Noise comes from torch's global CPU generator.
    Raises RequestError when groups does not divide dim.
    """

    updates: Tensor

    def __init__(self, width: int, *, groups: int, codes: int, dim: int, start: float, end: float, decay: float):
        super().__init__()
        if dim % groups:
            raise RequestError(f"objective.groups={groups}: does not divide the width of the codes, {dim}")
        self.groups, self.codes = groups, codes
        self.start, self.end, self.decay = start, end, decay
        self.score = nn.Linear(width, groups * codes)
        self.vectors = nn.Parameter(torch.rand(groups, codes, dim // groups))
        nn.init.normal_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def temperature(self) -> Tensor:
        """(), by how many updates there were."""
        return (self.start * (self.updates * math.log(self.decay)).exp()).clamp(min=self.end)

    def forward(self, x: Tensor) -> Quantised:
        scores = self.score(x).float().unflatten(-1, (self.groups, self.codes))
        chances = scores.softmax(-1)
        if self.training:
            soft = ((scores + gumbel(scores)) / self.temperature()).softmax(-1)
            codes = soft.argmax(-1)
            hard = F.one_hot(codes, self.codes).to(soft.dtype)
            choice = hard + soft - soft.detach()
        else:
            codes = scores.argmax(-1)
            choice = F.one_hot(codes, self.codes).to(scores.dtype)
        with torch.autocast(x.device.type, enabled=False):
            vectors = torch.einsum("...gv,gvd->...gd", choice, self.vectors.float())
        return Quantised(vectors.flatten(-2), codes, chances)


def gumbel(scores: Tensor) -> Tensor:
    """Gumbel noise of the same shape: -log(-log u)."""
    u = torch.rand(scores.shape).clamp_(min=torch.finfo(torch.float32).tiny)
    return -(-u.log()).clamp_(min=torch.finfo(torch.float32).tiny).log().to(scores.device)


def perplexity(chances: Tensor, counted: Tensor) -> Tensor:
    """(B, L, G, V) chances and (B, L) bool, which of them count -> (G,): e to the entropy of their mean over all that
    count, of all ranks. In fp32."""
    total = all_reduce((chances.float() * counted[..., None, None]).sum((0, 1)))
    mean = total / all_reduce(counted.sum().float()).clamp(min=1)
    return torch.exp(-(mean * (mean + 1e-7).log()).sum(1))
