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


BACKENDS = {
    "merged-projected": Backend(forward_merged, backward_projected, keeps_u=False, merges=True),
    "merged-convolution": Backend(
        forward_merged, partial(backward_thin, merge=True, products=False), keeps_u=False, merges=True
    ),
    "merged-products": Backend(
        forward_merged, partial(backward_thin, merge=True, products=True), keeps_u=False, merges=True
    ),
    "concatenated-convolution": Backend(
        forward_concatenated, partial(backward_thin, merge=False, products=False), keeps_u=True, merges=False
    ),
    "concatenated-products": Backend(
        forward_concatenated, partial(backward_thin, merge=False, products=True), keeps_u=True, merges=False
    ),
    "triton": Backend(_triton_forward, _triton_backward, keeps_u=True, merges=False),
}
"""All but the reference, which is the formula with PyTorch's own gradients."""
