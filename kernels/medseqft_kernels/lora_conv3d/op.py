"""`lora_conv3d`: checks, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.checks import choose, require, require_adapter_b, require_alike, require_bias
from medseqft_kernels.lora_conv3d.merged import merged
from medseqft_kernels.lora_conv3d.reference import Size3, reference

BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference, "merged": merged}
AUTO = "merged in fp32 where 3·rank > outputs, else reference"
"""What `backend="auto"` takes."""


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
        ``reference``, PEFT's formula; ``merged``, one convolution with W + s·B·A, in fp32 and fp64 alone; ``auto``, the
        one that counts fewer operations.

    Returns
    -------
    Tensor
        (B, Cout, D', H', W'), differentiable in all tensors.

    Raises
    ------
    ValueError
        Naming the tensor, what was found and what was expected.
    """
    _check(x, weight, bias, lora_a, lora_b, groups)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    merges = _merges_exactly(x, weight, lora_a)
    require(backend != "merged" or merges, "backend", "'merged'", "fp32 or fp64 without autocast, and A grouped like W")
    if backend == "auto":
        backend = "merged" if merges and _is_wide(weight, lora_a) else "reference"
    return choose(backend, BACKENDS)(x, weight, bias, lora_a, lora_b, scaling, **settings)


def _merges_exactly(x: Tensor, weight: Tensor, lora_a: Tensor) -> bool:
    """bf16 and fp16 would round a small adapter away; a dense A on a grouped convolution has no merged weight."""
    full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
    return full and lora_a.shape[1] == weight.shape[1]


def _is_wide(weight: Tensor, lora_a: Tensor) -> bool:
    """Whether three thin convolutions of r channels cost more than one full weight gradient of Cout."""
    return 3 * lora_a.shape[0] > weight.shape[0]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, groups: int) -> None:
    require(weight.ndim == 5, "weight", tuple(weight.shape), "(Cout, Cin/groups, kD, kH, kW)")
    outputs, inputs, *kernel = weight.shape
    require(groups > 0 and outputs % groups == 0, "weight", f"{outputs} outputs", f"a multiple of groups = {groups}")
    channels = inputs * groups
    fits = x.ndim in (4, 5) and x.shape[-4] == channels
    require(fits, "x", tuple(x.shape), f"(B, {channels}, D, H, W) or ({channels}, D, H, W)")
    require_bias(bias, outputs)
    grouped, dense = ("r", inputs, *kernel), ("r", channels, *kernel)
    fits = lora_a.ndim == 5 and tuple(lora_a.shape[1:]) in (grouped[1:], dense[1:])
    require(fits, "lora_a", tuple(lora_a.shape), grouped if groups == 1 else f"{grouped} or dense {dense}")
    require_adapter_b(lora_b, outputs, lora_a.shape[0], groups)
    require_alike(x, weight=weight, bias=bias, lora_a=lora_a, lora_b=lora_b)
