"""The backends of `lora_linear`: which forward pass goes with which backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from medseqft_kernels.adapter import Backend, Gradients
from medseqft_kernels.lora_linear.forms import (
    backward_projected,
    backward_thin,
    forward_concatenated,
    forward_merged,
)


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from medseqft_kernels.lora_linear.triton import forward

    return forward(*arguments)


def _triton_backward(*arguments: Any) -> Gradients:
    from medseqft_kernels.lora_linear.triton import backward

    return Gradients(*backward(*arguments))


BACKENDS = {
    "merged-projected": Backend(forward_merged, backward_projected, keeps_u=False, merges=True),
    "merged-thin": Backend(forward_merged, partial(backward_thin, merge=True), keeps_u=False, merges=True),
    "concatenated-thin": Backend(forward_concatenated, partial(backward_thin, merge=False), keeps_u=True, merges=False),
    "triton": Backend(_triton_forward, _triton_backward, keeps_u=True, merges=False),
}
"""All but the reference, which is the formula with PyTorch's own gradients."""
