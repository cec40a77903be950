"""Speech through the command line: pretraining, its second round, transcripts, and what can be heard of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from ssl_runner import kernels

Call = Callable[..., tuple[int, str, str]]
RATE, LETTERS = 1000, {"a": 60.0, "b": 140.0}

TINY = [
    "data=audio",
    f"data.rate={RATE}",
    "data.seconds=0.6",
    "data.val=0.25",
    "data.test=0.25",
    "batch_size=8",
    "duration=6 steps",
    "precision=32",
    "workers=0",
    "log_every=1",
    "validate_every=3 steps",
]
FRAMES = [
    "views=waveform",
    "backbone=encoder_frames",
    "backbone.depth=1",
    "backbone.heads=2",
    "backbone.stem.dim=16",
    "backbone.stem.width=8",
    "backbone.stem.kernels=[8,4]",
    "backbone.stem.strides=[4,2]",
    "backbone.stem.positions=4",
    "backbone.stem.groups=4",
]
WAV2VEC2 = ["objective=wav2vec2", "objective.span=3", "objective.codes=8", "objective.code_dim=8", "objective.dim=8"]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two folders, each with what one person says: a tone for each letter, in files of different lengths."""
    root, lines = tmp_path / "recordings", []
    random = np.random.RandomState(0)
    for person in ("one", "two"):
        (root / person).mkdir(parents=True)
        for n in range(16):
            said = "".join(random.choice(list(LETTERS), random.randint(1, 4)))
            pieces = []
            for letter in said:
                time = np.arange(140) / RATE
                pieces += [np.sin(2 * np.pi * LETTERS[letter] * time), np.zeros(50)]
            wave = np.concatenate(pieces) * 0.5 + 0.01 * random.randn(190 * len(said))
            soundfile.write(root / person / f"{n}.wav", wave.astype(np.float32), RATE)
            lines.append({"file": f"{person}/{n}.wav", "text": said})
    (root / "said.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return root


def scores(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_a_convolution_that_the_processor_gets_wrong_in_bf16_is_said_to_be_in_fp32(
    recordings: Path, ssl_run: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["pretrain", f"data.root={recordings}", *TINY, *FRAMES, *WAV2VEC2, "evaluators=none", "precision=bf16-mixed"]
    told = "note: backbone.stem.convolved: computed in fp32"
    monkeypatch.setattr(kernels, "wrong", lambda each: each.groups > 1)
    code, out, err = ssl_run(*args)
    assert code == 0, err
    assert told in out
    code, out, err = ssl_run(*args, "precision=32")
    assert code == 0, err
    assert told not in out


def test_wav2vec2_then_transcripts(recordings: Path, ssl_run: Call, tmp_path: Path) -> None:
    data = [f"data.root={recordings}", "data.transcripts=said.jsonl", *TINY]
    code, _, err = ssl_run(
        "pretrain", *data, *FRAMES, *WAV2VEC2, "evaluators=[knn,verification]", "hydra.run.dir=pretrained"
    )
    assert code == 0, err
    found = scores(tmp_path / "pretrained")
    assert {"verification/eer", "verification/eer/untrained", "verification/eer/raw"} <= set(found)
    told = ["finetune", "from=pretrained", "objective=ctc", "duration=4 steps", "batch_size=8", "precision=32"]
    code, _, err = ssl_run(*told, "hydra.run.dir=told")
    assert code == 0, err
    found = scores(tmp_path / "told")
    assert {"finetune/cer", "finetune/cer_low", "finetune/cer_high", "finetune/cer_beam"} <= set(found)
    kept = yaml.safe_load((tmp_path / "told" / "config.yaml").read_text(encoding="utf-8"))
    assert kept["objective"]["alphabet"] == ["", "a", "b"]
    code, _, err = ssl_run(*told, "untrained=true", "hydra.run.dir=scratch")
    assert code == 0, err
    alone = scores(tmp_path / "scratch")
    assert set(alone) == set(found)
    assert alone["train/loss"] != found["train/loss"], "it began with the same weights"


def test_data_without_transcripts_cannot_be_told(recordings: Path, ssl_run: Call) -> None:
    code, _, err = ssl_run("pretrain", f"data.root={recordings}", *TINY, *FRAMES, "objective=ctc", "evaluators=none")
    assert code != 0
    assert "alphabet" in err


def test_hubert_and_its_second_round(recordings: Path, ssl_run: Call, tmp_path: Path) -> None:
    hubert = ["objective=hubert", "objective.span=3", "objective.clusters=4", "objective.bank=40", "evaluators=none"]
    data = [f"data.root={recordings}", *TINY]
    code, _, err = ssl_run("pretrain", *data, *FRAMES, *hubert, "hydra.run.dir=first")
    assert code == 0, err
    assert scores(tmp_path / "first")["val/loss"] > 0  # the clusters were made
    again = ["objective.features=null", "objective.layer=1", "views=waveform", *TINY[5:]]
    code, _, err = ssl_run("pretrain", "from=first", *hubert, *again, "hydra.run.dir=second")
    assert code == 0, err
    assert scores(tmp_path / "second")["val/loss"] > 0


def test_what_a_language_model_makes_of_recordings_is_a_file_to_listen_to(
    recordings: Path, ssl_run: Call, tmp_path: Path
) -> None:
    small = ["backbone=encoder_ids", "backbone.depth=1", "backbone.heads=2", "backbone.stem.dim=16"]
    ids = ["views=mu_law", "backbone.stem.vocab=256", "backbone.stem.length=60", "objective.separator=null"]
    code, _, err = ssl_run(
        "pretrain",
        f"data.root={recordings}",
        *TINY,
        "data.seconds=0.06",
        *small,
        *ids,
        "objective=clm",
        "evaluators=bits",
        "hydra.run.dir=heard",
    )
    assert code == 0, err
    assert scores(tmp_path / "heard")["bits/bits_per_id"] > 0
    wave, rate = soundfile.read(tmp_path / "heard" / "shown" / "completion.wav")
    assert rate == RATE
    assert np.abs(wave).max() > 0.1


def test_enhancement_is_scored_beside_a_filter(recordings: Path, ssl_run: Call, tmp_path: Path) -> None:
    blocks = ["backbone=encoder", "backbone.depth=1", "backbone.heads=2", "backbone.stem.dim=16"]
    code, _, err = ssl_run(
        "pretrain",
        f"data.root={recordings}",
        *TINY,
        "views=waveform",
        *blocks,
        "backbone.stem.block=[10]",
        "objective=enhancement",
        "evaluators=enhancement",
        "hydra.run.dir=clean",
    )
    assert code == 0, err
    found = scores(tmp_path / "clean")
    assert found["enhancement/improvement/raw"] > 0
    assert found["enhancement/si_sdr/raw"] - found["enhancement/improvement/raw"] == pytest.approx(5.0, abs=1.5)
    assert (tmp_path / "clean" / "shown" / "enhanced.wav").is_file()
