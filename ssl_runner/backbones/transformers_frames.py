"""wav2vec 2.0, HuBERT, data2vec and their like of transformers (https://github.com/huggingface/transformers), frame by
frame, on waveforms. What ssl_runner.backbones.transformers says of code and weights holds here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ssl_runner.backbones.frames import framed_padding, hop_and_reach
from ssl_runner.backbones.transformers import FAILURES, described_by, model_of, need_library, own_fields, silence
from ssl_runner.errors import RequestError
from ssl_runner.parts.pooling import mean_token
from ssl_runner.types import FrameBackbone


class TransformersFrames(FrameBackbone):
    """Convolutions along time, their projection and a transformer, without any head: (B, 1, n) -> (B, dim).

    name: an architecture as transformers names it (wav2vec2, hubert, data2vec-audio), a folder with config.json and
    model.safetensors, or a model of the hub. shape: (1, n) of the data. pretrained: start from the folder's or the
    hub's weights. config: fields of the architecture's config that differ from its defaults, or from config.json.

    Published models want a waveform of 16,000 values a second, each sample with mean 0 and variance 1. Layers are
    dropped only where config.layerdrop says so, for DDP waits for the gradients of all. What the config says of
    masking is left to objectives. The embedding is the mean over the tokens that are not padding.

    Raises RequestError for a name or field that can't be, for weights that do not fit, for a model that is not of
    waveforms, for data of several channels, and for samples that are too short for two frames; RunError when the hub
    does not answer.
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
        if len(shape) != 2 or shape[0] != 1:
            raise RequestError(f"backbone: takes waveforms of one channel, (1, n), and samples are {tuple(shape)}")
        self.name = name
        without_masks = {"layerdrop": 0.0, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "add_adapter": False}
        with silence():
            described = described_by(name, config or {}, without_masks)
            if not {"conv_kernel", "conv_stride"} <= set(own_fields(described)):
                raise RequestError(f"backbone.name: {name} ({described.model_type}) has no convolutions on a waveform")
            self.model, self.receipt = model_of(described, name, pretrained, {"input_values", "attention_mask"})
        self._fields = own_fields(described)
        for key, parameter in self.model.named_parameters():
            if key == "masked_spec_embed":  # some models have it at all times; objectives hide by a token of their own
                parameter.requires_grad_(False)
        self.hop, self.reach = hop_and_reach(tuple(described.conv_kernel), tuple(described.conv_stride))
        self.grid = ((shape[1] - self.reach) // self.hop + 1,)
        if self.grid[0] < 2:
            raise RequestError(f"backbone: a frame of {name} sees {self.reach} values, and samples have {shape[1]}")
        self._try()

    def patchify(self, x: Tensor) -> Tensor:
        """(B, 1, n) -> (B, L, P)."""
        return self.model.feature_extractor(x[:, 0]).transpose(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        raise RequestError("objective: rebuilds its input, and here frames are learned; use a Continuous stem")

    def padding(self, pad: Tensor) -> Tensor:
        """(B, n) -> (B, L): a frame that sees padding is padding."""
        return framed_padding(pad, self.hop, self.reach)

    def normalise(self, frames: Tensor) -> Tensor:
        """(B, L, P) -> the same, each frame by its own mean and variance, where the model does so."""
        norm = getattr(self.model.feature_projection, "layer_norm", None)
        return frames if norm is None else norm(frames)

    def project(self, frames: Tensor) -> Tensor:
        """(B, L, P) -> (B, L, dim)."""
        projection = self.model.feature_projection
        return projection.dropout(projection.projection(frames))

    def encode(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Tensor:
        """(B, L, dim) -> (B, L, dim), positions added. Raises RequestError for causal and part."""
        if causal or part is not None:
            raise RequestError(f"backbone.name: {self.name} sees what follows; use backbone=encoder_frames")
        # the library writes zeros into what it is given
        return self.model.encoder(tokens.clone(), attention_mask=None if pad is None else ~pad).last_hidden_state

    def layers(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, L, dim) -> the (B, L, dim) behind each block."""
        found: list[Tensor] = []

        def keep(module: nn.Module, given: Any, made: Any) -> None:
            found.append(made[0] if isinstance(made, tuple) else made)

        handles = [block.register_forward_hook(keep) for block in self.blocks]
        try:
            self.encode(tokens, pad, causal, part)
        finally:
            for handle in handles:
                handle.remove()
        yield from found

    @property
    def blocks(self) -> nn.ModuleList:
        """By which a learning rate may decay."""
        return self.model.encoder.layers

    @property
    def advice(self) -> str | None:
        """What loading the weights did; None for a new model."""
        return None if self.receipt is None else f"{self.name}: {self.receipt}"

    def pinned(self) -> dict[str, Any]:
        """The whole of the architecture, for a run to keep: folder, hub and the library's defaults may change."""
        return {"config": self._fields}

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, 1, n) -> (B, dim)."""
        return mean_token(self.tokens(x, pad), pad)

    @torch.no_grad()
    def _try(self) -> None:
        """Finds the widths; raises RequestError for an architecture of other parts, or with frames of its own kind."""
        self.model.eval()
        try:
            frames = self.patchify(torch.zeros(1, 1, self.reach + 3 * self.hop))
            tokens = self.encode(self.embed(frames))
            blocks = len(self.blocks)
        except FAILURES as error:
            raise RequestError(f"backbone.name: {self.name} can't be taken apart into frames: {error}") from error
        self.frame_dim, self.dim = frames.shape[2], tokens.shape[2]
        if frames.shape[1] != 4 or tokens.shape[1] != 4 or not blocks:
            raise RequestError(f"backbone.name: {self.name} makes {tokens.shape[1]} tokens of 4 frames")
        self.model.train()
