"""Causal language modelling: GPT, Improving Language Understanding by Generative Pre-Training; GPT-2.

Radford, Narasimhan, Salimans, Sutskever, 2018. Radford, Wu, Child, Luan, Amodei, Sutskever, 2019.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.parts.ids import parts_of, vocabulary_of
from ssl_runner.parts.patches import masked_mean
from ssl_runner.types import COUNTS, Batch, Likelihood, Loss, TokenBackbone


class CLM(Likelihood):
    """GPT, Section 3.1: every id is predicted from those before it.

    separator: the id that ends a document where several are packed into one sample; a token sees its own document
    only, and the first id of a document is predicted from nothing, so not at all. None: a sample is one document.

    Works on ids of any kind: words, items, codes. The scores are by the backbone's own embeddings of the ids (GPT-2
    has no other output layer). Raises RequestError for a backbone whose input is no ids, or whose embeddings are
    narrower than its tokens.
    """

    views = 1
    indivisible = COUNTS

    def __init__(self, backbone: TokenBackbone, *, separator: int | None):
        super().__init__()
        vocabulary_of(backbone, as_wide=True)
        self.backbone: TokenBackbone = backbone
        self.separator = separator

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        ids, pad = view["x"].long(), view.get("pad")
        part = parts_of(ids, self.separator)
        logits = self.scores(self.tokens(ids, pad, part)[:, :-1])
        return Loss(next_id(logits, ids[:, 1:], predicted(ids, pad, part)[:, 1:]))

    def nats(self, ids: Tensor, pad: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, L) ids -> (B, L): -log p of each given those before it in its document, and whether it is predicted at
        all (bool): not the first of a sample or a document, nor padding. 0 where it is not."""
        ids = ids.long()
        part = parts_of(ids, self.separator)
        told = predicted(ids, pad, part)
        losses = surprise(self.scores(self.tokens(ids, pad, part)[:, :-1]), ids[:, 1:])
        return F.pad(losses, (1, 0)).masked_fill(~told, 0.0), told

    def following(self, ids: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L) ids -> (B, V): the scores of the id behind the last that is not padding.

        Padding has to be on the side where it was in training. Where the last of a padded sample stands at the end, all
        move to the left by one, and the first is dropped: in training nothing followed the last place, so that it never
        learned to tell.
        """
        ids = ids.long()
        last = torch.full_like(ids[:, 0], ids.shape[1] - 1)
        if pad is not None:
            last = torch.arange(ids.shape[1], device=ids.device).masked_fill(pad, 0).amax(1)
            full = (last == ids.shape[1] - 1)[:, None]
            ids, pad = torch.where(full, ids.roll(-1, 1), ids), torch.where(full, pad.roll(-1, 1), pad)
            last = last - full[:, 0].long()
        tokens = self.tokens(ids, pad, parts_of(ids, self.separator))
        return self.scores(tokens[torch.arange(len(ids), device=ids.device), last])

    def logits(self, ids: Tensor, pad: Tensor | None = None, part: Tensor | None = None) -> Tensor:
        """(B, L) ids -> (B, L, V): the scores of the id that follows each."""
        return self.scores(self.tokens(ids, pad, part))

    def tokens(self, ids: Tensor, pad: Tensor | None, part: Tensor | None) -> Tensor:
        """(B, L) ids -> (B, L, dim), each of what is up to it."""
        return self.backbone.encode(self.backbone.embed(self.backbone.patchify(ids)), pad, causal=True, part=part)

    def scores(self, tokens: Tensor) -> Tensor:
        """(..., dim) -> (..., V). Under autocast a product as others, for it takes most of the time; what is made of it
        is made in fp32."""
        table = self.backbone.vocabulary()
        assert table is not None
        return F.linear(tokens, table)

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

        What follows a document's end is not learned: a sample that is there gets separators.
        window: how long samples are in training; one less is read at once, for the last place learned to tell none.
        temperature: 0 takes the likeliest id each time.
        top_k, top_p: as `kept`.
        """
        for _ in range(count):
            logits = self.following(ids[:, 1 - window :]).float()
            if temperature == 0:
                drawn = logits.argmax(1, keepdim=True)
            else:
                chance = kept(logits / temperature, top_k, top_p).softmax(1)
                drawn = torch.multinomial(chance.cpu(), 1).to(ids.device)
            if self.separator is not None:
                drawn = torch.where(ids[:, -1:] == self.separator, self.separator, drawn)
            ids = torch.cat([ids, drawn], 1)
        return ids


def predicted(ids: Tensor, pad: Tensor | None, part: Tensor | None) -> Tensor:
    """(B, L) bool: the ids that have another one of their document before them. part: as `parts_of`."""
    told = torch.ones_like(ids, dtype=torch.bool)
    told[:, 0] = False
    if part is not None:
        told[:, 1:] &= part[:, 1:] == part[:, :-1]
    if pad is not None:
        told[:, 1:] &= ~pad[:, 1:] & ~pad[:, :-1]
    return told


def next_id(logits: Tensor, wanted: Tensor, told: Tensor) -> Tensor:
    """GPT, Equation 1: `surprise`, averaged over the ids that are told, of all ranks. told: (B, L) bool."""
    return masked_mean(surprise(logits, wanted), told)


def surprise(logits: Tensor, wanted: Tensor) -> Tensor:
    """-log p of each id, (B, L), in fp32. logits: (B, L, V), already at the place before. wanted: (B, L) ids."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
    return losses.view(wanted.shape)


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
