"""Argument checks that all operations share: a ValueError names the tensor, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Size3 = int | tuple[int, ...]
"""One number for all three axes, or three."""
Three = tuple[int, int, int]


def require(holds: bool, tensor: str, found: object, expected: object) -> None:
    """Raise a ValueError that names `tensor` unless `holds`."""
    if not holds:
        raise ValueError(f"{tensor}: found {found}, expected {expected}")


def same_size(size: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether two sizes are equal, number by number: a tracing compiler's symbols are not equal as tuples."""
    return len(size) == len(wanted) and all(one == other for one, other in zip(size, wanted, strict=True))


def settled(size: Sequence[int]) -> tuple[int, ...]:
    """The size as plain numbers. A compiler that traces with symbols settles on them here, as `range` asks it to."""
    return tuple([len(range(n)) for n in size])


def require_alike(x: Tensor, **others: Tensor | None) -> None:
    """All tensors on the device of `x` and of its dtype."""
    for name, other in others.items():
        if other is None:
            continue
        require(other.device == x.device, name, other.device, f"{x.device}, where x is")
        require(other.dtype == x.dtype, name, other.dtype, f"{x.dtype}, as x is")


def autocast_together(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast floating tensors (None stays None) to autocast's dtype where autocast is on for the first one's device.

    An operator of our own is unknown to autocast, so the public functions do what autocast does before a convolution.
    fp64 is left alone, as autocast leaves it.
    """
    device = next(each.device.type for each in tensors if each is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(each if each is None or each.dtype == torch.float64 else each.to(dtype) for each in tensors)


def require_bias(bias: Tensor | None, outputs: int) -> None:
    """`bias` is absent or one number for each output channel."""
    if bias is not None:
        require(same_size(bias.shape, (outputs,)), "bias", tuple(bias.shape), f"({outputs},) or None")


def require_adapter_b(lora_b: Tensor, outputs: int, rank: int, groups: int) -> None:
    """`lora_b` is (outputs, rank / groups), with or without the trailing ones of a 1×1×1 convolution."""
    require(rank > 0 and rank % groups == 0, "lora_a", f"rank {rank}", f"a positive multiple of groups = {groups}")
    wanted = (outputs, rank // groups)
    fits = same_size(lora_b.shape, wanted) or same_size(lora_b.shape, (*wanted, 1, 1, 1))
    require(fits, "lora_b", tuple(lora_b.shape), f"{wanted} or {(*wanted, 1, 1, 1)}")


def three(value: Size3 | list[int]) -> Three:
    """A setting of a convolution for each of the three axes."""
    values = (value,) * 3 if isinstance(value, int) else tuple(value) * (3 if len(value) == 1 else 1)
    require(len(values) == 3, "stride, padding or dilation", value, "one number or three")
    d, h, w = values
    return d, h, w


def is_channels_last(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of the two gives a channels-last result: one of them is, and is not contiguous as well."""
    return any(
        each.ndim == 5 and each.is_contiguous(memory_format=torch.channels_last_3d) and not each.is_contiguous()
        for each in (x, weight)
    )


def layout_of(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The memory format of the result, see :func:`is_channels_last`."""
    return torch.channels_last_3d if is_channels_last(x, weight) else torch.contiguous_format


def name_of(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
