"""`cosine_topk`: checks, custom op, autograd and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medseqft_kernels.checks import require
from medseqft_kernels.cosine_topk.blocked import blocked, gradients
from medseqft_kernels.cosine_topk.reference import reference, working
from medseqft_kernels.dispatch import fastest, forced
from medseqft_kernels.triton_support import runs_triton

BACKENDS = ("auto", "reference", "blocked", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LARGEST_K = 64
"""What the kernel keeps in registers for each query."""


def cosine_topk(
    queries: Float[Tensor, "n e"], keys: Float[Tensor, "m e"], k: int, *, backend: str = "auto"
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The `k` keys with the largest cosine to each query, without the (n, m) matrix of similarities in memory.

    Similarities are fp32 for fp32, bf16 and fp16 inputs, under autocast too, and fp64 for fp64. They are differentiable
    in `queries` and `keys`, the choice of keys being held fixed; there is no second derivative.

    Parameters
    ----------
    queries, keys
        One row a vector. A zero vector has similarity 0 to everything and gradient 0; one with an entry that is not
        finite has similarity NaN, which ranks last.
    k
        From 0 to m.
    backend
        ``reference``, the whole matrix; ``blocked``, a running top-k over blocks of keys in PyTorch; ``triton``, the
        same in one kernel, for k ≤ 64, and ``blocked`` where k is larger, or for fp64; ``auto``, the faster of the last
        two on a GPU, else ``blocked``.

    Returns
    -------
    values, index
        (n, k), descending, and the keys' numbers (int64). Of equal similarities the smaller index comes first.
        Similarities closer than their rounding may change places between backends.

    Raises
    ------
    ValueError
        Naming the tensor, what was found and what was expected.
    """
    _check(queries, keys, k)
    name = _choose(backend, tuple(queries.shape), len(keys), k, queries.dtype, queries.device)
    return _cosine_topk(queries, keys, k, name)


@torch.library.custom_op(
    "medseqft::cosine_topk",
    mutates_args=(),
    schema="(Tensor queries, Tensor keys, int k, str backend) -> (Tensor, Tensor)",
)
def _cosine_topk(queries: Tensor, keys: Tensor, k: int, backend: str) -> tuple[Tensor, Tensor]:
    if not len(queries) or not k:
        return _empty(queries, keys, k, backend)
    with torch.autocast(queries.device.type, enabled=False):
        if backend == "triton":
            from medseqft_kernels.cosine_topk.triton import launch

            with torch.cuda.device_of(queries):
                return launch(queries, keys, k)
        return (reference if backend == "reference" else blocked)(queries, keys, k)


@_cosine_topk.register_fake
def _empty(queries: Tensor, keys: Tensor, k: int, backend: str) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=working(queries.dtype)), queries.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op(
    "medseqft::cosine_topk_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor queries, Tensor keys, Tensor index, bool of_queries, bool of_keys) "
    "-> (Tensor, Tensor)",
)
def _backward(
    upstream: Tensor, queries: Tensor, keys: Tensor, index: Tensor, of_queries: bool, of_keys: bool
) -> tuple[Tensor, Tensor]:
    if not index.numel():
        return queries.new_zeros(queries.shape if of_queries else 0), keys.new_zeros(keys.shape if of_keys else 0)
    with torch.autocast(queries.device.type, enabled=False):
        first, second = gradients(upstream, queries, keys, index, of_queries, of_keys)
    return queries.new_empty(0) if first is None else first, keys.new_empty(0) if second is None else second


@_backward.register_fake
def _(
    upstream: Tensor, queries: Tensor, keys: Tensor, index: Tensor, of_queries: bool, of_keys: bool
) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape if of_queries else 0), keys.new_empty(keys.shape if of_keys else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, keys, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(queries, keys, output[1])


def _differentiate(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    of_queries, of_keys = ctx.needs_input_grad[:2]
    first, second = _backward(upstream, *ctx.saved_tensors, of_queries, of_keys)
    return first if of_queries else None, second if of_keys else None, None, None


_cosine_topk.register_autograd(_differentiate, setup_context=_keep)


def _choose(backend: str, shape: tuple[int, ...], m: int, k: int, dtype: torch.dtype, device: torch.device) -> str:
    require(backend in BACKENDS, "backend", repr(backend), f"one of {list(BACKENDS)}")
    if backend == "triton":
        require(runs_triton(device), "backend", "'triton'", f"Triton installed and a GPU; queries are on {device}")
    fits = k <= LARGEST_K and dtype != torch.float64 and m < 2**31 - LARGEST_K
    if backend == "triton" and not fits:
        return "blocked"
    if backend != "auto":
        return backend
    if device.type != "cuda":
        return _without_gpu()
    return _fastest((*shape, m, k), str(dtype).removeprefix("torch."), str(device), fits)


@torch.compiler.assume_constant_result
def _without_gpu() -> str:
    return forced() or "blocked"


@torch.compiler.assume_constant_result
def _fastest(shape: tuple[int, ...], dtype: str, device: str, fits: bool) -> str:
    """Measured on random vectors: how often the running top-k changes depends on them."""
    where, (n, e, m, k) = torch.device(device), shape
    if forced() or not fits or not runs_triton(where) or not n or not k:
        return forced() or "blocked"
    question = f"cosine_topk {n}x{e} {m}x{e} k{k} {dtype}"

    def candidates() -> dict[str, Callable[[], object]]:
        draw = torch.Generator(where).manual_seed(0)
        rows = [torch.randn((many, e), device=where, generator=draw).to(getattr(torch, dtype)) for many in (n, m)]
        return {name: partial(_cosine_topk, *rows, k, name) for name in BACKENDS[2:]}

    return fastest(question, where, candidates)


def _check(queries: Tensor, keys: Tensor, k: int) -> None:
    for name, each in (("queries", queries), ("keys", keys)):
        require(each.ndim == 2 and each.shape[1] > 0, name, tuple(each.shape), "(rows, features), features > 0")
        require(each.dtype in DTYPES, name, each.dtype, f"one of {list(DTYPES)}")
    require(keys.shape[1] == queries.shape[1], "keys", tuple(keys.shape), f"(m, {queries.shape[1]}), as queries")
    require(keys.device == queries.device, "keys", keys.device, f"{queries.device}, where queries are")
    require(keys.dtype == queries.dtype, "keys", keys.dtype, f"{queries.dtype}, as queries are")
    require(0 <= k <= keys.shape[0], "k", k, f"0 to {keys.shape[0]}, the number of keys")
