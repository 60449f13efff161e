"""`lora_conv3d` in plain PyTorch: how it walks, for the forms of `convolution_forms.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.adapter import mix, row_products, rows_of, volumes_of
from medseqft_kernels.checks import Three
from medseqft_kernels.convolution_forms import convolve, forward_concatenated, input_gradient, weight_gradient

__all__ = ["Geometry", "convolve", "forward_concatenated", "input_gradient", "mix", "weight_gradient"]


class Geometry(NamedTuple):
    """How a convolution walks over its input."""

    stride: Three
    padding: Three
    dilation: Three

    @property
    def outputs_axis(self) -> int:
        """W is (Cout, Cin, kD, kH, kW), A is (r, Cin, kD, kH, kW)."""
        return 0

    def output_size(self, size: torch.Size | Three, kernel: torch.Size | Three) -> tuple[Any, Any, Any]:
        """(D', H', W') of the output for an input of (D, H, W); numbers, or a tracing compiler's symbols."""
        d, h, w = (
            (n + 2 * p - s * (k - 1) - 1) // step + 1 for n, k, step, p, s in zip(size, kernel, *self, strict=True)
        )
        return d, h, w

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The frozen convolution; where it is pointwise, a product over rows, several times as fast on a CPU."""
        if self._is_pointwise(x, weight):
            return volumes_of(functional.linear(rows_of(x), weight.flatten(1), bias), x)
        return functional.conv3d(x, weight, bias, *self)

    def gradients(self, g: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """convᵀ(g, weight) and the weight's, of the shapes of x and weight; products where each voxel is on its own."""
        if self._is_pointwise(x, weight):
            gx = mix(g, weight.flatten(1).t()) if wanted[0] else None
            gw = row_products(rows_of(g), rows_of(x)).to(weight.dtype).view(weight.shape) if wanted[1] else None
            return gx, gw
        mask = [*wanted, False]
        return torch.ops.aten.convolution_backward(g, x, weight, None, *self, False, [0, 0, 0], 1, mask)[:2]

    def _is_pointwise(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the convolution is a product over rows of channels that lie in memory as they are."""
        last = x.is_contiguous(memory_format=torch.channels_last_3d)
        return last and tuple(weight.shape[2:]) == (1, 1, 1) and self[:2] == ((1, 1, 1), (0, 0, 0))
