"""BatchNorm over the batches of all ranks, on any device.

torch.nn.SyncBatchNorm refuses CPU tensors, and its converter drops the activation that timm fuses into norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_runner.parts.gather import all_reduce, world_size


class SyncBatchNorm(_BatchNorm):
    """BatchNorm (Ioffe & Szegedy, 2015, Algorithm 1) whose mini-batch is the global one: (B, C, ...) -> same.

    In training, with several ranks, outputs, running statistics and gradients are those of one process's
    BatchNorm on the joined batch; ranks may hold different numbers of samples. Otherwise it is BatchNorm.
    Statistics are computed in float32 whatever the input's precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._normalise(x.float()).to(x.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        axes = [n for n in range(x.ndim) if n != 1]
        wide = [1, -1] + [1] * (x.ndim - 2)
        held = x.new_full((1,), x.numel() // x.shape[1])
        total = all_reduce(torch.cat([x.sum(axes), held]))
        count = total[-1].detach()
        mean = total[:-1] / count
        # deviations from the global mean, not a difference of two large sums; the only copy of x that is kept
        centred = x - mean.view(wide)
        var = all_reduce(centred.square().sum(axes)) / count
        self._track(mean.detach(), var.detach() * count / (count - 1))
        scale = (var + self.eps).rsqrt()
        if self.weight is None:
            return centred * scale.view(wide)
        return torch.addcmul(self.bias.view(wide), centred, (scale * self.weight).view(wide))

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any rank from (B, C) on, since one class stands for BatchNorm1d, 2d and 3d."""


class _SyncNormAct(SyncBatchNorm):
    """The same for timm's norms that end in a dropout and an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def synchronise(module: nn.Module) -> nn.Module:
    """Replaces every BatchNorm inside by a SyncBatchNorm of the same parameters, buffers and state_dict keys.

    Returns the module, or its replacement when it is a BatchNorm itself. Norms that are synchronised already
    are left alone. Raises TypeError for a kind of BatchNorm whose behaviour can't be kept.
    """
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm | nn.SyncBatchNorm):
        return _synchronised(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child))
    return module


def _synchronised(norm: _BatchNorm) -> SyncBatchNorm:
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    parts = dict(norm.named_children())
    if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        new = SyncBatchNorm(*settings)
    elif parts.keys() == {"drop", "act"}:
        new = _SyncNormAct(*settings)
    else:
        raise TypeError(f"can't synchronise {type(norm).__name__} over ranks: only torch's and timm's are known")
    for name, part in parts.items():
        new.add_module(name, part)
    for name in norm._parameters:
        new.register_parameter(name, norm._parameters[name])
    for name in norm._buffers:
        new.register_buffer(name, norm._buffers[name])
    return new.train(norm.training)
