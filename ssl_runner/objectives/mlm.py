"""Masked language modelling: BERT, Pre-training of Deep Bidirectional Transformers.

Devlin, Chang, Lee, Toutanova, NAACL 2019. https://arxiv.org/abs/1810.04805
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from ssl_runner.parts.hiding import Hiding, put
from ssl_runner.parts.ids import IdHead, cross_entropy, parts_of
from ssl_runner.parts.patches import masked_mean
from ssl_runner.types import COUNTS, Batch, Loss, NextId, TokenBackbone

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
    indivisible = COUNTS

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
        self.backbone: TokenBackbone = backbone
        self.head = IdHead(backbone, transform=True)
        self.hiding = Hiding(
            vocab=vocab,
            mask=mask,
            special=special,
            separator=separator,
            ratio=ratio,
            mask_share=mask_share,
            random_share=random_share,
            span=span,
            whole=whole,
        )
        self.mask, self.separator = mask, separator

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        ids, pad = view["x"].long(), view.get("pad")
        place, told = self.hiding.choose(ids, pad, batch.get("unit"))
        changed, wanted = self.hiding.corrupted(ids, place, told), ids.gather(1, place)
        logits = self.predict(changed, ids, pad, place)
        right = masked_mean((logits.argmax(2) == wanted).float(), told)
        return Loss(cross_entropy(logits, wanted, told), {"accuracy": right.detach()})

    def predict(self, changed: Tensor, ids: Tensor, pad: Tensor | None, place: Tensor) -> Tensor:
        """(B, L) changed ids, the true ones, which tell the documents, and (B, K) places -> (B, K, V) logits there."""
        tokens = self.backbone.embed(self.backbone.patchify(changed))
        tokens = self.backbone.encode(tokens, pad, part=parts_of(ids, self.separator))
        return self.head.at(place, tokens, self.backbone)

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
        place, told = self.hiding.choose(ids, pad, batch.get("unit"))
        changed = self.hiding.corrupted(ids, place, told)
        guess = self.predict(changed, ids, pad, place).argmax(2)
        return {"filled": [ids, changed, put(guess, ids, place, told)]}
