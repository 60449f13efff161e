"""`gather_crops` in one pass: a program cuts a tile of 4 × 4 × 32 voxels and adds up its control variates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseqft_kernels.gather_crops.reference import PATCH, channels_last
from medseqft_kernels.triton_support import Shipped, blocks

WIDTH = 32
"""Voxels of a tile along the last axis."""


@triton.jit
@no_type_check  # neither beartype nor mypy reads the language that Triton makes of it
def _read(volume, air, z, y, x, extent, stride, low, high, WINDOW: tl.constexpr):
    """Windowed intensities at volume coordinates that may lie outside."""
    inside = (z >= 0) & (z < extent[0]) & (y >= 0) & (y < extent[1]) & (x >= 0) & (x < extent[2])
    value = tl.load(volume + z * stride[0] + y * stride[1] + x * stride[2], mask=inside, other=0).to(tl.float32)
    value = tl.where(inside, value, air)
    if WINDOW:
        value = tl.clamp(value, low, high, propagate_nan=tl.PropagateNan.ALL)
        value = tl.div_rn(value - low, high - low)
    return value


@triton.jit
@no_type_check
def _neighbours(position, size, first, step):
    """Volume coordinates before and after, one-sided at the crop's edges, and one over their distance."""
    before, after = tl.maximum(position - 1, 0), tl.minimum(position + 1, size - 1)
    return first + step * before, first + step * after, tl.where(after - before == 2, 0.5, 1.0)


@triton.jit
@no_type_check
def _patch_sums(values, P: tl.constexpr, W: tl.constexpr):
    """(P, P, W) summed over patches of P³: (W / P,)."""
    return tl.sum(tl.sum(tl.reshape(values, [P * P, W // P, P]), 2), 0)


@triton.jit
@no_type_check
def cut(
    table_ptr,
    like_ptr,
    air_ptr,
    index_ptr,
    corner_ptr,
    flip_ptr,
    mask_ptr,
    masked_ptr,
    target_ptr,
    partial_ptr,
    channels,
    depth,
    height,
    width,
    tiles_y,
    tiles_x,
    low,
    high,
    token,
    WINDOW: tl.constexpr,
    FLIP: tl.constexpr,
    MASK: tl.constexpr,
    CONTROLS: tl.constexpr,
    P: tl.constexpr,
    W: tl.constexpr,
):
    """One tile of one crop; its partial sums are gradient energy, local variance, and hidden voxels."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(depth, P) * tiles_y * tiles_x
    crop, tile = program // tiles, program % tiles
    i = (tile // (tiles_y * tiles_x) * P + tl.arange(0, P))[:, None, None]
    j = (tile // tiles_x % tiles_y * P + tl.arange(0, P))[None, :, None]
    k = (tile % tiles_x * W + tl.arange(0, W))[None, None, :]
    valid = (i < depth) & (j < height) & (k < width)

    which = tl.load(index_ptr + crop)
    row = table_ptr + 8 * which
    volume = tl.load(row).to(like_ptr.dtype)
    extent = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    stride_c = tl.load(row + 4)
    stride = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)

    # Voxel i of the crop is voxel first + step · i of the volume.
    first_z, first_y, first_x = (
        tl.load(corner_ptr + 3 * crop),
        tl.load(corner_ptr + 3 * crop + 1),
        tl.load(corner_ptr + 3 * crop + 2),
    )
    step_z, step_y, step_x = 1, 1, 1
    if FLIP:
        turn_z = tl.load(flip_ptr + 3 * crop).to(tl.int64)
        turn_y = tl.load(flip_ptr + 3 * crop + 1).to(tl.int64)
        turn_x = tl.load(flip_ptr + 3 * crop + 2).to(tl.int64)
        step_z, step_y, step_x = 1 - 2 * turn_z, 1 - 2 * turn_y, 1 - 2 * turn_x
        first_z += turn_z * (depth - 1)
        first_y += turn_y * (height - 1)
        first_x += turn_x * (width - 1)
    z, y, x = first_z + step_z * i, first_y + step_y * j, first_x + step_x * k

    voxel = ((crop * depth + i) * height + j) * width + k
    hidden = valid
    if MASK:
        hidden = valid & (tl.load(mask_ptr + voxel, mask=valid, other=0) != 0)
    if CONTROLS:
        z_before, z_after, z_per = _neighbours(i, depth, first_z, step_z)
        y_before, y_after, y_per = _neighbours(j, height, first_y, step_y)
        x_before, x_after, x_per = _neighbours(k, width, first_x, step_x)
        shown = tl.maximum(_patch_sums(valid.to(tl.float32), P, W), 1.0)
        weight = _patch_sums(hidden.to(tl.float32), P, W)
        gradient = tl.zeros([P, P, W], tl.float32)
        variance = tl.zeros([W // P], tl.float32)

    for channel in range(channels):
        base = volume + channel * stride_c
        air = tl.load(air_ptr + which * channels + channel)
        value = _read(base, air, z, y, x, extent, stride, low, high, WINDOW)
        place = voxel * channels + channel
        tl.store(target_ptr + place, value, mask=valid)
        if MASK:
            tl.store(masked_ptr + place, tl.where(hidden, token, value), mask=valid)
        if CONTROLS:
            after = _read(base, air, z_after, y, x, extent, stride, low, high, WINDOW)
            slope = (after - _read(base, air, z_before, y, x, extent, stride, low, high, WINDOW)) * z_per
            gradient += slope * slope
            after = _read(base, air, z, y_after, x, extent, stride, low, high, WINDOW)
            slope = (after - _read(base, air, z, y_before, x, extent, stride, low, high, WINDOW)) * y_per
            gradient += slope * slope
            after = _read(base, air, z, y, x_after, extent, stride, low, high, WINDOW)
            slope = (after - _read(base, air, z, y, x_before, extent, stride, low, high, WINDOW)) * x_per
            gradient += slope * slope
            mean = _patch_sums(tl.where(valid, value, 0.0), P, W) / shown
            away = tl.reshape(value, [P * P, W // P, P]) - mean[None, :, None]
            away = tl.where(valid, tl.reshape(away, [P, P, W]), 0.0)
            spread = _patch_sums(away * away, P, W) / shown
            variance += tl.where(weight > 0, weight * spread, 0.0)

    if CONTROLS:
        tl.store(partial_ptr + 3 * program, tl.sum(tl.where(hidden, gradient, 0.0)))
        tl.store(partial_ptr + 3 * program + 1, tl.sum(variance))
        tl.store(partial_ptr + 3 * program + 2, tl.sum(weight))


def launch(
    volumes: Sequence[Tensor],
    index: Tensor,
    corner: Tensor,
    size: Sequence[int],
    air: Tensor,
    window: tuple[float, float] | None,
    flip: Tensor | None,
    mask: Tensor | None,
    token: float,
    dtype: torch.dtype,
    controls: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference, which see; all tensors on one device, volumes of one dtype."""
    device, crops, channels = volumes[0].device, len(index), len(volumes[0])
    depth, height, width = size
    shape = (crops, channels, *size)
    target = channels_last(shape, dtype, device)
    masked = target.new_empty(0) if mask is None else channels_last(shape, dtype, device)
    wide = min(WIDTH, max(PATCH, triton.next_power_of_2(width)))
    tiles_z, tiles_y, tiles_x = blocks(depth, PATCH), blocks(height, PATCH), blocks(width, wide)
    partial = (
        torch.empty((crops, tiles_z * tiles_y * tiles_x, 3), device=device)
        if controls
        else torch.empty(0, device=device)
    )
    rows = [[volume.data_ptr(), *volume.shape[1:], *volume.stride()] for volume in volumes]
    low, high = window or (0.0, 1.0)
    if crops:
        cut[(crops * tiles_z * tiles_y * tiles_x,)](
            torch.tensor(rows, dtype=torch.int64, device=device),
            volumes[0],
            air.float().contiguous(),
            index.contiguous(),
            corner.long().contiguous(),
            index if flip is None else flip.contiguous().view(torch.uint8),
            index if mask is None else mask.contiguous().view(torch.uint8),
            masked,
            target,
            partial,
            channels,
            depth,
            height,
            width,
            tiles_y,
            tiles_x,
            low,
            high,
            token,
            WINDOW=window is not None,
            FLIP=flip is not None,
            MASK=mask is not None,
            CONTROLS=controls,
            P=PATCH,
            W=wide,
        )
    if not controls:
        return masked, target, partial, partial.clone()
    energy, variance, counted = partial.sum(1).unbind(1)
    counted = (counted * channels).clamp(min=1)
    return masked, target, energy / counted, variance / counted


def _shipped(stored: str, written: str, *, whole: bool) -> Shipped:
    """With everything that the operation can do at once, or as a mere cutter."""
    pointers = {"table": "i64", "like": stored, "air": "fp32", "index": "i64", "corner": "i64", "flip": "u8"}
    pointers |= {"mask": "u8", "masked": written, "target": written, "partial": "fp32"}
    counts = ("channels", "depth", "height", "width", "tiles_y", "tiles_x")
    types = {f"{name}_ptr": f"*{kind}" for name, kind in pointers.items()}
    types |= dict.fromkeys(counts, "i32") | dict.fromkeys(("low", "high", "token"), "fp32")
    switches = dict.fromkeys(("WINDOW", "FLIP", "MASK", "CONTROLS"), whole)
    return Shipped("cut", types, {**switches, "P": PATCH, "W": WIDTH})


SHIPPED = (
    _shipped("fp16", "bf16", whole=True),
    _shipped("i16", "fp32", whole=True),
    _shipped("fp16", "fp32", whole=False),
)
