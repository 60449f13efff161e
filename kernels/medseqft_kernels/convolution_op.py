"""The custom ops of a convolution with an adapter, transposed or not: forward and backward, each with its fake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medseqft_kernels.adapter import Backend, register_gradients
from medseqft_kernels.checks import layout_of, three


def register(name: str, geometry: Any, backends: Mapping[str, Backend]) -> Any:
    """The custom op `name`, with gradients, whose `geometry` is a named tuple of three numbers each.

    It takes (x, weight, bias, A, B, s, the geometry's fields as lists, backend) and returns (y, u), u empty where the
    backend does not keep it. Its gradients are those of a second op, `name`_backward.
    """
    fields = ", ".join(f"int[] {field}" for field in geometry._fields)
    settings = f"float scaling, {fields}, str backend"

    @torch.library.custom_op(
        f"medseqft::{name}",
        mutates_args=(),
        schema=f"(Tensor x, Tensor weight, Tensor? bias, Tensor lora_a, Tensor lora_b, {settings}) -> (Tensor, Tensor)",
    )
    def forward(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        bias, lora_a, lora_b, scaling, *walk, backend = rest
        y, u = backends[backend].forward(x, weight, bias, lora_a, lora_b, scaling, geometry(*map(three, walk)))
        layout = layout_of(x, weight)
        # Detached: autograd refuses to change a part of a larger tensor in place, as residual blocks do with `y += x`.
        kept = x.new_empty(0) if u is None else u.contiguous(memory_format=layout).detach()
        return y.contiguous(memory_format=layout).detach(), kept

    @forward.register_fake
    def _(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        _, lora_a, _, _, *walk, backend = rest
        own = geometry(*map(three, walk))
        size, axis = own.output_size(x.shape[2:], weight.shape[2:]), own.outputs_axis
        both = (x.new_empty((x.shape[0], each.shape[axis], *size)) for each in (weight, lora_a))
        y, u = (volumes.contiguous(memory_format=layout_of(x, weight)) for volumes in both)
        return y, u if backends[backend].keeps_u else x.new_empty(0)

    @torch.library.custom_op(
        f"medseqft::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor g, Tensor x, Tensor weight, Tensor lora_a, Tensor lora_b, Tensor u, {settings}, "
        "bool need_x, bool need_adapter) -> (Tensor, Tensor, Tensor)",
    )
    def backward(g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        lora_a, lora_b, u, scaling, *walk, backend, need_x, need_adapter = rest
        chosen, layout = backends[backend], layout_of(x, weight)
        tensors = (g.contiguous(memory_format=layout), x, weight, lora_a, lora_b, u if chosen.keeps_u else None)
        found = chosen.backward(*tensors, scaling, geometry(*map(three, walk)), need_x, need_adapter)
        gx = None if found.x is None else found.x.contiguous(memory_format=layout)
        adapter = (None if each is None else each.contiguous() for each in (found.lora_a, found.lora_b))
        gx, ga, gb = (x.new_empty(0) if each is None else each for each in (gx, *adapter))
        return gx, ga, gb

    @backward.register_fake
    def _(g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        lora_a, lora_b, *_, need_x, need_adapter = rest
        gx = x.new_empty(x.shape).contiguous(memory_format=layout_of(x, weight)) if need_x else x.new_empty(0)
        ga, gb = (x.new_empty(each.shape) if need_adapter else x.new_empty(0) for each in (lora_a, lora_b))
        return gx, ga, gb

    register_gradients(forward, backward)
    return forward
