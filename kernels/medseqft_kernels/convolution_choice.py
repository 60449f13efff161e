"""What `auto` takes for a convolution with an adapter, transposed or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from medseqft_kernels.adapter import Backend, fitting, measured
from medseqft_kernels.checks import Three
from medseqft_kernels.dispatch import REFERENCE, describe, fastest, forced, passes

Kind = tuple[int, bool, str, str, bool]
"""Rank, whether there is a bias, dtype, device, channels-last."""
Shape = tuple[int, ...]
Walk = tuple[tuple[str, Three], ...]
"""Stride, padding and so on by name."""


def fastest_convolution(
    operation: Callable[..., Tensor],
    name: str,
    backends: Mapping[str, Backend],
    shapes: tuple[Shape, Shape, Shape, Shape],
    walk: Walk,
    kind: Kind,
    wants: tuple[bool, bool],
) -> str:
    """The fastest backend of the operation called `name` for `shapes` of x, weight, A and B.

    Measured with `wants`: gradients of x and of the adapter.
    """
    _, _, dtype, device, _ = kind
    if forced() is not None or dtype == "float64" or 0 in shapes[0]:
        return REFERENCE
    question = _question(name, shapes[:2], walk, kind, wants)
    candidates = partial(_candidates, operation, backends, shapes, walk, kind, wants)
    return fastest(question, torch.device(device), candidates)


def _candidates(
    operation: Callable[..., Tensor],
    backends: Mapping[str, Backend],
    shapes: tuple[Shape, Shape, Shape, Shape],
    walk: Walk,
    kind: Kind,
    wants: tuple[bool, bool],
) -> dict[str, Callable[[], object]]:
    rank, with_bias, dtype, device, channels_last = kind
    need_x, need_adapter = wants
    on = torch.device(device)
    names = measured(fitting(backends, getattr(torch, dtype), on), on, rank)
    draw = torch.Generator(on).manual_seed(0)

    def rand(*shape: int, need: bool = False) -> Tensor:
        tensor = torch.rand(shape, generator=draw, device=device).to(getattr(torch, dtype))
        last = channels_last and len(shape) == 5
        layout = torch.channels_last_3d if last else torch.contiguous_format
        return tensor.contiguous(memory_format=layout).requires_grad_(need)

    needs = (need_x, False, need_adapter, need_adapter)
    x, w, a, b = (rand(*shape, need=need) for shape, need in zip(shapes, needs, strict=True))
    bias = rand(len(b)) if with_bias else None
    wanted = [each for each in (x, a, b) if each.requires_grad]
    return passes(names, lambda name: operation(x, w, bias, a, b, 0.5, **dict(walk), backend=name), wanted)


@lru_cache(maxsize=4096)
def _question(name: str, shapes: tuple[Shape, Shape], walk: Walk, kind: Kind, wants: tuple[bool, bool]) -> str:
    rank, bias, dtype, device, channels_last = kind
    needs = {"needs_gradient_of_x": wants[0], "needs_gradient_of_A_and_B": wants[1]}
    sizes: dict[str, Any] = {"x": shapes[0], "weight": shapes[1], **dict(walk), "rank": rank}
    parts = describe(**sizes, bias=bias, channels_last=channels_last, **needs)
    return f"{name}: {parts}, {dtype} on {torch.device(device).type}"
