"""Unsupervised Feature Learning via Non-Parametric Instance Discrimination.

Wu, Xiong, Yu, Lin, CVPR 2018. https://arxiv.org/abs/1805.01978
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from ssl_runner.parts.gather import gather
from ssl_runner.types import Backbone, Batch, Loss, Objective


class InstDisc(Objective):
    """Section 3: every sample is a class, its weights are the sample's last feature, kept in a memory bank.

    samples: n, how many the pretraining part has. dim: of a feature, a linear layer on the backbone.
    noise: m, rows of the memory drawn as noise, the same for the whole batch.
    temperature: tau of Equation 2. proximal: lambda of Equation 10.
    momentum: what a row of the memory keeps of itself when its sample's feature comes, of unit length again. The
    paper has 0, the feature takes its place; the authors' code has 0.5, and no proximal term.
    z_momentum: what the constant Z keeps of itself at each step. 1, as in the paper: the first batch sets it for good.
    That batch meets a memory of random rows; where features then lie closer together than those, Z is too small by
    powers of ten, noise looks like data and the loss explodes. Less than 1 lets Z follow.

    In evaluation mode a sample has no row of its own: the row nearest to it stands in, and nothing is written.
    """

    views = 1
    indivisible = "its memory takes in each micro-batch, behind which the next one meets it"
    memory: Tensor
    z: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        samples: Annotated[int, Gt(0)],
        dim: Annotated[int, Gt(0)] = 128,
        noise: Annotated[int, Gt(0)] = 4096,
        temperature: Annotated[float, Gt(0)] = 0.07,
        proximal: Annotated[float, Ge(0)] = 30.0,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.0,
        z_momentum: Annotated[float, Ge(0), Le(1)] = 1.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.embedding = nn.Linear(backbone.dim, dim)
        self.noise, self.temperature = noise, temperature
        self.proximal, self.momentum, self.z_momentum = proximal, momentum, z_momentum
        self.register_buffer("memory", F.normalize(torch.randn(samples, dim), dim=1))
        self.register_buffer("z", torch.zeros(()))  # the constant Z of Equation 5; 0 until the first batch

    def forward(self, batch: Batch) -> Loss:
        (view,), index, memory = batch["views"], batch["index"], self.memory.float()
        feature = F.normalize(self.embedding(self.backbone(**view)).float(), dim=1)
        with torch.autocast(feature.device.type, enabled=False), torch.no_grad():
            own = memory[index if self.training else (feature @ memory.T).argmax(1)]
        kept = self.z_momentum if self.training else 1.0
        drawn = memory[torch.randint(len(memory), (self.noise,)).to(memory.device)]
        estimate = partition(feature, drawn, len(memory), self.temperature)
        z = torch.where(self.z > 0, torch.lerp(estimate, self.z.float(), kept), estimate)
        contrast = nce(feature, own, drawn, z, len(memory), self.temperature)
        drift = (feature - own).square().sum(1).mean()
        if self.training:
            self._remember(feature, index, z)
        terms = {"nce": contrast.detach(), "drift": drift.detach()}
        return Loss(contrast + self.proximal * drift, terms)

    @torch.no_grad()
    def _remember(self, feature: Tensor, index: Tensor, z: Tensor) -> None:
        """Section 3.1: the features of all ranks go into their rows of the memory."""
        self.z.copy_(z)
        index = gather(index)
        rows = torch.lerp(gather(feature.detach()), self.memory[index].float(), self.momentum)
        self.memory[index] = F.normalize(rows, dim=1).to(self.memory.dtype)


@torch.no_grad()
def partition(feature: Tensor, drawn: Tensor, samples: int, temperature: float) -> Tensor:
    """Z, Equation 8: n times the mean of exp(v . f / tau) over the (m, dim) drawn rows and the batch of all ranks."""
    with torch.autocast(feature.device.type, enabled=False):
        mean = (feature @ drawn.T / temperature).exp().mean()
    return samples * gather(mean[None]).mean()


def nce(feature: Tensor, own: Tensor, drawn: Tensor, z: Tensor, samples: int, temperature: float) -> Tensor:
    """J_NCE, Equations 4 to 7, averaged over the B features. In fp32.

    feature, own: (B, dim) unit rows, and their classes' rows of the memory. drawn: (m, dim) rows of the memory,
    noise from the uniform distribution 1 / n over the n = samples classes. z: the constant Z, a scalar.
    """
    # log of P(i|v) / (m P_n): the posterior h of Equation 6 is its sigmoid
    offset = torch.log(z) + torch.log(torch.tensor(len(drawn) / samples, device=z.device))
    with torch.autocast(feature.device.type, enabled=False):
        data = (feature * own).sum(1) / temperature - offset
        noise = feature @ drawn.T / temperature - offset
    return -(F.logsigmoid(data) + F.logsigmoid(-noise).sum(1)).mean()
