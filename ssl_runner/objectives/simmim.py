"""SimMIM: A Simple Framework for Masked Image Modeling.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu, CVPR 2022. https://arxiv.org/abs/2111.09886
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from ssl_runner.parts.masking import random_mask
from ssl_runner.parts.patches import masked_mean, patch_sizes
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone


class SimMIM(Objective):
    """Section 3: hidden patches are replaced by a learned token, and one linear layer predicts their values.

    shape: of a sample. ratio: share of the patches that is hidden. The unit of masking is the backbone's patch; the
    paper's is 32 pixels wide, so a backbone with blocks of that size is the nearest to it.
    """

    views = 1

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        shape: tuple[int, ...],
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.6,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.ratio = ratio
        _, out = patch_sizes(backbone, shape)
        self.mask_token = nn.Parameter(torch.empty(backbone.dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(backbone.dim, out)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        patches, pad = self.backbone.patchify(view["x"]), view.get("pad")
        mask = random_mask(len(patches), patches.shape[1], self.ratio, patches.device)
        prediction = self.predict(patches, mask, pad)
        return Loss(l1(prediction, patches, mask if pad is None else mask & ~pad))

    def predict(self, patches: Tensor, mask: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L, P) patches and (B, L), True where hidden -> (B, L, P). Sections 3.2 and 3.3.

        A hidden patch's values are zeros before they are embedded, so its token is the learned one and its position.
        """
        tokens = self.backbone.embed(patches.masked_fill(mask[..., None], 0.0))
        tokens = tokens + self.mask_token.to(tokens.dtype) * mask[..., None]
        return self.head(self.backbone.encode(tokens, pad))


def l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Section 3.4: the absolute error of (B, L, P) patches, averaged over the values of those that are hidden."""
    return masked_mean((prediction.float() - target.float()).abs().mean(2), mask)
