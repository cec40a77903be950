"""k-means: clusters of directions, and of places."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_runner.parts.gather import world_size
from ssl_runner.parts.prototypes import similarity

CHUNK = 8192  # rows whose scores are held at once: with 3,000 centroids, 100 MB
Score = Callable[[Tensor, Tensor], Tensor]
"""(n, dim) rows, (K, dim) centroids -> (n, K), highest for the nearest."""


@torch.no_grad()
def spherical_kmeans(rows: Tensor, clusters: int, *, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """k-means by cosine (Dhillon & Modha, 2001): (n, dim) rows of unit length, the same on all ranks ->
    (K, dim) centroids of unit length and each row's (n,) nearest one, the same on all ranks.

    As `kmeans`, but that a centroid is the direction of its rows' sum.
    """
    return _lloyd(rows, clusters, iterations, similarity, lambda sums, _: torch.nn.functional.normalize(sums, dim=1))


@torch.no_grad()
def kmeans(rows: Tensor, clusters: int, *, iterations: int = 20) -> tuple[Tensor, Tensor]:
    """k-means by distance (Lloyd, 1982): (n, dim) rows, the same on all ranks -> (K, dim) centroids and each row's (n,)
    nearest one, the same on all ranks.

    It starts from K rows, drawn without repetition (as long as there are enough) from torch's global CPU
    generator of the first rank. A centroid is the mean of its rows; one without rows moves to the row that is farthest
    from its own centroid, the next one to the next such row. In fp32.
    """
    return _lloyd(rows, clusters, iterations, nearness, lambda sums, counts: sums / counts.clamp(min=1)[:, None])


def nearness(rows: Tensor, centroids: Tensor) -> Tensor:
    """(n, dim), (K, dim) -> (n, K): minus the distance. In fp32."""
    with torch.autocast(rows.device.type, enabled=False):
        return -torch.cdist(rows.float(), centroids.float())


def _lloyd(
    rows: Tensor, clusters: int, iterations: int, score: Score, centre: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    rows = rows.float()
    n = len(rows)
    centroids = rows[torch.randperm(n)[torch.arange(clusters) % n].to(rows.device)]
    for _ in range(iterations):
        best, nearest = _nearest(rows, centroids, score)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, rows)
        counts = torch.zeros_like(centroids[:, 0]).index_add_(0, nearest, torch.ones_like(best))
        empty = counts == 0
        far = best.argsort(stable=True)[(empty.cumsum(0) - 1) % n]  # for each empty one another row
        centroids = torch.where(empty[:, None], rows[far], centre(sums, counts))
    if world_size() > 1:
        dist.broadcast(centroids, 0)  # ranks draw other first rows, and a GPU's sums differ in their last bits
    return centroids, _nearest(rows, centroids, score)[1]


def _nearest(rows: Tensor, centroids: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """(n,) scores of the nearest centroids, and which these are."""
    best = [score(chunk, centroids).max(1) for chunk in rows.split(CHUNK)]
    return torch.cat([each.values for each in best]), torch.cat([each.indices for each in best])
