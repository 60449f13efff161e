"""`lora_linear`: checks, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.checks import choose, require, require_alike, require_bias
from medseqft_kernels.lora_linear.reference import reference

BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference}
AUTO = "reference"
"""What `backend="auto"` takes."""


def lora_linear(
    x: Float[Tensor, "*b cin"],
    weight: Float[Tensor, "cout cin"],
    bias: Float[Tensor, " cout"] | None,
    lora_a: Float[Tensor, "r cin"],
    lora_b: Float[Tensor, "cout r"],
    scaling: int | float,
    *,
    backend: str = "auto",
) -> Float[Tensor, "*b cout"]:
    """x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ: a frozen linear layer with a low-rank adapter (Hu et al. 2021, arXiv 2106.09685).

    Parameters
    ----------
    x
        (…, Cin), any number of leading axes.
    weight, bias
        The frozen layer, (Cout, Cin) and (Cout,) or None.
    lora_a, lora_b
        (r, Cin) and (Cout, r).
    scaling
        s = alpha / r.
    backend
        ``auto`` or ``reference``.

    Returns
    -------
    Tensor
        (…, Cout), differentiable in all tensors.

    Raises
    ------
    ValueError
        Naming the tensor, what was found and what was expected.
    """
    _check(x, weight, bias, lora_a, lora_b)
    return choose(backend, BACKENDS)(x, weight, bias, lora_a, lora_b, scaling)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor) -> None:
    require(weight.ndim == 2, "weight", tuple(weight.shape), "(Cout, Cin)")
    outputs, inputs = weight.shape
    require(x.ndim > 0 and x.shape[-1] == inputs, "x", tuple(x.shape), f"(…, {inputs})")
    require_bias(bias, outputs)
    fits = lora_a.ndim == 2 and lora_a.shape[0] > 0 and lora_a.shape[1] == inputs
    require(fits, "lora_a", tuple(lora_a.shape), f"(r, {inputs}), r > 0")
    wanted = (outputs, lora_a.shape[0])
    require(tuple(lora_b.shape) == wanted, "lora_b", tuple(lora_b.shape), wanted)
    require_alike(x, weight=weight, bias=bias, lora_a=lora_a, lora_b=lora_b)
