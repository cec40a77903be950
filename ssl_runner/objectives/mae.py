"""MAE: Masked Autoencoders Are Scalable Vision Learners.

He, Chen, Xie, Li, Dollar, Girshick, CVPR 2022. https://arxiv.org/abs/2111.06377

With mask="tubes", of clips: VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
Pre-Training. Tong, Song, Wang, Wang, NeurIPS 2022. https://arxiv.org/abs/2203.12602
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from ssl_runner.parts.decoder import Decoder
from ssl_runner.parts.masking import Masking, random_mask, restore, shown, tube_mask, tubed
from ssl_runner.parts.patches import denormalised, masked_mean, normalised, patch_sizes
from ssl_runner.types import Batch, Loss, Objective, TokenBackbone


class MAE(Objective):
    """Section 3: the encoder sees the visible patches alone, and a light decoder rebuilds the hidden ones.

    shape: of a sample. ratio: share of the patches that is hidden. mask: each patch by chance, or tubes: those at the
    same place of all times together (VideoMAE, with a ratio of 0.9). dim, depth, heads: of the decoder.
    normalise: predict each patch relative to its own mean and deviation (Section 3, "Reconstruction target").

    Positions are the backbone's own and, in the decoder, learned ones; the paper has fixed sines.
    """

    views = 1

    def __init__(
        self,
        backbone: TokenBackbone,
        *,
        shape: tuple[int, ...],
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.75,
        mask: Masking = "random",
        dim: Annotated[int, Gt(0)] = 512,
        depth: Annotated[int, Gt(0)] = 8,
        heads: Annotated[int, Gt(0)] = 16,
        normalise: bool = True,
    ):
        super().__init__()
        self.backbone: TokenBackbone = backbone
        self.ratio, self.normalise = ratio, normalise
        length, out = patch_sizes(backbone, shape)
        self.tubes = tubed(backbone, length) if mask == "tubes" else None
        self.decoder = Decoder(length=length, width=backbone.dim, dim=dim, out=out, depth=depth, heads=heads)

    def forward(self, batch: Batch) -> Loss:
        view = batch["views"][0]
        patches, pad = self.backbone.patchify(view["x"]), view.get("pad")
        mask = self.masks(patches)
        prediction = self.predict(patches, mask, pad)
        target = normalised(patches) if self.normalise else patches
        return Loss(reconstruction(prediction, target, mask if pad is None else mask & ~pad))

    def masks(self, patches: Tensor) -> Tensor:
        """(B, L, P) -> (B, L) bool, True where hidden."""
        if self.tubes is not None:
            return tube_mask(len(patches), self.tubes, self.ratio, patches.device)
        return random_mask(len(patches), patches.shape[1], self.ratio, patches.device)

    def predict(self, patches: Tensor, mask: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L, P) patches and (B, L), True where hidden -> (B, L, P). "MAE encoder" and "MAE decoder"."""
        tokens = shown(self.backbone.embed(patches), mask)
        seen_pad = None if pad is None else pad[~mask].view(len(pad), -1)
        visible = self.decoder.enter(self.backbone.encode(tokens, seen_pad))
        full = self.decoder.trunk.embed(restore(visible, mask, self.decoder.mask_token))
        return self.decoder.leave(self.decoder.trunk.encode(full, pad))

    def show(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The input, what the encoder saw of it, and the input with the hidden patches rebuilt."""
        view = batch["views"][0]
        patches = self.backbone.patchify(view["x"])
        mask = self.masks(patches)
        rebuilt = self.predict(patches, mask, view.get("pad")).float()
        if self.normalise:
            rebuilt = denormalised(rebuilt, patches)
        seen = torch.where(mask[..., None], 0.0, patches)
        whole = torch.where(mask[..., None], rebuilt, patches.float())
        return {"reconstruction": [view["x"], self.backbone.unpatchify(seen), self.backbone.unpatchify(whole)]}


def reconstruction(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Section 3: the squared error of (B, L, P) patches, averaged over the values of those that are hidden."""
    return masked_mean((prediction.float() - target.float()).square().mean(2), mask)
