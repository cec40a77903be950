"""Audio: decoding, another rate, folders, published sets in their real layout, and a hostile folder through a run."""

from __future__ import annotations

import csv
import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from ssl_runner.datasets import ktuberling, recordings
from ssl_runner.datasets.asterisk import VOICES, Asterisk, letters_of
from ssl_runner.datasets.audio import header, ratio, read_audio, resample, taps
from ssl_runner.datasets.audio_folder import AudioFolder, hold_out, told
from ssl_runner.datasets.base import BrokenSample
from ssl_runner.datasets.klettres import LANGUAGES, TEST, VAL, KLettres
from ssl_runner.datasets.librispeech import LibriSpeech
from ssl_runner.datasets.reading import Reading
from ssl_runner.datasets.recordings import Audio, Recordings, SoundFiles, spoken
from ssl_runner.datasets.speech_commands import SpeechCommands
from ssl_runner.errors import RequestError, RunError
from ssl_runner.views.audio import LogMel
from ssl_runner.views.window import Window

SPLITS = ("pretrain", "train", "val", "test")


def tone(hertz: float, n: int, rate: int = 16000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(n) / rate)).astype(np.float32)


def sound(path: Path, n: int = 400, rate: int = 16000, hertz: float = 300.0, channels: int = 1, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.repeat(tone(hertz, n, rate)[:, None], channels, 1), rate, **how)
    return path


def names(part: Recordings) -> list[str]:
    return [os.path.relpath(part.name(i), part.files.root) for i in range(len(part))]


def sizes(source: Audio) -> dict[str, int]:
    return {name: len(source.split(name)) for name in SPLITS}


def disjoint(source: Audio) -> bool:
    parts = [set(names(source.split(name))) for name in ("train", "val", "test")]
    return sum(map(len, parts)) == len(set.union(*parts))


# -- decoding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "how", "off"),
    [("wav", {}, 1e-4), ("flac", {}, 1e-4), ("wav", {"subtype": "FLOAT"}, 0), ("ogg", {}, 0.05), ("mp3", {}, 0.05)],
)
def test_every_format_gives_mono_values(tmp_path: Path, kind: str, how: dict[str, str], off: float) -> None:
    file = sound(tmp_path / f"a.{kind}", n=8000, **how)
    x = read_audio(str(file), 16000)
    assert x.dtype == torch.float32
    assert x.shape == (1, 8000)
    assert (x[0] - torch.from_numpy(tone(300, 8000)))[200:-200].abs().max() <= off


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([tone(300, 500), -0.5 * tone(300, 500)], 1)
    soundfile.write(tmp_path / "a.wav", both, 16000, subtype="FLOAT")
    assert torch.allclose(read_audio(str(tmp_path / "a.wav"), 16000)[0], torch.from_numpy(tone(300, 500)) / 4)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_only_what_is_needed_of_a_long_file_is_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(-0.9, 0.9, 60000).astype(np.float32)
    soundfile.write(tmp_path / f"a.{kind}", values, 16000)
    asked: list[int] = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **k: asked.append(n) or read(self, n, **k))
    x = read_audio(str(tmp_path / f"a.{kind}"), 16000, 500, lambda spare: 41000 if spare == 59500 else -1)
    assert x.shape == (1, 500)
    assert max(asked) < 600
    assert np.abs(x[0].numpy() - values[41000:41500]).max() < 0.02


def test_a_stretch_at_another_rate_is_that_of_the_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = np.convolve(rng.normal(size=44100), np.hanning(40) / 40, "same").astype(np.float32)
    soundfile.write(tmp_path / "a.wav", smooth, 44100, subtype="FLOAT")
    whole = read_audio(str(tmp_path / "a.wav"), 16000)[0]
    part = read_audio(str(tmp_path / "a.wav"), 16000, 1000, lambda spare: 5 * 160)[0]
    assert whole.shape == (16000,)
    assert (part - whole[800:1800])[50:-50].abs().max() < 1e-3
    assert header(str(tmp_path / "a.wav")) == (44100, 44100)


def patched(path: Path, at: int, form: str, value: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: path.write_bytes(b"RIFF, so it says, but it is not"), "can't be read"),
        (lambda path: path.write_bytes(bytes(range(256)) * 20), "can't be read"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: soundfile.write(path, np.zeros(0), 16000), "holds no sound"),
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), "claims 800 bytes of sound, and 500 are there"),
        (lambda path: patched(path, 24, "<I", 4_000_000_000), "can't be read"),
        (lambda path: patched(path, 24, "<I", 7), "claims 7 values a second"),
        (lambda path: patched(path, 22, "<H", 900), "can't be read"),
        (lambda path: soundfile.write(path, np.zeros((9, 40)), 16000), "claims 40 channels"),
        (lambda path: soundfile.write(path, np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT"), "no numbers"),
        (lambda path: soundfile.write(path, np.array([0.1, np.inf, 0.2]), 16000, subtype="FLOAT"), "no numbers"),
    ],
)
def test_a_damaged_file_is_a_broken_sample(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    path = sound(tmp_path / "a.wav")
    damage(path)
    with pytest.raises(BrokenSample, match=said) as told_of:
        read_audio(str(path), 16000)
    assert "a.wav" in str(told_of.value)


def test_a_flac_file_that_ends_early_is_a_broken_sample(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.flac", rng.uniform(-1, 1, 20000), 16000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenSample):
        read_audio(str(tmp_path / "a.flac"), 16000)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_file_of_unknown_size_is_read(tmp_path: Path, size: int) -> None:
    """As a program leaves it that writes to a pipe."""
    path = sound(tmp_path / "a.wav")
    patched(path, 40, "<I", size)
    if size == 0:
        return  # libsndfile itself takes that for an empty file
    assert read_audio(str(path), 16000).shape == (1, 400)


@settings(max_examples=40)
@given(st.binary(max_size=60), st.integers(0, 840), st.integers(0, 840))
def test_any_damage_gives_values_or_a_broken_sample(tmp_path_factory, junk: bytes, at: int, cut: int) -> None:
    path = sound(tmp_path_factory.mktemp("junk") / "a.wav")
    data = path.read_bytes()[: 844 - cut]
    path.write_bytes(data[:at] + junk + data[at + len(junk) :])
    try:
        x = read_audio(str(path), 16000, 1000)
    except BrokenSample:
        return
    assert x.ndim == 2
    assert 1 <= x.shape[1] <= 1000
    assert x.isfinite().all()


# -- another rate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "rate"), [(44100, 16000), (8000, 16000), (48000, 16000), (22050, 16000), (16000, 8000), (128000, 16000)]
)
def test_resampling_is_that_of_scipy_with_the_same_filter(source: int, rate: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3001)
    up, down = ratio(source, rate)
    assert up * source == down * rate
    expected = signal.resample_poly(x[0].double().numpy(), up, down, window=taps(up, down).numpy() / up)
    found = resample(x, up, down)
    assert found.shape == (1, len(expected))
    assert np.abs(found[0].numpy() - expected).max() < 1e-5
    usual = signal.resample_poly(tone(200, 3001, source).astype(np.float64), up, down)
    mine = resample(torch.from_numpy(tone(200, 3001, source))[None], up, down)[0].numpy()
    assert np.abs(mine - usual)[60:-60].max() < 0.01


def test_no_frequency_is_folded_back() -> None:
    up, down = ratio(44100, 16000)

    def level(hertz: float) -> float:
        x = resample(torch.from_numpy(tone(hertz, 44100, 44100))[None], up, down)[0, 200:-200]
        return 20 * np.log10(float(x.std()) * 2**0.5 / 0.5 + 1e-12)

    assert abs(level(100)) < 0.1
    assert abs(level(6000)) < 0.1
    assert all(level(hertz) < -55 for hertz in (8800, 10000, 14000, 15900, 20000))


@settings(max_examples=30)
@given(st.integers(1000, 384000), st.sampled_from([8000, 16000, 44100]), st.integers(1, 600))
def test_any_rate_is_brought_to_another_within_a_millionth(source: int, rate: int, n: int) -> None:
    up, down = ratio(source, rate)
    assert abs(up / down * source / rate - 1) < 1e-3
    if up * down < 200_000:
        x = resample(torch.ones(1, n), up, down)
        assert x.shape == (1, -(-n * up // down))
        assert x.isfinite().all()


# -- folders ---------------------------------------------------------------------------------------------------


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for n in range(20):
        sound(tmp_path / "bird" / f"{n}.wav", n=300 + n)
        sound(tmp_path / "frog" / "deep" / f"{n}.FLAC", n=300 + n, format="FLAC")
    source = AudioFolder(root=str(tmp_path), seconds=0.1)
    assert source.classes == ("bird", "frog")
    assert source.labelled
    assert source.facts == {"shape": (1, 1600), "size": 1600, "rate": 16000, "num_classes": 2}
    assert sizes(source) == {"pretrain": 32, "train": 32, "val": 4, "test": 4}
    assert disjoint(source)
    for name in SPLITS:
        part = source.split(name)
        assert [source.classes[n] for n in part.label] == [each.split(os.sep)[0] for each in names(part)]
        assert part.target is None
        assert part.read(0).shape == (1, 300 + int(Path(part.name(0)).stem))


@pytest.mark.parametrize("cache", ["auto", "no"])
def test_parts_and_recordings_without_classes(tmp_path: Path, cache: str) -> None:
    for part, count in (("train", 20), ("test", 3)):
        for n in range(count):
            sound(tmp_path / part / f"{n}.ogg")
    source = AudioFolder(root=str(tmp_path), seconds=0.02, val=0.2, cache=cache)
    assert not source.labelled
    assert source.classes == ()
    assert sizes(source) == {"pretrain": 16, "train": 16, "val": 4, "test": 3}
    assert source.split("train").label is None
    assert {name.split(os.sep)[0] for name in names(source.split("test"))} == {"test"}


def test_what_is_held_is_what_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in range(6):
        soundfile.write(tmp_path / f"{n}.wav", rng.uniform(-1, 1, 700 + 100 * n), 16000)
    held, read = (AudioFolder(root=str(tmp_path), seconds=0.05, longest=0.05, cache=c) for c in ("auto", "no"))
    for index in range(4):
        torch.manual_seed(index)
        one = held.split("train").read(index)
        torch.manual_seed(index)
        two = read.split("train").read(index)
        assert one.shape == (1, min(800, 700 + 100 * int(Path(held.split("train").name(index)).stem)))
        assert one.equal(two)
    assert held._files._values is not None
    assert read._files._values is None


def test_a_large_set_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(10):
        sound(tmp_path / f"{n}.wav")
    monkeypatch.setattr(recordings, "CACHE", 4 * 400 * 10 - 1)
    source = AudioFolder(root=str(tmp_path), seconds=0.01)
    assert source.split("train").read(0).shape == (1, 400)
    assert source._files._values is None
    monkeypatch.setattr(recordings, "CACHE", 4 * 400 * 10)
    source = AudioFolder(root=str(tmp_path), seconds=0.01)
    source.split("train")
    assert source._files._values is not None


def test_a_stretch_of_a_long_recording_is_drawn_and_the_same_for_the_same_key(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.linspace(-0.9, 0.9, 40000), 16000, subtype="FLOAT")
    for n in range(3):
        sound(tmp_path / f"{n}.wav")
    source = AudioFolder(root=str(tmp_path), seconds=0.1, longest=0.2, val=0, test=0)
    part = source.split("train")
    (at,) = [i for i in range(4) if part.name(i).endswith("long.wav")]
    reading = Reading(part, lambda inputs: [Window(size=3200).one(inputs[0])] * 2, "stop", True)
    samples = [reading.__getitems__([(at, seed)])["inputs"] for seed in (1, 1, 2)]
    starts = [round(float((view[0]["x"][0, 0, 0] + 0.9) * 39999 / 1.8)) for view in samples]
    assert starts[0] == starts[1] != starts[2]
    assert all(0 <= start <= 40000 - 3200 for start in starts)
    assert samples[0][0]["x"].equal(samples[0][1]["x"])  # of both views


def test_folders_stay_together(tmp_path: Path) -> None:
    for speaker in range(10):
        for n in range(2 + speaker % 3):
            sound(tmp_path / "a" / f"s{speaker}" / f"{n}.wav")
            sound(tmp_path / "b" / f"s{speaker}" / f"{n}.wav")
    source = AudioFolder(root=str(tmp_path), seconds=0.01, val=0.2, test=0.2, together="folders")
    owners = {name: {os.path.dirname(each) for each in names(source.split(name))} for name in ("train", "val", "test")}
    assert all(owners.values())
    assert sum(map(len, owners.values())) == len(set.union(*owners.values())) == 20
    assert 8 <= sizes(source)["test"] <= 16
    assert source.split("test").label.unique().tolist() == [0, 1]
    sound(tmp_path / "c" / "only" / "one.wav")
    with pytest.raises(RequestError, match=r"together=folders.*one folder"):
        AudioFolder(root=str(tmp_path), together="folders")


@settings(max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=8, max_size=60), st.floats(0, 0.4), st.floats(0, 0.4))
def test_groups_are_never_divided(groups: list[int], val: float, test: float) -> None:
    train = torch.arange(len(groups))
    owners = [str(g) for g in groups]
    try:
        parts = hold_out(train, {"val": val, "test": test}, None, owners)
    except RequestError:
        assert len(set(owners)) == 1
        return
    assert torch.cat(list(parts.values())).sort().values.equal(train)
    found = [{owners[n] for n in part.tolist()} for part in parts.values()]
    assert sum(map(len, found)) == len(set(owners))
    assert found[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"val": 0.6, "test": 0.5}, "data.val"),
        ({"seconds": 0.5, "longest": 0.2}, "data.longest"),
        ({"seconds": 0.00001}, "data.seconds"),
        ({"root": "nowhere"}, "can't be read"),
        ({"root": "empty"}, "no recordings"),
        ({"transcripts": "none.csv"}, "data.transcripts"),
    ],
)
def test_what_a_folder_refuses(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    for n in range(5):
        sound(tmp_path / "full" / f"{n}.wav")
    (tmp_path / "empty").mkdir()
    root = str(tmp_path / arguments.pop("root", "full"))
    with pytest.raises(RequestError, match=said):
        AudioFolder(root=root, **arguments)


# -- transcripts -------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"file": f, "text": t, "more": 1}) + "\n" for f, t in rows), "utf-8")
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([("text", "file"), *((t, f) for f, t in rows)])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_transcripts_become_ids(tmp_path: Path, kind: str) -> None:
    for n in range(24):
        sound(tmp_path / f"{n}.wav")
    rows = [(f"./{n}.wav", "  Abc,\n É a" if n % 4 else "ba") for n in range(0, 24, 2)]
    write_table(tmp_path / f"said.{kind}", rows)
    source = AudioFolder(root=str(tmp_path), seconds=0.1, transcripts=f"said.{kind}", val=0.2, test=0.2)
    assert source.facts["alphabet"] == ("", " ", ",", "a", "b", "c", "é")
    assert source.labelled
    assert sizes(source)["pretrain"] > sizes(source)["train"]
    assert source.split("pretrain").target is None
    spelled = dict(rows)
    for name in ("train", "val", "test"):
        part = source.split(name)
        for n, row in enumerate(part.target.tolist()):
            assert row == sorted(row, key=lambda each: each < 0)  # what is told, then -1
            assert 0 not in row  # the blank is never told
            letters = "".join(source.facts["alphabet"][each] for each in row if each >= 0)
            assert letters == spoken(spelled[f"./{names(part)[n]}"])
    again = AudioFolder(root=str(tmp_path), seconds=0.1, transcripts=f"said.{kind}", letters="xé ,cba")
    assert again.facts["alphabet"] == ("", *"xé ,cba")
    assert source.pinned() == {"letters": " ,abcé"}
    with pytest.raises(RequestError, match=r"data.letters='ab'.*' '"):
        AudioFolder(root=str(tmp_path), seconds=0.1, transcripts=f"said.{kind}", letters="ab")


@pytest.mark.parametrize("cache", ["auto", "no"])
def test_a_recording_too_long_for_its_text_is_left_out(
    tmp_path: Path, cache: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for n in range(8):
        sound(tmp_path / f"{n}.wav", n=2000 if n == 3 else 400)
    write_table(tmp_path / "said.csv", [(f"{n}.wav", "a") for n in range(8)])
    source = AudioFolder(root=str(tmp_path), seconds=0.1, transcripts="said.csv", val=0, test=0, cache=cache)
    part = source.split("train")
    samples = Reading(part, lambda inputs: [Window(size=1600).one(inputs[0])], "skip", False).__getitems__(
        [(n, 0) for n in range(8)]
    )
    assert len(samples["index"]) == 7
    assert "raise data.seconds" in capfd.readouterr().err
    assert source.split("pretrain").read(3).shape == (1, 2000)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"file;text\n0.wav;b\n", "no column 'file'"),
        ("a.csv", b"file,text\n0.wav\n", "entry 1"),
        ("a.csv", b"\xff\xfe\x00file", "damaged"),
        ("a.jsonl", b"{", "damaged"),
        ("a.jsonl", b"[1]\n", "entry 1"),
        ("a.csv", b"file,text\nother.wav,b\n", "none of its files"),
        ("a.csv", b"file,text\n0.wav,  \n", "no text"),
        ("a.txt", b"", r"\.csv, \.tsv, \.jsonl"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=said):
        told(str(tmp_path / name), ["0.wav"])


@settings(max_examples=60)
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"))))
def test_any_text_survives_a_table(tmp_path_factory, texts: dict[str, str]) -> None:
    texts = {os.path.normpath(file): text for file, text in texts.items() if "\0" not in file}
    if not any(map(str.strip, texts.values())):
        return
    for kind in ("csv", "jsonl"):
        path = tmp_path_factory.mktemp("t") / f"a.{kind}"
        write_table(path, list(texts.items()))
        assert told(str(path), [*texts, "other"]) == [*texts.values(), None]


# -- published sets, in their real layout --------------------------------------------------------------------------


def klettres(folder: Path) -> Path:
    for n, language in enumerate(LANGUAGES):
        lines = [f'<sound name="{name}" file="{language}/alpha/{name}.ogg" />' for name in "AbZ"]
        syllables = [f'<sound name="BA" file="{language}/syllab/ba.ogg" />', '<sound name="C" file="gone.ogg" />']
        (folder / language).mkdir(parents=True)
        (folder / language / "sounds.xml").write_text(
            f'<!-- KLettres -->\n<klettres><language code="{language}"><menuitem><label>&amp;x</label></menuitem>\n'
            f"<alphabet>{''.join(lines)}</alphabet><syllables>{''.join(syllables)}</syllables></language></klettres>"
        )
        for name in ("alpha/A", "alpha/b", "alpha/Z", "syllab/ba"):
            sound(folder / language / f"{name}.ogg", n=800 + n, rate=44100)
    return folder


def test_klettres_keeps_voices_apart(tmp_path: Path) -> None:
    klettres(tmp_path / "klettres" / "usr" / "share" / "klettres")
    source = KLettres(root=str(tmp_path), labels="letter", seconds=0.01)
    assert len(source.classes) == 26
    assert sizes(source) == {"pretrain": 56, "train": 42, "val": 6, "test": 12}
    voices = {name: {each.split(os.sep)[0] for each in names(source.split(name))} for name in SPLITS}
    assert voices["val"] == set(VAL)
    assert voices["test"] == set(TEST)
    assert voices["train"] == voices["pretrain"] == set(LANGUAGES) - {*VAL, *TEST}
    train = source.split("train")
    assert [source.classes[n] for n in train.label] == [Path(name).stem.upper() for name in names(train)]
    assert source.split("pretrain").label.min() == -1  # a syllable is no letter


def test_klettres_by_language(tmp_path: Path) -> None:
    klettres(tmp_path)
    source = KLettres(root=str(tmp_path), seconds=0.01, cache="no")
    assert source.classes == LANGUAGES
    assert sizes(source) == {"pretrain": 40, "train": 40, "val": 20, "test": 20}
    assert disjoint(source)
    (tmp_path / "en" / "sounds.xml").write_text("<klettres>")
    with pytest.raises(RequestError, match=r"en.sounds.xml.*damaged"):
        KLettres(root=str(tmp_path))
    (tmp_path / "en" / "sounds.xml").unlink()
    with pytest.raises(RequestError, match=r"not whole.*apt-get download klettres-data"):
        KLettres(root=str(tmp_path))


def test_ktuberling_keeps_voices_apart(tmp_path: Path) -> None:
    sounds = tmp_path / "ktuberling" / "usr" / "share" / "ktuberling" / "sounds"
    for language in (*ktuberling.LANGUAGES, "sr@latin"):
        (sounds / language).mkdir(parents=True)
        (sounds / f"{language}.soundtheme").write_text(f'<language code="{language}"></language>')
        for name in ("hat.ogg", "eye.wav"):
            sound(sounds / language / name, rate=44100)
    source = ktuberling.KTuberling(root=str(tmp_path), seconds=0.01)
    assert source.facts["rate"] == 8000
    assert sizes(source) == {"pretrain": 20, "train": 20, "val": 10, "test": 16}  # the second Serbian is the first
    for part, languages in (("train", ktuberling.TRAIN), ("val", ktuberling.VAL), ("test", ktuberling.TEST)):
        split = source.split(part)
        assert {each.split(os.sep)[0] for each in names(split)} == set(languages)
        assert [source.classes[n] for n in split.label] == [each.split(os.sep)[0] for each in names(split)]
    assert disjoint(source)
    (sounds / "uk.soundtheme").unlink()
    with pytest.raises(RequestError, match=r"not whole.*apt-get download ktuberling-data"):
        ktuberling.KTuberling(root=str(tmp_path))


def asterisk(folder: Path) -> Path:
    sounds = folder / "usr" / "share" / "asterisk" / "sounds"
    for voice in VOICES.values():
        for name in ("agent-alreadyon", "dictate/forhelp", "beep", "letters/at", "vm-no", *map(str, range(15))):
            sound(sounds / voice / f"{name}.wav", rate=8000)
        sound(sounds / voice / "silence" / "1.wav", rate=8000)
    soundfile.write(sounds / VOICES["ru"] / "is.wav", np.zeros(0), 8000)
    texts = folder / "usr" / "share" / "doc" / "asterisk-core-sounds-en" / "core-sounds-en.txt.gz"
    texts.parent.mkdir(parents=True)
    lines = ["; Core Asterisk Sounds in English", "", "agent-alreadyon: That's it.  Really!", "beep: [a tone]"]
    lines += ["letters/at: at [@]", "dictate/forhelp: press 0 for help", *(f"{n}: Number..." for n in range(15))]
    with gzip.open(texts, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return folder


def test_asterisk(tmp_path: Path) -> None:
    asterisk(tmp_path / "asterisk")
    source = Asterisk(root=str(tmp_path), seconds=0.05)
    assert source.classes == ("en", "es", "fr", "it", "ru")
    assert source.facts["rate"] == 8000
    assert sum(sizes(source)[name] for name in ("train", "val", "test")) == 100
    assert not any("silence" in name for name in names(source.split("train")))
    prompts = {
        name: {each.split(os.sep, 1)[1] for each in names(source.split(name))} for name in ("train", "val", "test")
    }
    assert sum(map(len, prompts.values())) == 20  # a prompt is in one part, in all languages
    assert min(map(len, prompts.values())) > 0
    two = Asterisk(root=str(tmp_path), seconds=0.05, languages=("it", "en"))
    assert two.classes == ("en", "it")
    assert [two.classes[n] for n in two.split("val").label] == [name[:2] for name in names(two.split("val"))]


def test_asterisk_with_transcripts(tmp_path: Path) -> None:
    asterisk(tmp_path)
    source = Asterisk(root=str(tmp_path), seconds=0.05, transcripts=True)
    told_of = [name for part in ("train", "val", "test") for name in names(source.split(part))]
    known = ("agent-alreadyon", "letters/at", *map(str, range(15)))
    assert sorted(told_of) == sorted(f"{VOICES['en']}/{name}.wav" for name in known)
    assert source.facts["alphabet"] == ("", *" 'abehilmnrstuy")
    (tmp_path / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz").unlink()
    with pytest.raises(RequestError, match=r"transcripts=true.*apt-get download .*asterisk-core-sounds-en "):
        Asterisk(root=str(tmp_path), transcripts=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("That conference, is full.", "That conference is full"),
        ("at [@]", "at"),
        ("press 1 now", ""),
        ("<beep ascending>", ""),
        ("Touch-tone (note)", "Touch tone"),
        ("don't = do", ""),
    ],
)
def test_what_can_be_told_of_a_prompt(text: str, said: str) -> None:
    assert letters_of(text) == said


def librispeech(folder: Path) -> None:
    for subset, speakers in (("train-clean-100", (19, 103)), ("dev-clean", (84,)), ("test-clean", (61, 237))):
        for speaker in speakers:
            for chapter in (7, 12):
                inside = folder / "LibriSpeech" / subset / str(speaker) / str(chapter)
                ids = [f"{speaker}-{chapter}-{n:04d}" for n in range(3)]
                for each in ids:
                    sound(inside / f"{each}.flac")
                (inside / f"{speaker}-{chapter}.trans.txt").write_text(
                    "".join(f"{each} HE SAID {speaker % 2 * 'SO'}\n" for each in ids)
                )


def test_librispeech(tmp_path: Path) -> None:
    librispeech(tmp_path)
    source = LibriSpeech(root=str(tmp_path), seconds=0.1, longest=1.0)
    assert sizes(source) == {"pretrain": 12, "train": 12, "val": 6, "test": 12}
    assert source.facts["alphabet"] == ("", *" adehios")
    part = source.split("test")
    spelled = ["".join(source.facts["alphabet"][n] for n in row if n >= 0) for row in part.target.tolist()]
    assert spelled == [("he said so" if "/61/" in name or "/237/" in name else "he said") for name in names(part)]
    assert all(name.startswith("test-clean") for name in names(part))
    speakers = LibriSpeech(root=str(tmp_path), seconds=0.1, labels="speaker", pretrain=("train-clean-100", "dev-clean"))
    assert speakers.classes == ("19", "61", "84", "103", "237")
    assert sizes(speakers)["pretrain"] == 18
    assert [speakers.classes[n] for n in speakers.split("test").label] == [n.split("/")[1] for n in names(part)]
    assert not LibriSpeech(root=str(tmp_path / "LibriSpeech"), labels="none").labelled


def test_librispeech_that_is_not_whole(tmp_path: Path) -> None:
    librispeech(tmp_path)
    with pytest.raises(RequestError, match=r"'test-other' is not there.*curl .*/12/test-other.tar.gz"):
        LibriSpeech(root=str(tmp_path), test=("test-other",))
    script = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "7" / "84-7.trans.txt"
    script.write_text("84-7-0000 ONE\n84-7-0002 THREE\n")
    with pytest.raises(RequestError, match=r"no line for '84-7-0001.flac'"):
        LibriSpeech(root=str(tmp_path))
    script.unlink()
    with pytest.raises(RequestError, match=r"trans.txt.*can't be read"):
        LibriSpeech(root=str(tmp_path))


def test_speech_commands(tmp_path: Path) -> None:
    folder = tmp_path / "speech_commands"
    for word in ("yes", "no"):
        for n in range(5):
            sound(folder / word / f"{n:08x}_nohash_0.wav")
    sound(folder / "_background_noise_" / "white.wav")
    (folder / "validation_list.txt").write_text("no/00000003_nohash_0.wav\nyes/00000000_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("yes/00000004_nohash_0.wav\n")
    source = SpeechCommands(root=str(tmp_path), seconds=0.02)
    assert source.classes == ("no", "yes")
    assert sizes(source) == {"pretrain": 7, "train": 7, "val": 2, "test": 1}
    assert names(source.split("val")) == ["no/00000003_nohash_0.wav", "yes/00000000_nohash_0.wav"]
    assert source.split("val").label.tolist() == [0, 1]
    assert disjoint(source)
    (folder / "testing_list.txt").write_text("yes/00000009_nohash_0.wav\n")
    with pytest.raises(RequestError, match=r"00000009.*missing.*speech_commands_v0.02"):
        SpeechCommands(root=str(tmp_path))


# -- what is looked at and compared with ---------------------------------------------------------------------------


def source_of(folder: Path) -> AudioFolder:
    for n in range(5):
        sound(folder / f"{n}.wav")
    return AudioFolder(root=str(folder), seconds=0.5)


def test_the_raw_baseline_is_mean_and_deviation_of_mel_bands_without_padding(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    torch.manual_seed(0)
    x, pad = torch.randn(2, 1, 8000), torch.arange(8000).expand(2, -1) >= torch.tensor([[8000], [3000]])
    found = source.raw({"x": x, "pad": pad})
    mel = LogMel(rate=16000, window=0.064, mels=40)({"x": x, "pad": pad})
    assert found.shape == (2, 80)
    for row in range(2):
        heard = mel["x"][row, 0][:, ~mel["pad"][row]]
        assert torch.allclose(found[row, :40], heard.mean(1), atol=1e-4)
        assert torch.allclose(found[row, 40:], heard.std(1, correction=0), atol=1e-4)
    again = source.raw({"x": x.masked_fill(pad[:, None], 5.0)[:, :, :3000], "pad": pad[:, :3000]})
    assert again.shape == (2, 80)
    seen = source.raw({"x": mel["x"], "pad": mel["pad"]})  # of a view that is a spectrogram already
    assert torch.allclose(seen, found, atol=1e-4)
    assert source.raw({"x": x[:, :, :100]}).shape == (2, 100)  # too short for a spectrogram


def test_what_an_objective_shows_can_be_heard(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    waves = [torch.from_numpy(tone(300, 1000))[None, None].repeat(2, 1, 1) * 3, torch.zeros(2, 1, 1000)]
    file = source.write(waves, tmp_path / "shown" / "denoised")
    assert file == tmp_path / "shown" / "denoised.wav"
    values, rate = soundfile.read(file)
    assert rate == 16000
    assert len(values) == 4 * (1000 + round(recordings.PAUSE * rate))
    assert np.abs(values[:1000]).max() == pytest.approx(0.9, abs=1e-3)
    assert np.abs(values[5800:6800]).max() == 0


def test_what_an_objective_shows_of_spectrograms_is_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    source = source_of(tmp_path)
    rising = torch.zeros(1, 1, 64, 96)
    rising[:, :, :4] = 3.0  # the lowest bands are the loudest
    file = source.write([rising, rising], tmp_path / "reconstruction")
    assert file == tmp_path / "reconstruction.png"
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] > pixels.shape[0]  # two columns, one row
    assert pixels[-4].mean() > 200
    assert pixels[10].mean() < 60
    assert source.write([torch.zeros(2, 7)], tmp_path / "x") is None
    assert source.write([torch.zeros(2, 3, 64, 64)], tmp_path / "x") is None


# -- a hostile folder through a run ----------------------------------------------------------------------------------

TINY = [
    *("views=byol_a", "data.seconds=0.1", "backbone=encoder", "backbone.depth=1", "backbone.stem.dim=8"),
    *("backbone.stem.block=[16,11]", "backbone.heads=2", "objective=byol", "objective.hidden=8", "objective.dim=4"),
    *("batch_size=8", "duration=4 steps", "precision=32", "log_every=1", "validate_every=2 steps", "workers=0"),
    *("views.first.log_mel.mels=16", "device=cpu", "evaluators=knn"),
]


def test_a_hostile_folder_is_pretrained_on_and_evaluated(
    ssl_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    root = tmp_path / "my recordings"
    for n in range(14):
        sound(
            root / "écrevisse" / f"日本 {n}.wav", n=50 + 700 * n, rate=(8000, 44100, 22050)[n % 3], channels=1 + n % 2
        )
        sound(root / "cat" / "deep" / f"{n}.FLAC", n=1 + 90 * n, format="FLAC")
    sound(root / "single" / "one.ogg", n=4000)
    (root / "cat" / "empty.wav").write_bytes(b"")
    (root / "cat" / "broken.mp3").write_bytes(b"ID3 and nothing more")
    (root / "cat" / "notes.txt").write_text("no recording")
    (root / "cat" / "gone.wav").symlink_to(root / "nothing.wav")
    soundfile.write(root / "cat" / "silent.wav", np.zeros(3000), 16000)
    soundfile.write(root / "cat" / "nan.wav", np.array([np.nan] * 400), 16000, subtype="FLOAT")
    given = [f"data.root={root}", "data=audio"]
    code, _, err = ssl_run("pretrain", *given, *TINY, "hydra.run.dir=r")
    assert code == 0, err
    assert "broken" in err
    scores = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert 0 <= scores["knn/accuracy"] <= 1
    assert 0 <= scores["knn/accuracy/raw"] <= 1
    code, _, err = ssl_run("evaluate", "from=r", "data.cache=no", "evaluators=knn", "hydra.run.dir=e")
    assert code == 0, err
    code, _, err = ssl_run("pretrain", *given, *TINY, "data.on_broken=stop", "data.cache=no", "hydra.run.dir=s")
    assert code == 1
    assert "can't be read" in err


def test_a_set_of_nothing_but_broken_files(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.wav").write_bytes(b"junk")
    with pytest.raises(RunError, match="none of the 4 samples can be read"):
        AudioFolder(root=str(tmp_path), seconds=0.1).split("train")


def test_files_read_from_memory_are_as_long_as_their_headers_say(tmp_path: Path) -> None:
    for n in range(5):
        sound(tmp_path / f"{n}.wav", n=300 + 7 * n, rate=44100)
    files = SoundFiles(str(tmp_path), [f"{n}.wav" for n in range(5)], 16000)
    before = [files.length(n) for n in range(5)]
    assert files.hold("stop").all()
    assert [files.length(n) for n in range(5)] == before
    assert [files.read(n, 10**6).shape[1] for n in range(5)] == before
