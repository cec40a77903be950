"""Balanced soft assignments: Sinkhorn-Knopp, over all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_runner.parts.gather import all_reduce, world_size


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """(n, K) scores of this rank's rows -> (n, K) assignments: each row sums to one and, over all ranks, the columns
    approach equal shares (Caron et al., 2020, SwAV, Section 3.1 and Appendix A).

    In fp32 and in logarithms, so that no prototype's share can underflow to 0 / 0. The constants 1/K and 1/N of the
    paper's alternation fall out when rows are made to sum to one.
    """
    plan = scores.float() / epsilon
    for _ in range(iterations):
        plan = plan - _logsumexp_of_columns(plan)  # each prototype gets the same mass
        plan = plan - plan.logsumexp(1, keepdim=True)  # each sample gets the same mass
    return plan.exp()


def _logsumexp_of_columns(x: Tensor) -> Tensor:
    """(n, K) -> (K,) over the rows of all ranks."""
    mine = x.logsumexp(0)
    if world_size() == 1:
        return mine
    peak = mine.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return peak + all_reduce((mine - peak).exp()).log()
