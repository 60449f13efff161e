"""What `auto` takes for `lora_conv_transpose3d`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from medseqft_kernels.adapter import fitting, measured
from medseqft_kernels.checks import Three
from medseqft_kernels.dispatch import REFERENCE, describe, fastest, forced, passes
from medseqft_kernels.lora_conv_transpose3d.backends import BACKENDS
from medseqft_kernels.lora_conv_transpose3d.forms import Geometry

Kind = tuple[int, bool, str, str, bool]
"""Rank, whether there is a bias, dtype, device, channels-last."""
Shape = tuple[int, ...]


@torch.compiler.assume_constant_result
def choose(x: Shape, weight: Shape, walk: tuple[Three, ...], kind: Kind, wants: tuple[bool, bool]) -> str:
    """The fastest backend for these shapes; measured with `wants`, gradients of x and of the adapter.

    All arguments are plain values, so that a compiler can ask while it traces; `walk` is a :class:`Geometry` as a plain
    tuple, because a named one reaches a traced function without its fields.
    """
    geometry = Geometry(*walk)
    _, _, dtype, device, _ = kind
    on = torch.device(device)
    if forced() is not None or dtype == "float64" or 0 in x:
        return REFERENCE
    names = measured(fitting(BACKENDS, getattr(torch, dtype), on), on, kind[0])
    question = _question(x, weight, geometry, kind, wants)
    return fastest(question, on, lambda: _candidates(names, x, weight, geometry, kind, wants))


def _candidates(
    names: tuple[str, ...], x: Shape, weight: Shape, geometry: Geometry, kind: Kind, wants: tuple[bool, bool]
) -> dict[str, Callable[[], object]]:
    from medseqft_kernels.lora_conv_transpose3d.op import lora_conv_transpose3d

    rank, with_bias, dtype, device, channels_last = kind
    need_x, need_adapter = wants
    draw = torch.Generator(device).manual_seed(0)

    def rand(*shape: int, need: bool = False) -> Tensor:
        tensor = torch.rand(shape, generator=draw, device=device).to(getattr(torch, dtype))
        last = channels_last and len(shape) == 5
        layout = torch.channels_last_3d if last else torch.contiguous_format
        return tensor.contiguous(memory_format=layout).requires_grad_(need)

    volumes, w = rand(*x, need=need_x), rand(*weight)
    a, b = rand(weight[0], rank, *weight[2:], need=need_adapter), rand(weight[1], rank, need=need_adapter)
    bias = rand(weight[1]) if with_bias else None
    walk: Any = geometry._asdict()
    wanted = [each for each in (volumes, a, b) if each.requires_grad]
    return passes(names, lambda name: lora_conv_transpose3d(volumes, w, bias, a, b, 0.5, **walk, backend=name), wanted)


@lru_cache(maxsize=4096)
def _question(x: Shape, weight: Shape, geometry: Geometry, kind: Kind, wants: tuple[bool, bool]) -> str:
    rank, bias, dtype, device, channels_last = kind
    needs = {"needs_gradient_of_x": wants[0], "needs_gradient_of_A_and_B": wants[1]}
    shapes: dict[str, Any] = {"x": x, "weight": weight, **geometry._asdict(), "rank": rank}
    parts = describe(**shapes, bias=bias, channels_last=channels_last, **needs)
    return f"lora_conv_transpose3d: {parts}, {dtype} on {torch.device(device).type}"
