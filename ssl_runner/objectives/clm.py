"""Causal language modelling: GPT, Improving Language Understanding by Generative Pre-Training; GPT-2.

Radford, Narasimhan, Salimans, Sutskever, 2018. Radford, Wu, Child, Luan, Amodei, Sutskever, 2019.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.parts.ids import IdHead, parts_of
from ssl_runner.parts.patches import masked_mean
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone


class CLM(Objective):
    """GPT, Section 3.1: every id is predicted from those before it.

    separator: the id that ends a document where several are packed into one sample; a token sees its own document
    only, and the first id of a document is predicted from nothing, so not at all. None: a sample is one document.

    Works on ids of any kind: words, items, codes. The scores are by the backbone's own embeddings of the ids (GPT-2
    has no other output layer).
    """

    views = 1

    def __init__(self, backbone: TokenBackbone, *, separator: int | None):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.head = IdHead(backbone, transform=False)
        self.separator = separator

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        ids, pad = view["x"].long(), view.get("pad")
        part = parts_of(ids, self.separator)
        told = torch.ones_like(ids[:, 1:], dtype=torch.bool)
        if part is not None:
            told = part[:, 1:] == part[:, :-1]
        if pad is not None:
            told = told & ~pad[:, 1:]
        return Loss(next_id(self.logits(ids, pad, part)[:, :-1], ids[:, 1:], told))

    def logits(self, ids: Tensor, pad: Tensor | None = None, part: Tensor | None = None) -> Tensor:
        """(B, L) ids -> (B, L, V): the scores of the id that follows each."""
        tokens = self.backbone.embed(self.backbone.patchify(ids))
        table = self.backbone.vocabulary()
        assert table is not None
        return self.head(self.backbone.encode(tokens, pad, causal=True, part=part), table)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, and its first half gone on with, one id after another, drawn from the likeliest."""
        ids = batch["views"][0]["x"].long()
        length = ids.shape[1]
        made = self.generate(ids[:, : length - length // 2], length // 2, window=length, top_p=0.9)
        return {"completion": [ids, made]}

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        count: int,
        *,
        window: int,
        temperature: Annotated[float, Ge(0)] = 1.0,
        top_k: Annotated[int, Gt(0)] | None = None,
        top_p: Annotated[float, Gt(0), Le(1)] = 1.0,
    ) -> Tensor:
        """(B, P) ids, P > 0 -> (B, P + count): the same, gone on with. Drawn from torch's CPU generator.

        window: the most ids that the backbone reads at once. temperature: 0 takes the likeliest id each time.
        top_k, top_p: as `kept`.
        """
        for _ in range(count):
            logits = self.logits(ids[:, -window:])[:, -1]
            if temperature == 0:
                following = logits.argmax(1, keepdim=True)
            else:
                chance = kept(logits / temperature, top_k, top_p).softmax(1)
                following = torch.multinomial(chance.cpu(), 1).to(ids.device)
            ids = torch.cat([ids, following], 1)
        return ids


def next_id(logits: Tensor, wanted: Tensor, told: Tensor) -> Tensor:
    """GPT, Equation 1: -log p of each id, averaged over those that are told, of all ranks. In fp32.

    logits: (B, L, V), already at the place before. wanted: (B, L) ids. told: (B, L) bool.
    """
    losses = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
    return masked_mean(losses.view(told.shape), told)


def kept(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """(B, V) logits with -inf where an id is not to be drawn.

    top_k: only so many likeliest ids. top_p: of these the fewest likeliest whose shares reach top_p, at least one
    (nucleus sampling, Holtzman et al., 2020, Section 3.1).
    """
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    ordered, place = logits.sort(1, descending=True)
    share = ordered.softmax(1)
    beyond = share.cumsum(1) - share >= top_p
    beyond[:, 0] = False
    return logits.masked_fill(torch.zeros_like(beyond).scatter(1, place, beyond), float("-inf"))
