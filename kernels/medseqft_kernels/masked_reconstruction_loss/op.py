"""`masked_reconstruction_loss`: checks, custom op, gradient, and the choice of a backend."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseqft_kernels.checks import name_of, require
from medseqft_kernels.dispatch import REFERENCE
from medseqft_kernels.masked_reconstruction_loss.choice import choose
from medseqft_kernels.masked_reconstruction_loss.reference import reference, working_dtype
from medseqft_kernels.triton_support import runs_triton

BACKENDS = ("reference", "lean", "triton")


def masked_reconstruction_loss(
    prediction: Float[Tensor, "b c d h w"],
    target: Float[Tensor, "b c d h w"],
    mask: Bool[Tensor, "b m d h w"] | Float[Tensor, "b m d h w"],
    *,
    norm: str = "l2",
    patch: int | tuple[int, int, int] | None = None,
    backend: str = "auto",
) -> Float[Tensor, " b"]:
    """Σ |p − t|^q · m / Σ m over the channels and voxels of each sample, without a tensor of differences.

    The loss of masked auto-encoders (He et al. 2022, arXiv 2111.06377): mean error of what was hidden.

    Parameters
    ----------
    prediction, target
        (B, C, D, H, W) in any memory format, float16, bfloat16, float32 or float64, each its own.
    mask
        (B, 1, D, H, W) for all channels alike, or (B, C, D, H, W): True counts the voxel, or weights of at least 0.
    norm
        ``l2``, q = 2; ``l1``, q = 1.
    patch
        Sides of the patches whose target is brought to mean 0 and variance 1 (divisor n, plus 1e-6), each channel of
        each patch for itself; the crop is a whole number of patches. None leaves the target as it is.
    backend
        ``reference``, differentiable in all tensors and any number of times; ``lean``, PyTorch in slabs; ``triton``;
        ``auto``. The last three need memory for the gradient only, and differentiate the prediction once; where
        `target` or `mask` asks for a gradient they are the reference, and for float64 ``triton`` is ``lean``.

    Returns
    -------
    Tensor
        (B,), computed in float32 whatever comes in, float64 if the prediction or the target is float64. A sample whose
        mask is 0 everywhere has loss 0 and gradient 0.

    Raises
    ------
    ValueError
        Naming the tensor, what was found and what was expected.
    """
    sides = (patch, patch, patch) if isinstance(patch, int) else patch
    _check(prediction, target, mask, norm, sides, backend)
    if torch.is_grad_enabled() and (target.requires_grad or mask.requires_grad):
        backend = REFERENCE
    elif backend == "auto":
        last = prediction.shape[1] > 1 and prediction.stride(1) == 1
        dtypes = (name_of(prediction.dtype), name_of(target.dtype), name_of(mask.dtype))
        trains = torch.is_grad_enabled() and prediction.requires_grad
        shape, device = tuple(prediction.shape), str(prediction.device)
        backend = choose(shape, mask.shape[1], sides, norm, dtypes, last, device, trains)
    if backend == REFERENCE:
        return reference(prediction, target, mask, norm, sides)
    work = working_dtype(prediction, target)
    backend = "lean" if work == torch.float64 else backend
    found = None if sides is None else _statistics(target, work, list(sides), backend)
    loss, _ = _forward(prediction, target, mask, found, list(sides or ()), norm, backend)
    return loss


@torch.library.custom_op(
    "medseqft::patch_statistics",
    mutates_args=(),
    schema="(Tensor target, ScalarType work, int[] patch, str backend) -> Tensor",
)
def _statistics(target: Tensor, work: torch.dtype, patch: list[int], backend: str) -> Tensor:
    return _form(backend).statistics(target, work, patch)


@_statistics.register_fake
def _(target, work, patch, backend):  # type: ignore[no-untyped-def]
    grid = [size // side for size, side in zip(target.shape[2:], patch, strict=True)]
    return target.new_empty((*target.shape[:2], *grid, 2), dtype=work)


_SETTINGS = "Tensor prediction, Tensor target, Tensor mask, Tensor? found, int[] patch, str norm, str backend"


@torch.library.custom_op(
    "medseqft::masked_reconstruction_loss", mutates_args=(), schema=f"({_SETTINGS}) -> (Tensor, Tensor)"
)
def _forward(
    prediction: Tensor, target: Tensor, mask: Tensor, found: Tensor | None, patch: list[int], norm: str, backend: str
) -> tuple[Tensor, Tensor]:
    """The loss of each sample, and Σ m, float64."""
    error, total = _form(backend).sums(prediction, target, mask, found, patch, norm)
    return (error / total.where(total != 0, 1)).to(working_dtype(prediction, target)), total


@_forward.register_fake
def _(prediction, target, mask, found, patch, norm, backend):  # type: ignore[no-untyped-def]
    loss = prediction.new_empty(len(prediction), dtype=working_dtype(prediction, target))
    return loss, loss.new_empty(len(prediction), dtype=torch.float64)


@torch.library.custom_op(
    "medseqft::masked_reconstruction_loss_backward", mutates_args=(), schema=f"(Tensor factor, {_SETTINGS}) -> Tensor"
)
def _backward(
    factor: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    found: Tensor | None,
    patch: list[int],
    norm: str,
    backend: str,
) -> Tensor:
    return _form(backend).gradient(factor, prediction, target, mask, found, patch, norm)


@_backward.register_fake
def _(factor, prediction, target, mask, found, patch, norm, backend):  # type: ignore[no-untyped-def]
    return torch.empty_like(prediction)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    prediction, target, mask, found, *ctx.settings = inputs
    ctx.save_for_backward(prediction, target, mask, found, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    prediction, target, mask, found, total = ctx.saved_tensors
    if any(ctx.needs_input_grad[1:4]):
        raise NotImplementedError("this op differentiates the prediction alone; backend='reference' does the rest")
    factor = (upstream / total.where(total != 0, 1)).to(upstream.dtype)
    slope = _backward(factor, prediction, target, mask, found, *ctx.settings) if ctx.needs_input_grad[0] else None
    return slope, None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _form(backend: str) -> Any:
    """The module that holds `statistics`, `sums` and `gradient` of a backend; Triton's is imported on first use."""
    return import_module(f"medseqft_kernels.masked_reconstruction_loss.{backend}")


def _check(
    prediction: Tensor, target: Tensor, mask: Tensor, norm: str, patch: tuple[int, ...] | None, backend: str
) -> None:
    shape = tuple(prediction.shape)
    require(prediction.ndim == 5, "prediction", shape, "(B, C, D, H, W)")
    require(prediction.is_floating_point(), "prediction", prediction.dtype, "a floating dtype")
    require(tuple(target.shape) == shape, "target", tuple(target.shape), f"{shape}, as the prediction is")
    require(target.is_floating_point(), "target", target.dtype, "a floating dtype")
    wanted = (shape[0], 1, *shape[2:])
    require(tuple(mask.shape) in (wanted, shape), "mask", tuple(mask.shape), f"{wanted} or {shape}")
    require(mask.dtype == torch.bool or mask.is_floating_point(), "mask", mask.dtype, "bool or a floating dtype")
    for name, each in (("target", target), ("mask", mask)):
        require(each.device == prediction.device, name, each.device, f"{prediction.device}, where the prediction is")
    require(norm in ("l1", "l2"), "norm", repr(norm), "'l1' or 'l2'")
    if patch is not None:
        whole = len(patch) == 3 and all(
            side > 0 and size % side == 0 for size, side in zip(shape[2:], patch, strict=True)
        )
        require(whole, "patch", patch, f"three sides that divide {shape[2:]}")
    require(backend in ("auto", *BACKENDS), "backend", repr(backend), f"one of {['auto', *BACKENDS]}")
    if backend == "triton":
        require(
            runs_triton(prediction.device), "backend", "'triton'", f"another: no kernel runs on {prediction.device}"
        )
