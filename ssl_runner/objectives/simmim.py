"""SimMIM: A Simple Framework for Masked Image Modeling.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu, CVPR 2022. https://arxiv.org/abs/2111.09886
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor, nn

from ssl_runner.errors import RequestError
from ssl_runner.parts.masking import random_mask
from ssl_runner.parts.patches import masked_mean, patch_sizes
from ssl_runner.types import Batch, Loss, MapBackbone, Objective, TokenBackbone


class SimMIM(Objective):
    """Section 3: hidden patches are replaced by something learned, and one linear layer predicts their values.

    shape: of a sample. ratio: share of the patches that is hidden.
    block: pixels along a side of a patch, for a backbone that makes maps; None is a cell of the last map. The paper's
    patches of 32 pixels are such cells. A backbone of tokens hides its own patches.

    A backbone of tokens gets a learned token in place of a patch's; one that makes maps gets a learned value per
    channel in place of the pixels, and the layer is a 1x1 convolution, from each cell to its pixels.
    Raises RequestError for a block that does not divide the image, or leaves fewer than two patches.
    """

    views = 1

    def __init__(
        self,
        backbone: TokenBackbone | MapBackbone,
        *,
        shape: tuple[int, ...],
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.6,
        block: Annotated[int, Gt(0)] | None = None,
    ):
        super().__init__()
        self.backbone: TokenBackbone | MapBackbone = backbone
        self.shape, self.ratio = tuple(shape), ratio
        if isinstance(backbone, MapBackbone):
            channels, self.cell = cell_sizes(backbone, self.shape)
            self.block = usable(block or self.cell, self.shape)
            self.mask_token = nn.Parameter(torch.empty(shape[0]))
            self.head: nn.Module = nn.Conv2d(channels, shape[0] * self.cell**2, 1)
        else:
            if block is not None:
                raise RequestError("objective.block: leave it out, the patches are the backbone's own")
            _, out = patch_sizes(backbone, self.shape)
            self.mask_token = nn.Parameter(torch.empty(backbone.dim))
            self.head = nn.Linear(backbone.dim, out)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        patches, pad = self.cut(view["x"]), view.get("pad")
        mask = random_mask(len(patches), patches.shape[1], self.ratio, patches.device)
        prediction = self.predict(patches, mask, pad)
        return Loss(l1(prediction, patches, mask if pad is None else mask & ~pad))

    def predict(self, patches: Tensor, mask: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L, P) patches and (B, L), True where hidden -> (B, L, P). Sections 3.2 and 3.3."""
        if isinstance(self.backbone, MapBackbone):
            filler = self.mask_token.to(patches.dtype).repeat_interleave(self.block**2)
            image = self.join(torch.where(mask[..., None], filler, patches))
            return self.cut(F.pixel_shuffle(self.head(self.backbone.maps(image)), self.cell))
        # Zeros before they are embedded leave of a hidden patch its position, and a constant.
        tokens = self.backbone.embed(patches.masked_fill(mask[..., None], 0.0))
        tokens = tokens + self.mask_token.to(tokens.dtype) * mask[..., None]
        return self.head(self.backbone.encode(tokens, pad))

    def cut(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, L, P): the backbone's patches, or blocks in row-major order, each as (C, block, block)."""
        if isinstance(self.backbone, MapBackbone):
            return F.unfold(x, self.block, stride=self.block).transpose(1, 2)
        return self.backbone.patchify(x)

    def join(self, patches: Tensor) -> Tensor:
        """The inverse of `cut`."""
        if isinstance(self.backbone, MapBackbone):
            return F.fold(patches.transpose(1, 2), self.shape[1:], self.block, stride=self.block)
        return self.backbone.unpatchify(patches)

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, what is left of it, and the input with the hidden patches rebuilt."""
        view = batch["views"][0]
        patches = self.cut(view["x"])
        mask = random_mask(len(patches), patches.shape[1], self.ratio, patches.device)
        rebuilt = self.predict(patches, mask, view.get("pad")).float()
        seen = torch.where(mask[..., None], 0.0, patches)
        whole = torch.where(mask[..., None], rebuilt, patches.float())
        return {"reconstruction": [view["x"], self.join(seen), self.join(whole)]}


def l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Section 3.4: the absolute error of (B, L, P) patches, averaged over the values of those that are hidden."""
    return masked_mean((prediction.float() - target.float()).abs().mean(2), mask)


def cell_sizes(backbone: MapBackbone, shape: tuple[int, ...]) -> tuple[int, int]:
    """(channels of the map, pixels along a side of its cells). Raises RequestError unless whole, square cells fill the
    (C, H, W) image."""
    channels, *cells = backbone.map_shape()
    side = shape[1] // cells[0]
    if [side * count for count in cells] != list(shape[1:]):
        raise RequestError(
            f"objective: the backbone makes a {cells[0]}x{cells[1]} map of a {shape[1]}x{shape[2]} image, and SimMIM "
            "needs square cells of whole pixels; choose images whose sides the map's stride divides"
        )
    return channels, side


def usable(block: int, shape: tuple[int, ...]) -> int:
    """block, if it cuts a (C, H, W) image into two patches or more. Raises RequestError otherwise."""
    if any(side % block for side in shape[1:]) or (block, block) == shape[1:]:
        raise RequestError(
            f"objective.block={block}: does not cut a {shape[1]}x{shape[2]} image into two patches or more, all of "
            "one size; give a divisor of both sides"
        )
    return block
