"""ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators.

Clark, Luong, Le, Manning, ICLR 2020. https://arxiv.org/abs/2003.10555
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from ssl_runner.objectives.mlm import MLM
from ssl_runner.parts.hiding import put
from ssl_runner.parts.ids import cross_entropy, parts_of
from ssl_runner.parts.patches import masked_mean
from ssl_runner.types import COUNTS, Batch, Loss, Objective, TokenBackbone


class ELECTRA(Objective):
    """Section 2: a small masked language model fills hidden ids in, and the backbone tells which ids are not the true
    ones.

    generator: the small model's backbone; the paper's is a quarter to a half as wide. It is not kept after pretraining.
    vocab, mask, special, separator, ratio: as in MLM. Every id that is told becomes `mask` for the generator.
    weight: lambda, of the discriminator's term.

    No gradient passes from the discriminator to the generator, whose ids are drawn. The two have embeddings of their
    own; the paper's share them.
    """

    views = 1
    indivisible = COUNTS

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        generator: TokenBackbone,
        vocab: Annotated[int, Gt(1)],
        mask: Annotated[int, Ge(0)],
        special: tuple[int, ...],
        separator: int | None,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.15,
        weight: Annotated[float, Gt(0)] = 50.0,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.generator = MLM(
            generator,
            vocab=vocab,
            mask=mask,
            special=special,
            separator=separator,
            ratio=ratio,
            mask_share=1.0,
            random_share=0.0,
        )
        width = backbone.dim
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.separator, self.weight = separator, weight

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        ids, pad = view["x"].long(), view.get("pad")
        place, told = self.generator.hiding.choose(ids, pad)
        logits = self.generator.predict(self.generator.hiding.corrupted(ids, place, told), ids, pad, place)
        filling = cross_entropy(logits, ids.gather(1, place), told)
        changed = self.filled(ids, place, told, logits)
        replaced = changed != ids  # an id that was drawn rightly counts as the true one
        scores = self.scores(changed, pad, parts_of(ids, self.separator))
        seen = torch.ones_like(replaced) if pad is None else ~pad
        telling = detection(scores, replaced, seen)
        right = masked_mean(((scores > 0) == replaced).float(), seen)
        logs = {"filling": filling.detach(), "telling": telling.detach(), "accuracy": right.detach()}
        return Loss(filling + self.weight * telling, logs)

    @torch.no_grad()
    def filled(self, ids: Tensor, place: Tensor, told: Tensor, logits: Tensor) -> Tensor:
        """(B, L) ids, with those told drawn from the generator's (B, K, V) logits. The noise, being as large as these,
        is drawn on their device."""
        gumbel = -(-torch.rand_like(logits, dtype=torch.float32).clamp(min=1e-20).log()).log()
        drawn = (logits.float() + gumbel).argmax(2)  # so the largest is a draw from the softmax
        return put(drawn, ids, place, told)

    def scores(self, ids: Tensor, pad: Tensor | None, part: Tensor | None) -> Tensor:
        """(B, L), in fp32: above 0 where an id seems not to be the true one."""
        tokens = self.backbone.encode(self.backbone.embed(self.backbone.patchify(ids)), pad, part=part)
        return self.head(tokens).squeeze(2).float()


def detection(scores: Tensor, replaced: Tensor, seen: Tensor) -> Tensor:
    """L_Disc of Section 2: the binary cross-entropy of every id that is seen, averaged over those of all ranks.

    scores: (B, L), in fp32. replaced, seen: (B, L) bool.
    """
    return masked_mean(F.binary_cross_entropy_with_logits(scores, replaced.float(), reduction="none"), seen)
