"""VQ-VAE: Neural Discrete Representation Learning.

van den Oord, Vinyals, Kavukcuoglu, NeurIPS 2017. https://arxiv.org/abs/1711.00937
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ssl_runner.parts.upsampling import Decoder
from ssl_runner.types import Backbone, Batch, Loss, Objective, View


class VQVAE(Objective):
    """Section 3: the encoder's outputs are replaced by the nearest vectors of a codebook, from which a decoder
    rebuilds the input.

    shape: (C, H, W) of the images. codes, dim: number K of codes and their width D. beta: weight of the commitment.
    groups: latents a sample. width: channels of the decoder.

    The paper's encoder gives a map of latents, one a place. Here a linear layer gives `groups` latents from the
    backbone's one vector, so that any backbone serves; they share one codebook, as the paper's places do. Each
    latent sees the whole image and has no place of its own. The features are the backbone's, before all this.

    The codebook learns by gradient (Equation 3), not by the appendix's moving averages. It does nothing to revive a
    code that is never nearest: the log's `codes_used` tells of them.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, int, int],
        groups: Annotated[int, Gt(0)] = 16,
        codes: Annotated[int, Gt(1)] = 512,
        dim: Annotated[int, Gt(0)] = 64,
        width: Annotated[int, Gt(0)] = 64,
        beta: Annotated[float, Ge(0)] = 0.25,
    ):
        super().__init__()
        self.backbone, self.groups, self.beta = backbone, groups, beta
        self.head = nn.Linear(backbone.dim, groups * dim)
        self.codebook = nn.Parameter(torch.empty(codes, dim))
        # amid the latents: a code far off from all of them is never the nearest, and never learns
        nn.init.uniform_(self.codebook, -1 / codes, 1 / codes)
        self.decoder = Decoder(groups * dim, shape, width)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        latents = self.encode(view)
        index = nearest(latents, self.codebook)
        chosen = F.embedding(index, self.codebook).float()
        rebuilt = self.rebuild(straight_through(latents, chosen), view)
        reconstruction = F.mse_loss(rebuilt, view["x"].float())
        quantisation = quantisation_loss(latents, chosen, self.beta)
        used = codes_used(index, len(self.codebook))
        logs = {"reconstruction": reconstruction.detach(), "quantisation": quantisation.detach(), "codes_used": used}
        return Loss(reconstruction + quantisation, logs)

    def encode(self, view: View) -> Tensor:
        """z_e: (B, groups, dim), in fp32."""
        return self.head(self.backbone(**view)).float().unflatten(1, (self.groups, -1))

    def rebuild(self, quantised: Tensor, view: View) -> Tensor:
        """z_q, (B, groups, dim), -> (B, C, H, W) in fp32."""
        return self.decoder(quantised.flatten(1).to(view["x"].dtype)).float()

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, and what the decoder makes of its codes."""
        view = batch["views"][0]
        index = nearest(self.encode(view), self.codebook)
        return {"reconstruction": [view["x"], self.rebuild(F.embedding(index, self.codebook), view)]}


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Equation 1: (..., D) latents and a (K, D) codebook -> (...), the number of the nearest code. In fp32."""
    with torch.autocast(latents.device.type, enabled=False):
        z, e = latents.detach().float(), codebook.detach().float()
        # |z - e|^2 but for |z|^2, which is the same for all codes
        return (e.square().sum(1) - 2 * z @ e.T).argmin(-1)


def straight_through(latents: Tensor, chosen: Tensor) -> Tensor:
    """Section 3.2, "Learning": the values of the chosen codes; their gradient goes to the latents, unchanged."""
    return latents + (chosen - latents).detach()


def quantisation_loss(latents: Tensor, chosen: Tensor, beta: float) -> Tensor:
    """The last two terms of Equation 3: codes come to their latents and, beta times as much, latents to their codes.

    latents, chosen: (..., D). Squares are averaged over all values, as the reconstruction's are. In fp32.
    """
    latents, chosen = latents.float(), chosen.float()
    return F.mse_loss(chosen, latents.detach()) + beta * F.mse_loss(latents, chosen.detach())


def codes_used(index: Tensor, codes: int) -> Tensor:
    """(): the perplexity of the codes that this rank's batch chose, over their number: 1 where all are chosen as
    often, 1 / codes where one serves all. A batch of few latents can't reach 1. Without gradients."""
    share = F.one_hot(index.flatten(), codes).float().mean(0)
    return (-torch.xlogy(share, share).sum()).exp() / codes
