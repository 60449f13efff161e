"""The backends of `lora_conv_transpose3d`: which forward pass goes with which backward pass."""

from __future__ import annotations

from functools import partial

from medseqft_kernels.adapter import Backend, triton_backend
from medseqft_kernels.convolution_forms import (
    backward_projected,
    backward_thin,
    forward_concatenated,
    forward_merged,
)

BACKENDS = {
    "merged-projected": Backend(forward_merged, backward_projected, keeps_u=False, merges=True),
    "merged-thin": Backend(forward_merged, partial(backward_thin, merge=True), keeps_u=False, merges=True),
    "concatenated-thin": Backend(forward_concatenated, partial(backward_thin, merge=False), keeps_u=True, merges=False),
    "triton": triton_backend("medseqft_kernels.lora_conv_transpose3d.triton"),
}
"""All but the reference, which is the formula with PyTorch's own gradients."""
