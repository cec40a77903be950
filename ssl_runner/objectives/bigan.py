"""BiGAN: Adversarial Feature Learning.

Donahue, Krähenbühl, Darrell, ICLR 2017. https://arxiv.org/abs/1605.09782
The same game is ALI: Dumoulin et al., Adversarially Learned Inference, ICLR 2017. https://arxiv.org/abs/1606.00704
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn
from torch.func import functional_call

from ssl_runner.parts.upsampling import Decoder
from ssl_runner.types import Backbone, Batch, Loss, Objective, View
from ssl_runner.views.normalise import Normalize


class BiGAN(Objective):
    """Section 3: a generator makes images of noise, an encoder finds noise for images, and a discriminator tells the
    pairs (x, E(x)) from (G(z), z). To deceive it, E and G must invert each other.

    shape: (C, H, W) of the images. mean, std: with which views were normalised; intensities were in [0, 1] before.
    dim: of the noise. width: channels of the generator's and the discriminator's maps. hidden: width of the
    discriminator's layers in which image and noise meet.

    The encoder is the backbone and a linear layer. All players move at once, by one backward pass and one
    optimiser: each one's term holds the other's parameters still. The loss is the sum of the terms, and no measure
    of progress: it is least, 4 log 2, where the discriminator can tell nothing. The logs are the two terms.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[Annotated[float, Gt(0)], ...],
        dim: Annotated[int, Gt(0)] = 50,
        width: Annotated[int, Gt(0)] = 64,
        hidden: Annotated[int, Gt(0)] = 512,
    ):
        super().__init__()
        self.backbone, self.dim = backbone, dim
        self.head = nn.Linear(backbone.dim, dim)
        self.generator = Generator(dim, shape, width, mean, std)
        self.discriminator = Discriminator(shape, dim, width, hidden)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        x = view["x"]
        z = noise(len(x), self.dim).to(x)
        images = torch.cat([x, self.generator(z)])
        codes = torch.cat([self.encode(view), z])
        told = self.discriminator(images.detach(), codes.detach())
        still = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        felt = functional_call(self.discriminator, still, (images, codes))
        discriminator, others = telling(*told.chunk(2)), deceiving(*felt.chunk(2))
        logs = {"discriminator": discriminator.detach(), "encoder_generator": others.detach()}
        return Loss(discriminator + others, logs)

    def encode(self, view: View) -> Tensor:
        """E(x): (B, dim)."""
        return self.head(self.backbone(**view))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input x and G(E(x)); and images of noise alone."""
        view = batch["views"][0]
        x = view["x"]
        made = [self.generator(noise(len(x), self.dim).to(x)).float() for _ in range(8)]
        return {"reconstruction": [x, self.generator(self.encode(view)).float()], "samples": made}


class Generator(nn.Module):
    """(B, dim) -> (B, C, H, W), normalised intensities of [0, 1].

    The sigmoid lets it make plain black and white, which a discriminator would miss in the images of a linear layer.
    """

    def __init__(
        self, dim: int, shape: tuple[int, int, int], width: int, mean: tuple[float, ...], std: tuple[float, ...]
    ):
        super().__init__()
        self.decoder = Decoder(dim, shape, width)
        self.normalise = Normalize(mean=mean, std=std)

    def forward(self, z: Tensor) -> Tensor:
        return self.normalise.transform(self.decoder(z).float().sigmoid()).to(z.dtype)


class Discriminator(nn.Module):
    """(B, C, H, W) and (B, dim) -> (B,) logits that the pair is (x, E(x)).

    Strided convolutions halve the image until its longer side is at most 4; there the noise joins. It has no
    BatchNorm, whose statistics would mix the two kinds of pairs and tell each of them about the other.
    """

    def __init__(self, shape: tuple[int, int, int], dim: int, width: int, hidden: int):
        super().__init__()
        channels, *side = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        while max(side) > 4:
            layers += [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
            side = [(s + 1) // 2 for s in side]
        self.look = nn.Sequential(*layers, nn.Flatten())
        joined = width * side[0] * side[1] + dim
        self.judge = nn.Sequential(
            nn.Linear(joined, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.judge(torch.cat([self.look(x), z], 1)).squeeze(1)


def noise(count: int, dim: int) -> Tensor:
    """(count, dim), uniform in [-1, 1], the paper's choice; drawn on the CPU."""
    return torch.rand(count, dim) * 2 - 1


def telling(real: Tensor, fake: Tensor) -> Tensor:
    """-V of Section 3, which the discriminator lowers: -log D(x, E(x)) - log(1 - D(G(z), z)).

    real, fake: (B,) logits of the pairs (x, E(x)) and (G(z), z). Averaged over the batch, in fp32.
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def deceiving(real: Tensor, fake: Tensor) -> Tensor:
    """What encoder and generator lower: the discriminator's loss with the labels exchanged, the paper's "inverse"
    objective. V itself, raised, gives them next to no gradient once the discriminator is right.

    real, fake: (B,) logits of the pairs (x, E(x)) and (G(z), z). Averaged over the batch, in fp32.
    """
    return telling(fake, real)
