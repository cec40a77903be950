"""How likely held-out ids are: perplexity and bits per byte, beside n-gram models of the same text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from ssl_runner.errors import RunError
from ssl_runner.evaluators.ngram import NGram
from ssl_runner.types import Embed, Evaluator, Likelihood

AT_ONCE = 4096  # ids scored together: with 50,000 kinds of them, their scores take 800 MB


class Surprise(Evaluator):
    """Scores of the test part, its samples taken as one stream of ids.

    Every id is scored once, from half a sample before it or more (rounded down), but for those of the first sample. Ids
    that the objective doesn't predict, such as the first of a document, count for nothing.

    Gives "perplexity", e to the mean of -ln p of the scored ids, and for each measure of the stream beside "ids", such
    as "bytes", "bits_per_byte": that mean in bits, times ids, over bytes. The two are as many as the whole stream has,
    so that what is not scored counts as the mean. Ids of different tokenizers can be compared in bits per byte alone.

    Of the raw input: n-gram models (see ssl_runner.evaluators.ngram) of the same text as other sequences of symbols,
    made without the tokenizer. Those of bytes give "bits_per_byte", others, such as words, "bits_per_byte_words".

    order: how many symbols long the longest grams are.
    Raises RunError where a score is NaN or infinite.

    It asks three things of a source: `measure(part)` -> {"ids": how many, "bytes": how many, ...} of pretext(part)'s
    whole stream; `sequences(part)` -> {"bytes": an iterator of sequences of symbols, ...}; and `symbols` -> how many
    kinds of these there are, by the same names.
    """

    asks = Likelihood
    labelled = False
    parts = ()

    def __init__(self, *, order: Annotated[int, Ge(1)] = 5):
        self.order = order

    def refusal(self, source: Any) -> str | None:
        missing = [name for name in ("measure", "sequences", "symbols") if not hasattr(source, name)]
        if missing:
            return f"needs data that tells its {' and '.join(missing)}, such as data=text; use evaluators=none"
        test = source.pretext("test")
        if not len(test):
            return "the test part is too small to fill one sample; use a smaller data.length, or a larger data.test"
        if "pad" in test.__getitems__([(0, 0)])["inputs"][0]:
            return "needs samples that make one stream of ids, and these are padded; use data.pretrain=packed"
        return None

    @torch.no_grad()
    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        measured = data.source.measure("test")
        units = {name: name.removesuffix("s") for name in measured if name != "ids"}
        figures: dict[str, float] = {}
        if embed.objective is not None:
            assert isinstance(embed.objective, Likelihood)
            mean = stream_nats(embed.objective, data)
            if not math.isfinite(mean):
                raise RunError("the scores of the test part are NaN or infinite; the objective has diverged")
            figures["perplexity"] = math.exp(min(mean, 700.0))  # above that it would be no number
            for name, unit in units.items():
                figures[f"bits_per_{unit}"] = mean * measured["ids"] / measured[name] / math.log(2)
            return figures
        for kind, nats in self.baselines(data.source).items():
            for name, unit in units.items():
                suffix = "" if kind == name else f"_{kind}"
                figures[f"bits_per_{unit}{suffix}"] = nats / measured[name] / math.log(2)
        return figures

    def baselines(self, source: Any) -> dict[str, float]:
        """kind of symbol -> -ln p of the whole test part."""
        test = source.sequences("test")
        found = {}
        for kind, sequences in source.sequences("train").items():
            model = NGram(sequences, symbols=source.symbols[kind], order=self.order)
            found[kind] = float(model.nats(test[kind]).sum())
        return found


def stream_nats(objective: Likelihood, data: Any) -> float:
    """-ln p of the scored ids of the test part, on average; NaN where there are none."""
    total = torch.zeros(2, dtype=torch.float64, device=data.device)
    samples = (view["x"] for view, _ in data.plain(data.source.pretext("test")))
    for ids, start in windows(samples):
        for chunk in ids.split(max(1, AT_ONCE // ids.shape[1])):
            nats, told = (each[:, start:] for each in objective.nats(chunk))
            total += torch.stack([nats.double().masked_fill(~told, 0.0).sum(), told.sum().double()])
    nats_sum, count = total.tolist()
    return nats_sum / count if count else math.nan


def windows(samples: Iterator[Tensor]) -> Iterator[tuple[Tensor, int]]:
    """Batches of (B, L) samples, in the order of the stream -> (n, L) ids of it, and from which of them on they are to
    be scored.

    A window on each sample scores its second half, and one from the second half of a sample to the first half of the
    next scores that. The first sample is scored whole.
    """
    before: Tensor | None = None
    for ids in samples:
        half = ids.shape[1] // 2
        if before is None:
            yield ids[:1], 0
            before, ids = ids[:1], ids[1:]
        joined = torch.cat([before, ids])
        yield torch.cat([joined[:-1, half:], joined[1:, :half]], 1), ids.shape[1] - half
        yield ids, half
        before = joined[-1:]
