"""`lora_conv3d` as Triton kernels: one group, any stride, padding and dilation (derivation and traffic in README.md).

Volumes lie voxel after voxel with the channels side by side (channels-last-3d), and so do W, (Cout, taps, Cin), and A,
(r, taps, Cin): a model in channels-last-3d is read without a copy. Input voxels whose position has the same remainder
under the stride form a parity class: they meet the same taps, so no program of a backward kernel meets a tap in vain.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseqft_kernels.triton_support import Shipped, blocks, interpreted, precision_of

MOST_RANK = 64
"""Above it the thin tiles no longer fit beside the wide ones."""
FULL = 264
"""Two programs for each multiprocessor of an H100: with fewer, tiles are smaller; into more, no sum is split."""
STAGES = 2 if torch.version.hip else 3
"""Tiles in flight; the shared memory of AMD's GPUs holds fewer."""
WIDENED = tl.constexpr("widened")
"""The precision that products of bf16 have in the interpreter: it would multiply their bits as integers."""
NOWHERE = tl.constexpr(-(1 << 29))
"""A position that no tap brings back inside; the sum of two such is outside, too."""

Size3 = tuple[int, int, int]
Plan = tuple[dict[str, Any], int]
"""The constants that a kernel is compiled for, and its number of warps."""

SIZES = ("samples", "voxels", "m_blocks", "chunks", "per_chunk", "line_blocks", "D", "H", "W", "OD", "OH", "OW")
"""Compiled once for all their values: the channels alone tell how memory is best read."""


@triton.jit
@no_type_check  # neither beartype nor mypy reads the language that Triton makes of it
def _dot(one, other, acc, PRECISION: tl.constexpr):
    if PRECISION == WIDENED:
        one, other = one.to(tl.float32), other.to(tl.float32)
        return tl.dot(one, other, acc)
    return tl.dot(one, other, acc, input_precision=PRECISION)


@triton.jit
@no_type_check
def _within(position, size):
    """Whether 0 ≤ position < size, in one comparison: as an unsigned number a negative one is large."""
    return position.to(tl.uint32, bitcast=True) < tl.cast(size, tl.uint32)


@triton.jit
@no_type_check
def _voxels(start, D, H, W, BLOCK: tl.constexpr):
    """(sample, z, y, x) of `BLOCK` voxels from `start` on: 64 bits for `start`, 32 for what is counted from it."""
    x = (start % W).to(tl.int32) + tl.arange(0, BLOCK)
    start = start // W
    y = (start % H).to(tl.int32) + x // W
    start = start // H
    z = (start % D).to(tl.int32) + y // H
    return start // D + z // D, z % D, y % H, x % W


@triton.jit
@no_type_check
def _tap(step, C: tl.constexpr, BLOCK_K: tl.constexpr):
    """The tap of each column of a block of (tap, channel) pairs: one number where the whole block has the same."""
    VEC: tl.constexpr = 8 if C % 8 == 0 else 4 if C % 4 == 0 else 1  # what is loaded at once is looked up at once
    if C % BLOCK_K == 0:
        tap = step // (C // BLOCK_K)
    else:
        tap = (step * (BLOCK_K // VEC) + tl.arange(0, BLOCK_K) // VEC) // (C // VEC)
    return tap


@triton.jit
@no_type_check
def _taps(parity, K: tl.constexpr, S: tl.constexpr, P: tl.constexpr, DIL: tl.constexpr, EVERY: tl.constexpr):
    """The first tap of one axis that meets input voxels of this parity, and how many do; they lie `EVERY` apart."""
    first = parity * 0 + K
    for back in tl.static_range(1, EVERY + 1):
        first = tl.where((parity + P - (EVERY - back) * DIL) % S == 0, EVERY - back, first)
    return first, (K - first + EVERY - 1) // EVERY


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def _forward_kernel(
    x, w, bias, a, b, y, u, scaling, voxels, D, H, W, OD, OH, OW,
    CIN: tl.constexpr, COUT: tl.constexpr, RANK: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_M output voxels × BLOCK_N output channels: each tile of x is gathered once, for W and for A."""
    TAPS: tl.constexpr = KD * KH * KW
    N_BLOCKS: tl.constexpr = (COUT + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0).to(tl.int64)
    start = program // N_BLOCKS * BLOCK_M
    v = start + tl.arange(0, BLOCK_M)
    n = program % N_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    rho = tl.arange(0, BLOCK_R).to(tl.int64)
    sample, oz, oy, ox = _voxels(start, OD, OH, OW, BLOCK_M)
    iz, iy, ix = oz * SD - PD, oy * SH - PH, ox * SW - PW
    x_rows = x + (((sample * D + iz) * H + iy) * W + ix)[:, None] * CIN
    w_rows, a_rows = w + n[None, :] * (TAPS * CIN), a + rho[None, :] * (TAPS * CIN)
    iz = tl.where(v < voxels, iz, NOWHERE)
    wide_h, wide_w = tl.cast(H, tl.int64), tl.cast(W, tl.int64)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    thin = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for step in range((TAPS * CIN + BLOCK_K - 1) // BLOCK_K):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        tap = _tap(step, CIN, BLOCK_K)
        kz, ky, kx = tap // (KH * KW) * DD, tap // KW % KH * DH, tap % KW * DW
        inside = _within(iz[:, None] + kz, D) & _within(iy[:, None] + ky, H) & _within(ix[:, None] + kx, W)
        offset = ((kz * wide_h + ky) * wide_w + kx) * CIN + (k - tap * CIN)
        is_k = k < TAPS * CIN
        x_tile = tl.load(x_rows + offset[None, :], mask=inside & is_k[None, :], other=0.0)
        w_tile = tl.load(w_rows + k[:, None], mask=is_k[:, None] & (n < COUT)[None, :], other=0.0)
        a_tile = tl.load(a_rows + k[:, None], mask=is_k[:, None] & (rho < RANK)[None, :], other=0.0)
        acc = _dot(x_tile, w_tile, acc, PRECISION)
        thin = _dot(x_tile, a_tile, thin, PRECISION)

    # u is rounded as it is kept for the backward pass; its product with B is not rounded before the sum
    thin = thin.to(u.dtype.element_ty)
    b_tile = tl.load(b + n[None, :] * RANK + rho[:, None], mask=(rho < RANK)[:, None] & (n < COUT)[None, :], other=0.0)
    acc += scaling * _dot(thin, b_tile, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n < COUT, other=0.0).to(tl.float32)[None, :]
    y_at = y + v[:, None] * COUT + n[None, :]
    tl.store(y_at, acc.to(y.dtype.element_ty), mask=(v < voxels)[:, None] & (n < COUT)[None, :])
    if program % N_BLOCKS == 0:
        tl.store(u + v[:, None] * RANK + rho[None, :], thin, mask=(v < voxels)[:, None] & (rho < RANK)[None, :])


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def _thin_kernel(
    g, b, u, h, parts, scaling, voxels, per_chunk,
    COUT: tl.constexpr, RANK: tl.constexpr, WITH_B: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h = s·g·B of a block of channels, and what a chunk of voxels gives to s·gᵀu: g is read once for both."""
    N_BLOCKS: tl.constexpr = (COUT + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0).to(tl.int64)
    n_block, chunk = program % N_BLOCKS, program // N_BLOCKS
    n = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    rho = tl.arange(0, BLOCK_R).to(tl.int64)
    is_b = (n < COUT)[:, None] & (rho < RANK)[None, :]
    b_tile = tl.load(b + n[:, None] * RANK + rho[None, :], mask=is_b, other=0.0)
    acc = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for step in range(per_chunk):
        v = (chunk * per_chunk + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        g_mask = (v < voxels)[:, None] & (n < COUT)[None, :]
        g_tile = tl.load(g + v[:, None] * COUT + n[None, :], mask=g_mask, other=0.0)
        is_thin = (v < voxels)[:, None] & (rho < RANK)[None, :]
        thin = scaling * _dot(g_tile, b_tile, tl.zeros((BLOCK_M, BLOCK_R), tl.float32), PRECISION)
        h_at = h + (n_block * voxels + v)[:, None] * RANK + rho[None, :]
        tl.store(h_at, thin.to(h.dtype.element_ty), mask=is_thin)
        if WITH_B:
            u_tile = tl.load(u + v[:, None] * RANK + rho[None, :], mask=is_thin, other=0.0)
            acc = _dot(tl.trans(g_tile), u_tile, acc, PRECISION)
    if WITH_B:
        tl.store(parts + (chunk * COUT + n)[:, None] * RANK + rho[None, :], scaling * acc, mask=is_b)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def _input_gradient_kernel(
    g, h, w, a, gx, samples, m_blocks, D, H, W, OD, OH, OW,
    CIN: tl.constexpr, COUT: tl.constexpr, RANK: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ED: tl.constexpr, EH: tl.constexpr, EW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_M input voxels of one parity class × BLOCK_N input channels: [g ; h] gathered against [W ; A]."""
    TAPS: tl.constexpr = KD * KH * KW
    N_BLOCKS: tl.constexpr = (CIN + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0).to(tl.int64)
    n = program % N_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    start = program // N_BLOCKS % m_blocks * BLOCK_M
    parity = (program // N_BLOCKS // m_blocks).to(tl.int32)
    cz, cy, cx = parity // (SH * SW), parity // SW % SH, parity % SW
    JD, JH, JW = (D - cz + SD - 1) // SD, (H - cy + SH - 1) // SH, (W - cx + SW - 1) // SW
    voxels = tl.cast(samples, tl.int64) * JD * JH * JW
    if start >= voxels:
        return
    v = start + tl.arange(0, BLOCK_M)
    sample, jz, jy, jx = _voxels(start, JD, JH, JW, BLOCK_M)
    origin = (((sample * OD + jz) * OH + jy) * OW + jx)[:, None]
    i = ((sample * D + jz * SD + cz) * H + jy * SH + cy) * W + jx * SW + cx
    jz = tl.where(v < voxels, jz, NOWHERE)
    wide_h, wide_w = tl.cast(OH, tl.int64), tl.cast(OW, tl.int64)
    first_z, count_z = _taps(cz, KD, SD, PD, DD, ED)
    first_y, count_y = _taps(cy, KH, SH, PH, DH, EH)
    first_x, count_x = _taps(cx, KW, SW, PW, DW, EW)
    count = count_z * count_y * count_x

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for part in tl.static_range(2):  # first g with W, then h with A
        rows = g + origin * COUT if part == 0 else h + origin * RANK
        factor = (w if part == 0 else a) + n[None, :]
        for step in range(tl.cdiv(count * (COUT if part == 0 else RANK), BLOCK_K)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            is_k = k < count * (COUT if part == 0 else RANK)
            t = _tap(step, COUT if part == 0 else RANK, BLOCK_K)
            kz = first_z + t // (count_y * count_x) * ED
            ky = first_y + t // count_x % count_y * EH
            kx = first_x + t % count_x * EW
            dz, dy, dx = (cz + PD - kz * DD) // SD, (cy + PH - ky * DH) // SH, (cx + PW - kx * DW) // SW
            inside = _within(jz[:, None] + dz, OD) & _within(jy[:, None] + dy, OH) & _within(jx[:, None] + dx, OW)
            channel = k - t * (COUT if part == 0 else RANK)
            offset = ((dz * wide_h + dy) * wide_w + dx) * (COUT if part == 0 else RANK) + channel
            tile = tl.load(rows + offset[None, :], mask=inside & is_k[None, :], other=0.0)
            entry = (channel.to(tl.int64) * TAPS + (kz * KH + ky) * KW + kx) * CIN
            factor_tile = tl.load(factor + entry[:, None], mask=is_k[:, None] & (n < CIN)[None, :], other=0.0)
            acc = _dot(tile, factor_tile, acc, PRECISION)
    gx_at = gx + i[:, None] * CIN + n[None, :]
    tl.store(gx_at, acc.to(gx.dtype.element_ty), mask=(v < voxels)[:, None] & (n < CIN)[None, :])


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def _a_gradient_kernel(
    x, h, parts, samples, chunks, per_chunk, line_blocks, D, H, W, OD, OH, OW,
    CIN: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ED: tl.constexpr, EH: tl.constexpr, EW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk of one parity class gives to BLOCK_M rows (tap, ρ) × BLOCK_N channels: x is read once, h per tap."""
    TAPS: tl.constexpr = KD * KH * KW
    N_BLOCKS: tl.constexpr = (CIN + BLOCK_N - 1) // BLOCK_N
    M_BLOCKS: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0).to(tl.int64)
    n = program % N_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (program // N_BLOCKS % M_BLOCKS * BLOCK_M).to(tl.int32) + tl.arange(0, BLOCK_M)
    chunk = program // (N_BLOCKS * M_BLOCKS) % chunks
    parity = (program // (N_BLOCKS * M_BLOCKS) // chunks).to(tl.int32)
    cz, cy, cx = parity // (SH * SW), parity // SW % SH, parity % SW
    JD, JH, JW = (D - cz + SD - 1) // SD, (H - cy + SH - 1) // SH, (W - cx + SW - 1) // SW
    is_class = (JD > 0) & (JH > 0)
    JD, JH = tl.maximum(JD, 1), tl.maximum(JH, 1)  # a class without voxels writes zeros

    first_z, count_z = _taps(cz, KD, SD, PD, DD, ED)
    first_y, count_y = _taps(cy, KH, SH, PH, DH, EH)
    first_x, count_x = _taps(cx, KW, SW, PW, DW, EW)
    rho, t = row % BLOCK_R, row // BLOCK_R
    is_row = (rho < RANK) & (t < count_z * count_y * count_x)
    count_y, count_x = tl.maximum(count_y, 1), tl.maximum(count_x, 1)
    kz = first_z + t // (count_y * count_x) * ED
    ky = first_y + t // count_x % count_y * EH
    kx = first_x + t % count_x * EW
    dz, dy, dx = (cz + PD - kz * DD) // SD, (cy + PH - ky * DH) // SH, (cx + PW - kx * DW) // SW
    offset = ((dz * tl.cast(OH, tl.int64) + dy) * OW + dx) * RANK + rho

    # each block lies in one line along W: all but one of its coordinates are numbers, counted on from block to block
    block = chunk * per_chunk
    jx = (block % line_blocks * BLOCK_K).to(tl.int32)
    jy = (block // line_blocks % JH).to(tl.int32)
    jz = (block // line_blocks // JH % JD).to(tl.int32)
    sample = block // line_blocks // JH // JD
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(per_chunk):
        j = jx + tl.arange(0, BLOCK_K)
        j = tl.where((j < JW) & (sample < samples) & is_class, j, NOWHERE)
        x_line = x + ((sample * D + jz * SD + cz) * H + jy * SH + cy) * W * CIN
        x_at = (j.to(tl.int64) * SW + cx)[:, None] * CIN + n[None, :]
        x_tile = tl.load(x_line + x_at, mask=(j >= 0)[:, None] & (n < CIN)[None, :], other=0.0)
        h_line = h + ((sample * OD + jz) * OH + jy) * OW * RANK
        h_at = (j.to(tl.int64) * RANK)[:, None] + offset[None, :]
        moved = tl.where(is_row & _within(jz + dz, OD) & _within(jy + dy, OH), dx, NOWHERE)
        h_tile = tl.load(h_line + h_at, mask=_within(j[:, None] + moved[None, :], OW), other=0.0)
        acc = _dot(tl.trans(h_tile), x_tile, acc, PRECISION)
        jx += BLOCK_K
        jx = tl.where(jx < line_blocks * BLOCK_K, jx, 0)  # as many blocks a line in every class
        jy += (jx == 0).to(tl.int32)
        jz += (jy == JH).to(tl.int32)
        jy = tl.where(jy < JH, jy, 0)
        sample += (jz == JD).to(tl.int64)
        jz = tl.where(jz < JD, jz, 0)
    tap = (kz * KH + ky) * KW + kx
    parts_at = parts + (((chunk * RANK + rho) * TAPS + tap) * CIN)[:, None] + n[None, :]
    tl.store(parts_at, acc, mask=is_row[:, None] & (n < CIN)[None, :])


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    stride: Size3,
    padding: Size3,
    dilation: Size3,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, u) with u = A ∗ x and y = conv(x, W) + bias + s·B·u, rounded once; both channels-last-3d.

    x (B, Cin, D, H, W), weight (Cout, Cin, kD, kH, kW), lora_a (r, Cin, kD, kH, kW) with r ≤ ``MOST_RANK``, lora_b
    (Cout, r) or with trailing ones: of one dtype, in any memory format. y is in `out_dtype`, by default that of x.
    """
    samples, _, *size = x.shape
    sides = zip(size, weight.shape[2:], stride, padding, dilation, strict=True)
    out_size = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides]
    outputs, rank = weight.shape[0], lora_a.shape[0]
    y = x.new_empty((samples, *out_size, outputs), dtype=out_dtype or x.dtype)
    u = x.new_empty((samples, *out_size, rank))
    voxels = samples * math.prod(out_size)
    if voxels:
        constants, warps = _forward_plan(weight.shape, rank, stride, padding, dilation, x.dtype, voxels)
        constants["HAS_BIAS"] = bias is not None
        programs = blocks(voxels, constants["BLOCK_M"]) * blocks(outputs, constants["BLOCK_N"])
        args = (_last(x), _last(weight), x if bias is None else bias.contiguous(), _last(lora_a), _flat(lora_b), y, u)
        with torch.cuda.device_of(x):
            _forward_kernel[(programs,)](
                *args, float(scaling), voxels, *size, *out_size, **constants, num_warps=warps, num_stages=STAGES
            )
    return _first(y), _first(u)


def backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor,
    scaling: float,
    stride: Size3,
    padding: Size3,
    dilation: Size3,
    need_x: bool,
    need_adapter: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (gx, gA, gB) of what `forward` computes, from g = ∂L/∂y of y's shape and dtype; None if not needed.

    gx is channels-last-3d; gA and gB are contiguous, of the shape and dtype of lora_a and lora_b.
    """
    if not (need_x or need_adapter):
        return None, None, None
    g, x, u, weight, a, b = _last(g), _last(x), _last(u), _last(weight), _last(lora_a), _flat(lora_b)
    convolution = (stride, padding, dilation)
    with torch.cuda.device_of(x):
        h, g_b = _thin(g, u, b, scaling, need_adapter)
        g_x = _input_gradient(g, h, x, weight, a, convolution) if need_x else None
        g_a = _a_gradient(x, h, a, convolution) if need_adapter else None
    return (
        None if g_x is None else _first(g_x),
        None if g_a is None else _first(g_a).to(lora_a.dtype).contiguous(),
        None if g_b is None else g_b.to(lora_b.dtype).reshape(lora_b.shape),
    )


def _thin(g: Tensor, u: Tensor, b: Tensor, scaling: float, with_b: bool) -> tuple[Tensor, Tensor | None]:
    """h = s·g·B in the dtype of g, which the matrix units need, and gB in fp32; so are all partial sums."""
    outputs, rank = b.shape
    voxels = g.numel() // outputs
    constants, warps = _thin_plan(outputs, rank, g.dtype)
    n_blocks = blocks(outputs, constants["BLOCK_N"])
    chunks, per_chunk = _chunks(blocks(voxels, constants["BLOCK_M"]), FULL // n_blocks)
    h = g.new_empty((n_blocks, *g.shape[:-1], rank), dtype=g.dtype if n_blocks == 1 else torch.float32)
    parts = g.new_empty((chunks, outputs, rank), dtype=torch.float32)
    if chunks:
        constants["WITH_B"] = with_b
        _thin_kernel[(chunks * n_blocks,)](
            g, b, u, h, parts, float(scaling), voxels, per_chunk, **constants, num_warps=warps, num_stages=STAGES
        )
    return h.sum(0).to(g.dtype) if n_blocks > 1 else h[0], parts.sum(0) if with_b else None


def _input_gradient(
    g: Tensor, h: Tensor, x: Tensor, weight: Tensor, a: Tensor, convolution: tuple[Size3, Size3, Size3]
) -> Tensor:
    """convᵀ([g ; h], [W ; A]), (B, D, H, W, Cin)."""
    samples, *size, inputs = x.shape
    g_x = x.new_empty(x.shape)
    voxels, classes = _parity_classes(x, convolution[0])
    if voxels:
        outputs, kernel = weight.shape[0], weight.shape[1:4]
        shape = (outputs, inputs, *kernel)
        constants, warps = _input_gradient_plan(shape, a.shape[0], *convolution, x.dtype, voxels * classes)
        m_blocks = blocks(voxels, constants["BLOCK_M"])
        _input_gradient_kernel[(classes * m_blocks * blocks(inputs, constants["BLOCK_N"]),)](
            g, h, weight, a, g_x, samples, m_blocks, *size, *g.shape[1:4],
            **constants, num_warps=warps, num_stages=STAGES,
        )  # fmt: skip
    return g_x


def _a_gradient(x: Tensor, h: Tensor, a: Tensor, convolution: tuple[Size3, Size3, Size3]) -> Tensor:
    """wgrad(x, h) in fp32, (r, kD, kH, kW, Cin)."""
    samples, *size, inputs = x.shape
    depth, height, width = (blocks(side, step) for side, step in zip(size, convolution[0], strict=True))
    constants, warps = _a_gradient_plan((a.shape[0], inputs, *a.shape[1:4]), *convolution, x.dtype, width)
    tiles = blocks(constants["ROWS"], constants["BLOCK_M"]) * blocks(inputs, constants["BLOCK_N"])
    line_blocks, classes = blocks(width, constants["BLOCK_K"]), math.prod(convolution[0])
    chunks, per_chunk = _chunks(samples * depth * height * line_blocks, FULL // (tiles * classes))
    parts = x.new_empty((chunks, *a.shape), dtype=torch.float32)
    if chunks:
        _a_gradient_kernel[(classes * chunks * tiles,)](
            x, h, parts, samples, chunks, per_chunk, line_blocks, *size, *h.shape[1:4],
            **constants, num_warps=warps, num_stages=STAGES,
        )  # fmt: skip
    return parts.sum(0)


def _last(volumes: Tensor) -> Tensor:
    """(B, C, D, H, W) in any memory format as contiguous (B, D, H, W, C); no copy of what is channels-last-3d.

    Except where it does not begin at a multiple of 16 bytes: loads of 16 bytes are worth more than the copy costs.
    """
    rows = volumes.permute(0, 2, 3, 4, 1).contiguous()
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def _first(volumes: Tensor) -> Tensor:
    return volumes.permute(0, 4, 1, 2, 3)


def _flat(lora_b: Tensor) -> Tensor:
    return lora_b.reshape(lora_b.shape[:2]).contiguous()


def _parity_classes(x: Tensor, stride: Size3) -> tuple[int, int]:
    """Voxels of the largest class of x (B, D, H, W, Cin), and the number of classes."""
    sides = zip(x.shape[1:4], stride, strict=True)
    return x.shape[0] * math.prod(blocks(side, step) for side, step in sides), math.prod(stride)


def _chunks(work: int, most: int) -> tuple[int, int]:
    """How many programs share `work` blocks, at most `most`, and the blocks of each: equal on every device.

    With fewer than four blocks each, writing partial sums would cost more than making them.
    """
    per_chunk = max(blocks(work, max(most, 1)), 4)
    return blocks(work, per_chunk), per_chunk


def _tile(size: int, most: int) -> int:
    """The power of two from 16 to `most` that covers `size` with least waste, each block counted 16 wider than it is.

    The 16 stand for the thin tile beside each block and for what a step costs whatever its width.
    """
    powers = (1 << e for e in range(4, most.bit_length()))
    return min(powers, key=lambda tile: (blocks(size, tile) * (tile + 16), -tile))


def _precision(dtype: torch.dtype) -> str:
    return "widened" if interpreted() and dtype == torch.bfloat16 else precision_of(dtype)


def _rank_tile(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))


def _matrix_tiles(rows: int, columns: int, channels: int, taps: int, dtype: torch.dtype) -> Plan:
    """Tile of the two large products, and its warps; fp32 takes small tiles: each number is twice as wide."""
    small = dtype == torch.float32
    n = _tile(columns, 64 if small else 128)
    m = 64 if small or blocks(rows, 128) * blocks(columns, n) < FULL else 128
    if m == 64:
        n = min(n, 64)
    most = 32 if small or channels % 4 else 64  # numbers that cannot be loaded four at once take more registers
    whole = (k for k in (64, 32) if k <= most and channels % k == 0)  # one tap a block, if the channels allow it
    k = next(whole, max(16, min(most, triton.next_power_of_2(taps * channels))))
    tiles = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "PRECISION": _precision(dtype)}
    return tiles, 8 if m == 128 or small else 4


def _by_axis(prefix: str, values: tuple[int, ...] | torch.Size) -> dict[str, int]:
    return {prefix + axis: value for axis, value in zip("DHW", values, strict=True)}


def _convolution(kernel: tuple[int, ...], stride: Size3, padding: Size3, dilation: Size3) -> dict[str, int]:
    named = (("K", kernel), ("S", stride), ("P", padding), ("D", dilation))
    return {name: value for prefix, values in named for name, value in _by_axis(prefix, values).items()}


def _apart(stride: Size3, dilation: Size3) -> Size3:
    """Of the taps of an axis, every how manyth meets the same parity class."""
    d, h, w = (s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))
    return d, h, w


def _forward_plan(
    shape: tuple[int, ...], rank: int, stride: Size3, padding: Size3, dilation: Size3, dtype: torch.dtype, voxels: int
) -> Plan:
    outputs, inputs, *kernel = shape
    tiles, warps = _matrix_tiles(voxels, outputs, inputs, math.prod(kernel), dtype)
    channels = {"CIN": inputs, "COUT": outputs, "RANK": rank, "HAS_BIAS": True, "BLOCK_R": _rank_tile(rank)}
    return channels | _convolution(tuple(kernel), stride, padding, dilation) | tiles, warps


def _thin_plan(outputs: int, rank: int, dtype: torch.dtype) -> Plan:
    n = _tile(outputs, 64 if dtype == torch.float32 else 256)
    tiles = {"BLOCK_M": 64, "BLOCK_N": n, "PRECISION": _precision(dtype)}
    channels = {"COUT": outputs, "RANK": rank, "WITH_B": True, "BLOCK_R": _rank_tile(rank)}
    return channels | tiles, 4


def _input_gradient_plan(
    shape: tuple[int, ...], rank: int, stride: Size3, padding: Size3, dilation: Size3, dtype: torch.dtype, voxels: int
) -> Plan:
    outputs, inputs, *kernel = shape
    tiles, warps = _matrix_tiles(voxels, inputs, outputs, math.prod(kernel), dtype)
    channels = {"CIN": inputs, "COUT": outputs, "RANK": rank}
    taps = _convolution(tuple(kernel), stride, padding, dilation) | _by_axis("E", _apart(stride, dilation))
    return channels | taps | tiles, warps


def _a_gradient_plan(
    shape: tuple[int, ...], stride: Size3, padding: Size3, dilation: Size3, dtype: torch.dtype, width: int
) -> Plan:
    rank, inputs, *kernel = shape
    apart = _apart(stride, dilation)
    padded = triton.next_power_of_2(rank)  # so that rows of one tap never straddle a tile
    rows = padded * math.prod(blocks(k, every) for k, every in zip(kernel, apart, strict=True))
    small = dtype == torch.float32
    m, n = 64 if small or rows <= 64 else 128, _tile(inputs, 64 if small else 128)
    k = max(16, min(16 if small else 64, triton.next_power_of_2(width)))
    tiles = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "PRECISION": _precision(dtype)}
    channels = {"CIN": inputs, "RANK": rank, "ROWS": rows, "BLOCK_R": padded}
    taps = _convolution(tuple(kernel), stride, padding, dilation) | _by_axis("E", apart)
    warps = 8 if m == 128 or small else 4
    return channels | taps | tiles, warps


def _shipped() -> tuple[Shipped, ...]:
    """48 → 48 channels at rank 4, also strided and in fp32, and 384 → 384 at rank 16, on volumes that fill a GPU."""
    ones, twos = (1, 1, 1), (2, 2, 2)
    pointers = {
        "_forward_kernel": ("x", "w", "bias", "a", "b", "y", "u"),
        "_thin_kernel": ("g", "b", "u", "h"),
        "_input_gradient_kernel": ("g", "h", "w", "a", "gx"),
        "_a_gradient_kernel": ("x", "h"),
    }

    def row(kernel: str, plan: Plan, dtype: str = "*bf16") -> Shipped:
        types = dict.fromkeys(SIZES, "i32") | dict.fromkeys(pointers[kernel], dtype)
        types |= {"voxels": "i64", "scaling": "fp32", "parts": "*fp32"}
        constants, warps = plan
        known = globals()[kernel].arg_names
        own = {name: value for name, value in types.items() if name in known}
        return Shipped(kernel, own, constants, warps, STAGES, matrix=dtype == "*bf16")

    usual, wide, half = (48, 48, 3, 3, 3), (384, 384, 3, 3, 3), torch.bfloat16
    return (
        row("_forward_kernel", _forward_plan(usual, 4, ones, ones, ones, half, 96**3)),
        row("_forward_kernel", _forward_plan(wide, 16, ones, ones, ones, half, 48**3)),
        row("_forward_kernel", _forward_plan(usual, 4, ones, ones, ones, torch.float32, 96**3), "*fp32"),
        row("_thin_kernel", _thin_plan(48, 4, half)),
        row("_thin_kernel", _thin_plan(384, 16, half)),
        row("_input_gradient_kernel", _input_gradient_plan(usual, 4, ones, ones, ones, half, 96**3)),
        row("_input_gradient_kernel", _input_gradient_plan(wide, 16, ones, ones, ones, half, 48**3)),
        row("_input_gradient_kernel", _input_gradient_plan(usual, 4, twos, ones, ones, half, 96**3)),
        row("_a_gradient_kernel", _a_gradient_plan((4, 48, 3, 3, 3), ones, ones, ones, half, 96)),
        row("_a_gradient_kernel", _a_gradient_plan((16, 384, 3, 3, 3), ones, ones, ones, half, 48)),
    )


SHIPPED: tuple[Shipped, ...] = _shipped()
"""What ahead-of-time compilation builds."""
