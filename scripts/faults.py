"""Puts known faults into a copy of the project, one at a time, and shows which test sees each.

    python scripts/faults.py                            all of them
    python scripts/faults.py 1 18                       those of promises 1 and 18
    python scripts/faults.py --jobs 4 --write docs/correctness.md

Each fault is a small replacement in one file or a few, and comes with the tests that must fail by it. They run in the
copy, in a process of their own that starts with torch already imported. A fault is caught when a test fails, not when
the code or the tests can no longer be imported. Exit status 1: a fault was survived, or its text was not found.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from known_faults import ABSENT, PROMISES
from known_faults.fault import Fault

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 400  # seconds for the tests of one fault
BROKEN = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "AttributeError")
"""Not what a fault should fail by: the replacement itself is wrong."""

# -- running -----------------------------------------------------------------------------------------------------


def copied(folder: Path) -> None:
    """The project as it is in this checkout, importable from `folder`."""
    for name in ("ssl_runner", "hydra_plugins", "conf", "tests", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, folder / path.name)
    (folder / "ssl_runner" / "conf").symlink_to("../conf")


def misplaced(folder: Path, one: Fault) -> list[str]:
    """What is wrong with the texts to replace: each must be there exactly once."""
    counts = [(file, old, (folder / file).read_text().count(old)) for file, old, _ in one.edits]
    return [f"{one.what}: {file} has {n} times, not once, {old!r}" for file, old, n in counts if n != 1]


@contextlib.contextmanager
def faulty(folder: Path, one: Fault) -> Iterator[None]:
    """Within it the copy has the fault."""
    before = {file: (folder / file).read_text() for file, _, _ in one.edits}
    texts = dict(before)
    for file, old, new in one.edits:
        texts[file] = texts[file].replace(old, new)
    try:
        for file, text in texts.items():
            (folder / file).write_text(text)
        yield
    finally:
        for file, text in before.items():
            (folder / file).write_text(text)


@contextlib.contextmanager
def only(folder: Path, tests: tuple[str, ...]) -> Iterator[None]:
    """Within it the copy has the objectives that the contract is asked about alone, since its ranks train all."""
    cases = [re.search(r"(?:test_contract|test_strategies).*\[(\w+)-", test) for test in tests]
    wanted = {found[1] for found in cases if found}
    aside = [p for p in (folder / "conf/objective").glob("*.yaml") if wanted and p.stem not in wanted]
    for path in aside:
        path.rename(path.with_suffix(".aside"))
    try:
        yield
    finally:
        for path in aside:
            path.with_suffix(".aside").rename(path)


def run(folder: Path, tests: tuple[str, ...], seconds: int, *options: str) -> tuple[int, str]:
    """pytest's exit code (or minus a signal) and what it printed. In a fork, which need not import torch again."""
    log = folder / "log.txt"
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.alarm(seconds)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        code = 3
        try:
            code = int(_pytest(tests, options))
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a killed test has left behind
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def _pytest(tests: tuple[str, ...], options: tuple[str, ...]) -> int:
    import pytest
    import torch

    # ranks are forks as well
    torch.multiprocessing.spawn = partial(torch.multiprocessing.start_processes, start_method="fork")
    nodes = [f"tests/{test}" for test in tests]
    return pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", *options, *nodes])


def seen(code: int, text: str) -> tuple[str, str]:
    """(the test that caught the fault, why it failed), or ("", what happened instead)."""
    failed = re.search(r"^FAILED tests/(\S+?(?:\[.*?\])?)(?: - (.*))?$", text, re.MULTILINE)
    if code == 0:
        return "", "SURVIVED"
    if code != 1 or not failed:
        return "", f"pytest ended with {code}: {' '.join(text.splitlines()[-2:])}"
    reason = failed[2] or ""
    if reason.startswith(BROKEN):
        return "", f"the fault breaks the code: {reason}"
    return failed[1], reason


def machine() -> str:
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("promises", nargs="*", type=int, help="numbers; all, if none is given")
    parser.add_argument("--write", type=Path, help="write the page of what was shown; takes all promises")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--match", default="", help="only faults whose words hold this text")
    options = parser.parse_args()
    chosen = {n: p for n, p in PROMISES.items() if not options.promises or n in options.promises}
    if options.write and len(chosen) < len(PROMISES):
        parser.error("--write needs all promises")
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    sys.dont_write_bytecode = True
    preload()
    caught: dict[Fault, str] = {}
    with tempfile.TemporaryDirectory(prefix="faults_") as temporary:
        folder = Path(temporary) / "whole"
        copied(folder)
        faults = [(n, f) for n, promise in chosen.items() for f in promise.faults if options.match in f.what]
        stale = [text for _, f in faults for text in misplaced(folder, f)]
        if stale:
            print("\n".join(stale))
            return 1
        tests = tuple(dict.fromkeys(test for _, f in faults for test in f.tests))
        code, text = run(folder, tests, len(tests) * TIMEOUT)
        if code != 0:
            print(text[-6000:])
            print("the tests do not pass as the project is; nothing was put in")
            return 1
        print(f"{len(faults)} faults, {len(tests)} tests, which pass as the project is", flush=True)
        with ProcessPoolExecutor(options.jobs, get_context("fork"), prepare, (folder,)) as pool:
            results = pool.map(attempt, [each for _, each in faults])
            for (number, each), (test, why) in zip(faults, results, strict=True):
                print(f"{number:3} | {each.what} | {test or why.upper()}", flush=True)
                if test:
                    caught[each] = test
    print(f"{len(caught)} of {len(faults)} caught")
    if len(caught) < len(faults):
        return 1
    if options.write:
        options.write.parent.mkdir(exist_ok=True)
        options.write.write_text(page(caught))
    return 0


mine = Path()  # the copy that this process puts faults into


def prepare(whole: Path) -> None:
    global mine
    mine = whole.with_name(str(os.getpid()))
    shutil.copytree(whole, mine, symlinks=True)


def attempt(one: Fault) -> tuple[str, str]:
    with faulty(mine, one), only(mine, one.tests):
        return seen(*run(mine, one.tests, TIMEOUT, "-x"))


def preload() -> None:
    """What the tests import, but for the project itself: every fork then has it."""
    for name in ("torch", "pytest", "hypothesis", "hydra", "pydantic", "yaml", "safetensors.torch", "timm"):
        __import__(name)
    for name in ("torchvision.transforms.v2", "torchmetrics.functional.classification", "pytorch_lightning"):
        __import__(name)


# -- the page ----------------------------------------------------------------------------------------------------


def page(caught: dict[Fault, str]) -> str:
    """docs/correctness.md, from what a run has shown."""
    lines = [
        "# What is promised, and which test holds it",
        "",
        "Each promise below answers a fault that other implementations had or that a paper's successors found. For",
        "each, faults were put into a copy of the project, one at a time, and a test failed. The page is written by",
        "",
        "    python scripts/faults.py --write docs/correctness.md",
        "",
        f"and shows its run of {date.today()} on {machine()}: {len(caught)} faults, all caught.",
        "Numbers that are left out, and the list at the end, are of what is not in the project yet.",
        "",
    ]
    for number, promise in PROMISES.items():
        lines += [f"## {number}. {promise.title}", "", "| fault put in | in | caught by |", "|---|---|---|"]
        for each in promise.faults:
            files = ", ".join(dict.fromkeys(f"`{file.removeprefix('ssl_runner/')}`" for file, _, _ in each.edits))
            test = re.sub(r"\[.*\]$", "", caught[each]).replace("::", "`, `")
            lines.append(f"| {each.what} | {files} | `{test}` |")
        lines.append("")
    lines += ["## Not in the project yet", "", *(f"- {number}. {text}" for number, text in ABSENT.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
