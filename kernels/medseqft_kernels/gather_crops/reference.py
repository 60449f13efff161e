"""`gather_crops` in plain PyTorch: a loop over slices, and the sums that serve as control variates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

PATCH = 4
"""Side of the patches whose variance is averaged; the last one along an axis is cut off where the crop ends."""


def reference(
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
    """Masked crops, crops, gradient energy, local variance; what was not asked for is empty."""
    values = channels_last((len(index), len(volumes[0]), *size), exact(dtype), volumes[0].device)
    turns = [[False] * 3] * len(index) if flip is None else flip.tolist()
    for crop, which, start, turn in zip(values, index.tolist(), corner.tolist(), turns, strict=True):
        extents = zip(start, size, volumes[which].shape[1:], strict=True)
        inside = [(min(max(at, 0), there), max(min(at + side, there), 0)) for at, side, there in extents]
        into = [slice(low - at, max(high, low) - at) for (low, high), at in zip(inside, start, strict=True)]
        crop[:] = air[which, :, None, None, None]
        if all(low < high for low, high in inside):
            crop[(slice(None), *into)] = volumes[which][(slice(None), *(slice(*span) for span in inside))]
        if any(turn):
            crop.copy_(crop.flip([axis + 1 for axis in range(3) if turn[axis]]))
    if window is not None:  # tensors, because PyTorch multiplies by the reciprocal of a number on a GPU
        low, high = (torch.full((), edge, dtype=values.dtype, device=values.device) for edge in window)
        values.clamp_(low, high).sub_(low).div_(high - low)
    target = values if dtype == values.dtype else channels_last(values.shape, dtype, values.device).copy_(values)
    sums = control_variates(values, mask) if controls else (values.new_empty(0), values.new_empty(0))
    if mask is None:
        return target.new_empty(0), target, *sums
    masked = channels_last(values.shape, dtype, values.device).copy_(target).masked_fill_(mask[:, None], token)
    return masked, target, *sums


def control_variates(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means over hidden voxels and channels of ‖∇v‖² and of the variance of the voxel's patch; 0 if none is hidden."""
    hidden = torch.ones_like(values[:, 0], dtype=torch.bool) if mask is None else mask
    energy = torch.zeros_like(values)
    for axis in (2, 3, 4):
        if values.shape[axis] > 1:
            energy += torch.gradient(values, dim=axis)[0].square()
    spread = _patch_means((values - _patch_means(values)).square())
    count = (hidden.sum((1, 2, 3)) * values.shape[1]).clamp(min=1)
    energy, spread = (torch.where(hidden[:, None], each, 0).sum((1, 2, 3, 4)) / count for each in (energy, spread))
    return energy, spread


def exact(dtype: torch.dtype) -> torch.dtype:
    """What intensities and sums are computed in when `dtype` is written."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def channels_last(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for crops, nothing written yet."""
    return torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=torch.channels_last_3d)


def _patch_means(values: Tensor) -> Tensor:
    """The mean of each voxel's patch, at the voxel."""
    return _patch_averages(values) / _patch_averages(torch.ones_like(values[:1, :1]))


def _patch_averages(values: Tensor) -> Tensor:
    """Like the mean, but zeros fill the patches that the crop's end cuts off."""
    sides = values.shape[2:]
    full = functional.pad(values, [each for side in reversed(sides) for each in (0, -side % PATCH)])
    means = functional.avg_pool3d(full, PATCH)
    for axis in (2, 3, 4):
        means = means.repeat_interleave(PATCH, axis)
    return means[..., : sides[0], : sides[1], : sides[2]]
