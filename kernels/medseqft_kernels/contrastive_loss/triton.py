"""Triton kernels of `contrastive_loss`: tiles of similarities are formed, used and forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseqft_kernels.triton_support import Shipped, blocks, interpreted

BLOCK = 64
WARPS = 8
"""Rows and columns of a tile of similarities."""

PROGRAMS = 256
"""The columns are split over programs until there are about so many: two for each multiprocessor."""

LIFT = 4096.0
"""Gradients of float16 are held this much larger on their way: it has no numbers below 6e-8."""


@triton.jit
@no_type_check
def _dot(one, other, acc, WIDEN: tl.constexpr):
    """Product and sum in float32; the interpreter needs bfloat16 to be widened first, the hardware does not."""
    if WIDEN:
        return tl.dot(one.to(tl.float32), other.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(one, other, acc, input_precision="ieee")


@triton.jit
@no_type_check
def _logits(
    both, row, column, scale_row, scale_column, count, width,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Cosines times sharpness: products of the embeddings as they came, exact in float32, then scaled."""
    products = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        part = (start + tl.arange(0, BLOCK_WIDTH)).to(tl.int64)
        inside = (row < count)[:, None] & (part < width)[None, :]
        left = tl.load(both + row[:, None] * width + part[None, :], inside, 0.0)
        inside = (part < width)[:, None] & (column < count)[None, :]
        right = tl.load(both + column[None, :] * width + part[:, None], inside, 0.0)
        products = _dot(left, right, products, WIDEN)
    return products * scale_row[:, None] * scale_column[None, :]


@triton.jit
@no_type_check
def log_sum_exp(
    both, own, spread, positive, count, width, tiles, sharpness,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """For one block of rows and one share of the columns: log-sum-exp of the negatives, and the partner's logit."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    share = tl.program_id(1).to(tl.int64)
    scale = tl.load(own + row, row < count, 0.0) * sharpness
    partner = (row + count // 2) % count
    largest = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    matched = tl.zeros((BLOCK_ROWS,), tl.float32)
    for tile in range(tiles):
        column = (share * tiles + tile) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        scale_column = tl.load(own + column, column < count, 0.0)
        logits = _logits(
            both, row, column, scale, scale_column, count, width, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH, WIDEN
        )
        matches = column[None, :] == partner[:, None]
        matched += tl.sum(tl.where(matches, logits, 0.0), 1)
        negative = (column[None, :] != row[:, None]) & (column < count)[None, :] & ~matches
        logits = tl.where(negative, logits, float("-inf"))
        higher = tl.maximum(largest, tl.max(logits, 1))
        reached = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - reached) + tl.sum(tl.exp(logits - reached[:, None]), 1)
        largest = higher
    tl.store(spread + share * count + row, largest + tl.log(tl.where(total > 0, total, 1.0)), row < count)
    tl.store(positive + share * count + row, matched, row < count)


@triton.jit
@no_type_check
def pull_to_others(
    both, own, spread, weight, toward, pulled, count, width, tiles, sharpness,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_OUT: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """For a block of rows, a share of the columns and BLOCK_OUT of the width: Σ of slope · unit embedding."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    share = tl.program_id(1).to(tl.int64)
    out = tl.program_id(2).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    scale = tl.load(own + row, row < count, 0.0) * sharpness
    spread_row = tl.load(spread + row, row < count, 0.0)
    weight_row = tl.load(weight + row, row < count, 0.0)
    toward_row = tl.load(toward + row, row < count, 0.0)
    partner = (row + count // 2) % count
    acc = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for tile in range(tiles):
        column = (share * tiles + tile) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        scale_column = tl.load(own + column, column < count, 0.0)
        spread_column = tl.load(spread + column, column < count, 0.0)
        weight_column = tl.load(weight + column, column < count, 0.0)
        toward_column = tl.load(toward + column, column < count, 0.0)
        logits = _logits(
            both, row, column, scale, scale_column, count, width, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH, WIDEN
        )
        others = (column[None, :] != row[:, None]) & (column < count)[None, :] & (row < count)[:, None]
        logits = tl.where(others, logits, float("-inf"))
        slope = weight_row[:, None] * tl.exp(logits - spread_row[:, None])
        slope += weight_column[None, :] * tl.exp(logits - spread_column[None, :])
        matches = column[None, :] == partner[:, None]
        slope = tl.where(matches, toward_row[:, None] + toward_column[None, :], slope)
        inside = (column < count)[:, None] & (out < width)[None, :]
        embedding = tl.load(both + column[:, None] * width + out[None, :], inside, 0.0)
        factor = slope * scale_column[None, :]
        high = factor.to(embedding.dtype)
        acc = _dot(high, embedding, acc, WIDEN)
        if embedding.dtype != tl.float32:  # pulls cancel: what rounding the factors took away is brought in as well
            acc = _dot((factor - high.to(tl.float32)).to(embedding.dtype), embedding, acc, WIDEN)
    inside = (row < count)[:, None] & (out < width)[None, :]
    tl.store(pulled + (share * count + row[:, None]) * width + out[None, :], acc, inside)


def rows(both: Tensor, own: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row's negatives, -inf without any, and the partner's logit: (2B,) each."""
    count, width = both.shape
    shares, tiles = _shares(count)
    found = torch.empty((2, shares, count), dtype=torch.float32, device=both.device)
    grid = (blocks(count, BLOCK), shares)
    log_sum_exp[grid](
        both.contiguous(), own, found[0], found[1], count, width, tiles, sharpness,
        BLOCK, BLOCK, _width(both.dtype), _widens(both.dtype), num_warps=WARPS,
    )  # fmt: skip
    return found[0].logsumexp(dim=0), found[1].sum(dim=0)


def pull(both: Tensor, own: Tensor, spread: Tensor, weight: Tensor, toward: Tensor, sharpness: float) -> Tensor:
    """Gradient to the unit embeddings, (2B, E): of a logit, `weight` · probability, and `toward` at the partner."""
    count, width = both.shape
    shares, tiles = _shares(count)
    pulled = torch.empty((shares, count, width), dtype=torch.float32, device=both.device)
    # Factors enter the product in the embeddings' dtype, as a sum of two numbers: the largest possible is 2 · LIFT.
    lift = LIFT / (weight.abs().amax() * own.amax()).clamp_min(torch.finfo(torch.float32).tiny * LIFT)
    out = _width(both.dtype) * 2
    grid = (blocks(count, BLOCK), shares, blocks(width, out))
    pull_to_others[grid](
        both.contiguous(), own, spread, weight * lift, toward * lift, pulled, count, width, tiles, sharpness,
        BLOCK, BLOCK, _width(both.dtype), out, _widens(both.dtype), num_warps=_pull_warps(both.dtype),
    )  # fmt: skip
    return pulled.sum(dim=0) * (sharpness / lift)


def _width(dtype: torch.dtype) -> int:
    """Part of the width that one product takes; float32 runs without matrix instructions, out of registers."""
    return 32 if dtype == torch.float32 else 64


def _pull_warps(dtype: torch.dtype) -> int:
    """Two accumulators and a tile: in float32 they fit the registers of no fewer."""
    return 16 if dtype == torch.float32 else WARPS


def _widens(dtype: torch.dtype) -> bool:
    return interpreted() and dtype == torch.bfloat16


def _shares(count: int) -> tuple[int, int]:
    """Shares of the columns, and tiles in each; they depend on the count alone, so the bits do too."""
    high = blocks(count, BLOCK)
    tiles = blocks(high, min(high, blocks(PROGRAMS, high)))
    return blocks(high, tiles), tiles


def _shipped(kernel: str, kind: str, tensors: tuple[str, ...], constants: Mapping[str, int | bool]) -> Shipped:
    types = {"both": kind} | dict.fromkeys(tensors, "*fp32") | dict.fromkeys(("count", "width", "tiles"), "i32")
    warps = _pull_warps(torch.float32) if kernel == "pull_to_others" and kind == "*fp32" else WARPS
    return Shipped(kernel, types | {"sharpness": "fp32"}, constants, warps, matrix=kind == "*bf16")


_FORWARD, _BACKWARD = ("own", "spread", "positive"), ("own", "spread", "weight", "toward", "pulled")
_TILE = {"BLOCK_ROWS": BLOCK, "BLOCK_COLUMNS": BLOCK, "WIDEN": False}
SHIPPED: tuple[Shipped, ...] = (
    _shipped("log_sum_exp", "*bf16", _FORWARD, {**_TILE, "BLOCK_WIDTH": 64}),
    _shipped("log_sum_exp", "*fp32", _FORWARD, {**_TILE, "BLOCK_WIDTH": 32}),
    _shipped("pull_to_others", "*bf16", _BACKWARD, {**_TILE, "BLOCK_WIDTH": 64, "BLOCK_OUT": 128}),
    _shipped("pull_to_others", "*fp32", _BACKWARD, {**_TILE, "BLOCK_WIDTH": 32, "BLOCK_OUT": 64}),
)
"""What launches choose, for ahead-of-time compilation."""
