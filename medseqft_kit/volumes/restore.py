"""The way back: class indices, or whatever else logits say, on the grid of the image a volume came from."""

from __future__ import annotations

from collections.abc import Callable

import nibabel.orientations
import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from medseqft_kit.volumes.types import Geometry, Volume

SLAB = 2**24
"""Interpolated values (classes × voxels) held at once: 64 MB of float32, whatever the volume and number of classes."""
EXACT = 1e-2
"""Voxels by which a corner may miss the lattice of the other grid and the two still be the same voxels, turned."""


Reduce = Callable[[Tensor], Tensor]
"""Logits (K, …) of any voxels to one value for each of them."""


def restore_logits(logits: Float[Tensor, "k d h w"], volume: Volume) -> UInt8[np.ndarray, "x y z"]:
    """The most likely class of each voxel of the original image; see :func:`restore`.

    Where preprocessing did not resample, this is a permutation and flip of the argmax, hence exact.

    Parameters
    ----------
    logits
        Logits or probabilities on ``volume.grid``, on any device; at most 255 classes.

    Returns
    -------
    ndarray
        uint8 class indices, shape ``volume.original.shape``.
    """
    # max, since torch's argmax takes several times as long on logits whose channels come first.
    return restore(logits, volume, lambda values: values.max(0).indices.to(torch.uint8))


def restore(logits: Float[Tensor, "k d h w"], volume: Volume, reduce: Reduce) -> Shaped[np.ndarray, "x y z"]:
    """What `reduce` makes of the logits at each voxel of the original image.

    Where preprocessing did not resample, these are the logits as they are. Else they are interpolated linearly at the
    original voxels' positions first, slab by slab (:data:`SLAB`).

    Parameters
    ----------
    logits
        On ``volume.grid``, on any device.
    reduce
        Called with (K, …) of some voxels at a time.

    Returns
    -------
    ndarray
        Of the type that `reduce` gives, shape ``volume.original.shape``.
    """
    if tuple(logits.shape[1:]) != volume.grid.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not lie on the grid {volume.grid.shape} of {volume.case}")
    to_grid = np.linalg.inv(volume.grid.affine) @ volume.original.affine
    if _same_voxels(to_grid, volume.grid, volume.original):
        return _turned_back(_as_they_are(logits, reduce), to_grid)
    return _interpolated(logits, to_grid, volume.original.shape, reduce)


def _same_voxels(to_grid: Float[np.ndarray, "4 4"], grid: Geometry, original: Geometry) -> bool:
    """Whether `to_grid` carries the original's voxels onto the grid's one by one."""
    turn = np.rint(to_grid[:3, :3])
    corners = np.array(np.meshgrid(*([0, side - 1] for side in original.shape))).reshape(3, -1)
    landed = to_grid[:3, :3] @ corners + to_grid[:3, 3:]
    if not np.array_equal(np.abs(turn) @ original.shape, grid.shape) or np.abs(landed - np.rint(landed)).max() > EXACT:
        return False
    return bool((np.abs(turn).sum(axis=0) == 1).all() and (np.rint(landed).min(axis=1) == 0).all())


def _turned_back(values: Shaped[np.ndarray, "d h w"], to_grid: Float[np.ndarray, "4 4"]) -> Shaped[np.ndarray, "x y z"]:
    there = nibabel.orientations.io_orientation(to_grid)
    back = nibabel.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), there)
    return np.ascontiguousarray(nibabel.orientations.apply_orientation(values, back))


def _as_they_are(logits: Float[Tensor, "k d h w"], reduce: Reduce) -> Shaped[np.ndarray, "d h w"]:
    rows = max(1, SLAB // logits[:, 0].numel())
    return np.concatenate([reduce(part).cpu().numpy() for part in logits.split(rows, dim=1)])


def _interpolated(
    logits: Float[Tensor, "k d h w"], to_grid: Float[np.ndarray, "4 4"], shape: tuple[int, int, int], reduce: Reduce
) -> Shaped[np.ndarray, "x y z"]:
    # grid_sample wants positions in [-1, 1] from the first to the last voxel, fastest axis first
    last = np.maximum(np.array(logits.shape[1:]) - 1, 1)
    scaled = torch.from_numpy((2 / last)[:, None] * to_grid[:3])
    scaled[:, 3] -= 1
    axes = [torch.arange(side, dtype=torch.float64) for side in shape]
    rows = max(1, SLAB // (len(logits) * shape[1] * shape[2]))
    source, slabs = logits.float()[None], []
    for first in range(0, shape[0], rows):
        slab = torch.meshgrid(axes[0][first : first + rows], axes[1], axes[2], indexing="ij")
        at = [sum(scaled[axis, k] * slab[k] for k in range(3)) + scaled[axis, 3] for axis in (2, 1, 0)]
        positions = torch.stack(at, dim=-1).to(source.device, source.dtype)
        values = functional.grid_sample(source, positions[None], "bilinear", "border", align_corners=True)
        slabs.append(reduce(values[0]).cpu().numpy())
    return np.concatenate(slabs)
