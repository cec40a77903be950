"""The faults that scripts/faults.py puts in, a file for each area. The numbers are the promises', for good."""

from __future__ import annotations

from known_faults import (
    general,
    items,
    likelihood,
    masking_words,
    sentences,
    similarity,
    tables,
    text_data,
    transformers_models,
)
from known_faults.fault import Promise

TITLES = {number: promise.title for number, promise in general.PROMISES.items()} | {
    32: "Language models: what is hidden, what follows, whose document it is, and what figures divide by",
    34: "The next item: the mask behind the last, all items ranked, equals behind each other, users split by time",
    44: "Tables: what is learned of columns comes from the training part, and no target is among them",
}
ABSENT = {
    12: "A probe trained alongside: evaluators run on features of the finished backbone.",
    28: "CLIP's clamped scale and both directions.",
    33: "wav2vec 2.0's negatives, temperature and lengths.",
    35: "Splits and windows of series.",
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
)


def promise(number: int) -> Promise:
    stated = general.PROMISES.get(number)
    faults = list(stated.faults) if stated else []
    return Promise(TITLES[number], faults + [each for area in AREAS for each in area.FAULTS.get(number, [])])


PROMISES = {number: promise(number) for number in sorted(TITLES)}
