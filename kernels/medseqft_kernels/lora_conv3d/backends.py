"""The backends of `lora_conv3d`: which forward pass goes with which backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

from medseqft_kernels.adapter import Backend, triton_backend
from medseqft_kernels.convolution_forms import (
    backward_projected,
    backward_thin,
    forward_concatenated,
    forward_merged,
)
from medseqft_kernels.lora_conv3d.thin import thin_output, thin_weight_gradient

THIN_PRODUCTS = {"thin_weight_gradient": thin_weight_gradient}
"""gA by matrix products, in place of a convolution with r channels."""
ALL_PRODUCTS = {"thin_output": thin_output, **THIN_PRODUCTS}
"""u likewise."""


def _merged(**products: Any) -> Backend:
    return Backend(forward_merged, partial(backward_thin, merge=True, **products), keeps_u=False, merges=True)


def _concatenated(**products: Any) -> Backend:
    return Backend(forward_concatenated, partial(backward_thin, merge=False, **products), keeps_u=True, merges=False)


BACKENDS = {
    "merged-projected": Backend(forward_merged, backward_projected, keeps_u=False, merges=True),
    "merged-convolution": _merged(),
    "merged-mixed": _merged(**THIN_PRODUCTS),
    "merged-products": _merged(**ALL_PRODUCTS),
    "concatenated-convolution": _concatenated(),
    "concatenated-products": _concatenated(**THIN_PRODUCTS),
    "triton": triton_backend("medseqft_kernels.lora_conv3d.triton"),
}
"""All but the reference, which is the formula with PyTorch's own gradients."""
