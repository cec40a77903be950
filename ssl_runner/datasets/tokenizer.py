"""Text to ids: its bytes, a tokenizer trained on the text itself, or one from a file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_runner.errors import RequestError, nearest
from ssl_runner.types import View

Kind = Literal["bytes", "bpe", "wordpiece", "unigram"]
KINDS: tuple[str, ...] = get_args(Kind)
PAD, SEP, MASK, UNK = "[PAD]", "[SEP]", "[MASK]", "[UNK]"
NAMES = {  # what these ids are called in tokenizers that others made; the first is the one that is added
    "pad": (PAD, "<pad>", "<|pad|>"),
    "separator": (SEP, "</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"),
    "mask": (MASK, "<mask>"),
}
PIECE = 1 << 16  # characters that are encoded in one go: a token's bookkeeping takes a hundred bytes and more
USUAL_SIZE = 8192
IS_SPACE = np.isin(np.arange(256), tuple(b" \t\n\r\v\f"))


class Encoded(NamedTuple):
    """A text as ids.

    ids: (n,) int32. goes_on: (n,) bool, whether an id is of the same word as the one before it. first: (k,) int64, for
    each place in the text that was asked for, which of the ids holds it; -1 where none does.
    """

    ids: np.ndarray
    goes_on: np.ndarray
    first: np.ndarray


def bag(view: View, vocab: int) -> Tensor:
    """(B, vocab): how often each id is in a sample, as log(1 + n), of unit length. Padding doesn't count."""
    ids = view["x"].long()
    counts = torch.zeros(len(ids), vocab, device=ids.device)
    there = torch.ones_like(ids, dtype=counts.dtype)
    if "pad" in view:
        there = (~view["pad"]).to(counts.dtype)
    return F.normalize(counts.scatter_add_(1, ids, there).log1p_(), dim=1)


class Tokenizer:
    """What every tokenizer is.

    vocab: ids are 0 .. vocab - 1. pad, separator, mask: ids that no text gives. special: all ids that stand for no
    text, but for the separator. file: its tokenizer.json, if it has one.
    """

    vocab: int
    pad: int
    separator: int
    mask: int
    special: tuple[int, ...]
    file: Path | None = None

    def facts(self, length: int) -> dict[str, Any]:
        """What other parts may ask about samples of so many ids."""
        return {
            "shape": (length,),
            "size": length,
            "vocab": self.vocab,
            "length": length,
            "mask": self.mask,
            "special": self.special,
            "separator": self.separator,
            **({} if self.file is None else {"words": str(self.file)}),
        }

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text -> (n,) int32."""
        return [each.ids for each in self.mark(texts, [()] * len(texts))]

    def mark(self, texts: Sequence[str], places: Sequence[Sequence[int]]) -> list[Encoded]:
        """The same, with their words. places: for each text, those of some of its characters."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that a text gives; what is no whole text is marked as such."""
        raise NotImplementedError

    def spelled(self, ids: Sequence[int]) -> str:
        """Any ids as text, with the separator and the mask by name, and no padding."""
        names = {self.separator: SEP, self.mask: MASK}
        parts = groupby(ids, key=lambda n: names.get(n, PAD if n in self.special else ""))
        return "".join(
            self.decode(list(run)) if not name else f" {name} " * len(list(run)) for name, run in parts if name != PAD
        )


class Bytes(Tokenizer):
    """A text's UTF-8 bytes, each raised by 3. A word is white space of one byte and what follows up to the next."""

    vocab, pad, separator, mask, special = 259, 0, 1, 2, (0, 2)

    def mark(self, texts: Sequence[str], places: Sequence[Sequence[int]]) -> list[Encoded]:
        found = []
        for text, at in zip(texts, places, strict=True):
            content = np.frombuffer(text.encode(), np.uint8)
            goes_on = ~IS_SPACE[content]
            goes_on[:1] = False
            first = [len(text[:place].encode()) for place in at]
            found.append(Encoded(content.astype(np.int32) + 3, goes_on, np.array(first, np.int64)))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(n - 3 for n in ids).decode(errors="replace")


class Library(Tokenizer):
    """A tokenizer of Hugging Face's library.

    made: a tokenizers.Tokenizer. file: what it was read from. Where it has no id for padding, separator or mask, one is
    added at its end. Text that spells a special token is text: it gives no special id. A word is what its pre-tokenizer
    makes one; where that leaves words together, a piece with the mark of a space (U+2581) begins one.
    """

    def __init__(self, made: Any, file: Path):
        made.no_padding()
        made.no_truncation()
        made.encode_special_tokens = True
        self.pad, self.separator, self.mask = (_role(made, names) for names in NAMES.values())
        self._made, self.vocab, self.file = made, made.get_vocab_size(), file
        self._begins = np.zeros(self.vocab, bool)
        self._begins[[n for token, n in made.get_vocab().items() if token.startswith("\u2581")]] = True
        reserved = {n for n, token in made.get_added_tokens_decoder().items() if token.special}
        self.special = tuple(sorted((reserved | {self.pad, self.mask}) - {self.separator}))

    def mark(self, texts: Sequence[str], places: Sequence[Sequence[int]]) -> list[Encoded]:
        found = []
        for each, at in zip(self._made.encode_batch(list(texts), add_special_tokens=False), places, strict=True):
            ids = np.array(each.ids, dtype=np.int32)
            word = np.array([-1 if number is None else number for number in each.word_ids], np.int64)
            goes_on = (np.diff(word, prepend=-1) == 0) & ~self._begins[ids]
            kept = ~np.isin(ids, (self.pad, self.separator, self.mask))
            number = np.where(kept, np.cumsum(kept) - 1, -1)
            holds = [each.char_to_token(place) for place in at]
            first = np.array([-1 if token is None else number[token] for token in holds], np.int64)
            found.append(Encoded(ids[kept], goes_on[kept], first))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return self._made.decode(list(ids), skip_special_tokens=False)


def _role(made: Any, names: Sequence[str]) -> int:
    for name in names:
        if made.token_to_id(name) is not None:
            return made.token_to_id(name)
    made.add_special_tokens([names[0]])
    return made.token_to_id(names[0])


def read(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises RequestError where it is none."""
    try:
        return Library(_library().Tokenizer.from_str(path.read_text(encoding="utf-8")), path)
    except RequestError:
        raise
    except Exception as error:  # the library knows no narrower kind
        raise RequestError(f"data.tokenizer: {str(path)!r} is no tokenizer.json that can be read: {error}") from error


def pieces(text: str, most: int = PIECE) -> Iterator[str]:
    """A text in stretches of at most `most` characters, cut before a space or a new line where there is one."""
    start = 0
    while len(text) - start > most:
        cut = max(text.rfind(mark, start + 1, start + most + 1) for mark in " \n")
        cut = cut if cut > start else start + most
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def train(kind: str, vocab_size: int, texts: Callable[[], Iterator[str]], path: Path) -> None:
    """Trains a tokenizer on texts, which are asked for anew for each pass, and writes its tokenizer.json, whole or not
    at all. The same texts give the same file.

    bpe: on bytes, so that no text is unknown (as in GPT-2). wordpiece: on words, uncased (as in BERT). unigram: on
    words and the spaces before them (as in SentencePiece). The special ids come first: padding 0, separator 1, mask 2
    and, where a text may be unknown, 3.
    """
    library = _library()
    models, trainers, pre = library.models, library.trainers, library.pre_tokenizers
    special = [PAD, SEP, MASK] if kind == "bpe" else [PAD, SEP, MASK, UNK]
    inner: list[str] = []
    if kind == "bpe":
        made = library.Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre.ByteLevel(add_prefix_space=False), library.decoders.ByteLevel()
        alphabet = pre.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "wordpiece":
        made = library.Tokenizer(models.WordPiece(unk_token=UNK))
        made.normalizer = library.normalizers.BertNormalizer()
        made.pre_tokenizer, made.decoder = pre.BertPreTokenizer(), library.decoders.WordPiece()
        inner = _inner(made, texts())
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special + inner, show_progress=False)
    else:
        made = library.Tokenizer(models.Unigram())
        made.normalizer = library.normalizers.NFKC()
        made.pre_tokenizer = pre.Sequence([pre.Metaspace(), pre.Punctuation()])
        made.decoder = library.decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=special, unk_token=UNK, show_progress=False
        )
    try:
        made.train_from_iterator(texts(), trainer)
    except RequestError:
        raise
    except Exception as error:  # the library knows no narrower kind
        raise RequestError(
            f"data.tokenizer={kind}: can't be trained on the train part ({error}); give more text, another "
            "data.vocab_size, or data.tokenizer=bytes"
        ) from error
    _write(path, _settled(json.loads(made.to_str()), kind, special))


def _inner(made: Any, texts: Iterator[str]) -> list[str]:
    """The letters that stand behind others in a word, as WordPiece writes them, in order. The trainer would number them
    in an order that differs from run to run, and break ties by it; tokens given to it keep theirs."""
    found: set[str] = set()
    for text in texts:
        for word, _ in made.pre_tokenizer.pre_tokenize_str(made.normalizer.normalize_str(text)):
            found.update(word[1:])
    return [f"##{letter}" for letter in sorted(found)]


def _settled(described: dict[str, Any], kind: str, special: list[str]) -> dict[str, Any]:
    """A trained tokenizer without what differs from run to run."""
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in special]
    if kind == "unigram":
        vocab = described["model"]["vocab"]
        # scores are sums, made in any order
        learned = {piece: round(score, 6) for piece, score in vocab[len(special) :]}
        # letters that were not learned get scores from the lowest up, 0.0001 apart, in any order
        letters, least = [piece for piece in learned if len(piece) == 1], min(learned.values())
        learned |= {letter: least for letter in letters if learned[letter] <= least + 1e-4 * len(letters)}
        ordered = sorted(learned.items(), key=lambda pair: (-pair[1], pair[0]))
        described["model"]["vocab"] = vocab[: len(special)] + ordered
    return described


def _write(path: Path, described: dict[str, Any]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(described, file, ensure_ascii=False)
    os.replace(temporary, path)


def size_of(tokenizer: str, vocab_size: int | None) -> int:
    """How many ids a tokenizer that is trained here may have; 0 where none is trained.

    Raises RequestError for a tokenizer that is neither known nor a file, and for a size that can't be or has no use.
    """
    if tokenizer not in KINDS and not Path(tokenizer).expanduser().is_file():
        raise RequestError(f"data.tokenizer={tokenizer!r}: there is no such file, nor kind{nearest(tokenizer, KINDS)}")
    if tokenizer == "bytes" or tokenizer not in KINDS:
        if vocab_size is not None:
            raise RequestError(f"data.vocab_size={vocab_size}: data.tokenizer={tokenizer} has a size of its own")
        return 0
    size = USUAL_SIZE if vocab_size is None else vocab_size
    least = 260 if tokenizer == "bpe" else 10
    if size < least:
        raise RequestError(f"data.vocab_size={size}: data.tokenizer={tokenizer} needs {least} or more")
    return size


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise RequestError(
            "data.tokenizer: needs the package tokenizers; run `pip install 'ssl-runner[text]'`, or use "
            "data.tokenizer=bytes"
        ) from error
    return tokenizers
