"""`contrastive_loss`: checks, the choice of a backend, and the custom op with its gradient."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.checks import name_of, require
from medseqft_kernels.contrastive_loss.choice import choose
from medseqft_kernels.contrastive_loss.reference import EPSILON, reference, working_dtype
from medseqft_kernels.dispatch import REFERENCE
from medseqft_kernels.triton_support import runs_triton

BACKENDS = ("reference", "blocked", "triton")


def contrastive_loss(
    first: Float[Tensor, "b e"],
    second: Float[Tensor, "b e"],
    temperature: float = 0.1,
    *,
    backend: str = "auto",
) -> Float[Tensor, " b"]:
    """½·(ℓ(i, i+B) + ℓ(i+B, i)) for each pair i, without the 2B × 2B matrix of similarities.

    NT-Xent of SimCLR (Chen et al. 2020, arXiv 2002.05709, equation 1): among the 2B embeddings z, all of `first` and
    then all of `second`, ℓ(i, j) = −log(exp(cos(zᵢ, zⱼ)/τ) / Σ_{k≠i} exp(cos(zᵢ, z_k)/τ)). The mean over the pairs is
    SimCLR's loss.

    Parameters
    ----------
    first, second
        Two views' embeddings, (B, E) with E of at least 1, of any floating dtype. They need not have length 1: they are
        divided by their norms, or by 1e-6 where that is larger.
    temperature
        τ, above 0.
    backend
        ``reference``, differentiable any number of times; ``blocked``, PyTorch by blocks of rows; ``triton``; ``auto``.
        Between forward and backward the last three keep the embeddings and three numbers for each, and they
        differentiate once. For float64 ``triton`` is ``blocked``.

    Returns
    -------
    Tensor
        (B,), computed in float32 whatever comes in, float64 if `first` or `second` is. With B = 1 there are no others
        to tell apart: loss 0.

    Raises
    ------
    ValueError
        Naming the tensor, what was found and what was expected.
    """
    _check(first, second, temperature, backend)
    both = torch.cat([first, second])
    if len(both) == 0:
        backend = REFERENCE
    elif backend == "auto":
        trains = torch.is_grad_enabled() and both.requires_grad
        backend = choose(*both.shape, name_of(both.dtype), str(both.device), trains)
    if backend == REFERENCE:
        return reference(first, second, temperature)
    backend = "blocked" if both.dtype == torch.float64 else backend
    loss, *_ = _forward(both, float(temperature), backend)
    return loss


_SETTINGS = "float temperature, str backend"


@torch.library.custom_op(
    "medseqft::contrastive_loss",
    mutates_args=(),
    schema=f"(Tensor both, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(both: Tensor, temperature: float, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of each pair; loss, log-sum-exp and norm of each embedding."""
    with torch.autocast(both.device.type, enabled=False):
        norm = torch.linalg.vector_norm(both, dim=1, dtype=working_dtype(both, both))
        negative, positive = _form(backend).rows(both, 1 / norm.clamp_min(EPSILON), 1 / temperature)
        losses = torch.logaddexp(negative - positive, torch.zeros_like(positive))  # exact where it is small, too
        return losses.unflatten(0, (2, -1)).mean(0), losses, positive + losses, norm


@_forward.register_fake
def _(both, temperature, backend):  # type: ignore[no-untyped-def]
    work = working_dtype(both, both)
    count = both.shape[0]
    return tuple(both.new_empty(size, dtype=work) for size in (count // 2, count, count, count))


@torch.library.custom_op(
    "medseqft::contrastive_loss_backward",
    mutates_args=(),
    schema=f"(Tensor upstream, Tensor both, Tensor losses, Tensor spread, Tensor norm, {_SETTINGS}) -> Tensor",
)
def _backward(
    upstream: Tensor, both: Tensor, losses: Tensor, spread: Tensor, norm: Tensor, temperature: float, backend: str
) -> Tensor:
    with torch.autocast(both.device.type, enabled=False):
        own, weight = 1 / norm.clamp_min(EPSILON), upstream.repeat(2) / 2
        toward = weight * torch.expm1(-losses)  # the partner's probability less 1, exact where it is close to 1
        pulled = _form(backend).pull(both, own, spread, weight, toward, 1 / temperature)
        unit = both * own[:, None]
        along = (unit * pulled).sum(dim=1).where(norm >= EPSILON, 0)  # what changes a length that is divided out
        return ((pulled - along[:, None] * unit) * own[:, None]).to(both.dtype)


@_backward.register_fake
def _(upstream, both, losses, spread, norm, temperature, backend):  # type: ignore[no-untyped-def]
    return both.new_empty(both.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    both, *ctx.settings = inputs
    ctx.save_for_backward(both, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    return _backward(upstream, *ctx.saved_tensors, *ctx.settings), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _form(backend: str) -> Any:
    """The module that holds `rows` and `pull` of a backend; Triton's is imported on first use."""
    return import_module(f"medseqft_kernels.contrastive_loss.{backend}")


def _check(first: Tensor, second: Tensor, temperature: float, backend: str) -> None:
    require(first.ndim == 2 and first.shape[1] > 0, "first", tuple(first.shape), "(B, E) with E of at least 1")
    require(first.is_floating_point(), "first", first.dtype, "a floating dtype")
    require(second.shape == first.shape, "second", tuple(second.shape), f"{tuple(first.shape)}, as first is")
    require(second.is_floating_point(), "second", second.dtype, "a floating dtype")
    require(second.device == first.device, "second", second.device, f"{first.device}, where first is")
    require(temperature > 0, "temperature", temperature, "above 0")
    require(backend in ("auto", *BACKENDS), "backend", repr(backend), f"one of {['auto', *BACKENDS]}")
    if backend == "triton":
        require(runs_triton(first.device), "backend", "'triton'", f"another: no kernel runs on {first.device}")
