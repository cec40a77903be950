"""A ring of past embeddings: the negatives of MoCo, the neighbours of NNCLR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.parts.gather import gather


class Queue(nn.Module):
    """The last `size` rows that were put in, (size, dim), of unit length from the start.

    The rows and the place of the next one are persistent buffers. `put` takes the rows of all ranks, so the ring is
    the same on each; a batch that runs over its end goes on at its beginning. In evaluation mode nothing is put in.
    Read before you put: a batch must not meet its own rows.
    """

    rows: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put(self, rows: Tensor) -> None:
        """rows: (n, dim) of this rank, of unit length. Of more than `size` the last ones stay."""
        if not self.training:
            return
        size = len(self.rows)
        every = gather(rows.detach()).to(self.rows.dtype)
        where = (self.place + torch.arange(len(every), device=every.device)) % size
        self.rows[where[-size:]] = every[-size:]
        self.place.copy_((self.place + len(every)) % size)
