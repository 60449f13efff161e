"""`lora_conv3d` on a GPU: it gathers, and its gradients spread (`convolution_kernels.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from medseqft_kernels import convolution_launch as launch
from medseqft_kernels.convolution_kernels import a_gradient_kernel, convolution_kernel, thin_kernel
from medseqft_kernels.convolution_launch import Walk, a_gradient_plan, convolution_plan, shipped, thin_plan
from medseqft_kernels.lora_conv3d.forms import Geometry
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
    """(y, u) with u = A ∗ x and y = conv(x, W) + bias + s·B·u."""
    kernel = weight.shape[2:]
    walk, size = Walk.gathering(kernel, *geometry), geometry.output_size(x.shape[2:], kernel)
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
    walk = Walk.spreading(weight.shape[2:], *geometry)
    return launch.backward(g, x, weight, lora_a, lora_b, u, scaling, walk, need_x, need_adapter)


def _shipped() -> tuple[Shipped, ...]:
    """48 → 48 channels at rank 4, also strided and in fp32, and 384 → 384 at rank 16, on volumes that fill a GPU."""
    ones, threes, half = (1, 1, 1), (3, 3, 3), torch.bfloat16
    there, back = Walk.gathering(threes, ones, ones, ones), Walk.spreading(threes, ones, ones, ones)
    strided = Walk.spreading(threes, (2, 2, 2), ones, ones)
    usual, wide = (48, 48, 4), (384, 384, 16)
    return (
        shipped(convolution_kernel, convolution_plan(usual, there, half, 96**3, True)),
        shipped(convolution_kernel, convolution_plan(wide, there, half, 48**3, True)),
        shipped(convolution_kernel, convolution_plan(usual, there, torch.float32, 96**3, True), "*fp32"),
        shipped(thin_kernel, thin_plan(48, 4, half)),
        shipped(thin_kernel, thin_plan(384, 16, half)),
        shipped(convolution_kernel, convolution_plan(usual, back, half, 96**3, False)),
        shipped(convolution_kernel, convolution_plan(wide, back, half, 48**3, False)),
        shipped(convolution_kernel, convolution_plan(usual, strided, half, 96**3, False)),
        shipped(a_gradient_kernel, a_gradient_plan(48, 4, back, half, 96)),
        shipped(a_gradient_kernel, a_gradient_plan(384, 16, back, half, 48)),
    )


SHIPPED: tuple[Shipped, ...] = _shipped()
"""What ahead-of-time compilation builds."""
