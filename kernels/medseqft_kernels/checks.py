"""Argument checks that all operations share: a ValueError names the tensor, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Backend = TypeVar("Backend", bound=Callable[..., Tensor])


def require(holds: bool, tensor: str, found: object, expected: object) -> None:
    """Raise a ValueError that names `tensor` unless `holds`."""
    if not holds:
        raise ValueError(f"{tensor}: found {found}, expected {expected}")


def require_alike(x: Tensor, **others: Tensor | None) -> None:
    """All tensors on the device of `x`, and of its dtype unless autocast is on, which casts them itself."""
    autocast = torch.is_autocast_enabled(x.device.type)
    for name, other in others.items():
        if other is None:
            continue
        require(other.device == x.device, name, other.device, f"{x.device}, where x is")
        require(autocast or other.dtype == x.dtype, name, other.dtype, f"{x.dtype}, as x is")


def require_bias(bias: Tensor | None, outputs: int) -> None:
    """`bias` is absent or one number for each output channel."""
    if bias is not None:
        require(tuple(bias.shape) == (outputs,), "bias", tuple(bias.shape), f"({outputs},) or None")


def require_adapter_b(lora_b: Tensor, outputs: int, rank: int, groups: int) -> None:
    """`lora_b` is (outputs, rank / groups), with or without the trailing ones of a 1×1×1 convolution."""
    require(rank > 0 and rank % groups == 0, "lora_a", f"rank {rank}", f"a positive multiple of groups = {groups}")
    wanted = (outputs, rank // groups)
    fits = tuple(lora_b.shape) in (wanted, (*wanted, 1, 1, 1))
    require(fits, "lora_b", tuple(lora_b.shape), f"{wanted} or {(*wanted, 1, 1, 1)}")


def choose(backend: str, known: Mapping[str, Backend]) -> Backend:
    """The implementation called `backend`; ``auto``, where the operation made nothing else of it, is the reference."""
    require(backend == "auto" or backend in known, "backend", repr(backend), f"one of {['auto', *known]}")
    return known["reference" if backend == "auto" else backend]
