"""A preprocessed volume and the way back to the image it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """A voxel grid: shape and affine (voxel index to mm, RAS+), as nibabel reads them."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        x, y, z = (float(size) for size in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def diagonal(self) -> float:
        """‖shape · spacing‖ in mm: the HD95 of a structure that was missed."""
        return float(np.linalg.norm(np.multiply(self.shape, self.spacing)))


@dataclass(frozen=True)
class Volume:
    """One case on the grid the network sees.

    Parameters
    ----------
    image
        (C, D, H, W) float16, memory-mapped: slicing a crop reads that crop's pages only.
    label
        (D, H, W) uint8 class indices on the same grid (255 = ignore), memory-mapped; None where unlabelled.
    grid
        Shape and affine of `image`.
    original
        Shape and affine of the file, where predictions are written and metrics computed.
    foreground
        Class index to flat voxel indices (int64, at most 10,000, evenly spaced) where that class lies.
    air
        Smallest value of each channel: what a crop that reaches over the border is padded with.
    unknown
        Foreground classes that the label was not drawn for: where it says background, they may be.
    """

    case: str
    image: np.ndarray
    label: np.ndarray | None
    grid: Geometry
    original: Geometry
    foreground: Mapping[int, np.ndarray]
    air: tuple[float, ...]
    unknown: tuple[int, ...] = ()
