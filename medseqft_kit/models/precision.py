"""Which device, number format and memory format a computation uses, read from the machine and not assumed.

bf16 is 1.4 times as fast as fp32 on a CPU with AMX (`kernels/benchmarks/training.py`), and slower on one without.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from medseqft_kit.errors import ConfigError
from medseqft_kit.models.allocator import keep_freed_memory

M = TypeVar("M", bound=nn.Module)
PrecisionName = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class Precision:
    """Device and number format of a run; volumes are channels-last-3d in all of them."""

    device: str
    name: Literal["bf16", "fp32"]

    def autocast(self) -> AbstractContextManager[object]:
        """The context that forward passes run in."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def place_(self, model: M) -> M:
        """Move a model to the device, its convolutions channels last, in place; returns it.

        On a CPU the process then keeps the memory that tensors free, see :mod:`~medseqft_kit.models.allocator`.
        """
        if self.device == "cpu":
            keep_freed_memory()
        return channels_last_(model.to(self.device))

    def place(self, tensor: Tensor) -> Tensor:
        """Move a batch of volumes (B, C, D, H, W) to the device, channels last."""
        return tensor.to(self.device, memory_format=torch.channels_last_3d)


def channels_last_(model: M) -> M:
    """Lay a model's convolution weights out channels last, in place; returns it."""
    return model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub


def resolve_precision(name: PrecisionName = "auto", device: str = "auto") -> Precision:
    """Choose device and format: CUDA where there is one; bf16 on CUDA and on CPUs with AMX, else fp32.

    Raises
    ------
    ConfigError
        If a device is asked for that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available.", found=device, expected="auto or cpu")
    if name == "auto":
        name = "bf16" if device.startswith("cuda") or "amx_bf16" in cpu_flags() else "fp32"
    return Precision(device, name)


@cache
def cpu_flags() -> frozenset[str]:
    """Feature flags of the CPU as the kernel reports them; empty where it does not (macOS, Windows)."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    lines = (line for line in info.read_text().splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").partition(":")[2].split())
