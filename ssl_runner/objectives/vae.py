"""VAE: Auto-Encoding Variational Bayes.

Kingma, Welling, ICLR 2014. https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.parts.heads import mlp
from ssl_runner.types import Backbone, Batch, Loss, Objective, View


class VAE(Objective):
    """Section 3: the backbone gives a Gaussian over latent variables, from a sample of which a decoder rebuilds the
    input; their bound on the likelihood is raised.

    shape: of a sample. dim: latent variables. hidden: width of the decoder's two hidden layers.
    sigma: standard deviation of the decoder's Gaussian, in units of the normalised input. One for all values, where
    Appendix C.2 learns one a value: that diverges on values that never change, such as an image's corners.

    The loss is in nats a sample; the logs are its two terms.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, ...],
        dim: Annotated[int, Gt(0)] = 64,
        hidden: Annotated[int, Gt(0)] = 1024,
        sigma: Annotated[float, Gt(0)] = 0.5,
    ):
        super().__init__()
        self.backbone, self.sigma = backbone, sigma
        self.posterior = nn.Linear(backbone.dim, 2 * dim)
        self.decoder = mlp([dim, hidden, hidden, math.prod(shape)], norm=False)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        mean, log_var = self.infer(view)
        latent = sample(mean, log_var).to(view["x"].dtype)
        unlikely = -log_likelihood(self.decoder(latent), view["x"], self.sigma).mean()
        kl = divergence(mean, log_var).mean()
        return Loss(unlikely + kl, {"reconstruction": unlikely.detach(), "kl": kl.detach()})

    def infer(self, view: View) -> tuple[Tensor, Tensor]:
        """View -> mean and log of the variance of the approximate posterior, (B, dim) each, in fp32."""
        mean, log_var = self.posterior(self.backbone(**view)).float().chunk(2, dim=1)
        return mean, log_var

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, what is rebuilt of its posterior's mean and of a draw from its posterior; and what the decoder
        makes of draws from the prior, the unit Gaussian. All are means of the decoder's Gaussian."""
        view = batch["views"][0]
        mean, log_var = self.infer(view)

        def decoded(latent: Tensor) -> Tensor:
            return self.decoder(latent.to(view["x"].dtype)).float().view_as(view["x"])

        none = torch.zeros_like(mean)
        return {
            "reconstruction": [view["x"], decoded(mean), decoded(sample(mean, log_var))],
            "samples": [decoded(sample(none, none)) for _ in range(4)],
        }


def sample(mean: Tensor, log_var: Tensor) -> Tensor:
    """Section 2.4: z = mean + deviation * epsilon. All (B, dim); epsilon is drawn on the CPU."""
    return mean + (log_var / 2).exp() * torch.randn(mean.shape).to(mean)


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """(B, dim) twice -> (B,): the KL divergence from the unit Gaussian, Appendix B, in nats."""
    return (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2


def log_likelihood(prediction: Tensor, x: Tensor, sigma: float) -> Tensor:
    """(B, D) means and (B, ...) values -> (B,): log of the Gaussian's density, Appendix C.2, in nats and fp32."""
    squares = (prediction.float() - x.flatten(1).float()).square().sum(1)
    return -squares / (2 * sigma**2) - prediction.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
