"""The one tolerance table: largest ‖out − ref‖ / ‖ref‖ against a float64 reference, outputs and each gradient."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {
    torch.float64: 1e-12,  # rounding alone: 1e-16 a product, a few thousand products, two orders of summation
    torch.float32: 1e-5,  # the same at 6e-8 a product; measured up to 1.4e-6
    torch.float16: 2e-3,  # half a unit in the last place is 5e-4; A's output, both parts, the sum; measured 1.1e-3
    torch.bfloat16: 1e-2,  # half a unit in the last place is 4e-3, rounded as often; measured 4.9e-3
}

CANCELLING = 1e-9
"""For float64 where shapes are drawn: a gradient of few numbers may be a sum that cancels to a thousandth and less."""


def relative_error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖ in float64, or ‖got‖ where `want` is zero; NaN anywhere gives NaN, which passes no test."""
    if got.shape != want.shape:
        raise ValueError(f"got: found {tuple(got.shape)}, expected {tuple(want.shape)}")
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return float((got - want).norm() / (want.norm() if want.any() else 1.0))
