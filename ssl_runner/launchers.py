"""Where the jobs of a sweep run. Whatever the place, a job is the process `ssl-run resume FOLDER`: one that is killed
takes no other with it, and the ranks that it starts repeat its own command, not the sweep's.

joblib, submitit and Ray are imported when they are used.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt

from ssl_runner.errors import RequestError

Item = TypeVar("Item")
ATTENDED = "SSL_RUNNER_ATTENDED"
"""Set for a process whose standard input is held open by the one that waits for it."""
OUTPUT = "output.txt"
"""In a job's folder, what it printed, where several jobs run at the same time."""


class Launcher:
    """jobs: how many run at the same time."""

    def __init__(self, jobs: int):
        self.jobs = jobs

    def run(self, arguments: Sequence[str], folder: Path) -> int:
        """Runs `ssl-run` with these arguments to its end and gives its exit code, below 0 for a signal. Called in a
        thread of its own where several run."""
        raise NotImplementedError

    def stop(self) -> None:
        """Has all that runs save and end, and waits for it."""

    def each(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Works on all items, `jobs` of them at a time. An item is drawn when there is room for it, and no sooner: a
        search proposes by all that is known."""
        from joblib import Parallel, delayed

        left, drawing = iter(items), threading.Lock()
        failures: list[BaseException] = []

        def worker() -> None:
            while not failures:
                try:
                    with drawing:
                        item = next(left)
                    work(item)
                except StopIteration:
                    return
                except Exception as error:  # joblib would raise it while the other threads go on: raised below
                    failures.append(error)

        try:
            Parallel(n_jobs=self.jobs, backend="threading")(delayed(worker)() for _ in range(self.jobs))
        except BaseException:
            self.stop()
            raise
        if failures:
            raise failures[0]


class Inline(Launcher):
    """One after another in the sweep's own process, without the seconds in which a process starts. A job that is killed
    ends the sweep, and a job can't have several ranks."""

    def __init__(self) -> None:
        super().__init__(1)

    def run(self, arguments: Sequence[str], folder: Path) -> int:
        from ssl_runner import cli

        before, sys.argv = sys.argv, ["ssl-run", *arguments]
        try:
            return cli.dispatch(sys.argv)
        except Exception as error:
            return cli.failed(error)
        finally:
            sys.argv = before


class Joblib(Launcher):
    """Processes on this machine. jobs: at the same time; -1: as many as it has cores."""

    def __init__(self, *, jobs: Annotated[int, Ge(-1)] = 1):
        from joblib import effective_n_jobs

        if jobs == 0:
            raise RequestError("launcher.jobs=0: give a number of jobs at the same time, or -1 for all cores")
        super().__init__(effective_n_jobs(jobs))
        self._running: set[Process] = set()

    def run(self, arguments: Sequence[str], folder: Path) -> int:
        process = Process(arguments, folder / OUTPUT if self.jobs > 1 else None)
        self._running.add(process)
        try:
            return process()
        finally:
            self._running.discard(process)

    def stop(self) -> None:
        running = list(self._running)
        for process in running:
            process.stop()
        for process in running:
            process.wait()


class Submitit(Launcher):
    """Batch jobs on a SLURM cluster, through submitit. The sweep waits for them, so it is best started within tmux or
    as a small job of its own; when it is killed they go on, and the same command again waits for those that still run.

    cluster: `local` runs them on this machine, as a rehearsal. jobs: in the queue at the same time.
    partition, account: SLURM's. nodes, gpus (of each node; a rank each), cpus (of each rank), memory (GB of each node).
    hours: after which a job is stopped. requeue: how often it is then begun again from its checkpoint.
    options: any other option of sbatch by its name, e.g. {constraint: a100}.
    """

    def __init__(
        self,
        *,
        cluster: Literal["slurm", "local"] = "slurm",
        jobs: Annotated[int, Gt(0)] = 64,
        partition: str | None = None,
        account: str | None = None,
        nodes: Annotated[int, Gt(0)] = 1,
        gpus: Annotated[int, Ge(0)] = 0,
        cpus: Annotated[int, Gt(0)] = 1,
        memory: Annotated[float, Gt(0)] | None = None,
        hours: Annotated[float, Gt(0)] = 24.0,
        requeue: Annotated[int, Ge(0)] = 3,
        options: dict[str, str | int] | None = None,
    ):
        super().__init__(jobs)
        _installed("submitit", "slurm")
        self.cluster, self.requeue = cluster, requeue
        self.parameters: dict[str, Any] = {
            "name": "ssl-run",
            "nodes": nodes,
            "tasks_per_node": max(1, gpus),
            "gpus_per_node": gpus,
            "cpus_per_task": cpus,
            "timeout_min": round(60 * hours),
        }
        if memory is not None:
            self.parameters["mem_gb"] = memory
        if cluster == "slurm":
            own = {"partition": partition, "account": account, "additional_parameters": options}
            self.parameters |= {f"slurm_{key}": value for key, value in own.items() if value is not None}
        self._running: set[Any] = set()

    def run(self, arguments: Sequence[str], folder: Path) -> int:
        job = self.executor(folder).submit(Process(arguments, None))
        self._running.add(job)
        try:
            return max(job.results(), key=abs)
        except Exception as error:  # submitit's own words for a job that ended without a result
            print(f"{folder}: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
            return -signal.SIGKILL
        finally:
            self._running.discard(job)

    def executor(self, folder: Path) -> Any:
        """submitit's, writing its logs into the job's folder."""
        import submitit

        times = {"slurm_max_num_timeout": self.requeue} if self.cluster == "slurm" else {}
        executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=self.cluster, **times)
        executor.update_parameters(**self.parameters)
        return executor

    def stop(self) -> None:
        for job in list(self._running):
            job.cancel(check=False)


class Ray(Launcher):
    """Tasks on a Ray cluster whose machines share this folder.

    address: the cluster's, such as `auto` or ray://host:10001; null: this machine alone.
    jobs: submitted at the same time. cpus, gpus: that Ray keeps for each.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        jobs: Annotated[int, Gt(0)] = 64,
        cpus: Annotated[float, Gt(0)] = 1.0,
        gpus: Annotated[float, Ge(0)] = 0.0,
    ):
        super().__init__(jobs)
        _installed("ray", "ray")
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self._starting = threading.Lock()
        self._running: set[Any] = set()

    def run(self, arguments: Sequence[str], folder: Path) -> int:
        import ray

        with self._starting:
            if not ray.is_initialized():
                ray.init(address=self.address, include_dashboard=False, log_to_driver=False)
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(_call)
        reference = task.remote(Process(arguments, folder / OUTPUT))
        self._running.add(reference)
        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:  # the machine or its worker is gone
            print(f"{folder}: {str(error).strip().splitlines()[0]}", file=sys.stderr)
            return -signal.SIGKILL
        finally:
            self._running.discard(reference)

    def stop(self) -> None:
        import ray

        for reference in list(self._running):
            ray.cancel(reference)
        ray.shutdown()


class Process:
    """`ssl-run` with these arguments, in this folder, wherever it is called. It ends with the process that waits for
    it, after it has saved.

    output: a file for what it prints; None: where the caller prints.
    """

    def __init__(self, arguments: Sequence[str], output: Path | None):
        self.arguments, self.output, self.cwd = list(arguments), output, os.getcwd()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        with contextlib.ExitStack() as stack:
            out = None if self.output is None else stack.enter_context(open(self.output, "ab"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ssl_runner.cli", *self.arguments],
                cwd=self.cwd,
                env={**os.environ, ATTENDED: "1"},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=None if out is None else subprocess.STDOUT,
            )
            return self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def checkpoint(self) -> Any:
        """submitit's question, when a batch job's time is up, for what is to be queued again."""
        import submitit

        self.stop()
        self.wait()
        return submitit.helpers.DelayedSubmission(Process(self.arguments, self.output))


def attend() -> None:
    """In a process that a launcher started: ends it, saved, when the one that waits for it is gone."""
    if os.environ.pop(ATTENDED, None) is None:
        return

    def watch() -> None:
        os.read(0, 1)  # nothing is ever written: this returns when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _call(process: Process) -> int:
    return process()


def _installed(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise RequestError(f"launcher: {package} is not installed; pip install 'ssl-runner[{extra}]'")
