"""Which shapes kernels are tried on in which number format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch


def formats(cases: Sequence[Any], busy: Any) -> list[Any]:
    """Every shape in float32; every third, and in `make soak` every one, in bfloat16; the busiest in float16 too.

    The numbers' format changes how blocks are loaded and stored, not which: in the interpreter that is slow to repeat.
    """
    low = [
        pytest.param(case, torch.bfloat16, marks=[pytest.mark.soak(only=True)] * (n % 3 > 0))
        for n, case in enumerate(cases)
    ]
    return [*((case, torch.float32) for case in (*cases, busy)), *low, (busy, torch.float16)]
