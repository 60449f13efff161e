"""Control variates: what is known of a draw without the network, with its exact mean over all draws of the volume.

A crop with steep gradients is harder to restore, whichever volume it came from. So the loss is regressed on three
numbers of the crop, and what they explain is taken off; the estimate stays unbiased, because their exact means over
all crop positions and masks are known. Two belong to the hidden voxels, their mean squared gradient and the mean
variance of their patches (:func:`medseqft_kernels.gather_crops`); the third is the variance of the whole crop, which
networks with instance norms lose sight of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.gather_crops.op import Crops
from medseqft_kernels.gather_crops.reference import PATCH
from medseqft_kit.objectives.base import Pretext
from medseqft_kit.volumes.types import Volume

CONTROLS = 3
SLAB = 2**24
"""Voxels that are worked on at a time, about: 130 MB in float64."""


def of_crops(crops: Crops, pretext: Pretext, expected: float) -> Float[Tensor, "n 3"]:
    """The controls of each crop, float64.

    Parameters
    ----------
    crops
        With their controls.
    expected
        Share of the voxels that a draw hides on average. Sums over hidden voxels are divided by this and not by the
        number that the draw hid, so that their mean over draws is exact where that number differs.
    """
    assert crops.gradient_energy is not None
    assert crops.local_variance is not None
    hidden = torch.stack([crops.gradient_energy, crops.local_variance], dim=1).double()
    if "mask" in pretext:
        share = pretext["mask"].to(hidden.device).double().mean(dim=(1, 2, 3))
        hidden = hidden * (share / expected)[:, None]
    whole = crops.target.float().flatten(2).var(dim=2, unbiased=False).mean(dim=1)
    return torch.cat([hidden, whole.double()[:, None]], dim=1)


def exact_means(volume: Volume, region: Sequence[int], device: str = "cpu") -> Float[np.ndarray, " controls"]:
    """The means of the controls over all positions of the region in the volume and all masks, float64.

    Every position that :func:`~medseqft_kit.volumes.crops.relative_start` can return counts alike, and every voxel of
    a crop is hidden equally often.
    """
    totals = torch.zeros(CONTROLS, dtype=torch.float64, device=device)
    for channel, air in zip(volume.image, volume.air, strict=True):
        values = _padded(torch.from_numpy(np.array(channel)).to(device), region, air)
        totals += torch.stack([f(values, region) for f in (_gradient_energy, _local_variance, _crop_variance)])
    return (totals / len(volume.image)).cpu().numpy()


def _padded(values: Tensor, region: Sequence[int], air: float) -> Tensor:
    """Where the volume is smaller than the region it lies in the middle, as crops see it."""
    margins: list[int] = []
    for size, side in zip(reversed(values.shape), reversed(region), strict=True):
        missing = max(side - size, 0)
        margins += [missing // 2, missing - missing // 2]
    return functional.pad(values, margins, value=air)


def _gradient_energy(values: Tensor, region: Sequence[int]) -> Tensor:
    """Mean of ‖∇v‖²: central differences inside a crop, one-sided at its ends."""
    total = values.new_zeros((), dtype=torch.float64)
    for axis, (size, side) in enumerate(zip(values.shape, region, strict=True)):
        if side == 1:
            continue
        positions = size - side + 1
        ends = torch.zeros(size - 1, dtype=torch.float64)
        ends[:positions] += 1
        ends[side - 2 :] += 1
        for reach, weight in ((1, ends / positions), (2, _cover(size - 2, side - 2) / 4)):
            if side > reach:
                sides = [1 + reach * (each == axis) for each in range(3)]
                weights = [_cover(n, s) for n, s in zip(values.shape, region, strict=True)]
                weights[axis] = weight
                step = lambda slab, axis=axis, reach=reach: _apart(slab, axis, reach).square()  # noqa: E731
                total += _weighted(values, sides, weights, step)
    return total / math.prod(region)


def _local_variance(values: Tensor, region: Sequence[int]) -> Tensor:
    """Mean variance of the patch that a voxel lies in; patches are counted from the crop's first voxel."""
    total = values.new_zeros((), dtype=torch.float64)
    for patches in product(*(_patches(size, side) for size, side in zip(values.shape, region, strict=True))):
        sides = [side for side, _ in patches]
        voxels = math.prod(sides)
        step = lambda slab, sides=sides: _variance(slab, sides)  # noqa: E731
        total += voxels * _weighted(values, sides, [weight for _, weight in patches], step)
    return total / math.prod(region)


def _crop_variance(values: Tensor, region: Sequence[int]) -> Tensor:
    """Mean variance of the crop."""
    positions = [size - side + 1 for size, side in zip(values.shape, region, strict=True)]
    weights = [torch.full((each,), 1 / each, dtype=torch.float64) for each in positions]
    return _weighted(values, list(region), weights, lambda slab: _variance(slab, region))


def _cover(size: int, side: int) -> Tensor:
    """How often each of `size` voxels lies in a crop of `side`, over all positions, on average over them."""
    positions = size - side + 1
    at = torch.arange(size, dtype=torch.float64)
    return (at.clamp(max=positions - 1) - (at - side + 1).clamp(min=0) + 1) / positions


def _patches(size: int, side: int) -> Iterator[tuple[int, Tensor]]:
    """The sides of the patches along an axis, each with how often a patch begins at each voxel."""
    positions = size - side + 1
    whole, rest = divmod(side, PATCH)
    for length, starts in ((PATCH, range(0, PATCH * whole, PATCH)), (rest, range(PATCH * whole, side, PATCH))):
        if length and len(starts):
            count = torch.zeros(size - length + 1, dtype=torch.float64)
            for start in starts:
                count[start : start + positions] += 1
            yield length, count / positions


def _weighted(
    values: Tensor, window: Sequence[int], weights: Sequence[Tensor], step: Callable[[Tensor], Tensor]
) -> Tensor:
    """Σ weights · step(values), where `step` makes one number of every window; slab by slab along the first axis."""
    weights = [weight.to(values.device) for weight in weights]
    starts = len(weights[0])
    layers = max(SLAB // max(values[0].numel(), 1), 1)
    total = values.new_zeros((), dtype=torch.float64)
    for first in range(0, starts, layers):
        last = min(first + layers, starts)
        slab = values[first : last + window[0] - 1].double()
        total += step(slab) @ weights[2] @ weights[1] @ weights[0][first:last]
    return total


def _apart(slab: Tensor, axis: int, reach: int) -> Tensor:
    """Differences of voxels `reach` apart."""
    return slab.narrow(axis, reach, slab.shape[axis] - reach) - slab.narrow(axis, 0, slab.shape[axis] - reach)


def _variance(slab: Tensor, window: Sequence[int]) -> Tensor:
    """Population variance of every window; taken from the slab's mean, so that squares stay small."""
    centred = slab - slab.mean()
    voxels = math.prod(window)
    mean, square = (_box_sums(each, window) / voxels for each in (centred, centred.square()))
    return square - mean.square()


def _box_sums(slab: Tensor, window: Sequence[int]) -> Tensor:
    """Sums over every window."""
    for axis, side in enumerate(window):
        running = functional.pad(slab.cumsum(axis), [0, 0] * (2 - axis) + [1, 0])
        slab = _apart(running, axis, side)
    return slab
