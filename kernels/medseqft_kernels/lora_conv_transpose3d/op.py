"""`lora_conv_transpose3d`: checks, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.checks import choose, require, require_adapter_b, require_alike, require_bias
from medseqft_kernels.lora_conv_transpose3d.reference import Size3, reference

BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference}
AUTO = "reference"
"""What `backend="auto"` takes."""


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
        ``auto`` or ``reference``.

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
    settings = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
    }
    return choose(backend, BACKENDS)(x, weight, bias, lora_a, lora_b, scaling, **settings)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, groups: int) -> None:
    require(weight.ndim == 5, "weight", tuple(weight.shape), "(Cin, Cout/groups, kD, kH, kW)")
    inputs, outputs, *kernel = weight.shape[0], weight.shape[1] * groups, *weight.shape[2:]
    require(groups > 0 and inputs % groups == 0, "weight", f"{inputs} inputs", f"a multiple of groups = {groups}")
    fits = x.ndim in (4, 5) and x.shape[-4] == inputs
    require(fits, "x", tuple(x.shape), f"(B, {inputs}, D, H, W) or ({inputs}, D, H, W)")
    require_bias(bias, outputs)
    fits = lora_a.ndim == 5 and lora_a.shape[0] == inputs and list(lora_a.shape[2:]) == kernel
    require(fits, "lora_a", tuple(lora_a.shape), (inputs, "r/groups", *kernel))
    require_adapter_b(lora_b, outputs, lora_a.shape[1] * groups, groups)
    require_alike(x, weight=weight, bias=bias, lora_a=lora_a, lora_b=lora_b)
