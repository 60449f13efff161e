"""The one tolerance table: largest ‖out − ref‖ / ‖ref‖ against a float64 reference, outputs and each gradient."""

from __future__ import annotations

import torch

TOLERANCE = {
    torch.float64: 1e-12,  # rounding alone: 1e-16 a product, a few thousand products, two orders of summation
    torch.float32: 1e-5,  # the same at 6e-8 a product; measured up to 1.4e-6
    torch.float16: 2e-3,  # half a unit in the last place is 5e-4; A's output, both parts, the sum; measured 1.1e-3
    torch.bfloat16: 1e-2,  # half a unit in the last place is 4e-3, rounded as often; measured 4.9e-3
}
