"""timm's vision transformers, token by token: what masked, causal and dense objectives take apart."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_runner.backbones.timm import create, patch_advice, pooled
from ssl_runner.errors import RequestError
from ssl_runner.parts.attention import visible
from ssl_runner.types import TokenBackbone

NOT_OPTIONS = {
    "patch_drop_rate": "objectives hide patches themselves",
    "dynamic_img_pad": "patches must divide the image",
}


class ViT(TokenBackbone):
    """Vision transformer (Dosovitskiy et al., 2021): (B, C, H, W) -> (B, dim), and each step between.

    name: timm's, such as vit_small_patch16_224, with or without a tag of weights. shape: (C, H, W) of the images.
    pretrained: start from timm's published weights. options: of timm's model, e.g. {"patch_size": 4}.

    Tokens are those of the patches. The class token and registers join them in `encode` and stay there; the
    embedding is pooled by timm, from the class token unless options say {"global_pool": "avg"}. grid: (h, w) patches.

    Raises RequestError for a name, option or image size that the model does not take, and for a model whose steps
    are others; RunError when published weights can't be fetched.
    """

    def __init__(
        self,
        *,
        name: str,
        shape: tuple[int, int, int],
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        options = options or {}
        for option in options.keys() & NOT_OPTIONS.keys():
            raise RequestError(f"backbone.options.{option}: leave it out, {NOT_OPTIONS[option]}")
        self.name, self.shape = name, tuple(shape)
        self.model = create(name, shape, pretrained, options)
        _must_be_plain(self.model, name)
        self.dim = self.model.embed_dim
        self.patch: tuple[int, int] = tuple(self.model.patch_embed.patch_size)
        self.grid: tuple[int, int] = (shape[1] // self.patch[0], shape[2] // self.patch[1])

    def patchify(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, P): patches in row-major order, each as (C, p, q)."""
        if tuple(x.shape[1:]) != self.shape:
            raise RequestError(f"backbone.shape: built for {self.shape}, and got samples of {tuple(x.shape[1:])}")
        return F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, P) -> (B, C, H, W): the inverse of patchify."""
        return F.fold(patches.transpose(1, 2), self.shape[1:], self.patch, stride=self.patch)

    def embed(self, patches: Tensor) -> Tensor:
        """(B, L, P), all patches -> (B, L, dim): timm's convolution, which strides by its own size, and positions."""
        stem, positions = self.model.patch_embed, self.model.pos_embed
        tokens = stem.norm(F.linear(patches, stem.proj.weight.flatten(1), stem.proj.bias))
        return tokens if positions is None else tokens + positions[:, -math.prod(self.grid) :]

    def encode(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Tensor:
        """(B, L, dim) -> (B, L, dim), for any of an image's tokens. What sees what: as in `layers`.

        Normalised token by token, also where timm would normalise what it pooled.
        """
        for output in self.layers(tokens, pad, causal, part):
            tokens = output
        return self.model.fc_norm(self.model.norm(tokens))  # timm has one of the two, before pooling or after

    def layers(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, L, dim) -> the (B, L, dim) behind each block. See ssl_runner.parts.attention.visible.

        causal: the class token and the registers come first. part: they are of part 0 and see, and are seen by, no
        other. Raises RequestError for any of these where timm's attention takes no mask.
        """
        prefix = self._prefix()
        x = torch.cat([prefix.expand(len(tokens), -1, -1), tokens], 1)
        seen = self._seen(x, pad, causal, part)
        x = self.model.norm_pre(self.model.pos_drop(x))
        for block in self.model.blocks:
            x = block(x) if seen is None else block(x, attn_mask=seen)
            yield x[:, prefix.shape[1] :]

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, dim), by timm's own forward and pooling."""
        return pooled(self.model, self.name, x, pad)

    @property
    def advice(self) -> str | None:
        """One sentence where patches suit larger images better, None where they fit."""
        return patch_advice(self.name, self.shape, max(self.patch))

    def _prefix(self) -> Tensor:
        """(1, K, dim): class token and registers, with their positions where they have some."""
        model = self.model
        tokens = [token for token in (model.cls_token, model.reg_token) if token is not None]
        if not tokens:
            return model.patch_embed.proj.weight.new_zeros(1, 0, self.dim)
        prefix = torch.cat(tokens, 1)
        if model.pos_embed is None or model.no_embed_class:
            return prefix
        return prefix + model.pos_embed[:, : prefix.shape[1]]

    def _seen(self, x: Tensor, pad: Tensor | None, causal: bool, part: Tensor | None) -> Tensor | None:
        """What sees what among (B, K + L, dim): the K tokens that timm puts first, and those given."""
        if pad is None and part is None and not causal:
            return None
        if "attn_mask" not in inspect.signature(self.model.blocks[0].forward).parameters:
            raise RequestError(
                f"backbone: the attention of {self.name} takes no mask in this timm, and the objective needs one; "
                "use backbone=encoder, or a newer timm"
            )
        first = (self.model.num_prefix_tokens, 0)
        pad, part = (None if each is None else F.pad(each, first) for each in (pad, part))
        return visible(x, pad, causal, part)


def _must_be_plain(model: Any, name: str) -> None:
    """Raises RequestError unless the model is what `ViT` takes apart."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    if type(model) is not VisionTransformer or type(model.patch_embed) is not PatchEmbed:
        raise RequestError(
            f"backbone.name: {name} is no plain vision transformer, and can't be taken apart into tokens; use it as "
            f"backbone=timm backbone.name={name} (ssl_runner.backbones.timm.Timm), which embeds whole images, or name "
            "a transformer such as vit_small_patch16_224"
        )
    if model.attn_pool is not None:
        raise RequestError(
            f"backbone.options.global_pool: {name} pools by attention, which objectives on tokens leave untrained; set "
            "it to avg, or use backbone=timm (ssl_runner.backbones.timm.Timm)"
        )
