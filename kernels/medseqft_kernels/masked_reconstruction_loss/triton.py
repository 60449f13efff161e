"""Triton kernels of `masked_reconstruction_loss`: statistics of the patches, and one pass for sums or gradient."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseqft_kernels.masked_reconstruction_loss.reference import EPSILON
from medseqft_kernels.triton_support import Shipped, blocks

TILE = 2048
"""Voxels that a program takes."""
WARPS = 8
"""8 voxels for each thread; with 16, patches spill registers."""


@triton.jit
@no_type_check
def patch_statistics(
    target, out, patches, channels, grid_d, grid_h, grid_w, t_b, t_c, t_d, t_h, t_w, epsilon,
    SIZE_D: tl.constexpr, SIZE_H: tl.constexpr, SIZE_W: tl.constexpr, GROUP: tl.constexpr, VOXELS: tl.constexpr,
):  # fmt: skip
    """Mean and 1/√(variance + ε) of GROUP patches, which lie side by side along W; each is read twice."""
    patch = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    exists = patch < patches
    w, row = patch % grid_w, patch // grid_w
    h, row = row % grid_h, row // grid_h
    d, row = row % grid_d, row // grid_d
    corner = (row // channels) * t_b + (row % channels) * t_c + d * SIZE_D * t_d + h * SIZE_H * t_h + w * SIZE_W * t_w
    count: tl.constexpr = SIZE_D * SIZE_H * SIZE_W
    total = tl.zeros((GROUP,), tl.float32)
    for start in range(0, count, VOXELS):
        voxel = (start + tl.arange(0, VOXELS)).to(tl.int64)
        inside = exists[:, None] & (voxel < count)[None, :]
        step = voxel // (SIZE_H * SIZE_W) * t_d + voxel // SIZE_W % SIZE_H * t_h + voxel % SIZE_W * t_w
        total += tl.sum(tl.load(target + corner[:, None] + step[None, :], inside, 0.0).to(tl.float32), 1)
    mean = total / count
    squares = tl.zeros((GROUP,), tl.float32)
    for start in range(0, count, VOXELS):
        voxel = (start + tl.arange(0, VOXELS)).to(tl.int64)
        inside = exists[:, None] & (voxel < count)[None, :]
        step = voxel // (SIZE_H * SIZE_W) * t_d + voxel // SIZE_W % SIZE_H * t_h + voxel % SIZE_W * t_w
        value = tl.load(target + corner[:, None] + step[None, :], inside, 0.0).to(tl.float32)
        centred = tl.where(inside, value - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, 1)
    tl.store(out + 2 * patch, mean, exists)
    tl.store(out + 2 * patch + 1, 1.0 / tl.sqrt(squares / count + epsilon), exists)


@triton.jit
@no_type_check
def masked_error(
    prediction, target, mask, statistics, factor, out,
    programs, column_blocks, rows, columns, size_1, size_2,
    p_b, p_0, p_1, p_2, p_3, t_b, t_0, t_1, t_2, t_3, m_b, m_0, m_1, m_2, m_3,
    s_b, s_0, s_1, s_2, s_3, o_b, o_0, o_1, o_2, o_3,
    SIDE_0: tl.constexpr, SIDE_1: tl.constexpr, SIDE_2: tl.constexpr, SIDE_3: tl.constexpr,
    SQUARED: tl.constexpr, PATCHES: tl.constexpr, GRADIENT: tl.constexpr,
    DIVIDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS × COLUMNS voxels of one sample: Σ |p − t|^q · m and Σ m, or, if GRADIENT, factor · m · ∂|p − t|^q/∂p."""
    program = tl.program_id(0).to(tl.int64)
    sample, block = program // programs, program % programs
    row = block // column_blocks * ROWS + tl.arange(0, ROWS)
    i_3 = (block % column_blocks * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < rows)[:, None] & (i_3 < columns)
    if DIVIDED:
        i_2, row = (row % size_2)[:, None], row // size_2
        i_1, i_0 = (row % size_1)[:, None], (row // size_1)[:, None]
    else:
        i_2 = row[:, None]
        i_1 = i_2 * 0
        i_0 = i_1
    at = sample * p_b + i_0 * p_0 + i_1 * p_1 + i_2 * p_2 + i_3 * p_3
    difference = tl.load(prediction + at, inside, 0.0).to(tl.float32)
    at = sample * t_b + i_0 * t_0 + i_1 * t_1 + i_2 * t_2 + i_3 * t_3
    truth = tl.load(target + at, inside, 0.0).to(tl.float32)
    if PATCHES:
        at = sample * s_b + i_0 // SIDE_0 * s_0 + i_1 // SIDE_1 * s_1 + i_2 // SIDE_2 * s_2 + i_3 // SIDE_3 * s_3
        truth = (truth - tl.load(statistics + at, inside, 0.0)) * tl.load(statistics + at + 1, inside, 0.0)
    difference -= truth
    at = sample * m_b + i_0 * m_0 + i_1 * m_1 + i_2 * m_2 + i_3 * m_3
    weight = tl.load(mask + at, inside, 0).to(tl.float32)
    if GRADIENT:
        slope = 2.0 * difference if SQUARED else (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
        at = sample * o_b + i_0 * o_0 + i_1 * o_1 + i_2 * o_2 + i_3 * o_3
        tl.store(out + at, (slope * weight * tl.load(factor + sample)).to(out.dtype.element_ty), inside)
    else:
        power = difference * difference if SQUARED else tl.abs(difference)
        tl.store(out + 2 * program, tl.sum(power * weight))
        tl.store(out + 2 * program + 1, tl.sum(weight))


def statistics(target: Tensor, work: torch.dtype, patch: list[int]) -> Tensor:
    """Mean and 1/√(variance + ε) of each patch, (B, C, D/pD, H/pH, W/pW, 2); `work` is float32."""
    grid = [size // step for size, step in zip(target.shape[2:], patch, strict=True)]
    found = torch.empty((*target.shape[:2], *grid, 2), dtype=work, device=target.device)
    patches = found.numel() // 2
    if patches:
        voxels = min(triton.next_power_of_2(patch[0] * patch[1] * patch[2]), TILE)
        group = TILE // voxels
        patch_statistics[(blocks(patches, group),)](
            target, found, patches, target.shape[1], *grid, *target.stride(), EPSILON, *patch, group, voxels
        )  # fmt: skip
    return found


def sums(
    prediction: Tensor, target: Tensor, mask: Tensor, found: Tensor | None, patch: list[int], norm: str
) -> tuple[Tensor, Tensor]:
    """Σ |p − t|^q · m and Σ m of each sample, (B,) each; the programs' sums are added up in float64."""
    sizes, strides, sides = _order(prediction, target, mask, found, None, patch)
    programs = _tiles(sizes)[0]
    partial = torch.empty((len(prediction), programs, 2), dtype=torch.float32, device=prediction.device)
    _launch(prediction, target, mask, found, None, partial, sizes, strides, sides, norm)
    return partial[..., 0].sum(dim=1, dtype=torch.float64), partial[..., 1].sum(dim=1, dtype=torch.float64)


def gradient(
    factor: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    found: Tensor | None,
    patch: list[int],
    norm: str,
) -> Tensor:
    """Gradient of Σ factor · Σ |p − t|^q · m to the prediction, in the prediction's dtype and memory format."""
    written = torch.empty_like(prediction)
    ordered = _order(prediction, target, mask, found, written, patch)
    _launch(prediction, target, mask, found, factor, written, *ordered, norm)
    return written


Ordered = tuple[list[int], list[list[int]], list[int]]


def _order(
    prediction: Tensor, target: Tensor, mask: Tensor, found: Tensor | None, written: Tensor | None, patch: list[int]
) -> Ordered:
    """The four axes of a sample, the prediction's fastest last, neighbours merged where all tensors allow it.

    Returns their sizes, the strides of each of the five tensors (samples first), and the sides of a patch.
    """
    shape = prediction.shape
    spread = mask.expand(shape)
    tensors = [prediction, target, spread, prediction if found is None else found, written]
    strides = [(0, 0, 0, 0, 0) if each is None else each.stride()[:5] for each in tensors]
    sides = [1, *(patch or (1, 1, 1))]
    axes = sorted((axis for axis in range(1, 5) if shape[axis] != 1), key=lambda axis: (-strides[0][axis], axis))
    merged: list[tuple[int, list[int], int]] = []
    for axis in axes:
        size, steps, side = shape[axis], [each[axis] for each in strides], sides[axis - 1]
        if merged and found is None and all(a == b * size for a, b in zip(merged[-1][1], steps, strict=True)):
            size *= merged.pop()[0]
        merged.append((size, steps, side))
    merged = [(1, [0] * 5, 1)] * (4 - len(merged)) + merged
    by_tensor = [[each[0], *(steps[which] for _, steps, _ in merged)] for which, each in enumerate(strides)]
    return [size for size, _, _ in merged], by_tensor, [side for _, _, side in merged]


def _tiles(sizes: list[int]) -> tuple[int, int, int, int, int]:
    """Programs for a sample, blocks of columns, rows, and the tile's rows and columns."""
    rows, columns = sizes[0] * sizes[1] * sizes[2], sizes[3]
    wide = min(triton.next_power_of_2(max(columns, 1)), TILE if rows == 1 else TILE // 4)
    high = min(triton.next_power_of_2(max(rows, 1)), TILE // wide)
    across = blocks(columns, wide)
    return blocks(rows, high) * across, across, rows, high, wide


def _launch(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    found: Tensor | None,
    factor: Tensor | None,
    out: Tensor,
    sizes: list[int],
    strides: list[list[int]],
    sides: list[int],
    norm: str,
) -> None:
    programs, across, rows, high, wide = _tiles(sizes)
    if not prediction.numel():
        return
    masked_error[(len(prediction) * programs,)](
        prediction,
        target,
        mask.view(torch.uint8) if mask.dtype == torch.bool else mask,
        out if found is None else found,
        out if factor is None else factor,
        out,
        programs, across, rows, sizes[3], sizes[1], sizes[2],
        *(step for each in strides for step in each),
        *sides,
        norm == "l2",
        found is not None,
        factor is not None,
        sizes[0] * sizes[1] > 1,
        high,
        wide,
        num_warps=WARPS,
    )  # fmt: skip


def _shipped(kind: str, mask: str, *, patches: bool, gradient: bool, rows: int) -> Shipped:
    """One float channel of a crop: `rows` 1 is the whole crop as one row, else rows along W under patches of 16³."""
    named = ("programs", "column_blocks", "rows", "columns", "size_1", "size_2")
    types = {"prediction": kind, "target": kind, "mask": mask, "statistics": "*fp32", "factor": "*fp32"}
    types |= {"out": kind if gradient else "*fp32"} | dict.fromkeys(named, "i32")
    types |= {f"{tensor}_{axis}": "i64" for tensor in "ptmso" for axis in "b012"}
    side = 16 if patches else 1
    constants: dict[str, int | bool | str] = {"p_3": 1, "t_3": 1, "m_3": 1, "o_3": 1, "s_3": 2}
    constants |= {"SIDE_0": 1, "SIDE_1": side, "SIDE_2": side, "SIDE_3": side, "SQUARED": True, "PATCHES": patches}
    constants |= {"GRADIENT": gradient, "DIVIDED": rows > 1, "ROWS": rows, "COLUMNS": TILE // rows}
    return Shipped("masked_error", types, constants, WARPS)


SHIPPED: tuple[Shipped, ...] = (
    _shipped("*bf16", "*u8", patches=False, gradient=False, rows=1),
    _shipped("*bf16", "*u8", patches=True, gradient=True, rows=16),
    _shipped("*fp32", "*fp32", patches=True, gradient=False, rows=16),
    _shipped("*fp32", "*u8", patches=False, gradient=True, rows=1),
    Shipped(
        "patch_statistics",
        {"target": "*bf16", "out": "*fp32", "patches": "i32", "channels": "i32", "epsilon": "fp32"}
        | {f"grid_{axis}": "i32" for axis in "dhw"}
        | {f"t_{axis}": "i64" for axis in "bcdhw"},
        {"SIZE_D": 16, "SIZE_H": 16, "SIZE_W": 16, "GROUP": 1, "VOXELS": TILE},
    ),
)
"""What launches choose for a crop of 96³, for ahead-of-time compilation."""
