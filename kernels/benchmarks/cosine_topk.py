"""Rows of `cosine_topk`: the k nearest keys of each query, without gradients.

The floor is the product of queries and keys, already of length 1; the rival is that of all lengths, and `topk`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial

import torch
from harness import Provider, Row, Work
from precision import dtypes
from torch import Tensor
from torch.nn import functional

from medseqft_kernels import cosine_topk
from medseqft_kernels.checks import name_of
from medseqft_kernels.cosine_topk.op import BACKENDS
from medseqft_kernels.cosine_topk.reference import reference, unit
from medseqft_kernels.tolerance import TOLERANCE

Shape = tuple[int, int, int, int]
"""Queries, keys, features, k."""
SHAPES: tuple[Shape, ...] = ((1000, 10_000, 256, 10), (2000, 20_000, 128, 20))
EVERY = 8
"""Of the floor's products, each 8th row is held against float64: all would take a gigabyte."""


def rows(device: torch.device, shapes: Sequence[Shape] = SHAPES, **_: object) -> Iterator[Row]:
    """One row for each shape and dtype; nothing here has a rank or is compiled, and `everything` is nothing more."""
    for shape in shapes:
        words = "{} queries {} keys of {} top {}".format(*shape)
        for dtype in dtypes(device):
            build = partial(work, shape, dtype, device)
            yield Row("cosine_topk", words, name_of(dtype), "contiguous", build, "product", "product and topk")


def work(shape: Shape, dtype: torch.dtype, device: torch.device) -> Work:
    """Tensors and providers of one row; all providers share the tensors."""
    draw, (n, m, width, k) = torch.Generator(device).manual_seed(0), shape
    queries, keys = (torch.randn((many, width), generator=draw, device=device).to(dtype) for many in (n, m))
    normal = [unit(each)[0].to(dtype) for each in (queries, keys)]

    def ours(backend: str) -> dict[str, Tensor]:
        return dict(zip(("values", "index"), cosine_topk(queries, keys, k, backend=backend), strict=True))

    providers = {
        "product": Provider(partial(product, *normal), rival=True),
        "product and topk": Provider(partial(topk, queries, keys, k), rival=True),
        **{name: Provider(partial(ours, name)) for name in (*BACKENDS[1:], "auto")},
    }
    known = cache(partial(exact, queries, keys, k))
    return Work(providers, known, TOLERANCE[dtype], partial(comparable, queries, keys))


def product(queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
    """The floor."""
    return {"product": (queries @ keys.T)[::EVERY]}


def topk(queries: Tensor, keys: Tensor, k: int) -> dict[str, Tensor]:
    """What a user would write."""
    values, index = (functional.normalize(queries) @ functional.normalize(keys).T).topk(k)
    return {"values": values, "index": index}


def exact(queries: Tensor, keys: Tensor, k: int) -> dict[str, Tensor]:
    """All results in float64."""
    queries, keys = queries.double(), keys.double()
    values = reference(queries, keys, k)[0]
    return {"values": values, "cosines of index": values, **product(unit(queries)[0], unit(keys)[0])}


def comparable(queries: Tensor, keys: Tensor, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An index becomes the cosines of the keys that it names: two that differ by rounding may change places."""
    found = dict(results)
    if "index" in found:
        chosen = unit(keys.double())[0][found.pop("index")]
        found["cosines of index"] = (unit(queries.double())[0][:, None] * chosen).sum(2)
    return found
