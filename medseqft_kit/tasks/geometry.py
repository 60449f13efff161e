"""Grids compared where it matters: in mm, at the corners of the image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from jaxtyping import Float

from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.findings import Finding, finding
from medseqft_kit.tasks.headers import HeaderFacts, is_nifti_name
from medseqft_kit.tasks.types import Task

CORNER_TOLERANCE_MM = 1e-2
"""Image and label may differ by this much. Rounding the affine of a 512³ grid to float32 moves a corner by 6e-5 mm,
tools that print six digits by some 1e-3 mm; the finest clinical voxels are 0.2 mm."""
TRANSFORM_TOLERANCE_VOXELS = 1.0
"""sform and qform may differ by this many voxels (the smallest edge). The qform's float32 quaternion moves a corner of
a 512³ grid by up to 0.8 mm where the rotation is near 180°, as in every slightly tilted LPS image."""
VOXEL_SIZE_TOLERANCE_MM = 1e-3
"""Between the affine's voxel size and `pixdim`; readers that trust one or the other disagree beyond it."""
SHEAR_TOLERANCE = 1e-4
"""Largest cosine between two axes. ITK refuses directions that are not orthonormal from here on."""
PLAUSIBLE_HU = (-4096.0, 32767.0)
"""CT values: twelve bits below zero, where scanners pad, and what sixteen bits hold above, where metal lies."""


def corner_distance(first: HeaderFacts, second: Float[np.ndarray, "4 4"]) -> float:
    """Largest distance, mm, between where two affines put the outer corners of the first header's grid."""
    corners = np.array([(*corner, 1.0) for corner in product(*((-0.5, n - 0.5) for n in first.grid))])
    return float(np.linalg.norm(((first.affine - second) @ corners.T)[:3], axis=0).max())


def same_grid(first: HeaderFacts, second: HeaderFacts) -> bool:
    """Whether two volumes have the same shape, and corners within :data:`CORNER_TOLERANCE_MM`."""
    return first.grid == second.grid and corner_distance(first, second.affine) <= CORNER_TOLERANCE_MM


def describe(header: HeaderFacts) -> str:
    """Shape and voxel size as text."""
    return f"{header.shape}, {' × '.join(f'{size:.4g}' for size in header.spacing)} mm"


def spacing_is_positive(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Zero, negative or undefined voxel sizes, in `pixdim` or in the affine."""
    for volume in facts.volumes:
        header = volume.header
        pixdim_fits = all(0 < size < np.inf for size in header.pixdim)
        if not pixdim_fits or not 0 < abs(np.linalg.det(header.affine)) < np.inf:
            yield finding(
                task,
                facts.case.id,
                header.path,
                "zero or negative spacing",
                found=f"pixdim {_row(header.pixdim)}, affine {_row(header.spacing)} mm",
                expected="three positive voxel sizes",
                next_step="write the scanner's voxel size into the header",
            )


def dimensions_fit(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Images with another number of channels than declared; labels that are not 3-D."""
    channels = facts.case.channels or task.channels
    count, files = len(channels), len(facts.case.images)
    wanted = f"{count} channel{'s' * (count > 1)} ({', '.join(channels)})"
    if files not in (1, count):
        yield finding(
            task,
            facts.case.id,
            facts.case.images[0],
            "channel count mismatch",
            found=f"{files} files",
            expected=wanted,
            next_step="add or remove channel files, or correct dataset.json",
        )
    for volume in facts.images:
        header = volume.header
        if len(header.shape) not in (3, 4) or header.channels != (count if files == 1 else 1):
            yield finding(
                task,
                facts.case.id,
                header.path,
                f"{len(header.shape)}-D image, channel count mismatch",
                found=f"shape {header.shape}: {header.channels} channels",
                expected=wanted if files == 1 else "one channel in each file",
                next_step="split the file by its last axis, or declare its channels in dataset.json",
            )
    for label in facts.labels:
        if len(label.header.shape) != 3:
            yield finding(
                task,
                facts.case.id,
                label.header.path,
                f"{len(label.header.shape)}-D label",
                found=f"shape {label.header.shape}",
                expected="3-D",
                next_step="merge the label's channels into one map of values",
            )


def grids_agree(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Label and further channels against the first image: shape, and distance at the corners."""
    if not facts.images:
        return
    first = facts.images[0].header
    for volume in facts.volumes[1:]:
        other = volume.header
        if other.grid != first.grid:
            yield finding(
                task,
                facts.case.id,
                other.path,
                "shape mismatch",
                found=describe(other),
                expected=f"{describe(first)}, as {first.path.name}",
                next_step="resample onto the image's grid (labels with nearest neighbours)",
            )
        distance = corner_distance(first, other.affine)
        if not distance <= CORNER_TOLERANCE_MM:
            yield finding(
                task,
                facts.case.id,
                other.path,
                "affine mismatch",
                found=f"{distance:.4g} mm apart at the image's corners",
                expected=f"at most {CORNER_TOLERANCE_MM:g} mm from {first.path.name}",
                next_step="find out which header is right (overlay both) and copy it to the other file",
            )


def header_agrees_with_itself(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Headers that different software would place differently: warnings. Of several masks the first speaks for all."""
    for volume in (*facts.images, *facts.labels[:1]):
        header = volume.header
        for problem, found, expected in _disagreements(header):
            yield finding(
                task,
                facts.case.id,
                header.path,
                problem,
                found=found,
                expected=expected,
                next_step="decide which is right and write the file again with sform and qform equal",
                severity="warning",
            )


def _disagreements(header: HeaderFacts) -> Iterator[tuple[str, str, str]]:
    if header.sform is None and header.qform is None:
        yield "no orientation in the header", "sform and qform codes 0", "one of the two set"
    if header.sform is not None and header.qform is not None:
        distance, limit = corner_distance(header, header.qform), TRANSFORM_TOLERANCE_VOXELS * min(header.spacing)
        if not distance <= limit:
            yield "sform and qform differ", f"{distance:.4g} mm apart at the corners", f"at most {limit:.4g} mm"
    apart = max(abs(affine - abs(pixdim)) for affine, pixdim in zip(header.spacing, header.pixdim, strict=True))
    if not apart <= VOXEL_SIZE_TOLERANCE_MM:
        found = f"affine {_row(header.spacing)} mm, pixdim {_row(header.pixdim)} mm"
        yield "affine and pixdim differ", found, f"equal within {VOXEL_SIZE_TOLERANCE_MM:g} mm"
    cosine = largest_cosine(header)
    if cosine > SHEAR_TOLERANCE and is_nifti_name(header.path):
        yield "sheared axes", f"cosine {cosine:.4g} between two axes", f"at most {SHEAR_TOLERANCE:g}"


def largest_cosine(header: HeaderFacts) -> float:
    """How far the axes are from right angles: 0 for an orthogonal grid."""
    """Of the angle between any two axes of the array; 0 where an axis has no length."""
    if not min(header.spacing) > 0:
        return 0.0
    directions = header.affine[:3, :3] / np.array(header.spacing)
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def _row(sizes: tuple[float, ...]) -> str:
    return " × ".join(f"{size:.4g}" for size in sizes)
