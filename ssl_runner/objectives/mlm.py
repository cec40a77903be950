"""Masked language modelling: BERT, Pre-training of Deep Bidirectional Transformers.

Devlin, Chang, Lee, Toutanova, NAACL 2019. https://arxiv.org/abs/1810.04805
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.parts.ids import IdHead, parts_of
from ssl_runner.parts.patches import masked_mean
from ssl_runner.types import Batch, Loss, NextId, TokenBackbone

Share = Annotated[float, Ge(0), Le(1)]


class MLM(NextId):
    """Section 3.1, Task 1: some ids are hidden, and the tokens in their places tell them.

    vocab: ids are 0 .. vocab - 1. mask: the id that stands for a hidden one. special: ids that are never hidden, nor
    put in place of others (padding, class token, mask). separator: the id that ends a document where several are
    packed into one sample; a token sees its own document only. None: a sample is one document.
    ratio: share of a sample's ids that are predicted. Of these mask_share become `mask`, random_share another id, and
    the rest stay as they are.
    span: None hides ids one by one; a number hides stretches of them, so long on average and at most 10 (3.8 in
    SpanBERT, Joshi et al., 2020, Section 3.1).
    whole: all ids of a word are hidden together, or none (whole word masking of BERT's later releases; batch["unit"]
    tells the words).

    What follows a sequence is asked as in BERT4Rec (Sun et al., 2019): by a mask behind its last id.

    Works on ids of any kind: words, items, codes. What is hidden is drawn anew each time a sample is seen.
    """

    views = 1
    usual: Tensor
    is_usual: Tensor

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        vocab: Annotated[int, Gt(1)],
        mask: Annotated[int, Ge(0)],
        special: tuple[int, ...],
        separator: int | None,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.15,
        mask_share: Share = 0.8,
        random_share: Share = 0.1,
        span: Annotated[float, Ge(1)] | None = None,
        whole: bool = False,
    ):
        super().__init__()
        if whole and span is not None:
            raise RequestError(f"objective.span={span}: hides stretches, and objective.whole=true words; choose one")
        self.backbone: TokenBackbone = backbone
        self.head = IdHead(backbone, transform=True)
        self.mask, self.separator, self.ratio = mask, separator, ratio
        self.mask_share, self.random_share = mask_share, random_share
        self.span, self.whole = span, whole
        hidden = {*special, mask} | ({separator} if separator is not None else set())
        usual = torch.tensor([n for n in range(vocab) if n not in hidden])
        self.register_buffer("usual", usual)  # ids that may be hidden, and drawn
        self.register_buffer("is_usual", torch.zeros(vocab, dtype=torch.bool).index_fill(0, usual, True))

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        ids, pad = view["x"].long(), view.get("pad")
        place, told = self.choose(ids, pad, batch.get("unit"))
        logits, wanted = self.predict(self.corrupted(ids, place, told), ids, pad, place), ids.gather(1, place)
        right = masked_mean((logits.argmax(2) == wanted).float(), told)
        return Loss(cross_entropy(logits, wanted, told), {"accuracy": right.detach()})

    def choose(self, ids: Tensor, pad: Tensor | None, unit: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`chosen` among the usual ids that are no padding. Raises RequestError where words are asked for and `unit`,
        which tells them, is not there."""
        may = self.is_usual[ids]
        if self.whole and unit is None:
            raise RequestError("objective.whole=true: this data does not tell which ids make a word; set it to false")
        return chosen(may if pad is None else may & ~pad, self.ratio, self.span, unit if self.whole else None)

    def predict(self, changed: Tensor, ids: Tensor, pad: Tensor | None, place: Tensor) -> Tensor:
        """(B, L) changed ids, the true ones, which tell the documents, and (B, K) places -> (B, K, V) logits there."""
        tokens = self.backbone.embed(self.backbone.patchify(changed))
        tokens = self.backbone.encode(tokens, pad, part=parts_of(ids, self.separator))
        table = self.backbone.vocabulary()
        assert table is not None
        # logits only where they count
        return self.head(tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[2])), table)

    def corrupted(self, ids: Tensor, place: Tensor, told: Tensor) -> Tensor:
        """(B, L) ids with those at the (B, K) places that are told replaced: mask, another id, or left."""
        kind = torch.rand(place.shape).to(ids.device)
        other = self.usual[torch.randint(len(self.usual), place.shape).to(ids.device)]
        before = ids.gather(1, place)
        after = torch.where(kind < self.mask_share, self.mask, before)
        after = torch.where((kind >= self.mask_share) & (kind < self.mask_share + self.random_share), other, after)
        return ids.scatter(1, place, torch.where(told, after, before))

    def following(self, ids: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L) ids, padding on either side -> (B, V): the scores of the id behind the last that is not padding, which
        a mask stands for. Where the last stands at the end, all move to the left by one, and the first is dropped."""
        length = ids.shape[1]
        pad = torch.zeros_like(ids, dtype=torch.bool) if pad is None else pad
        at = torch.arange(length, device=ids.device)
        end = torch.where(pad, 0, at + 1).amax(1, keepdim=True)  # the place behind the last
        full = end == length
        ids, pad = torch.where(full, ids.roll(-1, 1), ids), torch.where(full, pad.roll(-1, 1), pad)
        place = end - full.long()
        ids, pad = ids.scatter(1, place, self.mask), pad.scatter(1, place, False)
        return self.predict(ids, ids, pad, place)[:, 0]

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, the input with the told ids replaced, and with what is put in their places."""
        (view,) = batch["views"]
        ids, pad = view["x"].long(), view.get("pad")
        place, told = self.choose(ids, pad, batch.get("unit"))
        changed = self.corrupted(ids, place, told)
        guess = self.predict(changed, ids, pad, place).argmax(2)
        filled = ids.scatter(1, place, torch.where(told, guess, ids.gather(1, place)))
        return {"filled": [ids, changed, filled]}


def chosen(may: Tensor, ratio: float, span: float | None, unit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which ids of each sample are predicted. may: (B, L) bool, those that can be. unit: (B, L), the number of the word
    that each belongs to, -1 for none, or None; a word's ids are neighbours.

    Gives (B, K) int64 places, K = ceil(ratio L), and (B, K) bool: the first round(ratio n) of them are told, at least
    one, of a sample with n ids that can be; none of a sample without. With units, whole words in random order, as long
    as they fit into so many ids: the last to be cut is left out, and a word that is longer than all is never told.
    Drawn on the CPU.
    """
    batch, length = may.shape
    score = torch.rand(batch, length)
    if span is not None:
        score = spans(score, span)
    score = score.to(may.device)
    most = min(length, max(1, -int(-ratio * length // 1)))
    count = may.sum(1, keepdim=True)
    wanted = (ratio * count).round().clamp(min=1).minimum(count)
    if unit is not None:
        first = firsts(unit)
        size = torch.zeros_like(unit).scatter_add_(1, first, may.long()).gather(1, first)
        score = score.gather(1, first).masked_fill(size > wanted, 1.5)  # behind all that fit
    place = score.masked_fill(~may, 2.0).argsort(dim=1, stable=True)  # behind all that can be
    rank = torch.arange(length, device=may.device).expand(batch, -1)
    told = rank < wanted
    if unit is not None:
        word = first.gather(1, place)
        end = torch.zeros_like(word).scatter_reduce(1, word, (rank + 1) * may.gather(1, place), "amax").gather(1, word)
        told = told & (end <= wanted)
    return place[:, :most], told[:, :most]


def firsts(unit: Tensor) -> Tensor:
    """(B, L) numbers of words -> (B, L): the place of the first id of each id's word; its own, where it is in none."""
    starts = torch.ones_like(unit, dtype=torch.bool)
    starts[:, 1:] = (unit[:, 1:] != unit[:, :-1]) | (unit[:, 1:] < 0)
    at = torch.arange(unit.shape[1], device=unit.device).expand_as(unit)
    return torch.where(starts, at, 0).cummax(1).values


def spans(score: Tensor, mean: float) -> Tensor:
    """(B, L) draws -> (B, L): neighbours in one stretch share the draw of its first. A stretch is geometrically long,
    `mean` on average before it is cut at 10 (SpanBERT, Section 3.1)."""
    starts = torch.rand(score.shape) < 1 / mean
    starts[:, 0] = True
    at = torch.arange(score.shape[1]).expand_as(score)
    first = torch.where(starts, at, 0).cummax(1).values
    first = at - (at - first) % 10
    return score.gather(1, first)


def cross_entropy(logits: Tensor, wanted: Tensor, told: Tensor) -> Tensor:
    """-log p of the hidden ids, averaged over those that are told, of all ranks. In fp32.

    logits: (B, K, V). wanted: (B, K) ids. told: (B, K) bool.
    """
    losses = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
    return masked_mean(losses.view(told.shape), told)
