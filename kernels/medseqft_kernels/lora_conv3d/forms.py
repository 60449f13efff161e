"""`lora_conv3d` in plain PyTorch, in forms that cost less than the formula: a forward and a backward pass each.

Which combination pays where, and why each is exact: README.md. Everything here takes groups = 1 and three-tuples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.adapter import Gradients, channel_products, mix, row_products, rows_of, scaled, volumes_of, wide
from medseqft_kernels.checks import Three
from medseqft_kernels.lora_conv3d.thin import thin_output, thin_weight_gradient


class Geometry(NamedTuple):
    """How a convolution walks over its input."""

    stride: Three
    padding: Three
    dilation: Three

    def output_size(self, size: torch.Size | Three, kernel: torch.Size | Three) -> tuple[Any, Any, Any]:
        """(D', H', W') of the output for an input of (D, H, W); numbers, or a tracing compiler's symbols."""
        d, h, w = (
            (n + 2 * p - s * (k - 1) - 1) // step + 1 for n, k, step, p, s in zip(size, kernel, *self, strict=True)
        )
        return d, h, w


def is_pointwise(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether the convolution is a product over rows of channels that lie in memory as they are."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return last and tuple(weight.shape[2:]) == (1, 1, 1) and geometry[:2] == ((1, 1, 1), (0, 0, 0))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The frozen convolution; where it is pointwise, a product over rows, several times as fast on a CPU."""
    if is_pointwise(x, weight, geometry):
        return volumes_of(functional.linear(rows_of(x), weight.flatten(1), bias), x)
    return functional.conv3d(x, weight, bias, *geometry)


def input_gradient(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """convᵀ(g, weight), of the shape of x."""
    if is_pointwise(x, weight, geometry):
        return mix(g, weight.flatten(1).t())
    return _backward(g, x, weight, geometry, (True, False))[0]


def weight_gradient(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of the weight, of its shape; one product where each voxel stands for itself."""
    if is_pointwise(x, weight, geometry):
        return row_products(rows_of(g), rows_of(x)).to(weight.dtype).view(weight.shape)
    return _backward(g, x, weight, geometry, (False, True))[1]


def _backward(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
    """The gradients of x and of the weight, None where not wanted."""
    mask = [*wanted, False]
    return torch.ops.aten.convolution_backward(g, x, weight, None, *geometry, False, [0, 0, 0], 1, mask)[:2]


def _merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """M = W + s·B·A in the dtype of W, in the memory format of W."""
    delta = (lora_b.flatten(1) @ lora_a.flatten(1)).view(weight.shape)
    return torch.add(weight, delta, alpha=scaling)


def forward_merged(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float, geometry: Geometry
) -> tuple[Tensor, None]:
    """One convolution with M."""
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
    """One convolution with [W ; A]; B·u is added in fp32, before anything of it is rounded."""
    outputs = weight.shape[0]
    both_bias = None if bias is None else torch.cat([bias, bias.new_zeros(lora_a.shape[0])])
    both = convolve(x, torch.cat([weight, lora_a]), both_bias, geometry)
    frozen, u = both[:, :outputs], both[:, outputs:]
    matrix = scaling * wide(lora_b.flatten(1))
    y = mix(wide(u), matrix, onto=wide(frozen))
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
    """The weight gradient gM once; gB = s·⟨gM, A⟩ and gA = s·Bᵀ·gM."""
    merged = _merged(weight, lora_a, lora_b, scaling)
    if need_adapter and is_pointwise(x, weight, geometry):
        gx = input_gradient(g, x, merged, geometry) if need_x else None
        gm = weight_gradient(g, x, merged, geometry)
    else:
        gx, gm = _backward(g, x, merged, geometry, (need_x, need_adapter))
    if not need_adapter:
        return Gradients(gx, None, None)
    a, b, gm = lora_a.flatten(1), lora_b.flatten(1), gm.flatten(1)
    ga = torch.addmm(a, b.t(), gm, beta=0, alpha=scaling)
    gb = torch.addmm(b, gm, a.t(), beta=0, alpha=scaling)
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
    u_by_products: bool = False,
    a_by_products: bool,
) -> Gradients:
    """With h = s·Bᵀg: gA = wgrad(x, h), gB = s·⟨g, u⟩; gx from g and M (`merge`), or from [g ; h] and [W ; A].

    u, where it was not kept, and gA are computed by convolutions with r channels or by matrix products.
    """
    h = mix(g, scaled(scaling, lora_b.flatten(1)).t()) if need_adapter or not merge else None
    gx = ga = gb = None
    if need_x and (merge or h is None):
        gx = input_gradient(g, x, _merged(weight, lora_a, lora_b, scaling), geometry)
    elif need_x and h is not None:
        gx = input_gradient(torch.cat([g, h], 1), x, torch.cat([weight, lora_a]), geometry)
    if need_adapter and h is not None:
        if u is None:
            u = thin_output(x, lora_a, geometry) if u_by_products else convolve(x, lora_a, None, geometry)
        gb = (scaling * channel_products(g, u)).to(lora_b.dtype).view(lora_b.shape)
        weight_gradient_of = thin_weight_gradient if a_by_products else weight_gradient
        ga = weight_gradient_of(h, x, lora_a, geometry)
    return Gradients(gx, ga, gb)
