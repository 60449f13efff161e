"""Which dtypes are timed, what a row calls them, and how exact its results have to be."""

from __future__ import annotations

import torch

from medseqft_kernels.tolerance import TOLERANCE
from medseqft_kit.models.precision import cpu_flags

TF32 = 1e-3
"""Tolerance of fp32 rows where PyTorch's convolutions round products to TF32."""


def dtypes(device: torch.device) -> list[torch.dtype]:
    """fp32 everywhere; bf16 where it is fast: on a GPU, and on a CPU with AMX."""
    fast = device.type == "cuda" or "amx_bf16" in cpu_flags()
    return [torch.float32, torch.bfloat16] if fast else [torch.float32]


def label(dtype: torch.dtype, device: torch.device) -> str:
    """The dtype's name; ``tf32`` for convolutions in fp32 whose products are rounded to it."""
    return "tf32" if _rounds_to_tf32(dtype, device) else str(dtype).removeprefix("torch.")


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """Largest error of a convolution's results."""
    return TF32 if _rounds_to_tf32(dtype, device) else TOLERANCE[dtype]


def _rounds_to_tf32(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.float32 and device.type == "cuda" and torch.backends.cudnn.allow_tf32
