"""Spacing of a task's images, from headers alone."""

from __future__ import annotations

from typing import NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Float

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.headers import HeaderFacts
from medseqft_kit.tasks.images import read_header
from medseqft_kit.tasks.types import Task

Spacing = tuple[float, float, float]


class SpacingStatistics(NamedTuple):
    """Voxel sizes in mm along right, anterior, superior (RAS+), each axis for itself."""

    median: Spacing
    minimum: Spacing
    maximum: Spacing


def ras_spacing(header: HeaderFacts) -> Spacing:
    """Voxel size in mm along the array axis nearest to right, anterior and superior.

    Raises
    ------
    DataError
        If the affine does not span three axes.
    """
    target = nib.orientations.io_orientation(header.affine)[:, 0] if np.isfinite(header.affine).all() else [np.nan]
    if np.isnan(target).any():
        raise DataError(
            f"{header.path} has an affine without three axes.",
            found=f"voxel size {header.spacing} mm",
            expected="three positive voxel sizes",
            next_step="repair the header",
        )
    x, y, z = (header.spacing[list(target).index(axis)] for axis in range(3))
    return x, y, z


def spacing_statistics(task: Task) -> SpacingStatistics:
    """Median, minimum and maximum over the labelled cases, or over the unlabelled where there are no others."""
    cases = task.cases or task.unlabelled
    if not cases:
        raise DataError(f"{task.name} has no cases.", next_step=f"medseqft check {task.root}")
    return summarise(np.array([ras_spacing(read_header(case.images[0])) for case in cases]))


def summarise(spacings: Float[np.ndarray, "n 3"]) -> SpacingStatistics:
    """The statistics of spacings in RAS+ order."""
    return SpacingStatistics(*(tuple(map(float, f(spacings, axis=0))) for f in (np.median, np.min, np.max)))  # type: ignore[arg-type]
