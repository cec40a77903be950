"""Next-sentence prediction: BERT, Pre-training of Deep Bidirectional Transformers.

Devlin, Chang, Lee, Toutanova, NAACL 2019. https://arxiv.org/abs/1810.04805
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.gather import gather, rank
from ssl_runner.parts.hiding import Hiding, put
from ssl_runner.parts.ids import IdHead, cross_entropy, parts_of
from ssl_runner.parts.patches import masked_mean
from ssl_runner.parts.segments import Pairs, cuts, drawn, inside
from ssl_runner.types import COUNTS, Batch, Loss, Objective, TokenBackbone


class NSP(Objective):
    """Section 3.1, both tasks: hidden ids are told, and whether a sample's second segment follows its first.

    vocab, mask, special, separator, ratio: as in MLM.

    A sample is cut in two at a random place within a document, between two words where the data tells them. In half of
    the samples what lies behind the cut is then that of another sample of the global batch, which could be cut there
    as well. A sample without such a place has its hidden ids told and no more. The paper cuts between sentences and
    takes the other segment out of another document; ids don't tell sentences, and another sample may be of the same
    document. The rest is told at PairTasks.
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

    def pairs(self, batch: Batch, alone: bool = False) -> Pairs:
        """Samples of which every other one, on average, has another's end. alone: other ranks are not asked for theirs.

        Raises RequestError in training on a single sample, which has no other.
        """
        (view,) = batch["views"]
        ids = view["x"].long()
        pad = view.get("pad", torch.zeros_like(ids, dtype=torch.bool))
        may = cuts(ids, pad, self.separator, batch.get("unit"))
        own = torch.cat([ids, pad.long(), may.long()], 1)
        everyone, first = (own, 0) if alone else (gather(own), rank() * len(own))
        other, its_pad, its_may = self.others(own, everyone, first)
        cut, told = drawn(may & its_may)
        true = (torch.rand(len(ids)) < 0.5).to(ids.device)
        behind = torch.arange(ids.shape[1], device=ids.device) >= cut
        changed = behind & (told & ~true)[:, None]
        ids, pad = torch.where(changed, other, ids), torch.where(changed, its_pad, pad)
        part = parts_of(ids, self.separator)
        pair = inside(part, pad, cut) & told[:, None]
        return Pairs(ids, pad, part, pair, pair & behind, true, told)

    def others(self, own: Tensor, everyone: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """What stands half of the global batch further on than this rank's samples, which begin at `first`.

        Samples of a training batch are in random order; those that are only scored are not, and neighbours there are
        often of one document.
        """
        if self.training and len(everyone) < 2:
            raise RequestError("batch_size: the segments that don't follow are other samples'; give 2 or more")
        other = everyone.roll(-(len(everyone) // 2), 0)[first : first + len(own)]
        its_ids, its_pad, its_may = other.chunk(3, 1)
        return its_ids, its_pad.bool(), its_may.bool() & (len(everyone) > 1)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The pairs, the same with the told ids replaced, and with what is put in their places."""
        return {"filled": self.tasks.filled(self.backbone, self.pairs(batch, alone=True))}


class PairTasks(nn.Module):
    """Masked language modelling on pairs of segments, and a verdict about the pair, in one loss.

    vocab, mask, special, separator, ratio: as in MLM.

    The ids of the second segment get a learned embedding. Those of the first get none, which is as general, and keeps
    a backbone's tokens of a single text what they were in training. The verdict is by the mean over both segments'
    tokens, and not by a class token as in the papers: it is what a backbone's embedding is, so nothing that is trained
    here is left out there. A layer with tanh comes first, as in BERT.
    """

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        vocab: int,
        mask: int,
        special: tuple[int, ...],
        separator: int | None,
        ratio: float,
    ):
        super().__init__()
        self.head = IdHead(backbone, transform=True)
        self.hiding = Hiding(vocab=vocab, mask=mask, special=special, separator=separator, ratio=ratio)
        table = backbone.vocabulary()
        assert table is not None  # or IdHead had refused the backbone
        self.second = nn.Parameter(torch.empty(table.shape[1]))
        nn.init.trunc_normal_(self.second, std=0.02)
        width = backbone.dim
        self.verdict = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, backbone: TokenBackbone, pairs: Pairs) -> Loss:
        place, told = self.hiding.choose(pairs.ids, pairs.pad)
        tokens = self.tokens(backbone, self.hiding.corrupted(pairs.ids, place, told), pairs)
        logits, wanted = self.head.at(place, tokens, backbone), pairs.ids.gather(1, place)
        scores = self.scores(tokens, pairs.inside)
        filling, following = cross_entropy(logits, wanted, told), verdict(scores, pairs.true, pairs.told)
        logs = {
            "filling": filling.detach(),
            "following": following.detach(),
            "accuracy": masked_mean((logits.argmax(2) == wanted).float(), told).detach(),
            "following_accuracy": masked_mean(((scores > 0) == pairs.true).float(), pairs.told).detach(),
        }
        return Loss(filling + following, logs)

    def tokens(self, backbone: TokenBackbone, changed: Tensor, pairs: Pairs) -> Tensor:
        """(B, L) ids, some of them replaced -> (B, L, dim)."""
        tokens = backbone.embed(backbone.patchify(changed))
        tokens = tokens + pairs.second[..., None] * self.second
        return backbone.encode(tokens, pairs.pad, part=pairs.part)

    def scores(self, tokens: Tensor, inside: Tensor) -> Tensor:
        """(B,), in fp32: above 0 where the second segment seems to follow the first."""
        count = inside.sum(1, keepdim=True).clamp(min=1)
        mean = (tokens * inside[..., None]).sum(1) / count
        return self.verdict(mean).squeeze(1).float()

    def filled(self, backbone: TokenBackbone, pairs: Pairs) -> list[Tensor]:
        """The ids, the ids with those told replaced, and with what is put in their places."""
        place, told = self.hiding.choose(pairs.ids, pairs.pad)
        changed = self.hiding.corrupted(pairs.ids, place, told)
        guess = self.head.at(place, self.tokens(backbone, changed, pairs), backbone).argmax(2)
        return [pairs.ids, changed, put(guess, pairs.ids, place, told)]


def verdict(scores: Tensor, true: Tensor, told: Tensor) -> Tensor:
    """The binary cross-entropy of the (B,) pairs that are told, averaged over those of all ranks. scores: in fp32."""
    return masked_mean(F.binary_cross_entropy_with_logits(scores, true.float(), reduction="none"), told)
