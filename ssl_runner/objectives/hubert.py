"""HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units.

Hsu, Bolte, Tsai, Lakhotia, Salakhutdinov, Mohamed, IEEE/ACM TASLP 2021. https://arxiv.org/abs/2106.07447
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.cepstra import Features
from ssl_runner.parts.gather import gather
from ssl_runner.parts.kmeans import kmeans, nearness
from ssl_runner.parts.masking import at, hidden_places, most_hidden, span_mask
from ssl_runner.parts.patches import masked_mean
from ssl_runner.parts.prototypes import share_used
from ssl_runner.types import COUNTS, Batch, FrameBackbone, Loss, Objective, View

Count = Annotated[int, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]
OF_A_SAMPLE = 32  # frames of one sample that are clustered, so that the bank holds many samples


class HuBERT(Objective):
    """Section II: frames are clustered once, then spans of them are hidden, and the backbone tells their clusters.

    features: what is clustered in the first round, such as cepstra. None: a later round, in which it is the tokens
    behind block `layer` of the backbone as it was handed over, with the weights of the run that `from` names (the last
    block's, where there are fewer). This copy stays as it is, and is kept in checkpoints.
    clusters: K; the paper's 100 in its first round, 500 in its second. bank: frames that k-means sees. iterations: of
    k-means.
    ratio, span: as in Wav2Vec2; the paper starts a span of 10 at 8% of the frames. dim: of the space in which tokens
    meet clusters. temperature: tau, of the cosines. frame_gradient, penalty: as in Wav2Vec2 (the authors' code).

    The first batches only fill the bank: their loss is 0, with gradients of 0. Then the clusters are made, and stay.
    The paper's later rounds begin anew; here the backbone goes on from where the first one ended.
    Raises RequestError for a bank of fewer frames than clusters.
    """

    views = 1
    indivisible = COUNTS
    rows: Tensor
    met: Tensor
    centroids: Tensor

    def __init__(
        self,
        backbone: FrameBackbone,
        *,
        features: Features | None = None,
        layer: Count = 6,
        clusters: Annotated[int, Gt(1)] = 100,
        bank: Count = 20000,
        iterations: Count = 20,
        ratio: Share = 0.8,
        span: Count = 10,
        dim: Count = 256,
        temperature: Annotated[float, Gt(0)] = 0.1,
        frame_gradient: Share = 0.1,
        penalty: Annotated[float, Ge(0)] = 10.0,
    ):
        super().__init__()
        if bank < clusters:
            raise RequestError(f"objective.bank={bank}: fewer frames than objective.clusters={clusters}; give more")
        self.backbone: FrameBackbone = backbone
        self.features = features
        self.labeller = copy.deepcopy(backbone).requires_grad_(False).eval() if features is None else None
        self.mask_token = nn.Parameter(torch.rand(backbone.dim))
        self.predictor = nn.Linear(backbone.dim, dim)
        self.codes = nn.Parameter(torch.randn(clusters, dim))
        self.layer, self.iterations, self.ratio, self.span = layer, iterations, ratio, span
        self.temperature, self.frame_gradient, self.penalty = temperature, frame_gradient, penalty
        width = backbone.dim if features is None else features.dim
        self.register_buffer("rows", torch.zeros(bank, width))
        self.register_buffer("met", torch.zeros((), dtype=torch.int64))  # rows of the bank that are filled
        self.register_buffer("centroids", torch.zeros(clusters, width))
        self._met: int | None = 0  # the same number on the host, for asking the device makes it wait
        self.register_load_state_dict_post_hook(_ask_again)

    def train(self, mode: bool = True) -> HuBERT:
        super().train(mode)
        if self.labeller is not None:
            self.labeller.eval()
        return self

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        pad = view.get("pad")
        frames = self.backbone.patchify(view["x"])
        if frames.requires_grad:
            frames.register_hook(lambda gradient: gradient * self.frame_gradient)
        real = torch.ones_like(frames[..., 0], dtype=torch.bool) if pad is None else ~pad
        described = self.describe(view, frames.shape[1])
        known = self._clustered(described, real)
        mask = span_mask(real, self.ratio, self.span)
        place, told = hidden_places(mask, most_hidden(mask.shape[1], self.ratio, self.span))
        tokens = self.backbone.project(self.backbone.normalise(frames))
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        logits = self.scores(at(place, self.backbone.encode(tokens, pad)))
        wanted = nearest(at(place, described), self.centroids)
        told = told & known
        losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        square = masked_mean(frames.float().square().mean(2), real & known)
        guessed = masked_mean(losses, told)
        right = masked_mean((logits.argmax(2) == wanted).float(), told)
        used = share_used(F.one_hot(wanted, len(self.centroids)).flatten(0, 1).float())
        logs = {"accuracy": right.detach(), "penalty": square.detach(), "clusters_used": used}
        return Loss(guessed + self.penalty * square, logs)

    @torch.no_grad()
    def describe(self, view: View, length: int) -> Tensor:
        """A view of L frames -> (B, L, F), what is clustered of each."""
        if self.features is not None:
            x = view["x"].flatten(1, -2)  # of a spectrogram, bands are channels, as they are to the backbone
            return self.features(x.unfold(2, self.backbone.reach, self.backbone.hop)[:, :, :length])
        assert isinstance(self.labeller, FrameBackbone)
        tokens = self.labeller.embed(self.labeller.patchify(view["x"]))
        return list(self.labeller.layers(tokens, view.get("pad")))[: self.layer][-1].float()

    def scores(self, tokens: Tensor) -> Tensor:
        """Equation 3: (B, K, dim) -> (B, K, clusters), cosines over tau. In fp32."""
        found = self.predictor(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(found.float(), dim=2) @ F.normalize(self.codes.float(), dim=1).T / self.temperature

    @torch.no_grad()
    def _clustered(self, described: Tensor, real: Tensor) -> bool:
        """Whether there are clusters. In training the bank takes frames until it is full; then they are made of it."""
        if self._met is None:
            self._met = int(self.met)
        if self._met == len(self.rows):
            return True
        if self.training:
            place = torch.rand(real.shape).to(real.device).masked_fill(~real, 2.0).argsort(1)[:, :OF_A_SAMPLE]
            seen, there = gather(at(place, described)), gather(real.gather(1, place).long())
            found = seen[there.bool()][: len(self.rows) - self._met]
            self.rows[self._met : self._met + len(found)] = found.to(self.rows.dtype)
            self._met += len(found)
            self.met.fill_(self._met)
            if self._met == len(self.rows):
                self.centroids.copy_(kmeans(self.rows, len(self.centroids), iterations=self.iterations)[0])
        return False


def _ask_again(objective: Any, _: Any) -> None:
    objective._met = None


def nearest(described: Tensor, centroids: Tensor) -> Tensor:
    """(B, K, F), (C, F) -> (B, K), the cluster whose mean is nearest."""
    return nearness(described.flatten(0, 1), centroids).argmax(1).view(described.shape[:2])
