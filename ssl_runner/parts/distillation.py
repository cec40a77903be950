"""Self-distillation over prototypes, as DINO began it: the head, and a teacher that is centred and sharpened.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, ICCV 2021. https://arxiv.org/abs/2104.14294
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.parts.gather import all_reduce, world_size


class Head(nn.Module):
    """Section 3.1 and Appendix C: a three-layer MLP with GELU and no BatchNorm, rows of unit length, and a
    linear layer whose K weight vectors have unit length (weight normalisation with the gain fixed at 1).

    Weights start with a deviation of one over the root of a layer's inputs. The authors' code has 0.02, which is about
    that for their width of 2048; in a narrow head it makes rows so small that the biases' first steps outweigh them,
    and what is then normalised is the same for every input.
    """

    def __init__(self, inputs: int, hidden: int, dim: int, prototypes: int):
        super().__init__()
        widths = [inputs, hidden, hidden, dim]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.last = nn.Linear(dim, prototypes, bias=False)

    def forward(self, x: Tensor, learns: Tensor | None = None) -> Tensor:
        """(..., inputs) -> (..., K) cosines in fp32. learns: () bool; if false the last layer gets zeros.

        Momentum and Adam do not move a weight whose gradient has always been 0, and weight decay changes
        lengths, which are normalised away: so the layer is frozen in effect, and DDP finds every gradient.
        """
        z = F.normalize(self.mlp(x).float(), dim=-1)
        weight = self.last.weight.float()
        if learns is not None:
            still = weight.detach()
            weight = still + (weight - still) * learns
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(z, F.normalize(weight, dim=1))


def warm(progress: Tensor, warmup: float, start: float, end: float) -> Tensor:
    """(): from `start` to `end` in a straight line over the share `warmup` of training. In fp32."""
    return start + (end - start) * (progress.float() / max(warmup, 1e-8)).clamp(max=1)


def cross_view(student: list[Tensor], targets: list[Tensor], temperature: float) -> Tensor:
    """Equation 3: the cross-entropy of every target with every student view but its own, averaged.

    student: (B, K) logits of each view. targets: (B, K) probabilities of the first views. In fp32.
    """
    logs = [(each.float() / temperature).log_softmax(1) for each in student]
    losses = [
        -(target.detach().float() * log).sum(1).mean()
        for n, target in enumerate(targets)
        for m, log in enumerate(logs)
        if n != m
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def move_centre(centre: Tensor, logits: Tensor, momentum: float) -> None:
    """Equation 4, in place: the moving average of the teacher's logits over the rows of all ranks.

    centre: (K,). logits: (n, K); ranks may hold different numbers.
    """
    total = all_reduce(logits.float().sum(0))
    count = all_reduce(torch.tensor(float(len(logits)), device=logits.device))
    centre.copy_(torch.lerp(total / count.clamp(min=1), centre.float(), momentum))


@torch.no_grad()
def prototypes_used(targets: Tensor) -> Tensor:
    """() in (0, 1]: exp of the entropy of the mean of all ranks' (n, K) targets, over K.

    1: as much of every prototype as of any other. 1 / K: a collapse, the same one for every row. It says nothing of how
    sure the rows are: a teacher that is uniform for each of them gets 1 too.
    """
    mean = all_reduce(targets.float().mean(0)) / world_size()
    return torch.special.entr(mean).sum().exp() / len(mean)
