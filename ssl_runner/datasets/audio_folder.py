"""A user's own recordings, in folders."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssl_runner.datasets.layout import class_names, find_files, label_of, lay_out
from ssl_runner.datasets.published import home
from ssl_runner.datasets.recordings import Audio, Cache, OnBroken, Part, Rate, Seconds
from ssl_runner.datasets.splits import by_group, stratified
from ssl_runner.errors import RequestError, nearest

KIND = "recordings"
EXTENSIONS = (".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
TABLES = {".csv": ",", ".tsv": "\t"}


class AudioFolder(Audio):
    """Recordings of any length, rate and number of channels, in one of three layouts:

      <root>/<class>/...                    split here, each class alike
      <root>/{train,val,test}/<class>/...   where there is no val or test folder, it is split off from train
      <root>/*.wav                          no labels; the same for parts without class folders

    Files deeper down belong to the class of their top folder. The rest of the layout is told at Folder.
    val, test: shares, used where the layout has no such part. together: "folders" keeps the files of one folder in one
    part, as those of one speaker or session should be; the shares are then met as nearly as folders allow. With
    classes, each needs two folders or more below it.
    transcripts: a .csv or .tsv file with the columns `file` and `text`, or a .jsonl file with these keys; in root, or
    a path of its own. file: relative to root. The rest of the arguments is told at Audio.
    """

    def __init__(
        self,
        *,
        root: str,
        seconds: Seconds = 1.0,
        longest: Seconds = 30.0,
        rate: Rate = 16000,
        val: Part = 0.1,
        test: Part = 0.1,
        together: Literal["files", "folders"] = "files",
        transcripts: str | None = None,
        letters: str | None = None,
        on_broken: OnBroken = "skip",
        cache: Cache = "auto",
    ):
        if val + test >= 1:
            raise RequestError(f"data.val={val}, data.test={test}: give shares that leave some for training")
        root = home(root)
        found = lay_out(root, list(find_files(root, EXTENSIONS, KIND)), EXTENSIONS, KIND)
        classes = class_names(root, found, KIND)
        files = [os.path.join(folder, name) for folder, names in found.values() for name in names]
        labels = [label_of(names, classes) for _, names in found.values()]
        label = torch.cat([each for each in labels if each is not None]) if classes else None
        counts = [len(names) for _, names in found.values()]
        parts = dict(zip(found, torch.arange(len(files)).split(counts), strict=True))
        shares = {part: share for part, share in (("val", val), ("test", test)) if part not in parts}
        groups = [os.path.dirname(name) for name in files] if together == "folders" else None
        parts |= hold_out(parts["train"], shares, label, groups)
        super().__init__(
            root,
            files,
            parts,
            classes=classes,
            label=label,
            texts=None if transcripts is None else told(os.path.join(root, transcripts), files),
            rate=rate,
            seconds=seconds,
            longest=longest,
            on_broken=on_broken,
            cache=cache,
            letters=letters,
        )


def hold_out(
    train: Tensor, shares: dict[str, float], label: Tensor | None, groups: Sequence[str] | None
) -> dict[str, Tensor]:
    """Splits parts off from train, (n,) positions: each class alike, and with groups, (N,) names, each group whole.

    Raises RequestError where a class is all in one group.
    """
    of = torch.zeros(len(train), dtype=torch.int64) if label is None else label[train]
    every = (1 - sum(shares.values()), *shares.values())
    if groups is None or not shares:
        return {part: train[i] for part, i in zip(("train", *shares), stratified(of, every), strict=True)}
    names = np.array([groups[n] for n in train.tolist()])
    pieces: dict[str, list[Tensor]] = {part: [] for part in ("train", *shares)}
    for each in of.unique():
        mine = train[of == each]
        owner = names[(of == each).numpy()]
        if len(set(owner)) < 2:
            raise RequestError(
                f"data.together=folders: all recordings like {groups[int(mine[0])]!r} are in that one folder; give "
                "them folders of their own, one for each speaker or session, or leave data.together out"
            )
        for part, ids in zip(pieces, by_group(owner, every), strict=True):
            pieces[part].append(mine[ids])
    return {part: torch.cat(found).sort().values for part, found in pieces.items()}


# --- what is said -------------------------------------------------------------------------------------------


def told(path: str, files: Sequence[str]) -> list[str | None]:
    """The text of each file, None where there is none. Raises RequestError for a table that is none, and one of other
    files."""
    texts: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as table:
            for line, (file, text) in enumerate(_rows(path, table), start=1):
                if not isinstance(file, str) or not isinstance(text, str):
                    raise RequestError(f"data.transcripts={path!r}: entry {line} has no `file` and `text`; give both")
                texts[os.path.normpath(file)] = text
    except OSError as error:
        raise RequestError(f"data.transcripts={path!r}: can't be read ({error.strerror or error})") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise RequestError(f"data.transcripts={path!r}: is damaged, or no table in UTF-8 ({error})") from error
    if texts and not set(texts) & set(files):
        odd = next(iter(texts))
        raise RequestError(
            f"data.transcripts={path!r}: none of its files is there, such as {odd!r}{nearest(odd, files[:1000])}"
        )
    if not any(map(str.strip, texts.values())):
        raise RequestError(f"data.transcripts={path!r}: holds no text; give one for each file")
    return [texts.get(file) for file in files]


def _rows(path: str, table: Iterator[str]) -> Iterator[tuple[object, object]]:
    kind = os.path.splitext(path)[1].lower()
    if kind == ".jsonl":
        for row in (json.loads(line) for line in table if line.strip()):
            yield (row.get("file"), row.get("text")) if isinstance(row, dict) else (None, None)
        return
    if kind not in TABLES:
        raise RequestError(f"data.transcripts={path!r}: give a {', '.join([*TABLES, '.jsonl'])} file")
    reader = csv.DictReader(table, delimiter=TABLES[kind])
    missing = {"file", "text"} - set(reader.fieldnames or ())
    if missing:
        raise RequestError(f"data.transcripts={path!r}: has no column {min(missing)!r}; name its columns file and text")
    for cells in reader:
        yield cells["file"], cells["text"]
