"""Rows of `contrastive_loss`: the loss of each pair, and the gradients of both views.

The floor is two matrix products, the similarities of all 2B embeddings and what they pull back; the rivals are the
formula as one would write it, and under `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from harness import Provider, Row, Work, compiled_name
from harness import compiled as compile_alone
from precision import dtypes
from torch import Tensor

from medseqft_kernels import contrastive_loss
from medseqft_kernels.checks import name_of
from medseqft_kernels.contrastive_loss.op import BACKENDS
from medseqft_kernels.contrastive_loss.reference import reference
from medseqft_kernels.tolerance import TOLERANCE

SHAPES = ((256, 256), (1024, 512), (4096, 256))
"""Pairs, width of an embedding."""
SPREAD = 1.0
"""How far the second view lies from the first, in lengths of it."""


def rows(
    device: torch.device, compiled: bool = True, shapes: Sequence[tuple[int, int]] = SHAPES, **_: object
) -> Iterator[Row]:
    """One row for each shape and dtype; ranks do not exist here, and `everything` is nothing more."""
    for pairs, width in shapes:
        for dtype in dtypes(device):
            build = partial(work, pairs, width, dtype, device, compiled)
            words = (f"{pairs} pairs of {width}", name_of(dtype), "contiguous")
            yield Row("contrastive_loss", *words, build, "products", "reference")


def work(pairs: int, width: int, dtype: torch.dtype, device: torch.device, compiled: bool) -> Work:
    """Tensors and providers of one row; all providers share the tensors."""
    draw = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn((pairs, width), generator=draw, device=device) for _ in range(2))
    both = torch.cat([one, one + SPREAD * other]).to(dtype)
    views = [each.clone().requires_grad_() for each in both.chunk(2)]
    matrix = both.new_empty(len(both), len(both))

    def ours(backend: str) -> Provider:
        return Provider(partial(both_ways, partial(contrastive_loss, backend=backend), *views))

    providers = {"products": Provider(partial(products, both, matrix), rival=True), "reference": ours("reference")}
    if compiled:
        providers[compiled_name("reference")] = Provider(
            partial(both_ways, compile_alone(reference), *views), rival=True
        )
    providers |= {name: ours(name) for name in (*BACKENDS, "auto") if name != "reference"}
    return Work(providers, cache(partial(exact, *views)), TOLERANCE[dtype])


def both_ways(loss: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """The loss of each pair, and the gradients of their mean."""
    found = loss(first, second)
    gradients = torch.autograd.grad(found.mean(), (first, second))
    return {"loss": found.detach(), "first's gradient": gradients[0], "second's gradient": gradients[1]}


def products(both: Tensor, matrix: Tensor) -> dict[str, Tensor]:
    """Z·Zᵀ, into `matrix`, and (Z·Zᵀ)·Z."""
    return {"products": torch.mm(both, both.T, out=matrix) @ both}


def exact(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """All results in float64; of the products Z·(Zᵀ·Z), which is the same and small."""
    views = [each.detach().double().requires_grad_() for each in (first, second)]
    both = torch.cat([each.detach() for each in views])
    return both_ways(reference, *views) | {"products": both @ (both.T @ both)}
