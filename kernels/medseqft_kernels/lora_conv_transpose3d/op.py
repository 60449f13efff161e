"""`lora_conv_transpose3d`: checks, the choice of a backend, and the custom op with its gradients."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.adapter import MOST_TRITON_RANK, TRITON, fitting
from medseqft_kernels.checks import (
    Size3,
    autocast_together,
    is_channels_last,
    name_of,
    require,
    require_adapter_b,
    require_alike,
    require_bias,
    same_size,
    settled,
    three,
)
from medseqft_kernels.convolution_op import register
from medseqft_kernels.dispatch import REFERENCE
from medseqft_kernels.lora_conv_transpose3d.backends import BACKENDS
from medseqft_kernels.lora_conv_transpose3d.choice import choose
from medseqft_kernels.lora_conv_transpose3d.forms import Geometry
from medseqft_kernels.lora_conv_transpose3d.reference import reference


def lora_conv_transpose3d(
    x: Float[Tensor, "*b cin d h w"],
    weight: Float[Tensor, "cin cout_g kd kh kw"],
    bias: Float[Tensor, " cout"] | None,
    lora_a: Float[Tensor, "cin r_g kd kh kw"],
    lora_b: Float[Tensor, "cout r_g *ones"],
    scaling: int | float,
    *,
    stride: Size3 = 1,
    padding: Size3 = 0,
    output_padding: Size3 = 0,
    groups: int = 1,
    dilation: Size3 = 1,
    backend: str = "auto",
) -> Float[Tensor, "*b cout e i j"]:
    """convᵀ(x, W) + b + s·B(convᵀ(x, A)): a frozen transposed convolution with a low-rank adapter.

    Parameters
    ----------
    x
        Volumes (B, Cin, D, H, W), or one volume without B, in any memory format.
    weight, bias
        The frozen transposed convolution, (Cin, Cout/groups, kD, kH, kW) and (Cout,) or None.
    lora_a
        (Cin, r/groups, kD, kH, kW), a transposed convolution with the same settings.
    lora_b
        (Cout, r/groups, 1, 1, 1), or without the trailing ones.
    scaling
        s = alpha / r.
    stride, padding, output_padding, groups, dilation
        As in :func:`torch.nn.functional.conv_transpose3d`, for the convolution and for A.
    backend
        ``reference``, the formula; one of the faster exact forms (`backends.py`, derived in README.md); ``triton``; or
        ``auto``, the fastest of those that fit, measured once for each shape. Grouped convolutions, a weight that wants
        a gradient, and a rank above 64 in Triton take the reference whatever is said here.

    Returns
    -------
    Tensor
        (B, Cout, D', H', W'), differentiable once in all tensors; channels-last if x or the weight is.

    Raises
    ------
    ValueError
        Naming the tensor, what was found and what was expected.
    """
    x, weight, bias, lora_a, lora_b = autocast_together(x, weight, bias, lora_a, lora_b)
    _check(x, weight, bias, lora_a, lora_b, groups)
    geometry = Geometry(three(stride), three(padding), three(output_padding), three(dilation))
    known = ["auto", REFERENCE, *BACKENDS]
    require(backend in known, "backend", repr(backend), f"one of {known}")
    trains = torch.is_grad_enabled()
    too_wide = backend == TRITON and lora_a.shape[1] > MOST_TRITON_RANK
    if groups > 1 or too_wide or (trains and weight.requires_grad):
        backend = REFERENCE
    elif backend == "auto":
        wants = (trains and x.requires_grad, trains and (lora_a.requires_grad or lora_b.requires_grad))
        last = is_channels_last(x, weight)
        kind = (*settled(lora_a.shape[1:2]), bias is not None, name_of(x.dtype), str(x.device), last)
        backend = choose(settled(x.shape), settled(weight.shape), tuple(geometry), kind, wants)
    else:
        fits = fitting(BACKENDS, x.dtype, x.device)
        require(backend in fits, "backend", repr(backend), f"for {name_of(x.dtype)} on {x.device} one of {list(fits)}")
    if backend == REFERENCE:
        plain: Any = {**geometry._asdict(), "groups": groups}
        return reference(x, weight, bias, lora_a, lora_b, scaling, **plain)
    volumes = x if x.ndim == 5 else x[None]
    y, _ = _forward(volumes, weight, bias, lora_a, lora_b, float(scaling), *map(list, geometry), backend)
    return y if x.ndim == 5 else y[0]


_forward = register("lora_conv_transpose3d", Geometry, BACKENDS)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, groups: int) -> None:
    require(weight.ndim == 5, "weight", tuple(weight.shape), "(Cin, Cout/groups, kD, kH, kW)")
    inputs, outputs, *kernel = weight.shape[0], weight.shape[1] * groups, *weight.shape[2:]
    require(groups > 0 and inputs % groups == 0, "weight", f"{inputs} inputs", f"a multiple of groups = {groups}")
    fits = x.ndim in (4, 5) and x.shape[-4] == inputs
    require(fits, "x", tuple(x.shape), f"(B, {inputs}, D, H, W) or ({inputs}, D, H, W)")
    require_bias(bias, outputs)
    fits = lora_a.ndim == 5 and lora_a.shape[0] == inputs and same_size(lora_a.shape[2:], kernel)
    require(fits, "lora_a", tuple(lora_a.shape), (inputs, "r/groups", *kernel))
    require_adapter_b(lora_b, outputs, lora_a.shape[1] * groups, groups)
    require_alike(x, weight=weight, bias=bias, lora_a=lora_a, lora_b=lora_b)
