"""I-JEPA: Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas, CVPR 2023. https://arxiv.org/abs/2301.08243
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.decoder import Decoder
from ssl_runner.parts.patches import masked_mean, patch_sizes
from ssl_runner.parts.teacher import Teacher
from ssl_runner.types import COUNTS, Batch, Loss, Objective, TokenBackbone
from ssl_runner.views.draws import ascending

Share = Annotated[float, Gt(0), Le(1)]
Momentum = Annotated[float, Ge(0), Le(1)]


class IJEPA(Objective):
    """From the embedded context, predict a teacher's embeddings of several target blocks.

    shape: of a sample. dim, depth, heads: of the predictor. blocks: targets a sample (M). target_scale, context_scale:
    bounds of a block's share of the patches. aspect: bounds of a target's height / width.
    momentum, end_momentum: of the teacher. It rises along half a cosine; the paper's rises linearly.

    The paper evaluates its teacher; the runner evaluates the context encoder. The loss is that of the authors' code,
    smooth L1 on normalised targets, where the paper writes a squared distance.
    """

    views = 1
    indivisible = COUNTS

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        shape: tuple[int, ...],
        dim: Annotated[int, Gt(0)] = 384,
        depth: Annotated[int, Gt(0)] = 6,
        heads: Annotated[int, Gt(0)] = 12,
        blocks: Annotated[int, Gt(0)] = 4,
        target_scale: tuple[Share, Share] = (0.15, 0.2),
        context_scale: tuple[Share, Share] = (0.85, 1.0),
        aspect: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.75, 1.5),
        momentum: Momentum = 0.996,
        end_momentum: Momentum = 1.0,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.teacher = Teacher(_Tokens(backbone), momentum, end_momentum)
        length, _ = patch_sizes(backbone, shape)
        self.predictor = Decoder(length=length, width=backbone.dim, dim=dim, out=backbone.dim, depth=depth, heads=heads)
        self.blocks = blocks
        self.target_scale = ascending("objective.target_scale", target_scale)
        self.context_scale = ascending("objective.context_scale", context_scale)
        self.aspect = ascending("objective.aspect", aspect)
        self.cells = cells(backbone, shape)  # no buffer: blocks are drawn on the CPU, without waiting for a device

    def forward(self, batch: Batch) -> Loss:
        patches = self.backbone.patchify(batch["views"][0]["x"])
        context, targets = self.draw(len(patches))
        prediction = self.predict(patches, context, targets)
        return Loss(distance(prediction, self.teacher(patches), targets.to(patches.device)))

    def after_step(self, progress: float) -> None:
        self.teacher.update(_Tokens(self.backbone), progress)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Context (B, L) and targets (B, M, L), on the CPU, True at a sample's patches: "Targets" and "Context".

        The context is a large block minus the targets. A draw that leaves none of it, on a coarse grid, is repeated.
        Raises RequestError when a hundred draws did.
        """
        grid = self.cells
        context = torch.zeros(batch, len(grid), dtype=torch.bool)
        targets = torch.zeros(batch, self.blocks, len(grid), dtype=torch.bool)
        for _ in range(100):
            empty = ~context.any(1)
            count = int(empty.sum())
            if count == 0:
                return context, targets
            drawn = block(grid, count * self.blocks, self.target_scale, self.aspect)
            targets[empty] = drawn.view(count, self.blocks, -1)
            context[empty] = block(grid, count, self.context_scale, (1.0, 1.0)) & ~targets[empty].any(1)
        raise RequestError(
            "objective.target_scale: the targets leave no context; lower it or objective.blocks, or give the backbone "
            "smaller blocks"
        )

    def predict(self, patches: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """(B, L, P), (B, L), (B, M, L) -> (B, M, L, backbone.dim), defined at the targets: "Prediction".

        One pass of the predictor a target block: it sees the context's embeddings and that block's positions.
        The masks are on the CPU, where it costs no wait to count what they hold.
        """
        width, device = self.blocks, patches.device
        place, pad = packed(context, device)
        seen = self.backbone.encode(take(self.backbone.embed(patches), place), pad)
        known = self.predictor.enter(seen)
        full = spread(known, place, context.shape[1]).repeat_interleave(width, 0)
        hidden = targets.flatten(0, 1)
        full = torch.where(hidden[..., None].to(device), self.predictor.mask_token.to(full.dtype), full)
        place, pad = packed(context.repeat_interleave(width, 0) | hidden, device)
        tokens = self.predictor.trunk.encode(take(self.predictor.trunk.embed(full), place), pad)
        predicted = spread(self.predictor.leave(tokens), place, context.shape[1])
        return predicted.view(*targets.shape, -1)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, its patches that are context, and those that are targets."""
        x = batch["views"][0]["x"]
        patches = self.backbone.patchify(x)
        context, targets = self.draw(len(patches))
        masks = [mask.to(x.device)[..., None] for mask in (context, targets.any(1))]
        return {"blocks": [x, *(self.backbone.unpatchify(torch.where(mask, patches, 0.0)) for mask in masks)]}


class _Tokens(nn.Module):
    """(B, L, P) patches -> (B, L, dim): the target encoder, which sees all of them. Normalised per token."""

    def __init__(self, backbone: TokenBackbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, patches: Tensor) -> Tensor:
        tokens = self.backbone.encode(self.backbone.embed(patches))
        return F.layer_norm(tokens.float(), tokens.shape[2:])


def distance(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The paper's "Loss": (B, M, L, D) predictions and (B, L, D) targets, averaged over the places of the (B, M, L)
    mask and over D. Smooth L1."""
    wanted = target[:, None].expand_as(prediction).float()
    error = F.smooth_l1_loss(prediction.float(), wanted, reduction="none").mean(3)
    return masked_mean(error.flatten(0, 1), mask.flatten(0, 1))


def cells(backbone: TokenBackbone, shape: tuple[int, ...]) -> Tensor:
    """(L, r): where each patch lies in the grid, along each of the sample's r axes after its channels."""
    places = []
    for axis, side in enumerate(shape[1:]):
        ramp = torch.arange(float(side)).view([-1 if n == axis else 1 for n in range(len(shape) - 1)])
        first = backbone.patchify(ramp.expand(1, *shape))[0].amin(1)
        places.append(first.unique(return_inverse=True)[1])
    return torch.stack(places, 1)


def block(grid: Tensor, count: int, scale: tuple[float, float], aspect: tuple[float, float]) -> Tensor:
    """(L, r) cells -> (count, L), True inside a random box of the grid, another for each row.

    Its volume is a share of the patches within `scale`, its first two sides are in a ratio within `aspect`; each side
    is rounded, and at least one cell and at most the grid's.
    """
    sides = grid.amax(0) + 1
    rank = len(sides)
    share, ratio = (torch.empty(count, 1).uniform_(*bounds) for bounds in (scale, aspect))
    edge = (share * len(grid)) ** (1 / rank)
    stretch = torch.ones(count, rank)
    if rank > 1:
        stretch[:, :1], stretch[:, 1:2] = ratio.sqrt(), ratio.rsqrt()
    size = (edge * stretch).round().clamp(min=1).minimum(sides)
    start = (torch.rand(count, rank) * (sides - size + 1)).floor()
    inside = (grid >= start[:, None]) & (grid < (start + size)[:, None])
    return inside.all(2)


def packed(mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, L), on the CPU -> on the device, places (B, K) of the True ones, in order, K as many as the fullest row has;
    and (B, K), True where a row has fewer, so that the place is padding."""
    count = mask.sum(1)
    longest = int(count.max())
    place = (~mask).long().argsort(dim=1, stable=True)[:, :longest]
    return place.to(device), (torch.arange(longest) >= count[:, None]).to(device)


def take(tokens: Tensor, place: Tensor) -> Tensor:
    """(B, L, D) and (B, K) -> (B, K, D)."""
    return tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[2]))


def spread(tokens: Tensor, place: Tensor, length: int) -> Tensor:
    """The inverse of `take`: (B, K, D) -> (B, L, D), zeros elsewhere."""
    empty = tokens.new_zeros(len(tokens), length, tokens.shape[2])
    return empty.scatter(1, place[..., None].expand_as(tokens), tokens)
