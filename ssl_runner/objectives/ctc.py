"""CTC: learning to tell a sequence of symbols from a longer sequence of frames, without knowing which says what.

Graves, Fernandez, Gomez, Schmidhuber, Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with
Recurrent Neural Networks, ICML 2006.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, MinLen
from torch import Tensor, nn

from ssl_runner.evaluators.transcripts import edits, error_rates
from ssl_runner.parts.ctc import beam, greedy
from ssl_runner.parts.gather import all_reduce, world_size
from ssl_runner.types import COUNTS, Batch, Loss, Predictor, TokenBackbone, View


class CTC(Predictor):
    """A linear layer on the backbone's tokens, trained together, that gives each token's chances of the symbols.

    alphabet: what the ids of a target spell; id 0, "", is the blank. beams: prefixes that the beam search keeps.
    freeze: train that layer alone, on a backbone in evaluation mode.

    The loss is -log p of the targets over their length, of all ranks. A sample with fewer tokens than its target needs
    can't spell it and counts for nothing; the log's `too_short` is their share. Validation tells `cer` too, the share
    of characters that the likeliest path has wrong, and by it the best epoch is chosen: it goes on falling where the
    loss rises again, for that grows with how sure a few wrong symbols are.
    """

    views = 1
    indivisible = COUNTS
    monitor = "-val/cer"

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        alphabet: Annotated[tuple[str, ...], MinLen(2)],
        beams: Annotated[int, Gt(0)] = 8,
        freeze: bool = False,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.head = nn.Linear(backbone.dim, len(alphabet))
        self.alphabet, self.beams, self.freeze = tuple(alphabet), beams, freeze
        if freeze:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> CTC:
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def predict(self, view: View) -> tuple[Tensor, Tensor]:
        """View -> (B, L, V) logarithms of chances, in fp32, and (B,), how many tokens of a sample are no padding."""
        pad = view.get("pad")
        tokens = self.backbone.tokens(**view)
        scores = self.head(tokens).float().log_softmax(2)
        return scores, torch.full_like(scores[:, 0, 0], scores.shape[1]).long() if pad is None else (~pad).sum(1)

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        scores, lengths = self.predict(view)
        value, short = ctc_loss(scores, lengths, batch["target"])
        return Loss(value, {"too_short": short} | ({} if self.training else {"cer": self.cer(batch, scores, lengths)}))

    def cer(self, batch: Batch, scores: Tensor, lengths: Tensor) -> Tensor:
        """What `predict` gave of a batch -> (), edits of the likeliest paths over the characters that were wanted."""
        wanted = self.wanted(batch)
        wrong = sum(edits(a, b) for a, b in zip(self.likeliest(scores, lengths), wanted, strict=True))
        return torch.tensor(wrong / max(1, sum(map(len, wanted)))).to(scores)

    def wanted(self, batch: Batch) -> list[str]:
        return [self.spell(target[target >= 0].tolist()) for target in batch["target"].cpu()]

    def likeliest(self, scores: Tensor, lengths: Tensor) -> list[str]:
        return [self.spell(greedy(row[:n])) for row, n in zip(scores.cpu(), lengths.tolist(), strict=True)]

    def scores(self, part: Iterable[Batch]) -> dict[str, float]:
        """Those of ssl_runner.evaluators.transcripts.error_rates, of the likeliest path and, as cer_beam and wer_beam,
        of the beam search."""
        paths, beams, wanted = [], [], []
        for batch in part:
            (view,) = batch["views"]
            scores, lengths = (each.cpu() for each in self.predict(view))
            paths += self.likeliest(scores, lengths)
            beams += [self.spell(beam(row[:n], self.beams)) for row, n in zip(scores, lengths.tolist(), strict=True)]
            wanted += self.wanted(batch)
        found = error_rates(paths, wanted)
        searched = {name: value for name, value in error_rates(beams, wanted).items() if name in ("cer", "wer")}
        return found | {f"{name}_beam": value for name, value in searched.items()}

    def spell(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[n] for n in ids)


def ctc_loss(scores: Tensor, lengths: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of the targets, over their length, of all ranks; and the share of samples that can't spell theirs.

    scores: (B, L, V), logarithms of chances. lengths: (B,) tokens. target: (B, U) ids, -1 behind the last.
    """
    there = target >= 0
    count, ids = there.sum(1), target.clamp(min=0)
    losses = F.ctc_loss(scores.transpose(0, 1), ids, lengths, count, reduction="none", zero_infinity=True)
    again = ((ids[:, 1:] == ids[:, :-1]) & there[:, 1:]).sum(1)  # a blank has to part them
    fits = count + again <= lengths
    symbols = all_reduce((count * fits).sum().float()) / world_size()
    return (losses * fits).sum() / symbols.clamp(min=1 / world_size()), (~fits).float().mean()
