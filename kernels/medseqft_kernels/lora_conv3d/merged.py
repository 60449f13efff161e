"""`lora_conv3d` as one convolution with the merged weight: fp32 and fp64 only (see README.md)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.lora_conv3d.reference import Size3


def merged(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    *,
    stride: Size3 = 1,
    padding: Size3 | str = 0,
    dilation: Size3 = 1,
    groups: int = 1,
) -> Tensor:
    """conv(x, W + s·B·A) + b; the backward pass forms the full weight gradient once and projects it on A and B."""
    a = lora_a.reshape(groups, -1, weight[0].numel())
    b = lora_b.reshape(groups, -1, a.shape[1])
    delta = torch.bmm(b, a).reshape(weight.shape)
    return functional.conv3d(x, weight + scaling * delta, bias, stride, padding, dilation, groups)
