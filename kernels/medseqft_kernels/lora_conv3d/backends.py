"""The backends of `lora_conv3d`: which forward pass goes with which backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from medseqft_kernels.adapter import Backend, Gradients
from medseqft_kernels.lora_conv3d.forms import (
    backward_projected,
    backward_thin,
    forward_concatenated,
    forward_merged,
)


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from medseqft_kernels.lora_conv3d import triton

    *tensors, geometry = arguments
    return triton.forward(*tensors, *geometry)


def _triton_backward(*arguments: Any) -> Gradients:
    from medseqft_kernels.lora_conv3d import triton

    *tensors, geometry, need_x, need_adapter = arguments
    arguments = (*tensors, *geometry, need_x, need_adapter)
    return Gradients(*triton.backward(*arguments))


def _merged(*, u_by_products: bool, a_by_products: bool) -> Backend:
    backward = partial(backward_thin, merge=True, u_by_products=u_by_products, a_by_products=a_by_products)
    return Backend(forward_merged, backward, keeps_u=False, merges=True)


def _concatenated(*, a_by_products: bool) -> Backend:
    backward = partial(backward_thin, merge=False, u_by_products=False, a_by_products=a_by_products)
    return Backend(forward_concatenated, backward, keeps_u=True, merges=False)


BACKENDS = {
    "merged-projected": Backend(forward_merged, backward_projected, keeps_u=False, merges=True),
    "merged-convolution": _merged(u_by_products=False, a_by_products=False),
    "merged-mixed": _merged(u_by_products=False, a_by_products=True),
    "merged-products": _merged(u_by_products=True, a_by_products=True),
    "concatenated-convolution": _concatenated(a_by_products=False),
    "concatenated-products": _concatenated(a_by_products=True),
    "triton": Backend(_triton_forward, _triton_backward, keeps_u=True, merges=False),
}
"""All but the reference, which is the formula with PyTorch's own gradients."""
