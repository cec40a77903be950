"""Where metrics go while training. metrics.csv is always written; the rest is a choice of the `logger` group."""

from __future__ import annotations

import csv
import io
import os
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ssl_runner import runs
from ssl_runner.errors import RequestError

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


HOST = "https://api.wandb.ai"


class Table:
    """metrics.csv: one row per logged step, one column per metric, empty where a metric was not logged.

    Rows are appended. A metric that was not seen before adds a column, for which the file is rewritten.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.columns = ["step"]
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.rows = [dict(row) for row in reader]
                self.columns = list(reader.fieldnames or ["step"])

    def keep(self, rows: int) -> None:
        """Forgets what a resumed run is about to log again, and half a line of one that was killed."""
        self.rows = self.rows[:rows]
        self._rewrite()

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        row = {"step": step, **metrics}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        self.columns += new
        if new or len(self.rows) == 1:
            self._rewrite()
        else:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        runs.write(self.path, text.getvalue())


class TensorBoard:
    """TensorBoard event files in the run folder."""

    def make(self, folder: Path, name: str, config: Mapping[str, Any]) -> Logger:
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise RequestError("logger=tensorboard: tensorboard is not installed; pip install tensorboard")
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(save_dir=folder, name="", version="tensorboard")


class Wandb:
    """Weights & Biases; offline when there is no key, never a prompt. A resumed run goes on under its id."""

    def __init__(self, *, project: str = "ssl-runner", entity: str | None = None, tags: list[str] | None = None):
        self.project, self.entity, self.tags = project, entity, tags

    def make(self, folder: Path, name: str, config: Mapping[str, Any]) -> Logger:
        if find_spec("wandb") is None:
            raise RequestError("logger=wandb: wandb is not installed; pip install wandb")
        from pytorch_lightning.loggers import WandbLogger

        stored = folder / "wandb_id.txt"
        if runs.is_main() and not stored.is_file():
            runs.write(stored, os.urandom(4).hex())
        offline = not _has_key()
        if not offline and runs.is_main() and (why := unreachable(os.environ.get("WANDB_BASE_URL", HOST))) is not None:
            print(f"note: logger=wandb: {why}; it writes below {folder / 'wandb'}, for `wandb sync` later", flush=True)
            offline = True
        return WandbLogger(
            save_dir=folder,
            name=name,
            id=stored.read_text().strip() if runs.is_main() else None,
            project=self.project,
            entity=self.entity,
            tags=self.tags,
            config=dict(config),
            offline=offline,
            resume="allow",
        )


def unreachable(address: str) -> str | None:
    """Why a server can't be reached; None where it can. The wandb package would wait for it for minutes and give up."""
    found = urlsplit(address)
    try:
        port = found.port or (443 if found.scheme == "https" else 80)
        socket.create_connection((found.hostname or "", port), timeout=10).close()
    except (OSError, ValueError) as error:
        return f"{address} can't be reached ({error})"
    return None


def _has_key() -> bool:
    if os.environ.get("WANDB_MODE") == "offline":
        return False
    netrc = Path.home() / ".netrc"
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore"))
