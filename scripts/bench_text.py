"""Masked language modelling by this runner against transformers' own Trainer, step for step.

    python scripts/bench_text.py [--width 256 --depth 4 --heads 4] [--vocab 30000 --length 128 --batch 32] [--dropout 0]

Three processes train a BERT of the same size on the same ids, in turns of a few steps: the runner with its own encoder,
the runner with transformers' BERT as backbone, and transformers' Trainer with its collator for masked language
modelling, bf16 as here and everything else as it comes. Prints tokens a second, the ratios turn by turn, and the
most memory that each process held. Needs the package accelerate, which the Trainer asks for.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

CONTENDERS = {"encoder": "runner, its own encoder", "bert": "runner, transformers' BERT", "trainer": "Trainer"}
SAMPLES = 512
PAD, SEPARATOR, MASK, USUAL = 0, 1, 2, 3  # ids from USUAL up are words


class Turns:
    """A training loop's side of the bargain: some steps whenever it is told to, and how long they took."""

    def __init__(self, steps: int, warm: int):
        self.left, self.steps, self.warm = warm, steps, True
        self.before = _peak()
        self.started = time.perf_counter()

    def step(self) -> bool:
        """Called behind each step; True when that was the last."""
        self.left -= 1
        if self.left:
            return False
        _say({"ready": True} if self.warm else {"seconds": time.perf_counter() - self.started})
        self.warm = False
        if not sys.stdin.readline().strip():
            _say({"peak": _peak(), "before": self.before})
            return True
        self.left, self.started = self.steps, time.perf_counter()
        return False


def _say(what: dict[str, Any]) -> None:
    print("@" + json.dumps(what), flush=True)


def _peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ids(args: argparse.Namespace) -> torch.Tensor:
    """(N, L): words as rare as words are, and a document's end now and then."""
    drawn = torch.Generator().manual_seed(0)
    share = 1 / torch.arange(1, args.vocab - USUAL + 1).float()
    found = USUAL + torch.multinomial(share, SAMPLES * args.length, replacement=True, generator=drawn)
    found[torch.rand(found.shape, generator=drawn) < 0.005] = SEPARATOR
    return found.view(SAMPLES, args.length)


def bert(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "hidden_size": args.width,
        "num_hidden_layers": args.depth,
        "num_attention_heads": args.heads,
        "intermediate_size": 4 * args.width,
        "max_position_embeddings": args.length,
        "hidden_dropout_prob": args.dropout,
        "attention_probs_dropout_prob": args.dropout,
    }


# -- the runner --------------------------------------------------------------------------------------------------


def run_ours(args: argparse.Namespace) -> None:
    import pytorch_lightning as pl
    from hydra import compose, initialize_config_module

    from ssl_runner import build, cli, devices, stages
    from ssl_runner.callbacks import Checkpoints, Display, TableLogger
    from ssl_runner.config import plain
    from ssl_runner.data import DataModule
    from ssl_runner.datasets.base import Arrays, Source
    from ssl_runner.durations import Clock
    from ssl_runner.learner import Learner
    from ssl_runner.loggers import Table

    class Made(Source):
        labelled = False

        def __init__(self) -> None:
            self.arrays = Arrays(ids(args).int())
            self.facts = {"shape": (args.length,), "size": args.length, "vocab": args.vocab, "length": args.length}
            self.facts |= {"mask": MASK, "special": (PAD, MASK), "separator": SEPARATOR, "num_classes": 0}

        def split(self, name: str) -> Arrays:
            return self.arrays

    class Told(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, learner: Any) -> None:
            self.turns = Turns(args.steps, args.warm)

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if self.turns.step():
                trainer.should_stop = True

    model = [f"backbone.depth={args.depth}", f"backbone.heads={args.heads}", f"backbone.dropout={args.dropout}"]
    model = ["backbone=encoder_ids", f"backbone.stem.dim={args.width}", *model]
    if args.contender == "bert":
        model = [
            "backbone=hf",
            "backbone.name=bert",
            f"+backbone.config={bert(args)}".replace("'", "").replace(" ", ""),
        ]
    total = args.warm + args.steps * (args.rounds + 1)
    given = ["objective=mlm", "views=ids", "optim=adamw", "clip=1.0", f"batch_size={args.batch}", *model]
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        said = cli._rewritten("pretrain", [*given, "evaluators=none", "data=brown", f"duration={total} steps"])
        config = plain(compose("pretrain", [*said, "++name=bench"]))
    source = Made()
    config |= {group: build.fill(config[group], source.facts) for group in ("views", "backbone", "objective")}
    parts = build.assemble(source, config)
    precision, _ = devices.precision("auto", "cpu")
    devices.tune_allocator()
    clock = Clock(SAMPLES, args.batch, config["duration"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = stages.trainer_for(
            config,
            Path(folder),
            accelerator="cpu",
            precision=precision,
            validate_every=clock.total,
            loggers=[TableLogger(Table(Path(folder) / "metrics.csv"))],
            callbacks=[
                Told(),
                Display("bench"),
                Checkpoints(Path(folder), every=clock.total + 1, monitor="-val/loss", config=config),
            ],
        )
        optim, schedule = build.make(config["optim"]), build.make(config["schedule"])
        learner = Learner(parts.objective, parts.views, optim=optim, schedule=schedule, clock=clock, seed=0)
        data = DataModule(
            source,
            parts.views,
            split="pretrain",
            plain_val=False,
            per_rank=args.batch,
            batches=clock.total,
            seed=0,
        )
        trainer.limit_val_batches = 0
        trainer.fit(learner, data)


# -- transformers ------------------------------------------------------------------------------------------------


def run_trainer(args: argparse.Namespace) -> None:
    import transformers
    from tokenizers import Tokenizer, models

    from ssl_runner import devices

    class Told(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.turns = Turns(args.steps, args.warm)

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            control.should_training_stop = self.turns.step()

    special = {"pad_token": "[PAD]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    words = {token: n for n, token in enumerate([*special.values(), *(f"w{n}" for n in range(USUAL, args.vocab))])}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)), **special)
    rows = ids(args)
    data = [
        {"input_ids": row, "special_tokens_mask": [int(i < USUAL) for i in row], "attention_mask": [1] * len(row)}
        for row in rows.tolist()
    ]
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=args.vocab, **bert(args)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=args.batch,
                max_steps=args.warm + args.steps * (args.rounds + 1),
                bf16=devices.precision("auto", "cpu")[0] == "bf16-mixed",
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            data_collator=transformers.DataCollatorForLanguageModeling(tokenizer),
            train_dataset=data,
            callbacks=[Told()],
        )
        trainer.train()


# -- the three of them -------------------------------------------------------------------------------------------


class Process:
    """A contender in a process of its own."""

    def __init__(self, name: str, argv: list[str]):
        command = [sys.executable, __file__, *argv, "--contender", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"{self.process.args} ended early")

    def tell(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.hear()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"width": 256, "depth": 4, "heads": 4, "vocab": 30000, "length": 128, "batch": 32}
    for name, value in {**sizes, "steps": 2, "rounds": 8, "warm": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.contender:
        return run_trainer(args) if args.contender == "trainer" else run_ours(args)
    running = {name: Process(name, argv) for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(args.rounds):
        for name, process in running.items():
            seconds[name].append(process.tell("go")["seconds"])
    held = {name: process.tell("") for name, process in running.items()}
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {vars(args)}")
    tokens = args.steps * args.batch * args.length
    for name, what in CONTENDERS.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds["trainer"], seconds[name], strict=True)]
        print(
            f"{what:28} {tokens / statistics.median(seconds[name]):8.0f} tokens/s, {statistics.median(ratios):.2f} "
            f"times the Trainer's ({min(ratios):.2f} to {max(ratios):.2f}); peak {held[name]['peak']:.0f} MiB, "
            f"{held[name]['peak'] - held[name]['before']:.0f} of them for training"
        )
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
