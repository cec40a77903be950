"""The small recipes on the data they are for, over three seeds: the bands of their contracts, and docs/recipes.md.

    python scripts/bands.py run DIR [RECIPE ...]     # what is not yet there
    python scripts/bands.py write DIR [RECIPE ...]   # the `contract:` of each recipe that has its three runs
    python scripts/bands.py table DIR > docs/recipes.md

A run is `ssl-run pretrain +task=RECIPE seed=SEED`, of those on images with evaluators=[knn] (their table is
docs/results.md). A recipe whose contract is of its finetuning is run to its end, and finetuned again from scratch:
`ssl-run run +task=RECIPE seed=SEED`, `ssl-run finetune from=RUN/pretrain untrained=true`. What is not embedded is
looked for in the folder that SSL_RUNNER_DATA names. The band reaches from the lowest score to the highest, and beyond
both by their distance or 0.02, whichever is more; but, if 0.02 is left, not beyond half of the way to the untrained.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path

from results import CONF, SEEDS, environment, on_images, run_all, small

SHOWN = (
    "likelihood/bits_per_byte",
    "tagging/accuracy",
    "linear/accuracy",
    "linear_10_per_class/accuracy",
    "knn/accuracy",
    "ranking/ndcg_10",
    "ranking/hr_10",
    "ranking_kept/ndcg_10",
    "regression/r2",
    "retrieval/to_second_recall_10",
    "zero_shot/accuracy",
    "bits/bits_per_id",
    "enhancement/si_sdr",
    "verification/eer",
    "finetune/cer",
    "finetune/wer",
)
"""The figures of the table, where a recipe's evaluators give them."""


LEAST = 0.02  # by which a band reaches beyond the scores
SCRATCH = "_from_scratch"  # behind a recipe's name, where that is finetuned untrained


def metric_of(recipe: str) -> str:
    stated = re.search(r"^contract: \{metric: ([\w/]+)", (CONF / f"{recipe}.yaml").read_text(), flags=re.M)
    return stated[1] if stated else "knn/accuracy"


def finetuned(recipe: str) -> bool:
    """Whether its figures are those of finetuning."""
    return metric_of(recipe).startswith("finetune/")


def measured(recipe: str, folder: Path) -> list[dict[str, float]] | None:
    """The figures of its three runs, None until all are there; of a finetuning, from scratch too, as `untrained`."""
    names = [recipe, f"{recipe}{SCRATCH}"] if finetuned(recipe) else [recipe]
    files = [[folder / name / str(seed) / "metrics.json" for name in names] for seed in SEEDS]
    if not all(file.is_file() for each in files for file in each):
        return None
    read = [[json.loads(file.read_text()) for file in each] for each in files]
    return [
        whole | {f"{key}/untrained": value for twin in twins for key, value in twin.items() if "finetune/" in key}
        for whole, *twins in read
    ]


def contract(recipe: str, folder: Path) -> str | None:
    found, metric = measured(recipe, folder), metric_of(recipe)
    if found is None:
        return None
    scores = sorted(metrics[metric] for metrics in found)
    margin = max(LEAST, scores[-1] - scores[0])
    low, high = scores[0] - margin, scores[-1] + margin
    if metric.endswith(("accuracy", "ndcg_10", "recall_10", "eer", "cer")):
        low, high = max(0.0, low), min(1.0, high)
    if f"{metric}/untrained" in found[0]:  # of which a contract has to tell what was trained
        untrained = statistics.mean(metrics[f"{metric}/untrained"] for metrics in found)
        if untrained < scores[0]:
            low = max(low, min((untrained + scores[0]) / 2, scores[0] - LEAST))
        elif untrained > scores[-1]:
            high = min(high, max((untrained + scores[-1]) / 2, scores[-1] + LEAST))
    seconds = statistics.median(metrics["time/seconds"] for metrics in found)
    measured_at = max((folder / recipe / str(seed) / "metrics.json").stat().st_mtime for seed in SEEDS)
    beside = [
        f"{name} {statistics.mean(metrics[key] for metrics in found):.3f}"
        for name in ("untrained", "raw")
        if (key := f"{metric}/{name}") in found[0] and (name == "untrained" or recipe not in on_images())
    ]
    return (
        f"contract: {{metric: {metric}, band: [{low:.3f}, {high:.3f}], budget: {seconds:.0f} s on one core,\n"
        f'           source: "{scores[0]:.3f} to {scores[-1]:.3f} over seeds 0, 1, 2 ({", ".join(beside)}), '
        f'2 cores of a Xeon, {time.strftime("%Y-%m-%d", time.localtime(measured_at))}"}}\n'
    )


def table(folder: Path) -> None:
    print("# Small recipes on other data than images, over three seeds\n")
    print(
        "Mean and standard deviation over seeds 0, 1 and 2 of `ssl-run pretrain +task=RECIPE`: what was pretrained,\n"
        "beside the same untrained and the raw input. The raw input's scores are those of bags of words, a 5-gram of\n"
        "bytes, each word's commonest tag, the items' popularity, the columns as they are, mel statistics, statistics\n"
        "of each channel, and of pixels and their changes. Higher is better, but for bits and error rates. Constants\n"
        "were chosen on validation data; where test scores were seen meanwhile, the recipe's header says so, and of\n"
        "bert and simcse those of seed 0 were.\n"
    )
    print("| recipe | figure | pretrained | untrained | raw | seconds |\n|---|---|---|---|---|---|")
    about, missing = {}, []
    for recipe in small():
        if recipe in on_images():
            continue
        found = measured(recipe, folder)
        if found is None:
            missing.append(recipe)
            continue
        about = environment(folder / recipe / "0")
        seconds = statistics.median(metrics["time/seconds"] for metrics in found)
        for figure in SHOWN:
            if figure in found[0]:
                cells = [_cell([m.get(f"{figure}{suffix}") for m in found]) for suffix in ("", "/untrained", "/raw")]
                print(f"| {recipe} | {figure} | {' | '.join(cells)} | {seconds:.0f} |")
    if missing:
        print(f"\nNot measured over three seeds: {', '.join(missing)}.")
    for recipe in small():
        told_by_name(recipe, measured(recipe, folder) or [])
        intervals(recipe, measured(recipe, folder) or [])
    print(
        f"\nMeasured {time.strftime('%Y-%m-%d')} on {about['cpu_cores']} cores of {about['processor']}, "
        f"torch {about['packages']['torch']}, one run on each core,\n"
        "beside other work for those of speech, video and pairs, whose seconds are too many. Those of ctc are of its\n"
        "finetuning alone, behind a pretraining of some 9 minutes; untrained it is finetuned alike.\n\n"
        "    SSL_RUNNER_DATA=DATA python scripts/bands.py run DIR\n"
        "    python scripts/bands.py table DIR > docs/recipes.md"
    )


def told_by_name(recipe: str, found: list[dict[str, float]]) -> None:
    """The share of each class that is told rightly without an example of any, where a recipe gives it."""
    shares = [key for key in (found or [{}])[0] if re.fullmatch(r"zero_shot/class/[^/]+", key)]
    if shares:
        print(f"\n{recipe}, classes told by their names alone: the share of the test part's that is told rightly\n")
        print("| class | pretrained | untrained | by chance |\n|---|---|---|---|")
        for key in shares:
            cells = [_cell([m.get(f"{key}{suffix}") for m in found]) for suffix in ("", "/untrained", "/raw")]
            print(f"| {key.rpartition('/')[2]} | {' | '.join(cells)} |")


def intervals(recipe: str, found: list[dict[str, float]]) -> None:
    """Each seed's figures that have a 95% interval, beside the same untrained."""
    figures = [figure for figure in SHOWN if f"{figure}_low" in (found or [{}])[0]]
    if not figures:
        return
    print(f"\n{recipe}, each seed with its 95% interval over the test part's samples\n")
    print("| figure | seed | pretrained | untrained |\n|---|---|---|---|")
    for figure in figures:
        for seed, metrics in zip(SEEDS, found, strict=True):
            cells = [
                "{:.3f} [{:.3f}, {:.3f}]".format(*(metrics[f"{figure}{bound}{end}"] for bound in ("", "_low", "_high")))
                for end in ("", "/untrained")
            ]
            print(f"| {figure} | {seed} | {' | '.join(cells)} |")


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = statistics.stdev(known)
    return f"{statistics.mean(known):.3f}" + (f" ± {spread:.3f}" if spread else "")


def write(method: str, text: str) -> None:
    path = CONF / f"{method}.yaml"
    found = re.sub(r"^contract:(.*\n)(^ .*\n)*", "", path.read_text(), flags=re.M)
    head, finetune, tail = found.partition("finetune:\n")
    path.write_text(head + text + finetune + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["run", "write", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipes", nargs="*", default=[])
    given = parser.parse_args()
    folder, chosen = given.folder.resolve(), given.recipes or small()
    if given.step == "table":
        table(folder)
    elif given.step == "run":
        images, whole = on_images(), [recipe for recipe in chosen if finetuned(recipe)]
        parts = [recipe for recipe in chosen if recipe not in whole]
        run_all(folder, {r: [f"+task={r}", *(["evaluators=[knn]"] if r in images else [])] for r in parts})
        run_all(folder, {r: [f"+task={r}"] for r in whole}, "run")
        scratch = {f"{r}{SCRATCH}": [f"from={folder}/{r}/SEED/pretrain", "untrained=true"] for r in whole}
        run_all(folder, scratch, "finetune")
    else:
        for recipe in chosen:
            text = contract(recipe, folder)
            if text is None:
                print(f"{recipe}: not measured")
            else:
                write(recipe, text)


if __name__ == "__main__":
    main()
