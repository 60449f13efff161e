"""`lora_linear` on a GPU: a linear layer is a 1×1×1 convolution over rows, and takes that operation's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medseqft_kernels.lora_conv3d import triton as convolution
from medseqft_kernels.lora_conv3d.forms import Geometry

WALK = Geometry(stride=(1, 1, 1), padding=(0, 0, 0), dilation=(1, 1, 1))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, u) with u = x·Aᵀ and y = x·Wᵀ + bias + s·u·Bᵀ, rounded once; x is (N, Cin)."""
    kernel, a = _as_kernel(weight), _as_kernel(lora_a)
    y, u = convolution.forward(_as_volume(x), kernel, bias, a, lora_b, scaling, WALK, out_dtype)
    return _as_rows(y), _as_rows(u)


def backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor,
    scaling: float,
    need_x: bool,
    need_adapter: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(gx, gA, gB) for g (N, Cout)."""
    rows, kernels = (_as_volume(g), _as_volume(x)), (_as_kernel(weight), _as_kernel(lora_a))
    rest: Any = (lora_b, _as_volume(u), scaling, WALK, need_x, need_adapter)
    gx, ga, gb = convolution.backward(*rows, *kernels, *rest)
    return (
        None if gx is None else _as_rows(gx),
        None if ga is None else ga.view(lora_a.shape),
        None if gb is None else gb.view(lora_b.shape),
    )


def _as_volume(rows: Tensor) -> Tensor:
    """(N, C) as one channels-last volume (1, C, N, 1, 1), without a copy."""
    return rows.t()[None, :, :, None, None]


def _as_kernel(matrix: Tensor) -> Tensor:
    return matrix[..., None, None, None]


def _as_rows(volume: Tensor) -> Tensor:
    return volume[0, :, :, 0, 0].t().contiguous()
