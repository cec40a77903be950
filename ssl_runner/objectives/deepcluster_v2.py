"""DeepCluster-v2: the clustering baseline of SwAV's paper, an improved DeepCluster.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, NeurIPS 2020. https://arxiv.org/abs/2006.09882
Caron, Bojanowski, Joulin, Douze, DeepCluster, ECCV 2018. https://arxiv.org/abs/1807.05520
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.parts.gather import gather, world_size
from ssl_runner.parts.heads import mlp
from ssl_runner.parts.kmeans import spherical_kmeans
from ssl_runner.parts.multicrop import embed_together
from ssl_runner.parts.patches import masked_mean
from ssl_runner.parts.prototypes import share_used, similarity
from ssl_runner.types import Backbone, Batch, Loss, Objective, View

Width = Annotated[int, Gt(0)]
NONE = -1  # a sample that has no cluster yet


class DeepClusterV2(Objective):
    """SwAV's appendix on DeepCluster-v2: from each view, predict the cluster of the sample's embedding of last epoch.

    samples: how many the pretraining part has.
    large: the first so many views are the large crops, whose embeddings are kept in the bank; all views predict.
    hidden, dim: widths of the head's hidden layer and output. temperature: of the softmax over the prototypes.
    sets, prototypes: so many clusterings, of so many clusters each; they cluster the large crops' banks in turn.
    iterations: of k-means.

    An epoch is over when the next batch, of all ranks, would run beyond `samples` of them. Then, before that batch,
    spherical k-means on the bank sets prototypes and assignments anew; no gradient moves them. The first epoch only
    fills the bank: its loss is 0, with gradients of 0, so that it learns nothing, as the authors' pass over the data
    before training. A sample that the bank has not met yet adds nothing to the loss.

    In evaluation mode samples are others, which have no place in the bank: their clusters are the prototypes that
    are nearest to their large crops.

    The bank takes large x samples x dim numbers on each rank and in each checkpoint (1.3 GB for ImageNet).
    Raises RequestError for fewer samples than prototypes, and for fewer views than `large`.
    """

    bank: Tensor
    prototypes: Tensor
    assignments: Tensor
    met: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        samples: Width,
        large: Width = 2,
        hidden: Width = 2048,
        dim: Width = 128,
        sets: Width = 3,
        prototypes: Width = 3000,
        temperature: Annotated[float, Gt(0)] = 0.1,
        iterations: Width = 10,
    ):
        super().__init__()
        if prototypes > samples:
            raise RequestError(
                f"objective.prototypes={prototypes}: more clusters than the {samples} samples there are to cluster; "
                "give fewer"
            )
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, dim])
        self.large, self.temperature, self.iterations = large, temperature, iterations
        self.register_buffer("bank", torch.zeros(large, samples, dim))  # rows of 0: not met yet
        self.register_buffer("prototypes", F.normalize(torch.randn(sets, prototypes, dim), dim=2))
        self.register_buffer("assignments", torch.full((sets, samples), NONE))
        self.register_buffer("met", torch.zeros((), dtype=torch.int64))  # samples of this epoch so far
        self._met: int | None = 0  # the same number on the host, for asking the device makes it wait
        self.register_load_state_dict_post_hook(_ask_again)

    def forward(self, batch: Batch) -> Loss:
        views, index = batch["views"], batch["index"]
        if len(views) < self.large:
            raise RequestError(f"views: DeepClusterV2 needs {self.large} or more, large ones first, got {len(views)}")
        if self.training and self._epoch_is_over(len(index) * world_size()):
            self._cluster()
        z = self.project(views)
        scores = [similarity(z, c) for c in self.prototypes]  # (V, B, K) each
        targets = self.assignments[:, index] if self.training else self._nearest(scores)
        if self.training:
            self._remember(z, index)
        used = torch.stack([share_used(each[: self.large].flatten(0, 1)) for each in scores])
        return Loss(classification(scores, targets, self.temperature), {"prototypes_used": used.mean()})

    def project(self, views: list[View]) -> Tensor:
        """(V, B, dim), rows of unit length, fp32. One pass of the backbone per size, one of the head for all."""
        z = self.projector(torch.cat(embed_together(self.backbone, views)))
        return F.normalize(z.float(), dim=1).unflatten(0, (len(views), -1))

    def _epoch_is_over(self, total: int) -> bool:
        """Counts `total` samples more; whether they are the first of an epoch that is not the first."""
        if self._met is None:
            self._met = int(self.met)
        over = self._met + total > self.bank.shape[1]
        self._met = total if over else self._met + total
        self.met.fill_(self._met)
        return over

    @torch.no_grad()
    def _cluster(self) -> None:
        known = self.bank[0].any(1)
        for n in range(len(self.prototypes)):
            rows = self.bank[n % self.large, known]
            centroids, nearest = spherical_kmeans(rows, self.prototypes.shape[1], iterations=self.iterations)
            self.prototypes[n] = centroids.to(self.prototypes.dtype)
            self.assignments[n, known] = nearest

    @torch.no_grad()
    def _remember(self, z: Tensor, index: Tensor) -> None:
        """The large crops' embeddings of all ranks take their samples' places."""
        places = gather(index)
        for n in range(self.large):
            self.bank[n, places] = gather(z[n].detach()).to(self.bank.dtype)

    def _nearest(self, scores: list[Tensor]) -> Tensor:
        """(sets, B): what k-means would assign to the large crop that each set clusters."""
        return torch.stack([each[n % self.large].argmax(1) for n, each in enumerate(scores)])


def _ask_again(objective: Any, _: Any) -> None:
    objective._met = None


def classification(scores: list[Tensor], targets: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of every view with its sample's cluster, averaged over views, samples and sets. In fp32.

    scores: (V, B, K) cosines for each set. targets: (sets, B) clusters, NONE where there is none yet; the samples of
    all ranks that have one count. 0 where none has.
    """
    losses, known = [], []
    for each, target in zip(scores, targets, strict=True):
        logits = (each.float() / temperature).flatten(0, 1)
        wanted = target.repeat(len(each))
        losses.append(F.cross_entropy(logits, wanted, ignore_index=NONE, reduction="none"))
        known.append(wanted != NONE)
    return masked_mean(torch.stack(losses), torch.stack(known))
