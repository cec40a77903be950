"""ViT, VideoMAE and their like of transformers (https://github.com/huggingface/transformers), patch by patch, on
pictures or clips. What ssl_runner.backbones.transformers says of code and weights holds here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.backbones.transformers import (
    FAILURES,
    blocks_of,
    described_by,
    model_of,
    need_library,
    own_fields,
    silence,
)
from ssl_runner.errors import RequestError
from ssl_runner.parts.blocks import cut, joined
from ssl_runner.types import TokenBackbone


class TransformersPatches(TokenBackbone):
    """One convolution that cuts the input into blocks, positions, and a transformer, without any head: (B, C, H, W) or
    (B, C, T, H, W) -> (B, dim).

    name: an architecture as transformers names it (vit, videomae, vivit), a folder with config.json and
    model.safetensors, or a model of the hub. shape: of the data; a new model is made for it, one with weights must be
    for it. pretrained: start from the folder's or the hub's weights. config: fields of the architecture's config that
    differ from its defaults, or from config.json: patch_size, and of clips tubelet_size.

    A class token, where the model has one, joins the others in `encode` and stays there. The embedding is the mean over
    all others, normalised as the model does at its end (VideoMAE: with use_mean_pooling=false, as a new one has it).
    Every token sees all others. grid: patches along each axis.

    Raises RequestError for a name or field that can't be, for weights that do not fit, for blocks that do not divide
    the samples, and for a model of other steps; RunError when the hub does not answer.
    """

    def __init__(
        self,
        *,
        name: str,
        shape: tuple[int, ...],
        pretrained: bool = False,
        config: dict[str, Any] | None = None,
    ):
        super().__init__()
        need_library()
        if len(shape) not in (3, 4):
            raise RequestError(f"backbone: takes pictures (C, H, W) or clips (C, T, H, W); samples are {tuple(shape)}")
        self.name, self.shape = name, tuple(shape)
        with silence():
            described = described_by(name, config or {}, {} if pretrained else _sizes(self.shape))
            self.model, self.receipt = model_of(described, name, pretrained, {"pixel_values"})
        self._fields = own_fields(described)
        for key, parameter in self.model.named_parameters():
            if key.endswith("mask_token"):  # objectives hide by a token of their own
                parameter.requires_grad_(False)
        self._look()
        self._try()

    def patchify(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, L, P): blocks in row-major order, channels first in each."""
        if tuple(x.shape[1:]) != self.shape:
            raise RequestError(f"backbone.shape: built for {self.shape}, and got samples of {tuple(x.shape[1:])}")
        return cut(x, self.block)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, P) -> (B, C, ...): the inverse of patchify."""
        return joined(patches, self.shape, self.block)

    def embed(self, patches: Tensor) -> Tensor:
        """(B, L, P), all patches -> (B, L, dim), positions added."""
        tokens = F.linear(patches, self._projection.weight.flatten(1), self._projection.bias)
        return tokens + self._positions(tokens)[:, -tokens.shape[1] :]

    def encode(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Tensor:
        """(B, L, dim) -> (B, L, dim), for any of a sample's tokens. Raises RequestError for pad, causal and part."""
        for output in self.layers(tokens, pad, causal, part):
            tokens = output
        norm = getattr(self.model, "layernorm", None)
        return tokens if norm is None else norm(tokens)

    def layers(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, L, dim) -> the (B, L, dim) behind each block."""
        if pad is not None or causal or part is not None:
            raise RequestError(
                f"backbone.name: in {self.name} every token sees all others, padding too; use backbone=encoder"
            )
        first = getattr(self.model.embeddings, "cls_token", None)
        x = tokens
        if first is not None:
            first = first + self._positions(tokens)[:, :1]
            x = torch.cat([first.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], 1)
        dropout = getattr(self.model.embeddings, "dropout", None)
        x = x if dropout is None else dropout(x)
        for block in self.blocks:
            made = block(x)
            x = made[0] if isinstance(made, tuple) else made
            yield x[:, x.shape[1] - tokens.shape[1] :]

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, C, ...) -> (B, dim)."""
        return self.tokens(x, pad).mean(1)

    @property
    def blocks(self) -> nn.ModuleList:
        """By which a learning rate may decay."""
        found = blocks_of(self.model)
        assert found is not None  # looked at when it was made
        return found

    @property
    def advice(self) -> str | None:
        """What loading the weights did; None for a new model."""
        return None if self.receipt is None else f"{self.name}: {self.receipt}"

    def pinned(self) -> dict[str, Any]:
        """The whole of the architecture, for a run to keep: folder, hub and the library's defaults may change."""
        return {"config": self._fields}

    @property
    def _projection(self) -> nn.Conv2d | nn.Conv3d:
        return self.model.embeddings.patch_embeddings.projection

    def _positions(self, tokens: Tensor) -> Tensor:
        """(1, K + L, dim). VideoMAE's are no part of its state, and stay where they were made."""
        return self.model.embeddings.position_embeddings.to(tokens.device)

    def _look(self) -> None:
        """Finds block, grid and dim. Raises RequestError for an architecture of other parts."""
        try:
            conv, parts = self._projection, (self.model.embeddings.position_embeddings, blocks_of(self.model))
        except AttributeError:
            conv, parts = None, (None, None)
        rank = len(self.shape) - 1
        if not isinstance(conv, (nn.Conv2d, nn.Conv3d)) or any(part is None for part in parts):
            raise RequestError(f"backbone.name: {self.name} is no vision transformer that can be taken apart")
        if len(conv.kernel_size) != rank:
            raise RequestError(
                f"backbone.name: {self.name} is for samples of {len(conv.kernel_size)} axes after the channels, and "
                f"these are {self.shape}"
            )
        self.block, self.dim = tuple(conv.kernel_size), conv.out_channels
        if any(side % b for side, b in zip(self.shape[1:], self.block, strict=True)):
            raise RequestError(
                f"backbone.config: {self.name} cuts samples into blocks of {self.block}, which do not divide "
                f"{self.shape[1:]}; set patch_size (and of clips tubelet_size) to divisors"
            )
        self.grid = tuple(side // b for side, b in zip(self.shape[1:], self.block, strict=True))

    @torch.no_grad()
    def _try(self) -> None:
        """Raises RequestError where the steps, one by one, are not what the library does, or where the model is for
        samples of another shape."""
        self.model.eval()
        x = torch.arange(torch.Size(self.shape).numel(), dtype=torch.float32).sin().view(1, *self.shape)
        try:
            theirs = self.model(x if x.ndim == 4 else x.transpose(1, 2)).last_hidden_state  # the library's clips: T, C
            ours = self.tokens(x)
        except FAILURES as error:
            raise RequestError(
                f"backbone.name: {self.name} can't be run on samples of {self.shape}: {error}"
            ) from error
        if theirs.shape[1] < ours.shape[1] or not torch.allclose(theirs[:, -ours.shape[1] :], ours, atol=1e-4):
            raise RequestError(f"backbone.name: {self.name} takes other steps than those of a plain vision transformer")
        self.model.train()


def _sizes(shape: tuple[int, ...]) -> dict[str, Any]:
    """The fields of a new model that the data decides."""
    channels, *frames, height, width = shape
    sizes = {"num_channels": channels, "image_size": height if height == width else [height, width]}
    return {**sizes, "use_mean_pooling": False, **({"num_frames": frames[0]} if frames else {})}
