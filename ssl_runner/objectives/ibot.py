"""iBOT: Image BERT Pre-Training with Online Tokenizer.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong, ICLR 2022. https://arxiv.org/abs/2111.07832
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.distillation import Head, cross_view, move_centre, prototypes_used, warm
from ssl_runner.parts.masking import block_mask, grid_of
from ssl_runner.parts.multicrop import embed_together
from ssl_runner.parts.pooling import mean_token
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone, View

Share = Annotated[float, Ge(0), Le(1)]
Width = Annotated[int, Gt(0)]
Temperature = Annotated[float, Gt(0)]


class IBOT(Objective):
    """Section 3: DINO between views, and the same distillation by token on what is masked within a view.

    large: the first so many views are masked for the student and shown whole to the teacher; others go to the
    student alone, whole.
    hidden, dim, prototypes: widths of the head, which embeddings and tokens share.
    ratio_low, ratio_high, masked: with probability `masked` a sample's share of hidden tokens is drawn
    between the first two, and it is 0 otherwise.
    temperature, teacher_start, teacher_end, teacher_warmup, momentum, centre_momentum, frozen: as in DINO.

    A sample's embedding is the mean of its tokens, not a class token, so that any token backbone will do.
    The log's `prototypes_used` is that of the embeddings' targets, as in DINO. Raises RequestError for fewer than two
    views, or than `large`.
    """

    views = None
    indivisible = "its centres move with each micro-batch"
    centre: Tensor
    token_centre: Tensor
    progress: Tensor

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        large: Annotated[int, Gt(0)] = 2,
        hidden: Width = 2048,
        dim: Width = 256,
        prototypes: Width = 8192,
        ratio_low: Share = 0.1,
        ratio_high: Share = 0.5,
        masked: Share = 0.5,
        temperature: Temperature = 0.1,
        teacher_start: Temperature = 0.04,
        teacher_end: Temperature = 0.07,
        teacher_warmup: Share = 0.1,
        momentum: Share = 0.996,
        centre_momentum: Share = 0.9,
        frozen: Share = 0.0033,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.mask_token = nn.Parameter(torch.zeros(backbone.dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = Head(backbone.dim, hidden, dim, prototypes)
        self.teacher_backbone = Teacher(backbone, momentum)
        self.teacher_head = Teacher(self.head, momentum)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("token_centre", torch.zeros(prototypes))
        self.register_buffer("progress", torch.zeros(()))
        self.large, self.temperature, self.frozen = large, temperature, frozen
        self.ratio_low, self.ratio_high, self.masked = ratio_low, ratio_high, masked
        self.teacher_start, self.teacher_end, self.teacher_warmup = teacher_start, teacher_end, teacher_warmup
        self.centre_momentum = centre_momentum

    def forward(self, batch: Batch) -> Loss:
        """Algorithm 1. The centres move after they were used, in training only."""
        views = batch["views"]
        wanted = max(2, self.large)
        if len(views) < wanted:
            raise RequestError(f"views: iBOT needs {wanted} or more, large ones first, got {len(views)}")
        learns = self.progress >= self.frozen
        whole, whole_tokens = self.teach(views[: self.large])
        temperature = warm(self.progress, self.teacher_warmup, self.teacher_start, self.teacher_end)
        embedded, token_losses = [], []
        for view, taught in zip(views[: self.large], whole_tokens, strict=True):
            tokens, hidden = self.read_masked(view)
            embedded.append(mean_token(tokens, view.get("pad")))
            target = ((taught - self.token_centre) / temperature).softmax(2)
            token_losses.append(masked_tokens(self.head(tokens, learns), target, hidden, self.temperature))
        embedded += embed_together(self.backbone, views[self.large :])
        targets = [((each - self.centre) / temperature).softmax(1) for each in whole]
        between = cross_view([self.head(z, learns) for z in embedded], targets, self.temperature)
        within = torch.stack(token_losses).mean()
        if self.training:
            move_centre(self.centre, torch.cat(whole), self.centre_momentum)
            shown = [keep(taught, view.get("pad")) for taught, view in zip(whole_tokens, views, strict=False)]
            move_centre(self.token_centre, torch.cat(shown), self.centre_momentum)
        terms = {"between": between.detach(), "within": within.detach()}
        return Loss(between + within, terms | {"prototypes_used": prototypes_used(torch.cat(targets))})

    @torch.no_grad()
    def teach(self, views: list[View]) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's logits for whole views: (B, K) of their embeddings, and (B, L, K) of their tokens."""
        backbone = cast(TokenBackbone, self.teacher_backbone.copy)
        read = [(backbone.tokens(**view), view.get("pad")) for view in views]
        whole = [self.teacher_head(mean_token(tokens, pad)) for tokens, pad in read]
        return whole, [self.teacher_head(tokens) for tokens, _ in read]

    def read_masked(self, view: View) -> tuple[Tensor, Tensor]:
        """(B, L, dim) the student's tokens of a masked view, and (B, L) which of them were hidden."""
        patches = self.backbone.patchify(view["x"])
        tokens = self.backbone.embed(patches)
        pad = view.get("pad")
        hidden = self.draw_mask(tokens, pad)
        # a blank sample's tokens: the positions and a constant, which the learned token takes up
        blank = self.backbone.embed(torch.zeros_like(patches[:1]))
        tokens = torch.where(hidden[..., None], self.mask_token + blank, tokens)
        return self.backbone.encode(tokens, pad), hidden

    def draw_mask(self, tokens: Tensor, pad: Tensor | None) -> Tensor:
        """(B, L) bool, True where hidden."""
        grid = grid_of(self.backbone, tokens.shape[1])
        hidden = draw(len(tokens), grid, self.ratio_low, self.ratio_high, self.masked).to(tokens.device)
        return hidden if pad is None else hidden & ~pad

    def after_step(self, progress: float) -> None:
        self.teacher_backbone.update(self.backbone, progress)
        self.teacher_head.update(self.head, progress)
        self.progress.fill_(progress)

    def show(self, batch: Batch) -> Mapping[str, list[Tensor]]:
        """The first view, and what of it the student may read; samples that are shown whole are drawn too."""
        view = batch["views"][0]
        patches = self.backbone.patchify(view["x"])
        if patches.ndim == 2:  # ids have no blank
            return {}
        hidden = self.draw_mask(patches, view.get("pad"))
        return {"masked": [view["x"], self.backbone.unpatchify(torch.where(hidden[..., None], 0.0, patches))]}


def keep(tokens: Tensor, pad: Tensor | None) -> Tensor:
    """(B, L, K) -> (n, K): the tokens that are not padding."""
    return tokens.flatten(0, 1) if pad is None else tokens[~pad]


def draw(batch: int, grid: tuple[int, ...], low: float, high: float, masked: float) -> Tensor:
    """Section 3.2, "Pre-Training Setup": (B, L) bool, True where hidden, in blocks of the grid. With probability
    `masked` a sample's share of hidden tokens is uniform in [low, high], else 0. From torch's global CPU generator."""
    return block_mask((low + (high - low) * torch.rand(batch)) * (torch.rand(batch) < masked), grid)


def masked_tokens(student: Tensor, target: Tensor, hidden: Tensor, temperature: float) -> Tensor:
    """Equation 3: the cross-entropy at hidden tokens, averaged in each sample and then over samples. In fp32.

    student: (B, L, K) logits. target: (B, L, K) probabilities. hidden: (B, L); samples without any are 0.
    """
    log = (student.float() / temperature).log_softmax(2)
    loss = -(target.detach().float() * log).sum(2).masked_fill(~hidden, 0.0)
    return (loss.sum(1) / hidden.sum(1).clamp(min=1)).mean()
