"""`lora_linear`: checks, the choice of a backend, and the custom op with its gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.adapter import MOST_TRITON_RANK, TRITON, fitting, register_gradients
from medseqft_kernels.checks import autocast_together, name_of, require, require_alike, require_bias, same_size, settled
from medseqft_kernels.dispatch import REFERENCE
from medseqft_kernels.lora_linear.backends import BACKENDS
from medseqft_kernels.lora_linear.choice import choose
from medseqft_kernels.lora_linear.reference import reference


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
        ``reference``, PEFT's formula; one of the faster exact forms (`backends.py`, derived in README.md); ``triton``;
        or ``auto``, the fastest of those that fit, measured once for each shape. A weight that wants a gradient takes
        the reference whatever is said here.

    Returns
    -------
    Tensor
        (…, Cout), differentiable once in all tensors.

    Raises
    ------
    ValueError
        Naming the tensor, what was found and what was expected.
    """
    x, weight, bias, lora_a, lora_b = autocast_together(x, weight, bias, lora_a, lora_b)
    _check(x, weight, bias, lora_a, lora_b)
    known = ["auto", REFERENCE, *BACKENDS]
    require(backend in known, "backend", repr(backend), f"one of {known}")
    rows, trains = x.reshape(-1, x.shape[-1]), torch.is_grad_enabled()
    too_wide = backend == TRITON and lora_a.shape[0] > MOST_TRITON_RANK
    if too_wide or (trains and weight.requires_grad):
        backend = REFERENCE
    elif backend == "auto":
        wants = (trains and x.requires_grad, trains and (lora_a.requires_grad or lora_b.requires_grad))
        sizes = settled((*rows.shape, weight.shape[0], lora_a.shape[0]))
        backend = choose(sizes, (bias is not None, name_of(x.dtype), str(x.device)), wants)
    else:
        fits = fitting(BACKENDS, x.dtype, x.device)
        require(backend in fits, "backend", repr(backend), f"for {name_of(x.dtype)} on {x.device} one of {list(fits)}")
    if backend == REFERENCE:
        return reference(x, weight, bias, lora_a, lora_b, scaling)
    y, _ = _forward(rows, weight, bias, lora_a, lora_b, float(scaling), backend)
    return y.reshape(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op(
    "medseqft::lora_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor lora_a, Tensor lora_b, float scaling, str backend)"
    " -> (Tensor, Tensor)",
)
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float, backend: str
) -> tuple[Tensor, Tensor]:
    y, u = BACKENDS[backend].forward(x, weight, bias, lora_a, lora_b, scaling)
    return y, x.new_empty(0) if u is None else u


@_forward.register_fake
def _(x, weight, bias, lora_a, lora_b, scaling, backend):  # type: ignore[no-untyped-def]
    u = x.new_empty((x.shape[0], lora_a.shape[0])) if BACKENDS[backend].keeps_u else x.new_empty(0)
    return x.new_empty((x.shape[0], weight.shape[0])), u


@torch.library.custom_op(
    "medseqft::lora_linear_backward",
    mutates_args=(),
    schema="(Tensor g, Tensor x, Tensor weight, Tensor lora_a, Tensor lora_b, Tensor u, float scaling, str backend, "
    "bool need_x, bool need_adapter) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor,
    scaling: float,
    backend: str,
    need_x: bool,
    need_adapter: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = BACKENDS[backend]
    kept = u if chosen.keeps_u else None
    found = chosen.backward(g, x, weight, lora_a, lora_b, kept, scaling, need_x, need_adapter)
    gx, ga, gb = (x.new_empty(0) if each is None else each.contiguous() for each in found)
    return gx, ga, gb


@_backward.register_fake
def _(g, x, weight, lora_a, lora_b, u, scaling, backend, need_x, need_adapter):  # type: ignore[no-untyped-def]
    wanted = ((x, need_x), (lora_a, need_adapter), (lora_b, need_adapter))
    return tuple(each.new_empty(each.shape) if need else each.new_empty(0) for each, need in wanted)


register_gradients(_forward, _backward)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor) -> None:
    require(weight.ndim == 2, "weight", tuple(weight.shape), "(Cout, Cin)")
    outputs, inputs = weight.shape
    require(x.ndim > 0 and x.shape[-1] == inputs, "x", tuple(x.shape), f"(…, {inputs})")
    require_bias(bias, outputs)
    fits = lora_a.ndim == 2 and lora_a.shape[0] > 0 and lora_a.shape[1] == inputs
    require(fits, "lora_a", tuple(lora_a.shape), f"(r, {inputs}), r > 0")
    wanted = (outputs, lora_a.shape[0])
    require(same_size(lora_b.shape, wanted), "lora_b", tuple(lora_b.shape), wanted)
    require_alike(x, weight=weight, bias=bias, lora_a=lora_a, lora_b=lora_b)
