"""What the operations with a low-rank adapter share: what a backend is, where it fits, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medseqft_kernels.dispatch import REFERENCE
from medseqft_kernels.triton_support import runs_triton

TRITON = "triton"
MOST_TRITON_RANK = 64
"""Above it, thin tiles no longer fit beside the wide ones."""
SUMMED_AT_ONCE = 4096
"""Voxels in one fp32 sum."""


class Gradients(NamedTuple):
    """Of x, A and B; None where it was not asked for."""

    x: Tensor | None
    lora_a: Tensor | None
    lora_b: Tensor | None


class Backend(NamedTuple):
    """A forward and a backward pass, with the signatures of the operation's forms in plain PyTorch."""

    forward: Callable[..., tuple[Tensor, Tensor | None]]
    """Returns y and, if it has it to keep, u: what A makes of x, r channels."""
    backward: Callable[..., Gradients]
    keeps_u: bool
    merges: bool
    """Whether W + s·B·A is formed, which is exact in fp32 and fp64 alone."""


def triton_backend(module: str) -> Backend:
    """The kernels of `module`, imported where they first run: Triton is not installed everywhere."""

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return import_module(module).forward(*arguments)

    def backward(*arguments: Any) -> Gradients:
        return Gradients(*import_module(module).backward(*arguments))

    return Backend(forward, backward, keeps_u=True, merges=False)


def fitting(backends: Mapping[str, Backend], dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """The backends that are exact in `dtype` and run on `device`, the reference first."""

    def fits(name: str) -> bool:
        if name == TRITON:
            return runs_triton(device) and dtype != torch.float64
        return not backends[name].merges or dtype in (torch.float32, torch.float64)

    return (REFERENCE, *filter(fits, backends))


def measured(names: tuple[str, ...], device: torch.device, rank: int) -> tuple[str, ...]:
    """Those that `auto` measures: Triton's interpreter is for tests alone."""
    with_triton = device.type == "cuda" and rank <= MOST_TRITON_RANK
    return tuple(name for name in names if name != TRITON or with_triton)


def wide(tensor: Tensor) -> Tensor:
    """At least fp32: what is added to a frozen output must not be rounded before the sum."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def register_gradients(forward: Any, backward: Any) -> None:
    """Give the custom op `forward` its gradients from the custom op `backward`.

    `forward` takes (x, weight, bias, A, B, settings…) and returns (y, u); `backward` takes (g, x, weight, A, B, u,
    settings…, need_x, need_adapter) and returns (gx, gA, gB), empty where not needed. The weight is frozen.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, lora_a, lora_b, *ctx.settings = inputs
        ctx.save_for_backward(x, weight, lora_a, lora_b, output[1])

    def gradients(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Any, ...]:
        need_x, _, need_bias, *need_adapter = ctx.needs_input_grad[:5]
        gx = ga = gb = None
        if need_x or any(need_adapter):
            gx, ga, gb = backward(g, *ctx.saved_tensors, *ctx.settings, need_x, any(need_adapter))
        gbias = g.sum([axis for axis in range(g.ndim) if axis != 1]) if need_bias else None
        adapter = (ga, gb) if any(need_adapter) else (None, None)
        return gx if need_x else None, None, gbias, *adapter, *[None] * len(ctx.settings)

    forward.register_autograd(gradients, setup_context=keep)


def channel_products(g: Tensor, u: Tensor) -> Tensor:
    """Σ_v g[o, v]·u[ρ, v] over samples and voxels: (Cout, r), summed in blocks.

    One sum over a million voxels in fp32 is wrong in the fifth digit; a sum of sums is not.
    """
    return row_products(rows_of(g), rows_of(u))


def mix(volumes: Tensor, matrix: Tensor, onto: Tensor | None = None) -> Tensor:
    """matrix·volumes over the channels, (B, c, …) and (c', c) to (B, c', …), added to `onto` where there is one.

    One product over rows of channels; a 1×1×1 convolution of few channels takes several times as long on a CPU.
    """
    rows, transposed = rows_of(volumes), matrix.t()
    mixed = rows @ transposed if onto is None else torch.addmm(rows_of(onto), rows, transposed)
    return volumes_of(mixed, volumes)


def volumes_of(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`rows_of`: (voxels, C) as channels-last volumes with the samples and sides of `like`."""
    return rows.view(like.shape[0], *like.shape[2:], rows.shape[1]).movedim(-1, 1)


def rows_of(volumes: Tensor) -> Tensor:
    """(B, C, …) as (voxels, C); a view of channels-last volumes."""
    return volumes.movedim(1, -1).reshape(-1, volumes.shape[1])


def row_products(one: Tensor, other: Tensor) -> Tensor:
    """oneᵀ·other for (N, p) and (N, q), at least fp32, summed in blocks as in :func:`channel_products`."""
    whole = len(one) // SUMMED_AT_ONCE * SUMMED_AT_ONCE
    blocks = [each[:whole].view(-1, SUMMED_AT_ONCE, each.shape[1]) for each in (one, other)]
    total = wide(torch.bmm(blocks[0].transpose(1, 2), blocks[1])).sum(0)
    return total + wide(one[whole:].t() @ other[whole:])


def scaled(scaling: float, matrix: Tensor) -> Tensor:
    """s·matrix in its own dtype, rounded once."""
    return (scaling * wide(matrix)).to(matrix.dtype)
