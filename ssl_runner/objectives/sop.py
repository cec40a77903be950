"""Sentence-order prediction: ALBERT, A Lite BERT for Self-supervised Learning of Language Representations.

Lan, Chen, Goodman, Gimpel, Sharma, Soricut, ICLR 2020. https://arxiv.org/abs/1909.11942
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ssl_runner.objectives.nsp import PairTasks
from ssl_runner.parts.ids import parts_of
from ssl_runner.parts.segments import Pairs, cuts, drawn, inside
from ssl_runner.types import COUNTS, Batch, Loss, Objective, TokenBackbone


class SOP(Objective):
    """Section 3.1, "Inter-sentence coherence loss": hidden ids are told, and whether two segments are in their order.

    vocab, mask, special, separator, ratio: as in MLM.

    A sample is cut in two at a random place within a document, between two words where the data tells them. In half of
    the samples the two stretches of this document change places; its separator and other documents stay where they
    are. A sample without such a place has its hidden ids told and no more. The paper cuts between sentences, which ids
    don't tell, and hides stretches of up to three; here ids are hidden one by one. The rest is told at PairTasks.
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
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.tasks = PairTasks(backbone, vocab=vocab, mask=mask, special=special, separator=separator, ratio=ratio)
        self.separator = separator

    def forward(self, batch: Batch) -> Loss:
        return self.tasks(self.backbone, self.pairs(batch))

    def pairs(self, batch: Batch) -> Pairs:
        """Samples of which every other one, on average, has its two segments in the other order."""
        (view,) = batch["views"]
        ids = view["x"].long()
        pad = view.get("pad", torch.zeros_like(ids, dtype=torch.bool))
        part = parts_of(ids, self.separator)
        cut, told = drawn(cuts(ids, pad, self.separator, batch.get("unit")))
        true = (torch.rand(len(ids)) < 0.5).to(ids.device)
        pair = inside(part, pad, cut) & told[:, None]
        if self.separator is not None:
            pair = pair & (ids != self.separator)
        changed = pair & ~true[:, None]
        order, second = exchanged(changed, cut)
        behind = torch.arange(ids.shape[1], device=ids.device) >= cut
        second = torch.where(true[:, None], pair & behind, second)
        return Pairs(ids.gather(1, order), pad, part, pair, second, true, told)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The pairs, the same with the told ids replaced, and with what is put in their places."""
        return {"filled": self.tasks.filled(self.backbone, self.pairs(batch))}


def exchanged(stretch: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Two neighbouring stretches of each sample change places.

    stretch: (B, L) bool, both of them; they have no gap. cut: (B, 1), the first place of the second. Gives (B, L), the
    place that each id comes from, and (B, L) bool, where the first stretch now is.
    """
    at = torch.arange(stretch.shape[1], device=stretch.device).expand_as(stretch)
    first = (stretch & (at < cut)).sum(1, keepdim=True)
    second = (stretch & (at >= cut)).sum(1, keepdim=True)
    start = cut - first
    late = stretch & (at >= start + second)
    order = torch.where(late, at - second, at + first)
    return torch.where(stretch, order, at), late
