"""`cosine_topk` on a GPU: blocks of queries against a stretch of keys each, with a running top-k in registers."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseqft_kernels.cosine_topk.blocked import largest, ranked
from medseqft_kernels.cosine_topk.reference import LAST
from medseqft_kernels.triton_support import Shipped, blocks, interpreted

PROGRAMS = 264
"""Programs that fill a GPU of 132 processors twice: with fewer blocks of queries, keys are split into stretches."""
BLOCKS = {"N": 64, "M": 64, "E": 64}
WARPS = 8  # with 4, the kept keys and the tile do not fit the registers
"""Queries, keys and features of a tile."""
NO_NUMBER = tl.constexpr(LAST)


@triton.jit
@no_type_check  # neither beartype nor mypy reads the language that Triton makes of it
def search(
    query_ptr,
    query_inverse_ptr,
    key_ptr,
    key_inverse_ptr,
    value_ptr,
    index_ptr,
    n,
    m,
    e,
    stretch,
    splits,
    WIDENED: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    E: tl.constexpr,
):
    """The K most similar keys of one stretch, in no order, for one block of queries; written as (n, splits, K)."""
    row = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    split = tl.program_id(1).to(tl.int64)
    inverse = tl.load(query_inverse_ptr + row, mask=row < n, other=0.0)
    slot = tl.arange(0, K)[None, :]
    value = tl.full([N, K], float("-inf"), tl.float32)
    index = tl.zeros([N, K], tl.int32) + m + slot  # distinct: the largest index is the slot that goes first

    for tile in range(0, stretch):
        first = split * stretch * M + tile * M
        column = first + tl.arange(0, M)
        similarity = tl.zeros([N, M], tl.float32)
        for start in range(0, e, E):
            feature = start + tl.arange(0, E)
            query = tl.load(
                query_ptr + row[:, None] * e + feature[None, :],
                mask=(row < n)[:, None] & (feature < e)[None, :],
                other=0.0,
            )
            key = tl.load(
                key_ptr + column[None, :] * e + feature[:, None],
                mask=(column < m)[None, :] & (feature < e)[:, None],
                other=0.0,
            )
            if WIDENED:  # the interpreter would multiply the bits of bf16 as integers
                query, key = query.to(tl.float32), key.to(tl.float32)
            similarity = tl.dot(query, key, similarity, input_precision="ieee")
        similarity *= tl.load(key_inverse_ptr + column, mask=column < m, other=0.0)[None, :]
        similarity *= inverse[:, None]
        similarity = tl.where(similarity == similarity, similarity, NO_NUMBER)
        similarity = tl.where((column < m)[None, :], similarity, float("-inf"))

        # Each round moves the best remaining key of every query in, if it beats the worst kept one. Later keys have
        # larger indices, so one that is merely equal stays out.
        worst = tl.min(value, 1)
        best, place = tl.max(similarity, 1, return_indices=True)
        while tl.max((best > worst).to(tl.int32), 0) > 0:
            better = (best > worst)[:, None]
            last = tl.max(tl.where(value == worst[:, None], index, -1), 1)
            leaves = better & (index == last[:, None])
            value = tl.where(leaves, best[:, None], value)
            index = tl.where(leaves, (first + place).to(tl.int32)[:, None], index)
            similarity = tl.where(tl.arange(0, M)[None, :] == place[:, None], float("-inf"), similarity)
            worst = tl.min(value, 1)
            best, place = tl.max(similarity, 1, return_indices=True)

    to = (row[:, None] * splits + split) * K + slot
    tl.store(value_ptr + to, value, mask=(row < n)[:, None])
    tl.store(index_ptr + to, index, mask=(row < n)[:, None])


def launch(queries: Tensor, keys: Tensor, k: int, *, programs: int = PROGRAMS) -> tuple[Tensor, Tensor]:
    """As the reference, which see; for fp32, bf16 and fp16, k ≤ 64."""
    n, m, e = len(queries), len(keys), keys.shape[1]
    K = max(2, triton.next_power_of_2(k))
    stretch = blocks(blocks(m, BLOCKS["M"]), max(1, programs // blocks(n, BLOCKS["N"])))
    splits = blocks(m, BLOCKS["M"] * stretch)
    value = torch.empty((n, splits, K), dtype=torch.float32, device=queries.device)
    index = torch.empty((n, splits, K), dtype=torch.int32, device=queries.device)
    (query, query_inverse), (key, key_inverse) = _scaled(queries), _scaled(keys)
    grid = (blocks(n, BLOCKS["N"]), splits)
    search[grid](
        query,
        query_inverse,
        key,
        key_inverse,
        value,
        index,
        n,
        m,
        e,
        stretch,
        splits,
        WIDENED=interpreted(),
        K=K,
        **BLOCKS,
        num_stages=_stages(queries.element_size()),
        num_warps=WARPS,
    )
    numbers, order = index.flatten(1).sort(dim=1)  # empty slots have indices from m on and the value −∞
    chosen = largest(value.flatten(1).gather(1, order), numbers.long(), k)[1]
    return ranked(queries, keys, chosen)


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows times powers of two that bring the largest entries to [0.5, 1), which rounds nothing, and 1 / length."""
    if rows.dtype != torch.float16:  # whose squares fit fp32 as they are
        largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
        exponent = torch.frexp(largest).exponent.clamp(-126, 126)
        rows = rows * ((127 - exponent) << 23).view(torch.float32).to(rows.dtype)  # the bits of 2^−exponent
    length = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    return rows.contiguous(), torch.where(length == 0, 0, 1 / length)


def _stages(bytes_each: int) -> int:
    """Tiles in flight: 48 KB of shared memory, where AMD's GPUs have 64."""
    return 2 if bytes_each == 4 else 3


def _shipped(kind: str, k: int) -> Shipped:
    kinds = {
        "query": kind,
        "key": kind,
        "query_inverse": "fp32",
        "key_inverse": "fp32",
        "value": "fp32",
        "index": "i32",
    }
    types = {f"{name}_ptr": f"*{each}" for name, each in kinds.items()}
    types |= dict.fromkeys(("n", "m", "e", "stretch", "splits"), "i32")
    constants = {"WIDENED": False, "K": k, **BLOCKS}
    return Shipped("search", types, constants, WARPS, _stages(4 if kind == "fp32" else 2), matrix=kind != "fp32")


SHIPPED = (_shipped("bf16", 16), _shipped("bf16", 64), _shipped("fp16", 16), _shipped("fp32", 64))
