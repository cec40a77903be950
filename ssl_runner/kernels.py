"""Two faults of convolutions in bf16 on a processor, and what is done about them. Nothing fails by either.

Seen with torch 2.14.1 on a Xeon with AMX:

  wrong   Where a row of a kernel (its width times the channels of a group, 16 at most) fills a multiple of 32 values,
          and the stride is 1 or the kernel's width, the output has nothing to do with the input. The positional
          convolution of wav2vec 2.0 in a small net is such a one (8 channels a group, 32 wide), and so are patch
          embeddings of images of 4, 8 or 12 channels. The net learns less, and computes otherwise in fp32.
  beyond  Along one axis with a stride, where the last values of the input are too few for another place of the
          kernel, the gradient of the weights reads behind the input's end, and multiplies that by zero. Now and then
          there is a NaN: then so is the loss, once in some thousand steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

APART = 0.1  # of the output's norm: rounding to bf16 comes to 0.003
SEEN = 16  # places of the output along its last axis that are compared; 8 are enough to meet the fault


def mend(objective: nn.Module) -> list[str]:
    """Lets the convolutions that this processor gets wrong in bf16 compute in fp32, in place, and names them; and lets
    none read beyond its input, by leaving out what it does not use."""
    known: dict[tuple[Any, ...], bool] = {}
    found = []
    for name, module in objective.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and not isinstance(module, (_InFloat, _Within)):
            kind = (type(module), module.weight.shape, module.stride, module.dilation, module.groups)
            if kind not in known:
                known[kind] = wrong(module)
            if known[kind]:
                module.__class__ = type(f"{type(module).__name__}InFloat", (_InFloat, type(module)), {})
                found.append(name)
            elif isinstance(module, nn.Conv1d) and module.stride[0] > 1 and module.padding == (0,):
                module.__class__ = type(f"{type(module).__name__}Within", (_Within, type(module)), {})
    return found


@torch.no_grad()
def wrong(convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    """Whether its output in bf16 is far from that in fp32, of the same random values and weights. Draws nothing from
    the global generator."""
    generator = torch.Generator().manual_seed(0)
    reach = [(k - 1) * d + 1 for k, d in zip(convolution.kernel_size, convolution.dilation, strict=True)]
    reach[-1] += (SEEN - 1) * convolution.stride[-1]
    x = torch.randn(1, convolution.in_channels, *reach, generator=generator).bfloat16()
    weight = torch.randn(convolution.weight.shape, generator=generator).bfloat16()
    apply = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[len(reach)]
    how = (None, convolution.stride, 0, convolution.dilation, convolution.groups)
    exact = apply(x.float(), weight.float(), *how)
    return bool((apply(x, weight, *how).float() - exact).norm() > APART * exact.norm())


class _InFloat(nn.Module):
    """Comes before a convolution's class."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            if self.weight.dtype is torch.float32:
                return super().forward(x.float())
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(x.float(), self.weight.float(), bias)  # type: ignore[operator]


class _Within(nn.Module):
    """The same for a convolution along one axis, without padding."""

    stride: tuple[int]
    dilation: tuple[int]
    kernel_size: tuple[int]

    def forward(self, x: Tensor) -> Tensor:
        reach = (self.kernel_size[0] - 1) * self.dilation[0] + 1
        unused = (x.shape[-1] - reach) % self.stride[0]
        return super().forward(x[..., : x.shape[-1] - unused])
