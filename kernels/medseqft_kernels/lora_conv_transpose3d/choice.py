"""What `auto` takes for `lora_conv_transpose3d`."""

from __future__ import annotations

import torch

from medseqft_kernels.checks import Three
from medseqft_kernels.convolution_choice import Kind, Shape, fastest_convolution
from medseqft_kernels.lora_conv_transpose3d.backends import BACKENDS
from medseqft_kernels.lora_conv_transpose3d.forms import Geometry


@torch.compiler.assume_constant_result
def choose(x: Shape, weight: Shape, walk: tuple[Three, ...], kind: Kind, wants: tuple[bool, bool]) -> str:
    """The fastest backend for these shapes; measured with `wants`, gradients of x and of the adapter.

    All arguments are plain values, so that a compiler can ask while it traces; `walk` is a :class:`Geometry` as a plain
    tuple, because a named one reaches a traced function without its fields.
    """
    from medseqft_kernels.lora_conv_transpose3d.op import lora_conv_transpose3d

    rank = kind[0]
    shapes = (x, weight, (weight[0], rank, *weight[2:]), (weight[1], rank))
    named = tuple(zip(Geometry._fields, walk, strict=True))
    return fastest_convolution(lora_conv_transpose3d, "lora_conv_transpose3d", BACKENDS, shapes, named, kind, wants)
