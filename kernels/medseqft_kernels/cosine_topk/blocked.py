"""`cosine_topk` over blocks of keys, with a running top-k: no (n, m) matrix; and what every form of it ends with."""

from __future__ import annotations

import torch
from torch import Tensor

from medseqft_kernels.cosine_topk.reference import LAST, unit

QUERIES, KEYS = 1024, 4096
"""Rows of one block of similarities: 16 MB in fp32."""


def blocked(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As the reference, which see."""
    normal_queries, normal_keys = unit(queries)[0], unit(keys)[0]
    index = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
    for at in range(0, len(queries), QUERIES):
        query = normal_queries[at : at + QUERIES]
        best, where = query.new_empty(len(query), 0), index.new_empty(len(query), 0)
        for begin in range(0, len(keys), KEYS):
            found = (query @ normal_keys[begin : begin + KEYS].T).nan_to_num_(nan=LAST)
            found, columns = _largest_of_block(found, k)
            best, where = largest(torch.cat([best, found], 1), torch.cat([where, begin + columns], 1), k)
        index[at : at + QUERIES] = where
    return ranked(queries, keys, index)


def _largest_of_block(found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As :func:`largest` of all columns; `topk` alone, where no two values are equal across the border."""
    columns = found.topk(min(k, found.shape[1]), dim=1).indices.sort(dim=1).values
    chosen = found.gather(1, columns)
    if int((found >= chosen.amin(dim=1, keepdim=True)).sum()) == chosen.numel():
        return chosen, columns
    return largest(found, torch.arange(found.shape[1], device=found.device).expand(found.shape), k)


def largest(values: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row (all, if there are fewer), of equal ones the first, left in their order."""
    if values.shape[1] <= k:
        return values, numbers
    least = values.topk(k, dim=1).values[:, -1:]
    taken = values >= least
    if int(taken.sum()) > k * len(values):  # equal ones on both sides of the border
        above = values > least
        room = k - above.sum(dim=1, keepdim=True)
        taken = above | (taken & ((taken & ~above).cumsum(dim=1) <= room))
    columns = taken.nonzero()[:, 1].view(len(values), k)
    return values.gather(1, columns), numbers.gather(1, columns)


def ranked(queries: Tensor, keys: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities of the chosen pairs, each a product of its own, and both in the order that the operation promises.

    A matrix product may sum in an order that depends on where a key lies. This does not: equal keys come out equal.
    """
    index, query = index.sort(dim=1).values, unit(queries)[0]
    values = torch.stack([(query * unit(keys[chosen])[0]).sum(dim=1) for chosen in index.unbind(1)], dim=1)
    order = values.nan_to_num(nan=LAST).sort(dim=1, descending=True, stable=True).indices
    return values.gather(1, order), index.gather(1, order)


def gradients(
    upstream: Tensor, queries: Tensor, keys: Tensor, index: Tensor, of_queries: bool, of_keys: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Of the similarities at `index`: ∂(q̂·k̂)/∂q = (k̂ − (q̂·k̂)·q̂) / ‖q‖, and the same for k; 0 for a zero vector."""
    query, query_length = unit(queries)
    key, key_length = unit(keys)
    inverse_query, inverse_key = (
        torch.where(length == 0, 0, 1 / torch.where(length == 0, 1, length)) for length in (query_length, key_length)
    )
    chosen = key[index]
    weight = upstream.to(query.dtype)
    cosine = (query[:, None] * chosen).sum(dim=2)
    first = second = None
    if of_queries:
        pull = (weight[:, :, None] * chosen).sum(dim=1) - (weight * cosine).sum(dim=1, keepdim=True) * query
        first = (pull * inverse_query).to(queries.dtype)
    if of_keys:  # sorted by key and summed by segment: the same order, so the same bits, every time
        flat, order = index.flatten().sort(stable=True)
        parts = weight[:, :, None] * (query[:, None] - cosine[:, :, None] * chosen)
        lengths = torch.bincount(flat, minlength=len(keys))
        pull = torch.segment_reduce(parts.flatten(0, 1)[order], "sum", lengths=lengths, axis=0, initial=0)
        second = (pull * inverse_key).to(keys.dtype)
    return first, second
