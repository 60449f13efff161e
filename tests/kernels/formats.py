"""Which shapes kernels are tried on in which number format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch


def formats(cases: Sequence[Any], busy: Any) -> list[Any]:
    """Every shape in float32 and bfloat16, the busiest in float32 and float16.

    In the interpreter, which is slow, `make soak` alone takes every shape in bfloat16, `make test` every third: the
    format changes how blocks are loaded and stored, not which.
    """
    rare = [] if torch.cuda.is_available() else [pytest.mark.soak(only=True)]
    low = [pytest.param(case, torch.bfloat16, marks=rare if n % 3 else []) for n, case in enumerate(cases)]
    return [*((case, torch.float32) for case in (*cases, busy)), *low, (busy, torch.float16)]
