"""Span corruption: T5, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer.

Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu, JMLR 2020. https://arxiv.org/abs/1910.10683
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from ssl_runner.parts.ids import IdHead, cross_entropy, parts_of
from ssl_runner.parts.patches import masked_mean
from ssl_runner.parts.seq2seq import Reader
from ssl_runner.types import COUNTS, Batch, Loss, Objective, TokenBackbone


class SpanCorruption(Objective):
    """Sections 3.1.4 and 3.3.4: stretches of a sample each become one sentinel, and a decoder tells what they were.

    The decoder's text is the first sentinel and its stretch, the second and its stretch, ..., and a last sentinel as
    the end. It reads that last one before the first, where T5 has its padding id.

    vocab: ids are 0 .. vocab - 1. mask: the id whose embedding, with that of the sentinel's number added, is a
    sentinel's. separator: the id that ends a document where several are packed into one sample; None: a sample is one.
    length: of a sample. ratio: share of its ids that is hidden. span: mean length of a stretch.
    depth, heads: of the decoder, which is as wide as the backbone's embeddings and shares them (T5 has as many blocks
    as its encoder).

    All samples have the same number of hidden ids and of stretches, so shapes are fixed: see `sizes`. What is hidden is
    drawn over the whole sample. The encoder's tokens see their own document only, as elsewhere here, and a sentinel is
    of the document in which its stretch begins. T5 joins documents: so separators are hidden and told as any id, and
    the decoder reads all. What is hidden of padding is not told, nor seen.
    Positions are the backbone's and, in the decoder, learned ones; T5's are relative.
    """

    views = 1
    indivisible = COUNTS

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        vocab: Annotated[int, Gt(1)],
        mask: Annotated[int, Ge(0)],
        separator: int | None,
        length: Annotated[int, Gt(1)],
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.15,
        span: Annotated[float, Ge(1)] = 3.0,
        depth: Annotated[int, Gt(0)] = 12,
        heads: Annotated[int, Gt(0)] = 12,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.head = IdHead(backbone, transform=False)
        self.vocab, self.mask, self.separator = vocab, mask, separator
        self.ratio, self.span = ratio, span
        hidden, spans = sizes(length, ratio, span)
        table = backbone.vocabulary()
        assert table is not None  # or IdHead had refused the backbone
        width = table.shape[1]
        self.mask_token = nn.Parameter(torch.empty(spans + 1, width))  # so called, it is not decayed
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = Reader(length=hidden + spans + 1, width=backbone.dim, dim=width, depth=depth, heads=heads)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        text = self.hide(view["x"].long(), view.get("pad"))
        logits = self.logits(self.read(text), text, text.target)
        ids = text.told & (text.target < self.vocab)  # sentinels are easily told
        right = masked_mean((logits.argmax(2) == text.target).float(), ids)
        return Loss(cross_entropy(logits, text.target, text.told), {"accuracy": right.detach()})

    def hide(self, ids: Tensor, pad: Tensor | None) -> Corrupted:
        """(B, L) ids -> the same, with stretches of them hidden."""
        pad = torch.zeros_like(ids, dtype=torch.bool) if pad is None else pad
        hidden, spans = sizes(ids.shape[1], self.ratio, self.span)
        noise = noise_mask(len(ids), ids.shape[1], hidden, spans).to(ids.device)
        return corrupted(ids, pad, noise, hidden, spans, self.vocab)

    def read(self, text: Corrupted) -> Tensor:
        """(B, M, dim): the encoder's tokens of what is left."""
        sentinel = text.number >= 0
        tokens = self.backbone.embed(self.backbone.patchify(torch.where(sentinel, self.mask, text.left)))
        tokens = tokens + F.embedding(text.number.clamp(min=0), self.mask_token) * sentinel[..., None]
        part = parts_of(text.ids, self.separator)
        return self.backbone.encode(tokens, text.pad, part=None if part is None else part.gather(1, text.place))

    def logits(self, read: Tensor, text: Corrupted, target: Tensor) -> Tensor:
        """The scores of each of the (B, T) target's ids given those before it, (B, T, V + S + 1)."""
        table = self.backbone.vocabulary()
        assert table is not None
        table = torch.cat([table, table[self.mask] + self.mask_token])
        before, unseen = target.roll(1, 1), (~text.told).roll(1, 1)  # the end is last, and comes before the first
        before = torch.where(unseen, self.mask, before)  # what no other sees still sees itself
        return self.head(self.decoder(F.embedding(before, table), unseen, read, text.pad), table)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, the input with the stretches masked, and with the likeliest ids in their places."""
        (view,) = batch["views"]
        text = self.hide(view["x"].long(), view.get("pad"))
        told = torch.where(text.told.gather(1, text.at), self.fill(text), text.ids.gather(1, text.hidden))
        masked, filled = text.ids.scatter(1, text.hidden, self.mask), text.ids.scatter(1, text.hidden, told)
        return {"filled": [text.ids, masked, filled]}

    @torch.no_grad()
    def fill(self, text: Corrupted) -> Tensor:
        """(B, N): the likeliest ids of all stretches, one after another; how long each is is known."""
        read = self.read(text)
        sentinel = text.target >= self.vocab
        target = torch.where(sentinel, text.target, self.mask)
        for n in range(target.shape[1]):
            best = self.logits(read, text, target)[:, n, : self.vocab].argmax(1)
            target[:, n] = torch.where(sentinel[:, n], target[:, n], best)
        return target.gather(1, text.at)


class Corrupted(NamedTuple):
    """B samples of L ids, of which S stretches, N ids in all, are hidden: M = L - N + S and T = N + S + 1."""

    ids: Tensor  # (B, L)
    left: Tensor  # (B, M), the encoder's text: what is not hidden, and the first id of each stretch
    place: Tensor  # (B, M), where these are in the sample
    number: Tensor  # (B, M), of the sentinel that stands there instead; -1: none
    pad: Tensor  # (B, M) bool
    hidden: Tensor  # (B, N), places in the sample
    at: Tensor  # (B, N), their places in the target
    target: Tensor  # (B, T), the decoder's text; V + s is sentinel s
    told: Tensor  # (B, T) bool: no padding


def sizes(length: int, ratio: float, span: float) -> tuple[int, int]:
    """(N, S): how many of a sample's ids are hidden, in how many stretches. At least one is, and one is not."""
    hidden = min(max(round(length * ratio), 1), length - 1)
    return hidden, min(max(round(hidden / span), 1), length - hidden)


def noise_mask(batch: int, length: int, hidden: int, spans: int) -> Tensor:
    """(B, L) bool, True where hidden: `spans` stretches of `hidden` ids in all, drawn on the CPU.

    What is hidden and what is not are each divided at random into so many stretches of one id or more, every division
    being as likely as any other, and stand in turn, the first of what is not hidden in front: as in the authors'
    code, so a sample always ends in a hidden stretch.
    """
    kept, lost = division(batch, length - hidden, spans), division(batch, hidden, spans)
    ends = torch.stack([kept, lost], 2).flatten(1).cumsum(1)  # (B, 2 S)
    return torch.searchsorted(ends, torch.arange(length).expand(batch, -1).contiguous(), right=True) % 2 == 1


def division(batch: int, count: int, pieces: int) -> Tensor:
    """(B, pieces): whole numbers from 1 that sum to count, all divisions being equally likely."""
    between = torch.rand(batch, count - 1).argsort(1)[:, : pieces - 1].sort(1).values + 1
    edges = F.pad(F.pad(between, (1, 0)), (0, 1), value=count)
    return edges.diff(dim=1)


def corrupted(ids: Tensor, pad: Tensor, noise: Tensor, hidden: int, spans: int, vocab: int) -> Corrupted:
    """Section 3.1.4: what the encoder and the decoder get. ids, pad, noise: (B, L), with `hidden` ids of noise in
    `spans` stretches in each sample."""
    first = noise.clone()
    first[:, 1:] &= ~noise[:, :-1]
    number = torch.where(first, first.cumsum(1) - 1, -1)
    left = ~noise | first
    place = left.byte().argsort(dim=1, descending=True, stable=True)[:, : ids.shape[1] - hidden + spans]
    gone = noise.byte().argsort(dim=1, descending=True, stable=True)[:, :hidden]
    # before each hidden id stand those hidden earlier, and the sentinels up to its own
    at = torch.arange(hidden, device=ids.device) + first.cumsum(1).gather(1, gone)
    target = ids.new_full((len(ids), hidden + spans + 1), -1).scatter(1, at, ids.gather(1, gone))
    sentinel = target < 0
    told = torch.ones_like(sentinel).scatter(1, at, ~pad.gather(1, gone))
    told[:, :-1] &= ~sentinel[:, :-1] | told[:, 1:]  # a sentinel is told if what comes after it is
    told[:, -1] = ~pad.all(1)
    target = torch.where(sentinel, vocab - 1 + sentinel.cumsum(1), target)
    return Corrupted(
        ids, ids.gather(1, place), place, number.gather(1, place), pad.gather(1, place), gone, at, target, told
    )
