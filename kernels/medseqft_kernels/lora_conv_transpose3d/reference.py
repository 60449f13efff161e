"""`lora_conv_transpose3d` in plain PyTorch: the formula, and the weight that it merges to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.checks import Size3


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    *,
    stride: Size3 = 1,
    padding: Size3 = 0,
    output_padding: Size3 = 0,
    groups: int = 1,
    dilation: Size3 = 1,
) -> Tensor:
    """convᵀ(x, W) + b + s·B(convᵀ(x, A))."""
    frozen = functional.conv_transpose3d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    thin = functional.conv_transpose3d(x, lora_a, None, stride, padding, output_padding, groups, dilation)
    expand = lora_b.reshape(*lora_b.shape[:2], 1, 1, 1)
    return frozen + functional.conv3d(thin, expand, groups=groups) * scaling


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, groups: int = 1) -> Tensor:
    """W[c, o] + s·Σ_ρ A[c, ρ]·B[o, ρ] for each group, formed in float64 and rounded once to the dtype of W."""
    inputs, thin, *kernel = lora_a.shape
    a = lora_a.double().reshape(groups, inputs // groups, thin, *kernel)
    b = lora_b.double().reshape(groups, -1, thin)
    delta = torch.einsum("gcrxyz,gor->gcoxyz", a, b).reshape(weight.shape)
    return (weight.double() + scaling * delta).to(weight.dtype)
