"""Runs of ssl-run as processes of their own, forked from one that has done its imports: each starts at once.

python -m tests.starter      reads a job a line, as JSON, and writes the process id of each; see `Starter`
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import environment


class Starter:
    """Starts runs. Use it as a context manager."""

    def __enter__(self) -> Starter:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.starter"],
            cwd=Path(__file__).parent.parent,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._told()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def size(self) -> int:
        """Bytes of memory that a run has asked for before it begins."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmSize:")))

    def start(self, *args: str, cwd: Path, limits: Mapping[str, int] | None = None, **env: str) -> Run:
        """limits: such as RLIMIT_FSIZE, in bytes."""
        number = len(list(cwd.glob("out.*")))
        out = cwd / f"out.{number}"
        job = {"args": args, "cwd": str(cwd), "env": env, "limits": limits or {}, "out": str(out)}
        return Run(self, self._ask(job), out)

    def run(self, *args: str, cwd: Path, limits: Mapping[str, int] | None = None, **env: str) -> tuple[int, str]:
        return self.start(*args, cwd=cwd, limits=limits, **env).wait()

    def _ask(self, job: object) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._told()

    def _told(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


class Run:
    """One run, by its process id."""

    def __init__(self, starter: Starter, pid: int, out: Path):
        self._starter, self.pid, self._out = starter, pid, out
        out.touch()  # it may be killed before it says anything

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def ended(self) -> bool:
        """Whether it is done, or dead and not yet waited for."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """(exit code, or minus the signal it died of; all that it said)"""
        until = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > until:
                self.send(signal.SIGKILL)
                raise AssertionError(f"did not end in {seconds} s: {self._out.read_text()}")
            time.sleep(0.01)
        return self._starter._ask(self.pid), self._out.read_text()


def _serve() -> None:
    import torch

    from ssl_runner import cli
    from ssl_runner.stages import STAGES  # Lightning and all

    assert STAGES
    torch.set_num_threads(1)
    print(0, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if isinstance(job, int):
            print(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        os.setsid()
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, size in job["limits"].items():
            resource.setrlimit(getattr(resource, name), (size, size))
        sys.argv = ["ssl-run", *job["args"]]
        code: Sequence[object] = (1,)
        try:
            cli.main()
        except SystemExit as stop:
            code = (stop.code or 0,)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(str(code[0])))


if __name__ == "__main__":
    _serve()
