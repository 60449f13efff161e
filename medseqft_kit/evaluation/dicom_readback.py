"""A DICOM SEG read back, by pydicom and by hand, and compared with the prediction it was written from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from medseqft_kit.errors import DataError, GeometryMismatch
from medseqft_kit.tasks.dicom.stack import LPS_TO_RAS, Stack

if TYPE_CHECKING:
    from pydicom import Dataset

EXACT = 1e-2
"""Voxels by which a position that was read back may miss its slice; sixteen characters of text hold far more."""


def verify(written: Path, path: Path, classes: UInt8[np.ndarray, "x y z"], stack: Stack) -> None:
    """Make sure that a file says what was predicted, where it was predicted.

    Parameters
    ----------
    written
        The file under its temporary name.
    path
        What it is going to be called, for messages.
    classes
        The prediction: segment numbers, 0 elsewhere.
    stack
        The slices of the series it was predicted from.

    Raises
    ------
    GeometryMismatch
        If a frame's corners do not lie on its slice's.
    DataError
        If a voxel differs.
    """
    import pydicom

    found = _read_back(pydicom.dcmread(written), path, stack)
    wrong = int((found != classes).sum())
    if wrong:
        raise DataError(
            f"{path} was not written: read back, it is not the prediction.",
            found=f"{wrong} voxels that differ",
            expected="none",
            next_step="keep the NIfTI file, and report this",
        )


def _read_back(seg: Dataset, path: Path, stack: Stack) -> UInt8[np.ndarray, "x y z"]:
    """Segment numbers on the stack's grid, each frame put where its own position says."""
    found = np.zeros(stack.shape, np.uint8)
    to_voxel = np.linalg.inv(LPS_TO_RAS @ stack.affine)
    shared = seg.SharedFunctionalGroupsSequence[0]
    for number, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        orientation = (group.get("PlaneOrientationSequence") or shared.PlaneOrientationSequence)[0]
        spacing = (group.get("PixelMeasuresSequence") or shared.PixelMeasuresSequence)[0].PixelSpacing
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, np.float64)
        along, down = np.array(orientation.ImageOrientationPatient, np.float64).reshape(2, 3)
        last = origin + along * spacing[1] * (seg.Columns - 1) + down * spacing[0] * (seg.Rows - 1)
        first, opposite = ((to_voxel @ np.append(corner, 1.0))[:3] for corner in (origin, last))
        index = round(float(first[2]))
        wanted = np.array([[0, 0, index], [*(length - 1 for length in stack.shape[:2]), index]])
        if not 0 <= index < stack.shape[2] or np.abs([first, opposite] - wanted).max() > EXACT:
            raise GeometryMismatch(
                f"{path} was not written: read back, a frame lies elsewhere than its slice.",
                found=f"corners at voxels {first.round(3).tolist()} and {opposite.round(3).tolist()}",
                expected=f"{wanted[0].tolist()} and {wanted[1].tolist()}",
                next_step="keep the NIfTI file, and report this",
            )
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[..., index][_frame(seg, number).T > 0] = segment
    return found


def _frame(seg: Dataset, number: int) -> UInt8[np.ndarray, "rows columns"]:
    """One frame of packed bits, the first pixel in the lowest (DICOM PS3.5, 8.2); frames need not begin with a byte.

    Unpacked all at once, as pydicom does it, the frames of a hundred structures would take gigabytes.
    """
    size = seg.Rows * seg.Columns
    first = number * size
    packed = np.frombuffer(seg.PixelData, np.uint8)[first // 8 : -(-(first + size) // 8)]
    return np.unpackbits(packed, bitorder="little")[first % 8 :][:size].reshape(seg.Rows, seg.Columns)
