"""Spherical k-means: clusters of directions."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_runner.parts.gather import world_size
from ssl_runner.parts.prototypes import similarity

CHUNK = 8192  # rows whose scores are held at once: with 3,000 centroids, 100 MB


@torch.no_grad()
def spherical_kmeans(rows: Tensor, clusters: int, *, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """k-means by cosine (Dhillon & Modha, 2001): (n, dim) rows of unit length, the same on all ranks ->
    (K, dim) centroids of unit length and each row's (n,) nearest one, the same on all ranks.

    It starts from K rows, drawn without repetition (as long as there are enough) from torch's global CPU
    generator of the first rank. A centroid is the direction of its rows' sum; one without rows moves to the row
    that is farthest from its own centroid, the next one to the next such row. In fp32.
    """
    rows = rows.float()
    n = len(rows)
    centroids = rows[torch.randperm(n)[torch.arange(clusters) % n].to(rows.device)]
    for _ in range(iterations):
        cosine, nearest = _nearest(rows, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, rows)
        counts = torch.zeros_like(centroids[:, 0]).index_add_(0, nearest, torch.ones_like(cosine))
        empty = counts == 0
        far = cosine.argsort(stable=True)[(empty.cumsum(0) - 1) % n]  # for each empty one another row
        centroids = torch.where(empty[:, None], rows[far], torch.nn.functional.normalize(sums, dim=1))
    if world_size() > 1:
        dist.broadcast(centroids, 0)  # ranks draw other first rows, and a GPU's sums differ in their last bits
    return centroids, _nearest(rows, centroids)[1]


def _nearest(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) cosines with the nearest centroids, and which these are."""
    best = [similarity(chunk, centroids).max(1) for chunk in rows.split(CHUNK)]
    return torch.cat([each.values for each in best]), torch.cat([each.indices for each in best])
