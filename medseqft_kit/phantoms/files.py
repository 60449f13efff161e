"""Voxel grids of scanners, and NIfTI files whose bytes depend on nothing but their content."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseqft_kit.phantoms.shapes import rotation
from medseqft_kit.runs.atomic import replacing

EXTENT = (96.0, 96.0, 120.0)
"""Mean field of view in mm: 2 × 2 × 2.5 mm voxels at 48³."""


def draw_geometry(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Affine (voxel to mm, RAS+) and the axes stored in reverse: a third flipped, a fifth oblique by up to 12°."""
    in_plane, along = rng.uniform(0.9, 1.1), rng.uniform(0.95, 1.05)
    spacing = np.divide(EXTENT, shape) * (in_plane, in_plane, along)
    flips = ((), (), (), (), (0,), (0, 1))[int(rng.integers(6))]
    angles = np.radians(rng.uniform(-12, 12, 3)) if rng.random() < 0.2 else np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-60, 60, 3).round(1)
    for axis in flips:  # the voxel that becomes the first keeps its place in mm
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
    return affine, flips


def write_nifti(path: Path, values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write one gzipped NIfTI-1 file atomically, without a time stamp: the same bytes every time."""
    image = nib.Nifti1Image(values, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    packed = gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(packed)
