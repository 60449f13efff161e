"""`lora_conv_transpose3d` on a GPU: it spreads, and its gradients gather (`convolution_kernels.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from medseqft_kernels import convolution_launch as launch
from medseqft_kernels.convolution_kernels import a_gradient_kernel, convolution_kernel
from medseqft_kernels.convolution_launch import Walk, a_gradient_plan, convolution_plan, shipped
from medseqft_kernels.lora_conv_transpose3d.forms import Geometry
from medseqft_kernels.triton_support import Shipped


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    geometry: Geometry,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, u) with u = convᵀ(x, A) and y = convᵀ(x, W) + bias + s·B·u."""
    kernel, (stride, padding, _, dilation) = weight.shape[2:], geometry
    walk, size = Walk.spreading(kernel, stride, padding, dilation), geometry.output_size(x.shape[2:], kernel)
    return launch.forward(x, weight, bias, lora_a, lora_b, scaling, walk, size, out_dtype)


def backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor,
    scaling: float,
    geometry: Geometry,
    need_x: bool,
    need_adapter: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(gx, gA, gB), None where not needed."""
    stride, padding, _, dilation = geometry
    walk = Walk.gathering(weight.shape[2:], stride, padding, dilation)
    return launch.backward(g, x, weight, lora_a, lora_b, u, scaling, walk, need_x, need_adapter)


def _shipped() -> tuple[Shipped, ...]:
    """96 → 48 channels by 2×2×2 of stride 2 on 48³, the same by 3×3×3, and 2×2×2 in fp32, all of rank 4.

    The pass over g is compiled as `lora_conv3d`'s.
    """
    ones, twos, none, half = (1, 1, 1), (2, 2, 2), (0, 0, 0), torch.bfloat16
    there, back = Walk.spreading(twos, twos, none, ones), Walk.gathering(twos, twos, none, ones)
    wider, wider_back = Walk.spreading((3, 3, 3), twos, ones, ones), Walk.gathering((3, 3, 3), twos, ones, ones)
    up, down = (96, 48, 4), (48, 96, 4)
    return (
        shipped(convolution_kernel, convolution_plan(up, there, half, 96**3, True)),
        shipped(convolution_kernel, convolution_plan(up, wider, half, 96**3, True)),
        shipped(convolution_kernel, convolution_plan(up, there, torch.float32, 96**3, True), "*fp32"),
        shipped(convolution_kernel, convolution_plan(down, back, half, 48**3, False)),
        shipped(convolution_kernel, convolution_plan(down, wider_back, half, 48**3, False)),
        shipped(a_gradient_kernel, a_gradient_plan(96, 4, back, half, 48)),
        shipped(a_gradient_kernel, a_gradient_plan(96, 4, wider_back, half, 48)),
    )


SHIPPED: tuple[Shipped, ...] = _shipped()
"""What ahead-of-time compilation builds."""
