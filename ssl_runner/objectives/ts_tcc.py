"""TS-TCC: Time-Series Representation Learning via Temporal and Contextual Contrasting.

Eldele, Ragab, Chen, Wu, Kwoh, Li, Guan, IJCAI 2021. https://arxiv.org/abs/2106.14112
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from ssl_runner.backbones.encoder import Encoder
from ssl_runner.backbones.stems import Stem
from ssl_runner.errors import RequestError
from ssl_runner.objectives.simclr import nt_xent
from ssl_runner.parts.among import among
from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.heads import mlp
from ssl_runner.parts.patches import patch_sizes
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone, View

Width = Annotated[int, Gt(0)]
Weight = Annotated[float, Ge(0)]


class TSTCC(Objective):
    """From a view's tokens up to a moment, tell the other view's tokens behind it ("Temporal Contrasting"); and what
    sums up those tokens must agree between the views ("Contextual Contrasting").

    The first view is the weak one, the second the strong one. shape: of a sample. ahead: K, how far behind the moment
    is told, as a share of the tokens (the paper's best was two fifths). dim, depth, heads: of the transformer that sums
    up. temperature: of contextual contrasting. temporal, contextual: lambda 1 and 2, weights of the two losses.

    The moment is drawn for each sample, the same for both views. Negatives are the other samples of all ranks. Padding
    is neither told nor a negative.
    """

    views = 2
    contrasts = True

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        shape: tuple[int, ...],
        ahead: Annotated[float, Gt(0), Lt(1)] = 0.4,
        dim: Width = 100,
        depth: Width = 4,
        heads: Width = 4,
        temperature: Annotated[float, Gt(0)] = 0.2,
        temporal: Weight = 1.0,
        contextual: Weight = 0.7,
    ):
        super().__init__()
        if dim % heads:
            raise RequestError(f"objective.heads={heads}: does not divide objective.dim={dim}")
        self.backbone: TokenBackbone = backbone
        length, _ = patch_sizes(backbone, shape)
        self.steps, width = min(max(1, round(ahead * length)), length - 1), backbone.dim
        self.summary = Encoder(stem=_Context(width, dim), depth=depth, heads=heads)
        self.predictors = nn.Linear(dim, self.steps * width)  # W_1 to W_K
        self.projector = mlp([dim, max(1, dim // 2), max(1, dim // 4)])
        self.temperature, self.temporal, self.contextual = temperature, temporal, contextual

    def forward(self, batch: Batch) -> Loss:
        weak, strong = batch["views"]
        z = [self.backbone.tokens(**view) for view in (weak, strong)]
        present = [_present(view, tokens) for view, tokens in zip((weak, strong), z, strict=True)]
        room = (torch.stack(present).sum(2).amin(0) - self.steps).clamp(min=1)
        moment = (torch.rand(len(room)).to(room.device) * room).long()  # t
        context = [self.sum_up(tokens, there, moment) for tokens, there in zip(z, present, strict=True)]
        told = [self.predictors(each).view(len(each), self.steps, -1) for each in context]
        place = moment[:, None] + 1 + torch.arange(self.steps, device=moment.device)
        behind = [tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[2])) for tokens in z]
        there = [each.gather(1, place) for each in present]
        temporal = temporal_loss(told[1], behind[0], there[0]) + temporal_loss(told[0], behind[1], there[1])
        contextual = nt_xent(self.projector(context[0]), self.projector(context[1]), self.temperature)
        value = self.temporal * temporal + self.contextual * contextual
        return Loss(value, {"temporal": temporal.detach(), "contextual": contextual.detach()})

    def sum_up(self, tokens: Tensor, present: Tensor, moment: Tensor) -> Tensor:
        """c_t, (B, dim): what the transformer's first token makes of (B, L, width) tokens up to the (B,) moments."""
        later = torch.arange(tokens.shape[1], device=tokens.device) > moment[:, None]
        pad = torch.cat([torch.zeros_like(later[:, :1]), later | ~present], 1)
        return self.summary.encode(self.summary.embed(tokens), pad)[:, 0]


def temporal_loss(told: Tensor, behind: Tensor, present: Tensor) -> Tensor:
    """The temporal contrasting loss: at each step ahead, what is told of a sample among that step of all samples.

    told, behind: (n, K, D), of this rank, W_k(c_t) of one view and z_(t+k) of the other. present: (n, K) bool, False at
    padding. The mean over the steps of all ranks that are there.
    """
    every, known = gather(behind.float()).transpose(0, 1), gather(present).T
    return among(
        told.float().transpose(0, 1),
        every,
        known[:, None],
        positive=torch.arange(len(told), device=told.device) + rank() * len(told),
        counted=present.T,
        whole=known.sum(),
    )


def _present(view: View, tokens: Tensor) -> Tensor:
    """(B, L) bool."""
    return ~view["pad"] if "pad" in view else torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


class _Context(Stem):
    """(B, L, width) tokens, brought to dim, behind one that has learned to sum up."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.dim = dim
        self.enter = nn.Linear(width, dim)
        self.token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.normal_(self.token, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(patches), -1, -1), self.enter(patches)], 1)
