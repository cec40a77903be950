"""`online=knn`: a score of the frozen backbone at every validation, to watch a pretraining by and to prune a search.

It is of the validation part, never of the test part, so that a choice may be made by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ssl_runner.datasets.base import Arrays, Ragged, Source
from ssl_runner.errors import RequestError, RunError
from ssl_runner.evaluators.knn import votes
from ssl_runner.seeds import derive
from ssl_runner.types import seen_by

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from ssl_runner.data import DataModule
    from ssl_runner.learner import Learner


class Neighbours:
    """val/knn: the share of samples of the validation part that their neighbours in the train part class right, as
    ``ssl_runner.evaluators.knn`` does it.

    k: neighbours that vote. temperature: tau, the scale of similarity in a vote's weight.
    samples: of each part, at most; always the same, whatever the run's seed.

    Features are undisturbed samples' in evaluation mode, with the averaged weights where these are kept. Training goes
    on as if it had not been: it draws nothing from the run's random numbers, and changes no statistic.
    """

    metric: ClassVar[str] = "val/knn"

    def __init__(
        self,
        *,
        k: Annotated[int, Ge(1)] = 20,
        temperature: Annotated[float, Gt(0)] = 0.07,
        samples: Annotated[int, Ge(1)] = 2048,
    ):
        self.k, self.temperature, self.samples = k, temperature, samples

    def check(self, source: Source) -> None:
        """Raises RequestError where this data can't be scored so. Asked before training."""
        if source.valued or not source.classes:
            raise RequestError(
                f"online: needs samples with a class each, and this data has "
                f"{'values' if source.valued else 'none'}; use online=none"
            )
        for part in ("train", "val"):
            dataset = source.split(part)
            if not len(dataset):
                raise RequestError(f"online: the {part} part is empty: give the data one, e.g. data.{part}=0.1")
            if dataset.label is None:
                raise RequestError(f"online: the {part} part has no labels; use online=none")

    @torch.no_grad()
    def __call__(self, learner: Learner, data: DataModule, context: Any) -> float:
        """context: that in which the forward pass runs, of its precision. Every rank scores all the samples: none waits
        for another one, and a backbone that is in pieces on all of them can be called. All is in
        evaluation mode at a validation: Lightning puts it there, and back."""
        with learner.averaged(), torch.random.fork_rng(devices=[]), context:
            bank, bank_label = self._features(learner.objective.backbone, data, "train")
            query, label = self._features(learner.objective.backbone, data, "val")
        if not (bank.isfinite().all() and query.isfinite().all()):
            raise RunError("online: features are NaN or infinite; the backbone has diverged")
        found = votes(query, bank, bank_label, data.num_classes, self.k, self.temperature).argmax(1)
        return (found == label).float().mean().item()

    def _features(self, backbone: Any, data: DataModule, part: Literal["train", "val"]) -> tuple[Tensor, Tensor]:
        dataset = chosen(data.source.split(part), self.samples)
        rows, labels = [], []
        for view, samples in data.plain(dataset):
            rows.append(backbone(**seen_by(backbone, view)).float())
            labels.append(samples["label"].to(rows[-1].device))
        return torch.cat(rows), torch.cat(labels)

    def callback(self) -> pl.Callback:
        import pytorch_lightning as pl

        score = self

        class Online(pl.Callback):
            """Adds the score to the validation's figures."""

            def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
                data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
                data.device = trainer.strategy.root_device
                found = {score.metric: score(pl_module, data, trainer.precision_plugin.forward_context())}
                pl_module.val_metrics |= found
                pl_module.record(found)

        return Online()


def chosen(dataset: Arrays | Ragged, count: int) -> Arrays | Ragged:
    """A fixed random choice of a dataset's samples; all of them where there are no more."""
    if len(dataset) <= count:
        return dataset
    generator = torch.Generator().manual_seed(derive(0, "online", len(dataset)))
    keep = torch.randperm(len(dataset), generator=generator)[:count].sort().values
    return dataset.part(keep)
