"""`lora_conv_transpose3d` in plain PyTorch, in forms that cost less than the formula: forward and backward pass each.

Which form pays where, and why each is exact: README.md. Everything here takes groups = 1 and three-tuples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.adapter import Gradients, channel_products, mix, scaled, wide
from medseqft_kernels.checks import Three


class Geometry(NamedTuple):
    """How a transposed convolution walks over its output."""

    stride: Three
    padding: Three
    output_padding: Three
    dilation: Three

    def output_size(self, size: torch.Size | Three, kernel: torch.Size | Three) -> tuple[Any, Any, Any]:
        """(D', H', W') of the output for an input of (D, H, W); numbers, or a tracing compiler's symbols."""
        d, h, w = (
            (n - 1) * step - 2 * p + s * (k - 1) + more + 1
            for n, k, step, p, more, s in zip(size, kernel, *self, strict=True)
        )
        return d, h, w


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The frozen transposed convolution."""
    stride, padding, output_padding, dilation = geometry
    return functional.conv_transpose3d(x, weight, bias, stride, padding, output_padding, 1, dilation)


def _backward(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
    """The gradients of x and of the weight, None where not wanted."""
    stride, padding, output_padding, dilation = geometry
    mask = [*wanted, False]
    walk = (stride, padding, dilation, True, output_padding, 1)
    return torch.ops.aten.convolution_backward(g, x, weight, None, *walk, mask)[:2]


def _merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """M = W + s·Σ_ρ A[c, ρ]·B[o, ρ]."""
    delta = torch.matmul(lora_b.flatten(1), lora_a.flatten(2))
    return torch.add(weight, delta.view(weight.shape), alpha=scaling)


def forward_merged(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float, geometry: Geometry
) -> tuple[Tensor, None]:
    """One transposed convolution with M."""
    return convolve(x, _merged(weight, lora_a, lora_b, scaling), bias, geometry), None


def forward_concatenated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    geometry: Geometry,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One transposed convolution with [W, A]; B·u is added in fp32, before anything of it is rounded."""
    outputs = weight.shape[1]
    both_bias = None if bias is None else torch.cat([bias, bias.new_zeros(lora_a.shape[1])])
    both = convolve(x, torch.cat([weight, lora_a], 1), both_bias, geometry)
    frozen, u = both[:, :outputs], both[:, outputs:]
    y = mix(wide(u), scaling * wide(lora_b.flatten(1)), onto=wide(frozen))
    return y.to(out_dtype or x.dtype), u.clone(memory_format=torch.preserve_format)


def backward_projected(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor | None,
    scaling: float,
    geometry: Geometry,
    need_x: bool,
    need_adapter: bool,
) -> Gradients:
    """The weight gradient gM once; gB[o, ρ] = s·Σ gM[c, o]·A[c, ρ] and gA[c, ρ] = s·Σ_o B[o, ρ]·gM[c, o]."""
    gx, gm = _backward(g, x, _merged(weight, lora_a, lora_b, scaling), geometry, (need_x, need_adapter))
    if not need_adapter:
        return Gradients(gx, None, None)
    a, b, gm = lora_a.flatten(2), lora_b.flatten(1), gm.flatten(2)
    ga = scaling * torch.matmul(b.t(), gm)
    gb = scaling * torch.einsum("cot,crt->or", gm, a)
    return Gradients(gx if need_x else None, ga.view(lora_a.shape), gb.view(lora_b.shape))


def backward_thin(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor | None,
    scaling: float,
    geometry: Geometry,
    need_x: bool,
    need_adapter: bool,
    *,
    merge: bool,
) -> Gradients:
    """With h = s·Bᵀg: gA = wgrad(x, h), gB = s·⟨g, u⟩; gx from g and M (`merge`), or from [g ; h] and [W, A]."""
    h = mix(g, scaled(scaling, lora_b.flatten(1)).t()) if need_adapter or not merge else None
    gx = ga = gb = None
    if need_x and (merge or h is None):
        gx = _backward(g, x, _merged(weight, lora_a, lora_b, scaling), geometry, (True, False))[0]
    elif need_x and h is not None:
        gx = _backward(torch.cat([g, h], 1), x, torch.cat([weight, lora_a], 1), geometry, (True, False))[0]
    if need_adapter and h is not None:
        u = convolve(x, lora_a, None, geometry) if u is None else u
        gb = (scaling * channel_products(g, u)).to(lora_b.dtype).view(lora_b.shape)
        ga = _backward(h, x, lora_a, geometry, (False, True))[1]
    return Gradients(gx, ga, gb)
