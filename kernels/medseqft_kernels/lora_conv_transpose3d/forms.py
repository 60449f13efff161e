"""`lora_conv_transpose3d` in plain PyTorch: how it walks, for the forms of `convolution_forms.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.checks import Three


class Geometry(NamedTuple):
    """How a transposed convolution walks over its output."""

    stride: Three
    padding: Three
    output_padding: Three
    dilation: Three

    @property
    def outputs_axis(self) -> int:
        """W is (Cin, Cout, kD, kH, kW), A is (Cin, r, kD, kH, kW)."""
        return 1

    def output_size(self, size: torch.Size | Three, kernel: torch.Size | Three) -> tuple[Any, Any, Any]:
        """(D', H', W') of the output for an input of (D, H, W); numbers, or a tracing compiler's symbols."""
        d, h, w = (
            (n - 1) * step - 2 * p + s * (k - 1) + more + 1
            for n, k, step, p, more, s in zip(size, kernel, *self, strict=True)
        )
        return d, h, w

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The frozen transposed convolution."""
        stride, padding, output_padding, dilation = self
        return functional.conv_transpose3d(x, weight, bias, stride, padding, output_padding, 1, dilation)

    def gradients(self, g: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """conv(g, weight) and the weight's, of the shapes of x and weight; None where not wanted."""
        stride, padding, output_padding, dilation = self
        walk = (stride, padding, dilation, True, output_padding, 1)
        return torch.ops.aten.convolution_backward(g, x, weight, None, *walk, [*wanted, False])[:2]
