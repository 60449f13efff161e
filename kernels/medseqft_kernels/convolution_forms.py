"""A convolution with an adapter in plain PyTorch, transposed or not, in forms that cost less than the formula.

A forward and a backward pass each. Which combination pays where, and why each is exact: the README.md of the operation.
Everything here takes groups = 1 and three-tuples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from medseqft_kernels.adapter import Gradients, channel_products, mix, scaled, wide
from medseqft_kernels.checks import Three


@runtime_checkable
class Convolution(Protocol):
    """What a convolution is to the forms; each operation's `Geometry` is one."""

    @property
    def outputs_axis(self) -> int:
        """Of W and A, the axis of the channels that come out; those that go in are the other one of the first two."""
        ...

    def output_size(self, size: torch.Size | Three, kernel: torch.Size | Three) -> tuple[Any, Any, Any]:
        """(D', H', W') of the output for an input of (D, H, W); numbers, or a tracing compiler's symbols."""
        ...

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The frozen convolution."""
        ...

    def gradients(self, g: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Of x and of the weight, of their shapes; None where not wanted."""
        ...


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Convolution) -> Tensor:
    """The frozen convolution."""
    return geometry.convolve(x, weight, bias)


def input_gradient(g: Tensor, x: Tensor, weight: Tensor, geometry: Convolution) -> Tensor:
    """The gradient of x, of its shape."""
    return geometry.gradients(g, x, weight, (True, False))[0]


def weight_gradient(g: Tensor, x: Tensor, weight: Tensor, geometry: Convolution) -> Tensor:
    """The gradient of the weight, of its shape."""
    return geometry.gradients(g, x, weight, (False, True))[1]


def thin_convolution(x: Tensor, lora_a: Tensor, geometry: Convolution) -> Tensor:
    """The thin output u, of r channels."""
    return geometry.convolve(x, lora_a, None)


def _rows(weight: Tensor, geometry: Convolution) -> Tensor:
    """(…, channels out, all that a channel sums over), so that a matrix mixes the channels that come out."""
    return weight.flatten(geometry.outputs_axis + 1)


def _merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, geometry: Convolution) -> Tensor:
    """M = W + s·B·A in the dtype of W, in the memory format of W."""
    delta = lora_b.flatten(1) @ _rows(lora_a, geometry)
    return torch.add(weight, delta.view(weight.shape), alpha=scaling)


def forward_merged(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    geometry: Convolution,
) -> tuple[Tensor, None]:
    """One convolution with M."""
    return geometry.convolve(x, _merged(weight, lora_a, lora_b, scaling, geometry), bias), None


def forward_concatenated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    geometry: Convolution,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One convolution with W and A; B·u is added in fp32, before anything of it is rounded."""
    outputs, rank = lora_b.shape[:2]
    both_bias = None if bias is None else torch.cat([bias, bias.new_zeros(rank)])
    both = geometry.convolve(x, torch.cat([weight, lora_a], geometry.outputs_axis), both_bias)
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
    geometry: Convolution,
    need_x: bool,
    need_adapter: bool,
) -> Gradients:
    """The weight gradient gM once; gB = s·⟨gM, A⟩ and gA = s·Bᵀ·gM."""
    merged = _merged(weight, lora_a, lora_b, scaling, geometry)
    gx, gm = geometry.gradients(g, x, merged, (need_x, need_adapter))
    if not need_adapter:
        return Gradients(gx, None, None)
    a, gm = _rows(lora_a, geometry), _rows(gm, geometry)
    ga = scaling * (lora_b.flatten(1).t() @ gm)
    gb = scaling * torch.einsum("...ot,...rt->or", gm, a)
    return Gradients(gx if need_x else None, ga.view(lora_a.shape), gb.view(lora_b.shape))


def backward_thin(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor | None,
    scaling: float,
    geometry: Convolution,
    need_x: bool,
    need_adapter: bool,
    *,
    merge: bool,
    thin_output: Callable[..., Tensor] = thin_convolution,
    thin_weight_gradient: Callable[..., Tensor] = weight_gradient,
) -> Gradients:
    """With h = s·Bᵀg: gA = wgrad(x, h), gB = s·⟨g, u⟩; gx from g and M (`merge`), or from g and h with W and A.

    `thin_output` gives u where it was not kept, `thin_weight_gradient` gives gA.
    """
    h = mix(g, scaled(scaling, lora_b.flatten(1)).t()) if need_adapter or not merge else None
    gx = ga = gb = None
    if need_x and (merge or h is None):
        gx = input_gradient(g, x, _merged(weight, lora_a, lora_b, scaling, geometry), geometry)
    elif need_x and h is not None:
        both = torch.cat([weight, lora_a], geometry.outputs_axis)
        gx = input_gradient(torch.cat([g, h], 1), x, both, geometry)
    if need_adapter and h is not None:
        u = thin_output(x, lora_a, geometry) if u is None else u
        gb = (scaling * channel_products(g, u)).to(lora_b.dtype).view(lora_b.shape)
        ga = thin_weight_gradient(h, x, lora_a, geometry)
    return Gradients(gx, ga, gb)
