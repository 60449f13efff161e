"""What `auto` takes for `lora_linear`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from medseqft_kernels.adapter import fitting, measured
from medseqft_kernels.dispatch import REFERENCE, describe, fastest, forced, passes
from medseqft_kernels.lora_linear.backends import BACKENDS

Sizes = tuple[int, int, int, int]
"""Rows of x, inputs, outputs, rank."""
Kind = tuple[bool, str, str]
"""Whether there is a bias, dtype, device."""


@torch.compiler.assume_constant_result
def choose(sizes: Sizes, kind: Kind, wants: tuple[bool, bool]) -> str:
    """The fastest backend for these sizes; measured with `wants`, gradients of x and of the adapter.

    All arguments are plain values, so that a compiler can ask while it traces.
    """
    _, dtype, device = kind
    if forced() is not None or dtype == "float64" or 0 in sizes:
        return REFERENCE
    question = _question(sizes, kind, wants)
    return fastest(question, torch.device(device), partial(_candidates, sizes, kind, wants))


def _candidates(sizes: Sizes, kind: Kind, wants: tuple[bool, bool]) -> dict[str, Callable[[], object]]:
    from medseqft_kernels.lora_linear.op import lora_linear

    rows, inputs, outputs, rank = sizes
    with_bias, dtype, device = kind
    need_x, need_adapter = wants
    on = torch.device(device)
    names = measured(fitting(BACKENDS, getattr(torch, dtype), on), on, rank)
    draw = torch.Generator(on).manual_seed(0)

    def rand(*shape: int, need: bool = False) -> Tensor:
        return torch.rand(shape, generator=draw, device=device).to(getattr(torch, dtype)).requires_grad_(need)

    x, weight = rand(rows, inputs, need=need_x), rand(outputs, inputs)
    a, b = rand(rank, inputs, need=need_adapter), rand(outputs, rank, need=need_adapter)
    bias = rand(outputs) if with_bias else None
    wanted = [each for each in (x, a, b) if each.requires_grad]
    return passes(names, lambda name: lora_linear(x, weight, bias, a, b, 0.5, backend=name), wanted)


@lru_cache(maxsize=4096)
def _question(sizes: Sizes, kind: Kind, wants: tuple[bool, bool]) -> str:
    rows, inputs, outputs, rank = sizes
    bias, dtype, device = kind
    needs = {"needs_gradient_of_x": wants[0], "needs_gradient_of_A_and_B": wants[1]}
    parts = describe(x=(rows, inputs), weight=(outputs, inputs), rank=rank, bias=bias, **needs)
    return f"lora_linear: {parts}, {dtype} on {torch.device(device).type}"
