"""TS2Vec: Towards Universal Representation of Time Series.

Yue, Wang, Duan, Yang, Huang, Tong, Xu, AAAI 2022. https://arxiv.org/abs/2106.10466
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.distributed as dist
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ssl_runner.errors import RequestError
from ssl_runner.parts.among import among
from ssl_runner.parts.gather import gather, rank, world_size
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone

Share = Annotated[float, Ge(0), Le(1)]


class TS2Vec(Objective):
    """Two overlapping crops of a series must agree on each moment that both see, at every scale.

    masked: probability with which a moment's token is set to zero behind the input projection ("Timestamp Masking").
    balance: weight of the instance-wise loss against the temporal one; the paper adds the two, so half is its own, but
    for a factor.
    least: the fewest moments in the overlap.

    The crops' ends are drawn once for a batch, and where they lie in a sample for each sample. Tokens are the
    backbone's: of blocks, where it cuts blocks; positions that it adds stay with their tokens. On several ranks all
    samples are contrasted. Padding takes part in nothing.
    """

    views = 1
    contrasts = True

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        masked: Share = 0.5,
        balance: Share = 0.5,
        least: Annotated[int, Gt(0)] = 2,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.masked, self.balance, self.least = masked, balance, least

    def forward(self, batch: Batch) -> Loss:
        (view,) = batch["views"]
        tokens = self.backbone.embed(self.backbone.patchify(view["x"]))
        pad = view.get("pad")
        size, length = tokens.shape[:2]
        if length < self.least:
            raise RequestError(f"objective.least={self.least}: the backbone makes {length} tokens of a sample")
        left, overlap, right = shared(draw_crops(length, self.least), tokens.device)
        room = length - left - overlap - right
        first = (torch.rand(size, 1) * (room + 1)).long().to(tokens.device)  # where both crops together begin
        a, pad_a = self.crop(tokens, pad, first, left + overlap)
        b, pad_b = self.crop(tokens, pad, first + left, overlap + right)
        a, b = a[:, left:], b[:, :overlap]
        valid = None if pad_a is None or pad_b is None else ~(pad_a[:, left:] | pad_b[:, :overlap])
        instance, temporal = hierarchical(a, b, valid)
        value = self.balance * instance + (1 - self.balance) * temporal
        return Loss(value, {"instance": instance.detach(), "temporal": temporal.detach()})

    def crop(self, tokens: Tensor, pad: Tensor | None, first: Tensor, length: int) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) tokens, (B, 1) where each begins -> (B, length, dim), encoded by themselves, some masked."""
        place = first + torch.arange(length, device=tokens.device)
        hidden = (torch.rand(place.shape) < self.masked).to(tokens.device)
        taken = tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[2])).masked_fill(hidden[..., None], 0.0)
        taken_pad = None if pad is None else pad.gather(1, place)
        return self.backbone.encode(taken, taken_pad), taken_pad


def draw_crops(length: int, least: int) -> Tensor:
    """(3,) int64: how many tokens the first crop alone has, how many both have, and how many the second alone has.

    The overlap has `least` to all of the `length` tokens; of what is left around it, wherever it lies, each crop takes
    a random part on its side ("Random Cropping").
    """
    overlap = int(torch.randint(least, length + 1, ()))
    start = int(torch.randint(length - overlap + 1, ()))
    left = int(torch.randint(start + 1, ()))
    right = int(torch.randint(length - start - overlap + 1, ()))
    return torch.tensor([left, overlap, right])


def shared(numbers: Tensor, device: torch.device) -> list[int]:
    """Whole numbers as rank 0 drew them: moments of all ranks' samples are contrasted, so these must agree."""
    if world_size() > 1:
        numbers = numbers.to(device)
        dist.broadcast(numbers, 0)
    return numbers.tolist()


def hierarchical(a: Tensor, b: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Algorithm 1, "Calculating the hierarchical contrastive loss": both losses, averaged over the scales.

    a, b: (n, T, D), what the crops say of the same moments. valid: (n, T), False at padding. From scale to scale two
    neighbouring moments become one by their largest values, until there is one, of which there is no temporal loss; its
    scale counts all the same.
    """
    valid = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device) if valid is None else valid
    instance, temporal, scales = a.new_zeros(()), a.new_zeros(()), 0
    while True:
        instance, scales = instance + instance_loss(a, b, valid), scales + 1
        if a.shape[1] == 1:
            return instance / scales, temporal / scales
        temporal = temporal + temporal_loss(a, b, valid)
        a, b = pooled(a, valid), pooled(b, valid)
        valid = F.max_pool1d(valid[:, None].float(), 2)[:, 0] > 0


def pooled(x: Tensor, valid: Tensor) -> Tensor:
    """(n, T, D) -> (n, T // 2, D): the larger of two neighbours, of those that are valid; zeros where none is."""
    least = torch.finfo(x.dtype).min
    most = F.max_pool1d(x.masked_fill(~valid[..., None], least).transpose(1, 2), 2).transpose(1, 2)
    return most.masked_fill(most == least, 0.0)


def instance_loss(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Equation 2 and its mirror image: at each moment, a sample's other crop among all samples' crops at that moment.

    a, b: (n, T, D) of this rank, valid: (n, T). The mean over the valid rows of all ranks; 0 where there is one sample.
    """
    n = len(a)
    every = torch.cat([gather(a), gather(b)]).transpose(0, 1)  # (T, 2N, D)
    known = gather(valid)
    total = len(known)
    mine = torch.arange(n, device=a.device) + rank() * n
    itself, there = torch.cat([mine, mine + total]), torch.cat([known, known]).T
    return among(
        torch.cat([a, b]).transpose(0, 1),
        every,
        there[:, None] & (torch.arange(2 * total, device=a.device) != itself[:, None]),
        positive=torch.cat([mine + total, mine]),
        counted=torch.cat([valid, valid]).T,
        whole=2 * known.sum(),
    )


def temporal_loss(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Equation 1 and its mirror image: in each sample, a moment's other crop among all moments of both crops.

    a, b: (n, T, D), valid: (n, T). The mean over the valid moments of all ranks.
    """
    both, known = torch.cat([a, b], 1), torch.cat([valid, valid], 1)  # (n, 2T, D), (n, 2T)
    place, length = torch.arange(both.shape[1], device=a.device), a.shape[1]
    return among(
        both,
        both,
        known[:, None] & (place != place[:, None]),
        positive=(place + length) % (2 * length),
        counted=known,
        whole=gather(known).sum(),
    )
