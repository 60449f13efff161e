"""Convolutions with r channels as matrix products, the taps on the thin side: gA, and u = A ∗ x.

oneDNN and cuDNN pad r channels to a full vector or tile. A matrix product of height taps·r does not,
and it reads x once. For stride s the input is split into its s³ parity classes:
in each, the taps that meet it walk in steps of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.lora_conv3d.forms import Geometry

BLOCK_BYTES = 2**21
"""Size of a block of unfolded h: it should stay in a core's second-level cache."""


class _Axis(NamedTuple):
    """The taps of an axis, last first, that meet inputs at parity + stride·j: for output o, j = o + shift."""

    taps: list[int]
    shifts: list[int]
    parity: int

    @property
    def step(self) -> int:
        """By how much the shift falls from one tap to the next; the same for all of a class."""
        return self.shifts[0] - self.shifts[1] if len(self.shifts) > 1 else 0


def _axes(kernel: int, stride: int, padding: int, dilation: int) -> list[_Axis]:
    classes: dict[int, _Axis] = {}
    for tap in reversed(range(kernel)):
        offset = tap * dilation - padding
        axis = classes.setdefault(offset % stride, _Axis([], [], offset % stride))
        axis.taps.append(tap)
        axis.shifts.append(offset // stride)
    return list(classes.values())


def _classes(lora_a: Tensor, geometry: Geometry) -> Iterator[tuple[_Axis, _Axis, _Axis]]:
    first, second, third = (_axes(*each) for each in zip(lora_a.shape[2:], *geometry, strict=True))
    return ((d, h, w) for d in first for h in second for w in third)


def _part(x: Tensor, axes: tuple[_Axis, ...], stride: tuple[int, int, int]) -> Tensor:
    """The voxels of x in one parity class, channels last."""
    d, h, w = (slice(axis.parity, None, step) for axis, step in zip(axes, stride, strict=True))
    return x[:, :, d, h, w].permute(0, 2, 3, 4, 1)


def thin_weight_gradient(h: Tensor, x: Tensor, lora_a: Tensor, geometry: Geometry) -> Tensor:
    """gA[ρ, ci, tap] = Σ_o h[ρ, o]·x[ci, o·stride + tap·dilation − padding]; (r, Cin, kD, kH, kW)."""
    ga = lora_a.new_zeros(lora_a.shape, dtype=torch.promote_types(lora_a.dtype, torch.float32))
    for axes in _classes(lora_a, geometry):
        part = _part(x, axes, geometry.stride)
        if part.numel() and h.numel():
            _add_class(ga, h, part, axes)
    return ga.to(lora_a.dtype)


def _add_class(ga: Tensor, h: Tensor, part: Tensor, axes: tuple[_Axis, _Axis, _Axis]) -> None:
    batch, depth, height, width, inputs = part.shape
    rank = h.shape[1]
    windows = _windows(h, axes, (depth, height, width))
    taps = tuple(len(axis.taps) for axis in axes)
    rows = rank * taps[0] * taps[1] * taps[2]
    slices = max(1, BLOCK_BYTES // max(1, rows * height * width * h.element_size()))
    total = ga.new_zeros(rows, inputs)
    for b in range(batch):
        for begin in range(0, depth, slices):
            end = min(depth, begin + slices)
            thin = windows[b, ..., begin:end, :, :].reshape(rows, -1)
            total += thin @ part[b, begin:end].reshape(-1, inputs)
    found = total.view(rank, *taps, inputs).permute(0, 4, 1, 2, 3)
    first, second, third = (torch.tensor(axis.taps, device=ga.device) for axis in axes)
    ga[:, :, first[:, None, None], second[:, None], third] = found


def _windows(h: Tensor, axes: tuple[_Axis, _Axis, _Axis], size: tuple[int, int, int]) -> Tensor:
    """View [b, ρ, t…, j…] = h[b, ρ, j − shift of the t-th tap], zero where that is outside of h."""
    pads: list[int] = []
    for axis, positions, outputs in reversed(list(zip(axes, size, h.shape[2:], strict=True))):
        pads += [axis.shifts[0], positions - outputs - axis.shifts[-1]]
    padded = functional.pad(h.contiguous(), pads)
    batch, channels, *strides = padded.stride()
    steps = [axis.step * stride for axis, stride in zip(axes, strides, strict=True)]
    taps = [len(axis.taps) for axis in axes]
    return padded.as_strided([*h.shape[:2], *taps, *size], [batch, channels, *steps, *strides])


def thin_output(x: Tensor, lora_a: Tensor, geometry: Geometry) -> Tensor:
    """The thin output u = A ∗ x, (B, r, D', H', W'): the channels first, a row a tap; then rows shift and add up."""
    size = geometry.output_size(x.shape[2:], lora_a.shape[2:])
    wide = torch.promote_types(x.dtype, torch.float32)
    u = x.new_zeros((x.shape[0], lora_a.shape[0], *size), dtype=wide)
    for axes in _classes(lora_a, geometry):
        part = _part(x, axes, geometry.stride)
        if part.numel():
            _add_shifted(u, part, _taps_of(lora_a, axes), axes)
    return u.to(x.dtype)


def _taps_of(lora_a: Tensor, axes: tuple[_Axis, _Axis, _Axis]) -> Tensor:
    d, h, w = (torch.tensor(axis.taps, device=lora_a.device) for axis in axes)
    return lora_a[:, :, d[:, None, None], h[:, None], w]


def _add_shifted(u: Tensor, part: Tensor, a: Tensor, axes: tuple[_Axis, _Axis, _Axis]) -> None:
    batch, depth, height, width, inputs = part.shape
    matrix = a.permute(2, 3, 4, 0, 1).reshape(-1, inputs)  # rows in the order (taps…, ρ)
    slices = max(1, BLOCK_BYTES // max(1, len(matrix) * height * width * part.element_size()))
    for b in range(batch):
        for begin in range(0, depth, slices):
            end = min(depth, begin + slices)
            rows = matrix @ part[b, begin:end].reshape(-1, inputs).t()
            rows = rows.view(*a.shape[2:], a.shape[0], end - begin, height, width)
            _scatter(u[b], rows, axes, begin)


def _scatter(u: Tensor, rows: Tensor, axes: tuple[_Axis, _Axis, _Axis], begin: int) -> None:
    """u[ρ, j − shift] += rows[taps…, ρ, j], for the slices from `begin` on; one axis after the other, W first."""
    d_axis, h_axis, w_axis = axes
    by_w = rows.new_zeros((*rows.shape[:2], *rows.shape[3:-1], u.shape[3]))
    for w, shift in enumerate(w_axis.shifts):
        to, source = _overlap(rows.shape[6], -shift, u.shape[3])
        by_w[..., to] += rows[:, :, w][..., source]
    by_h = rows.new_zeros((rows.shape[0], *by_w.shape[2:4], u.shape[2], u.shape[3]))
    for h, shift in enumerate(h_axis.shifts):
        to, source = _overlap(rows.shape[5], -shift, u.shape[2])
        by_h[..., to, :] += by_w[:, h][..., source, :]
    for d, shift in enumerate(d_axis.shifts):
        to, source = _overlap(rows.shape[4], begin - shift, u.shape[1])
        u[:, to] += by_h[d][:, source]


def _overlap(length: int, offset: int, limit: int) -> tuple[slice, slice]:
    """Where positions offset … offset + length − 1 lie within 0 … limit − 1: there, and among themselves."""
    low, high = max(0, offset), max(0, min(limit, offset + length))
    low = min(low, high)
    return slice(low, high), slice(low - offset, high - offset)
