"""The faults that scripts/faults.py puts in, a file for each area. The numbers are the promises', for good."""

from __future__ import annotations

from known_faults import (
    general,
    items,
    likelihood,
    lost,
    masking_words,
    pairs,
    recordings,
    scale,
    sentences,
    series,
    simcse,
    similarity,
    speech,
    strategies,
    sweeps,
    tables,
    text_data,
    transformers_models,
    video,
)
from known_faults.fault import Promise

TITLES = {number: promise.title for number, promise in general.PROMISES.items()} | {
    28: "CLIP: the scale is clamped, both directions count",
    32: "Language models: what is hidden, what follows, whose document it is, and what figures divide by",
    33: "wav2vec 2.0 and its kin: negatives, targets, temperature, lengths behind convolutions",
    34: "The next item: the mask behind the last, all items ranked, equals behind each other, users split by time",
    35: "Series: normalised by the training part, windows never straddle splits, gaps and padding count for nothing",
    44: "Tables: what is learned of columns comes from the training part, and no target is among them",
    45: "Recordings: read whole or not at all, at one rate; padding left out; no voice or prompt in two parts",
    46: "Video: frames by time, all of a clip treated alike, tubes through all of time, no figure in two parts",
    47: "Data of any size: one order for any ranks and workers, read by the piece, memory flat, packs checked",
    48: "Sweeps: nothing is run twice or lost, searches go on as they would have, and choose by the validation part",
    49: "Nothing lost: killed, full, out of memory or left by a rank, a run keeps its last checkpoint and goes on",
    50: "Trust: what a stranger wrote runs nothing, and secrets are kept out of what is written",
    51: "How training is carried out: strategies, number formats, averaged weights",
}
ABSENT = {
    12: "A probe trained alongside: evaluators run on features of the finished backbone.",
    39: "Rank metrics.",
}
AREAS = (
    text_data,
    masking_words,
    sentences,
    likelihood,
    similarity,
    transformers_models,
    items,
    tables,
    simcse,
    recordings,
    speech,
    series,
    video,
    pairs,
    scale,
    sweeps,
    lost,
    strategies,
)


assert all(number in TITLES for area in AREAS for number in area.FAULTS), "a fault of no promise"


def promise(number: int) -> Promise:
    stated = general.PROMISES.get(number)
    faults = list(stated.faults) if stated else []
    return Promise(TITLES[number], faults + [each for area in AREAS for each in area.FAULTS.get(number, [])])


PROMISES = {number: promise(number) for number in sorted(TITLES)}
