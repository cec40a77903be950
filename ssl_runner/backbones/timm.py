"""Any image model of timm (https://github.com/huggingface/pytorch-image-models), for whole images and their maps.

The functions below the class are shared with ``ssl_runner.backbones.vit``, which takes vision transformers apart.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
from torch import Tensor, nn

from ssl_runner.errors import RequestError, RunError
from ssl_runner.types import MapBackbone

NOT_OPTIONS = {
    "num_classes": "a backbone has no classifier",
    "in_chans": "the channels come from backbone.shape",
    "img_size": "the size comes from backbone.shape",
    "features_only": "a backbone gives one vector an image",
    "checkpoint_path": "weights come from backbone.pretrained or from a run",
    "pretrained_cfg": "weights come from backbone.pretrained or from a run",
    "pretrained_cfg_overlay": "weights come from backbone.pretrained or from a run",
}


class Timm(MapBackbone):
    """Any image model that timm knows, without its classifier: (B, C, H, W) -> (B, dim).

    name: timm's name, with or without a tag of weights. shape: (C, H, W) of the images; a model built for one
    size is built for this one.
    small_stem: a ResNet's stem for small images (SimCLR, Appendix B.9): the first convolution is 3x3 with
    stride 1, and there is no max-pooling.
    pretrained: start from timm's published weights. options: of timm's model, e.g. {"drop_path_rate": 0.1}.

    Maps come from a model that pools one: a convolutional net, or a transformer in stages such as Swin.

    Raises RequestError for a name, option or image size that the model does not take, and RunError when
    published weights can't be fetched.
    """

    def __init__(
        self,
        *,
        name: str,
        shape: tuple[int, int, int],
        small_stem: bool = False,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        if pretrained and small_stem:
            raise RequestError(
                "backbone.small_stem: published weights were trained with the usual stem; "
                "set this or backbone.pretrained to false"
            )
        self.name, self.shape, self.small_stem = name, tuple(shape), small_stem
        self.model = create(name, shape, pretrained, options or {})
        self.dim = self.model.head_hidden_size  # the width before a classifier, after any pooling
        if small_stem:
            _shrink_stem(self.model, name)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        return pooled(self.model, self.name, x, pad)

    def maps(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, h, w), normalised cell by cell where the model normalises what it pooled.

        Raises RequestError for a model that makes no map.
        """
        features = self.model.forward_features(x)
        if features.ndim != 4:
            raise RequestError(
                f"backbone.name: {self.name} makes no map of the image; choose a convolutional net such as "
                "backbone=resnet18, or take a vision transformer by its tokens: backbone=vit_tiny "
                f"backbone.name={self.name} (ssl_runner.backbones.vit.ViT)"
            )
        norm = getattr(getattr(self.model, "head", None), "norm", None)
        features = features if norm is None else norm(features)
        return features.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features

    def map_shape(self) -> tuple[int, int, int]:
        """(channels, h, w). Raises RequestError for a model that makes no map, or that embeds by layers of weights
        behind it, which an objective on maps would leave untrained. Found by one pass, without a trace."""
        training = self.model.training
        self.model.eval()
        with torch.enable_grad():
            weight = next(self.model.parameters())
            x = weight.new_zeros(1, *self.shape, requires_grad=True)
            found = self.maps(x)
            names, weights = zip(*((n, p) for n, p in self.model.named_parameters() if p.requires_grad), strict=True)
            grads = torch.autograd.grad(found.sum(), weights, allow_unused=True)
        self.model.train(training)
        behind = [name for name, grad in zip(names, grads, strict=True) if grad is None]
        if behind:
            raise RequestError(
                f"backbone.name: {self.name} has layers behind its last map ({', '.join(behind[:3])}), which an "
                "objective on maps leaves untrained; choose a net that pools its map at once, such as resnet18"
            )
        return found.shape[1], found.shape[2], found.shape[3]

    @property
    def advice(self) -> str | None:
        """One sentence where the stem suits images of another size better, None where it fits."""
        height, width = self.shape[1:]
        side, size = min(height, width), f"{height}x{width}"
        if self.small_stem:
            if side < 128:
                return None
            return (
                f"backbone.small_stem=true on {size} images: every map has 16 times the area that the "
                "usual stem gives, and costs as much more memory and time; it is for images under 64 pixels"
            )
        strides = [stage["reduction"] for stage in self.model.feature_info]
        if len(set(strides)) == 1:
            return patch_advice(self.name, self.shape, strides[-1])
        if side < 2 * strides[-1]:
            cells = f"{max(1, height // strides[-1])}x{max(1, width // strides[-1])}"
            remedy = "backbone.small_stem=true" if _has_stem(self.model) else "a model with a smaller total stride"
            return f"{self.name} reduces a {size} image to a map of {cells} before pooling: use {remedy}"
        return None


def create(name: str, shape: tuple[int, ...], pretrained: bool, options: dict[str, Any]) -> Any:
    """timm's model without a classifier, for images of this shape.

    Raises RequestError for what the model does not take, and RunError when published weights can't be fetched.
    """
    import timm
    from timm.layers import PatchEmbed
    from timm.models import get_pretrained_cfg

    _check(name, shape, pretrained, options)
    cfg = get_pretrained_cfg(name)
    sized: dict[str, Any] = {"img_size": tuple(shape[1:])} if cfg is not None and cfg.fixed_input_size else {}
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=shape[0], **sized, **options)
    except TypeError as error:
        option = re.search(r"keyword argument '(\w+)'", str(error))
        if option is None or option[1] not in options:
            raise
        raise RequestError(f"backbone.options.{option[1]}: {name} takes no such option ({error})") from error
    except OSError as error:
        if not pretrained:
            raise
        raise RunError(
            f"backbone.pretrained: the weights of {name} could not be fetched: {error} "
            "Connect to the network once, or set backbone.pretrained=false"
        ) from error
    patches = getattr(model, "patch_embed", None)
    if isinstance(patches, PatchEmbed) and not patches.dynamic_img_pad:
        sizes = tuple(patches.patch_size)
        if any(side % size for side, size in zip(shape[1:], sizes, strict=True)):
            raise RequestError(
                f"backbone.options.patch_size: patches of {sizes} do not divide images of "
                f"{tuple(shape[1:])}; give a size that does"
            )
    return model


def pooled(model: Any, name: str, x: Tensor, pad: Tensor | None) -> Tensor:
    """(B, C, H, W) -> (B, dim), by the model's own pooling. Raises RequestError for padding, or without pooling."""
    if pad is not None:
        raise RequestError("backbone: timm models can't leave padding out; use backbone=encoder for this data")
    features = model(x)
    if features.shape[1:] != (model.head_hidden_size,):
        raise RequestError(
            f"backbone.options: {name} now gives {tuple(features.shape[1:])} an image and not "
            f"({model.head_hidden_size},); leave its global pooling on"
        )
    return features


def patch_advice(name: str, shape: tuple[int, ...], patch: int) -> str | None:
    """One sentence where an image of (C, H, W) has fewer than four patches along a side."""
    height, width = shape[1:]
    side = min(height, width)
    if side >= 4 * patch:
        return None
    return (
        f"{name} sees a {height}x{width} image as {max(1, height // patch)}x{max(1, width // patch)} patches: "
        f"use a smaller patch, such as backbone.options.patch_size={max(1, side // 8)}"
    )


def _check(name: str, shape: tuple[int, ...], pretrained: bool, options: dict[str, Any]) -> None:
    """What can be seen to be wrong before a model is built."""
    import timm

    known = timm.list_models(include_tags=True) + timm.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`timm.list_models()` in Python lists them"
        raise RequestError(f"backbone.name: timm knows no model {name!r}; {hint}")
    if len(shape) != 3:
        raise RequestError(
            f"backbone.shape: {name} takes images (channels, height, width), and the data is {tuple(shape)}; "
            "use backbone=encoder"
        )
    for option in options.keys() & NOT_OPTIONS.keys():
        raise RequestError(f"backbone.options.{option}: leave it out, {NOT_OPTIONS[option]}")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise RequestError(f"backbone.pretrained: timm has no weights for {name}; set it to false")


def _has_stem(model: nn.Module) -> bool:
    from timm.models.resnet import ResNet

    return isinstance(model, ResNet)


def _shrink_stem(model: Any, name: str) -> None:
    """Takes the stride 2 out of the first convolution, and the pooling that halves once more."""
    if not _has_stem(model):
        raise RequestError(
            f"backbone.small_stem: {name} has no ResNet stem (strided convolution, max-pooling) to change; "
            "set it to false, or name a ResNet such as resnet18"
        )
    if isinstance(model.conv1, nn.Conv2d):
        wide = model.conv1
        model.conv1 = nn.Conv2d(wide.in_channels, wide.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm starts it
    else:
        model.conv1[0].stride = (1, 1)  # a deep stem: three 3x3 convolutions, the first of which strides
    model.maxpool = nn.Identity()
    first, *rest = model.feature_info
    first["reduction"] //= 2
    for stage in rest:
        stage["reduction"] //= 4
