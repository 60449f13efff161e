"""`lora_conv3d`: checks, the choice of a backend, and the custom op with its gradients."""

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
from medseqft_kernels.lora_conv3d.backends import BACKENDS
from medseqft_kernels.lora_conv3d.choice import choose
from medseqft_kernels.lora_conv3d.forms import Geometry
from medseqft_kernels.lora_conv3d.reference import reference


def lora_conv3d(
    x: Float[Tensor, "*b cin d h w"],
    weight: Float[Tensor, "cout cin_g kd kh kw"],
    bias: Float[Tensor, " cout"] | None,
    lora_a: Float[Tensor, "r _ kd kh kw"],
    lora_b: Float[Tensor, "cout r_g *ones"],
    scaling: int | float,
    *,
    stride: Size3 = 1,
    padding: Size3 | str = 0,
    dilation: Size3 = 1,
    groups: int = 1,
    backend: str = "auto",
) -> Float[Tensor, "*b cout e i j"]:
    """conv(x, W) + b + s·B(A(x)): a frozen convolution with a low-rank adapter (Hu et al. 2021, arXiv 2106.09685).

    Parameters
    ----------
    x
        Volumes (B, Cin, D, H, W), or one volume without B, in any memory format.
    weight, bias
        The frozen convolution, (Cout, Cin/groups, kD, kH, kW) and (Cout,) or None.
    lora_a
        (r, Cin/groups, kD, kH, kW), grouped as the convolution is; r is a multiple of `groups`. A dense A
        (r, Cin, kD, kH, kW) on a grouped convolution, PEFT's form, runs too but cannot be merged.
    lora_b
        (Cout, r/groups), or with the trailing ones of a 1×1×1 convolution.
    scaling
        s = alpha / r.
    stride, padding, dilation, groups
        As in :func:`torch.nn.functional.conv3d`, for the convolution and for A.
    backend
        ``reference``, PEFT's formula; one of the faster exact forms (`backends.py`, derived in README.md); ``triton``;
        or ``auto``, the fastest of those that fit, measured once for each shape. Grouped convolutions, padding that
        differs between two sides, a weight that wants a gradient, and a rank above 64 in Triton take the reference
        whatever is said here.

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
    geometry = _geometry(stride, padding, dilation, weight)
    known = backend in ("auto", REFERENCE, *BACKENDS)
    require(known, "backend", repr(backend), f"one of {['auto', REFERENCE, *BACKENDS]}")
    trains = torch.is_grad_enabled()
    too_wide = backend == TRITON and lora_a.shape[0] > MOST_TRITON_RANK
    if groups > 1 or geometry is None or too_wide or (trains and weight.requires_grad):
        backend = REFERENCE
    elif backend == "auto":
        wants = (trains and x.requires_grad, trains and (lora_a.requires_grad or lora_b.requires_grad))
        last = is_channels_last(x, weight)
        kind = (*settled(lora_a.shape[:1]), bias is not None, name_of(x.dtype), str(x.device), last)
        backend = choose(settled(x.shape), settled(weight.shape), tuple(geometry), kind, wants)
    else:
        fits = fitting(BACKENDS, x.dtype, x.device)
        require(backend in fits, "backend", repr(backend), f"for {name_of(x.dtype)} on {x.device} one of {list(fits)}")
    if backend == REFERENCE or geometry is None:
        plain: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return reference(x, weight, bias, lora_a, lora_b, scaling, **plain)
    volumes = x if x.ndim == 5 else x[None]
    y, _ = _forward(volumes, weight, bias, lora_a, lora_b, float(scaling), *map(list, geometry), backend)
    return y if x.ndim == 5 else y[0]


_forward = register("lora_conv3d", Geometry, BACKENDS)


def _geometry(stride: Size3, padding: Size3 | str, dilation: Size3, weight: Tensor) -> Geometry | None:
    """All as three numbers; None where the two sides of an axis are padded differently."""
    step, spread = three(stride), three(dilation)
    if isinstance(padding, str):
        require(padding in ("same", "valid"), "padding", repr(padding), "'same', 'valid' or numbers")
        totals = [d * (k - 1) * (padding == "same") for d, k in zip(spread, weight.shape[2:], strict=True)]
        if any(total % 2 for total in totals) or (padding == "same" and step != (1, 1, 1)):
            return None
        return Geometry(step, three([total // 2 for total in totals]), spread)
    return Geometry(step, three(padding), spread)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, groups: int) -> None:
    require(weight.ndim == 5, "weight", tuple(weight.shape), "(Cout, Cin/groups, kD, kH, kW)")
    outputs, inputs, *kernel = weight.shape
    require(groups > 0 and outputs % groups == 0, "weight", f"{outputs} outputs", f"a multiple of groups = {groups}")
    channels = inputs * groups
    fits = x.ndim in (4, 5) and x.shape[-4] == channels
    require(fits, "x", tuple(x.shape), f"(B, {channels}, D, H, W) or ({channels}, D, H, W)")
    require_bias(bias, outputs)
    grouped, dense = ("r", inputs, *kernel), ("r", channels, *kernel)
    fits = any(same_size(lora_a.shape[1:], (c, *kernel)) for c in (inputs, channels))
    require(fits, "lora_a", tuple(lora_a.shape), grouped if groups == 1 else f"{grouped} or dense {dense}")
    require_adapter_b(lora_b, outputs, lora_a.shape[0], groups)
    require_alike(x, weight=weight, bias=bias, lora_a=lora_a, lora_b=lora_b)
