"""`lora_linear` in plain PyTorch, in forms that cost less than the formula: a forward and a backward pass each.

x is (N, Cin) here, g (N, Cout). Which form pays where, and why each is exact: README.md.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.adapter import Gradients, row_products, scaled, wide


def _merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    return torch.addmm(weight, lora_b, lora_a, alpha=scaling)


def forward_merged(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> tuple[Tensor, None]:
    """One product with M = W + s·B·A."""
    return functional.linear(x, _merged(weight, lora_a, lora_b, scaling), bias), None


def forward_concatenated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One product with [W ; A]; B·u is added in fp32, before anything of it is rounded."""
    outputs = weight.shape[0]
    both_bias = None if bias is None else torch.cat([bias, bias.new_zeros(lora_a.shape[0])])
    both = functional.linear(x, torch.cat([weight, lora_a]), both_bias)
    u = both[:, outputs:].contiguous()
    y = torch.addmm(wide(both[:, :outputs]), wide(u), wide(lora_b).t(), alpha=scaling)
    return y.to(out_dtype or x.dtype), u


def backward_projected(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor | None,
    scaling: float,
    need_x: bool,
    need_adapter: bool,
) -> Gradients:
    """The weight gradient gM = gᵀx once; gB = s·gM·Aᵀ and gA = s·Bᵀ·gM."""
    gx = g @ _merged(weight, lora_a, lora_b, scaling) if need_x else None
    if not need_adapter:
        return Gradients(gx, None, None)
    gm = g.t() @ x
    return Gradients(gx, scaling * (lora_b.t() @ gm), scaling * (gm @ lora_a.t()))


def backward_thin(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor | None,
    scaling: float,
    need_x: bool,
    need_adapter: bool,
    *,
    merge: bool,
) -> Gradients:
    """With h = s·g·B: gA = hᵀx, gB = s·gᵀu; gx from g and M (`merge`), or from [g, h] and [W ; A]."""
    h = g @ scaled(scaling, lora_b) if need_adapter or not merge else None
    gx = ga = gb = None
    if need_x and (merge or h is None):
        gx = g @ _merged(weight, lora_a, lora_b, scaling)
    elif need_x and h is not None:
        gx = torch.cat([g, h], 1) @ torch.cat([weight, lora_a])
    if need_adapter and h is not None:
        thin = functional.linear(x, lora_a) if u is None else u
        ga = row_products(h, x).to(lora_a.dtype)
        gb = (scaling * row_products(g, thin)).to(lora_b.dtype)
    return Gradients(gx, ga, gb)
