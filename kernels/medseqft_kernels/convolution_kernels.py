"""The Triton kernels of the convolutions with an adapter, transposed or not: one group (derivation in the READMEs).

Volumes lie voxel after voxel with the channels side by side (channels-last-3d), and so do W and A, with the taps
between their two numbers of channels: a model in channels-last-3d is read without a copy.

A convolution gathers and a transposed one spreads, and each is the other's input gradient, so one kernel with two ways
to walk does for all four. A program's own voxels are j·S + c, where c < S is their parity class; with tap k such a
voxel meets the voxel j·T + (c + P − k·D) / S of the other volume, if S divides. All voxels of a class meet the same
taps, so no program meets a tap in vain. Spreading has S = stride and T = 1; gathering has S = 1, T = stride, and P and
D negative. E is by how much the taps of a class differ.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

WIDENED = tl.constexpr("widened")
"""The precision that products of bf16 have in the interpreter: it would multiply their bits as integers."""
NOWHERE = tl.constexpr(-(1 << 29))
"""A position that no tap brings back inside; the sum of two such is outside, too."""

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
    """Of one axis: the first tap that meets this class, how many do, `EVERY` apart, and how far the first one leads."""
    first = parity * 0 + K
    for back in tl.static_range(1, EVERY + 1):
        first = tl.where((parity + P - (EVERY - back) * DIL) % S == 0, EVERY - back, first)
    return first, (K - first + EVERY - 1) // EVERY, (parity + P - first * DIL) // S


@triton.jit
@no_type_check
def _entries(factor, n, k, channel, tap, N: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, SPREADS: tl.constexpr):
    """Where W or A, (C, TAPS, N) if it spreads and else (N, TAPS, C), has what pairs k = (tap, channel) give to n."""
    if SPREADS:
        at = factor + n[None, :] + ((channel.to(tl.int64) * TAPS + tap) * N)[:, None]
    else:
        at = factor + n[None, :] * (TAPS * C) + k[:, None]
    return at


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def convolution_kernel(
    source, thin, w, a, b, bias, target, scaling, samples, m_blocks, D, H, W, OD, OH, OW,
    SOURCES: tl.constexpr, TARGETS: tl.constexpr, RANK: tl.constexpr,
    FORWARD: tl.constexpr, HAS_BIAS: tl.constexpr, SPREADS: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ED: tl.constexpr, EH: tl.constexpr, EW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_M voxels of one parity class × BLOCK_N channels of the target, gathered from (OD, OH, OW) voxels.

    FORWARD: each tile of x meets W and A; what A makes of it is written to `thin`, and B times that added to y.
    Else: tiles of g meet W, then those of h, in `thin`, meet A; the target is the gradient of x.
    """
    TAPS: tl.constexpr = KD * KH * KW
    N_BLOCKS: tl.constexpr = (TARGETS + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0).to(tl.int64)
    n = program % N_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    start = program // N_BLOCKS % m_blocks * BLOCK_M
    parity = (program // N_BLOCKS // m_blocks).to(tl.int32)
    cz, cy, cx = parity // (SH * SW) % SD, parity // SW % SH, parity % SW
    JD, JH, JW = (D - cz + SD - 1) // SD, (H - cy + SH - 1) // SH, (W - cx + SW - 1) // SW
    voxels = tl.cast(samples, tl.int64) * JD * JH * JW
    if start >= voxels:
        return
    v = start + tl.arange(0, BLOCK_M)
    is_voxel = (v < voxels)[:, None]
    sample, jz, jy, jx = _voxels(start, JD, JH, JW, BLOCK_M)
    if SD * SH * SW > 1:
        v = ((sample * D + jz * SD + cz) * H + jy * SH + cy) * W + jx * SW + cx
    first_z, count_z, lead_z = _taps(cz, KD, SD, PD, DD, ED)
    first_y, count_y, lead_y = _taps(cy, KH, SH, PH, DH, EH)
    first_x, count_x, lead_x = _taps(cx, KW, SW, PW, DW, EW)
    count = count_z * count_y * count_x
    oz, oy, ox = (jz * TD + lead_z)[:, None], (jy * TH + lead_y)[:, None], (jx * TW + lead_x)[:, None]
    origin = ((sample[:, None] * OD + oz) * OH + oy) * OW + ox
    oz = tl.where(is_voxel, oz, NOWHERE)
    wide_h, wide_w = tl.cast(OH, tl.int64), tl.cast(OW, tl.int64)
    rho = tl.arange(0, BLOCK_R).to(tl.int64)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    u = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for part in tl.static_range(1 if FORWARD else 2):  # backward: first g with W, then h with A
        rows = source + origin * SOURCES if part == 0 else thin + origin * RANK
        factor = w if part == 0 else a
        for step in range(tl.cdiv(count * (SOURCES if part == 0 else RANK), BLOCK_K)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            is_k = k < count * (SOURCES if part == 0 else RANK)
            t = _tap(step, SOURCES if part == 0 else RANK, BLOCK_K)
            channel = k - t * (SOURCES if part == 0 else RANK)
            tz, ty, tx = t // (count_y * count_x), t // count_x % count_y, t % count_x
            dz, dy, dx = tz * (ED * DD // -SD), ty * (EH * DH // -SH), tx * (EW * DW // -SW)
            inside = _within(oz + dz, OD) & _within(oy + dy, OH) & _within(ox + dx, OW)
            offset = ((dz * wide_h + dy) * wide_w + dx) * (SOURCES if part == 0 else RANK) + channel
            tile = tl.load(rows + offset[None, :], mask=inside & is_k[None, :], other=0.0)
            tap = ((first_z + tz * ED) * KH + first_y + ty * EH) * KW + first_x + tx * EW
            at = _entries(factor, n, k, channel, tap, TARGETS, SOURCES if part == 0 else RANK, TAPS, SPREADS)
            factor_tile = tl.load(at, mask=is_k[:, None] & (n < TARGETS)[None, :], other=0.0)
            acc = _dot(tile, factor_tile, acc, PRECISION)
            if FORWARD:
                at = _entries(a, rho, k, channel, tap, RANK, SOURCES, TAPS, SPREADS)
                a_tile = tl.load(at, mask=is_k[:, None] & (rho < RANK)[None, :], other=0.0)
                u = _dot(tile, a_tile, u, PRECISION)

    if FORWARD:  # u is rounded as it is kept for the backward pass; its product with B is not rounded before the sum
        u = u.to(thin.dtype.element_ty)
        b_mask = (rho < RANK)[:, None] & (n < TARGETS)[None, :]
        b_tile = tl.load(b + n[None, :] * RANK + rho[:, None], mask=b_mask, other=0.0)
        acc += scaling * _dot(u, b_tile, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
        if HAS_BIAS:
            acc += tl.load(bias + n, mask=n < TARGETS, other=0.0).to(tl.float32)[None, :]
        if program % N_BLOCKS == 0:
            tl.store(thin + v[:, None] * RANK + rho[None, :], u, mask=is_voxel & (rho < RANK)[None, :])
    acc = acc.to(target.dtype.element_ty)
    tl.store(target + v[:, None] * TARGETS + n[None, :], acc, mask=is_voxel & (n < TARGETS)[None, :])


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def thin_kernel(
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
def a_gradient_kernel(
    x, h, parts, samples, chunks, per_chunk, line_blocks, D, H, W, OD, OH, OW,
    CIN: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
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
    cz, cy, cx = parity // (SH * SW) % SD, parity // SW % SH, parity % SW
    JD, JH, JW = (D - cz + SD - 1) // SD, (H - cy + SH - 1) // SH, (W - cx + SW - 1) // SW
    is_class = (JD > 0) & (JH > 0)
    JD, JH = tl.maximum(JD, 1), tl.maximum(JH, 1)  # a class without voxels writes zeros

    first_z, count_z, lead_z = _taps(cz, KD, SD, PD, DD, ED)
    first_y, count_y, lead_y = _taps(cy, KH, SH, PH, DH, EH)
    first_x, count_x, lead_x = _taps(cx, KW, SW, PW, DW, EW)
    rho, t = row % BLOCK_R, row // BLOCK_R
    is_row = (rho < RANK) & (t < count_z * count_y * count_x)
    count_y, count_x = tl.maximum(count_y, 1), tl.maximum(count_x, 1)
    tz, ty, tx = t // (count_y * count_x), t // count_x % count_y, t % count_x
    dz, dy, dx = lead_z - tz * (ED * DD // SD), lead_y - ty * (EH * DH // SH), lead_x - tx * (EW * DW // SW)
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
        h_line = h + ((sample * OD + jz * TD) * OH + jy * TH) * OW * RANK
        h_at = (j.to(tl.int64) * TW * RANK)[:, None] + offset[None, :]
        met = tl.where(j >= 0, j * TW, NOWHERE)
        moved = tl.where(is_row & _within(jz * TD + dz, OD) & _within(jy * TH + dy, OH), dx, NOWHERE)
        h_tile = tl.load(h_line + h_at, mask=_within(met[:, None] + moved[None, :], OW), other=0.0)
        acc = _dot(tl.trans(h_tile), x_tile, acc, PRECISION)
        jx += BLOCK_K
        jx = tl.where(jx < line_blocks * BLOCK_K, jx, 0)  # as many blocks a line in every class
        jy += (jx == 0).to(tl.int32)
        jz += (jy == JH).to(tl.int32)
        jy = tl.where(jy < JH, jy, 0)
        sample += (jz == JD).to(tl.int64)
        jz = tl.where(jz < JD, jz, 0)
    tap = ((first_z + tz * ED) * KH + first_y + ty * EH) * KW + first_x + tx * EW
    parts_at = parts + (((chunk * RANK + rho) * TAPS + tap) * CIN)[:, None] + n[None, :]
    tl.store(parts_at, acc, mask=is_row[:, None] & (n < CIN)[None, :])
