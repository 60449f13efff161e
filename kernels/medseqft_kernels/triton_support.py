"""Whether Triton can run here, and what all kernels share. Triton itself is imported by the kernels only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch


def interpreted() -> bool:
    """Whether ``TRITON_INTERPRET=1`` runs kernels on the CPU, one statement at a time: for tests, never for speed."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(device: torch.device) -> bool:
    """Whether a Triton kernel can be launched on tensors of `device`."""
    return find_spec("triton") is not None and (device.type == "cuda" or (device.type == "cpu" and interpreted()))


def precision_of(dtype: torch.dtype) -> str:
    """The `input_precision` of ``tl.dot``: tf32 only where PyTorch's own convolutions may use it, else every bit."""
    tf32 = dtype == torch.float32 and torch.cuda.is_available() and torch.backends.cudnn.allow_tf32
    return "tf32" if tf32 else "ieee"


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


@dataclass(frozen=True)
class Shipped:
    """One configuration with which a kernel is launched: what ahead-of-time compilation builds and looks at."""

    kernel: str
    """Name of the ``@triton.jit`` function in the operation's ``triton.py``."""
    types: Mapping[str, str]
    """Triton type of each argument that is no constant: ``"*bf16"``, ``"i64"``, ``"fp32"``."""
    constants: Mapping[str, int | bool | str]
    """Value of each ``tl.constexpr`` argument."""
    warps: int = 4
    stages: int = 3
    matrix: bool = False
    """Whether it has to use the matrix instructions of the target."""
