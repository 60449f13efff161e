"""Networks without memory: shapes and names alone, on PyTorch's meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NumbersAreReal(TorchFunctionMode):
    """`torch.linspace`, of which SwinUNETR reads its rates of stochastic depth, gives numbers and not shapes."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        where = {"device": "cpu"} if function is torch.linspace else {}
        return function(*args, **{**(kwargs or {}), **where})


@contextmanager
def shells() -> Iterator[None]:
    """Modules built within the block take no memory and hold no values."""
    with torch.device("meta"), _NumbersAreReal():
        yield
