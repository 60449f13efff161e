"""One DICOM header as slices: where each image plane lies, how large it is, and how stored values become intensities.

Two kinds of image are understood: one file for each slice, and enhanced multi-frame files (CT, MR, PET), whose
functional groups place each frame. Sources: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16.2 (functional groups),
C.11.1 (rescaling), https://dicom.nema.org/medical/dicom/current/output/html/part03.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseqft_kit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pydicom import Dataset

MAGIC = b"DICM"
PREAMBLE = 128
"""Bytes before the magic word (DICOM PS3.10, 7.1)."""
TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "Modality",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
"""All that is parsed of a header; the rest is skipped."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One image plane in DICOM's patient coordinates (mm, LPS+).

    Parameters
    ----------
    frame
        Number of the frame in an enhanced multi-frame file, from 0; None where the file is the slice.
    orientation
        (2, 3): unit vectors along a row (growing column) and along a column (growing row).
    position
        (3,): centre of the first pixel, mm.
    spacing
        Distance of rows and of columns, mm.
    size
        Rows and columns.
    thickness
        Spacing between slices or slice thickness as stated, mm; used for a single slice only. None: not stated.
    slope, intercept
        From stored values to intensities; of a multi-frame file only, for others SimpleITK applies them.
    """

    file: Path
    frame: int | None
    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    spacing: tuple[float, float]
    size: tuple[int, int]
    thickness: float | None
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def name(self) -> str:
        """File name, and the frame where there are several."""
        return self.file.name if self.frame is None else f"{self.file.name} frame {self.frame + 1}"


def is_dicom_file(path: Path) -> bool:
    """Whether a file begins as DICOM files do; old files without that beginning are not recognised."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC


def require_extra() -> None:
    """Make sure that pydicom and SimpleITK can be imported.

    Raises
    ------
    ConfigError
        If the extra is not installed.
    """
    try:
        import pydicom  # noqa: F401
        import SimpleITK  # noqa: F401
    except ImportError as problem:
        raise ConfigError(
            "DICOM needs packages that are not installed.",
            found=str(problem),
            expected="the extra [dicom]",
            next_step="pip install 'medseqft-kit[dicom]'",
        ) from problem


def parse(path: Path) -> Dataset:
    """The header of one file, without pixels.

    Raises
    ------
    DataError
        If it is damaged.
    """
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
    except (OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError) as problem:
        raise DataError(
            f"{path} is a DICOM file that cannot be read.",
            found=str(problem),
            expected="a complete DICOM header",
            next_step="copy or export the file again",
        ) from problem


def slices_of(header: Dataset, path: Path) -> list[Slice]:
    """The planes of one file; none for what is no image in space: reports, structure sets, segmentations, photographs.

    Raises
    ------
    DataError
        If the header is cut off, it holds colour images, or an enhanced file does not place each of its frames.
    """
    kind = header.file_meta.get("MediaStorageSOPClassUID")
    if "Rows" not in header and (kind is None or "Image Storage" in kind.name):
        raise _unusable(path, "a header that ends too early", "a complete image")
    if header.get("Modality") == "SEG" or "Rows" not in header:
        return []
    enhanced = "PerFrameFunctionalGroupsSequence" in header
    if not enhanced and ("ImagePositionPatient" not in header or int(header.get("NumberOfFrames") or 1) > 1):
        return []
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise _unusable(path, f"{header.SamplesPerPixel} samples per pixel (a colour image)", "one sample per pixel")
    try:
        return list(_frames(header, path)) if enhanced else [_plane(path, header, header, header, header)]
    except (AttributeError, TypeError, ValueError, IndexError) as problem:
        raise _unusable(path, str(problem), "orientation, position and pixel spacing of each slice") from problem


def _frames(header: Dataset, path: Path) -> Iterator[Slice]:
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    for number, own in enumerate(header.PerFrameFunctionalGroupsSequence):
        measures, orientation, position, rescale = (
            (own.get(group) or shared.get(group) or [{}])[0]
            for group in (
                "PixelMeasuresSequence",
                "PlaneOrientationSequence",
                "PlanePositionSequence",
                "PixelValueTransformationSequence",
            )
        )
        plane = _plane(path, header, measures, orientation, position, number)
        slope, intercept = rescale.get("RescaleSlope"), rescale.get("RescaleIntercept")
        yield replace(plane, slope=1.0 if slope is None else float(slope), intercept=float(intercept or 0))


def _plane(path: Path, size: Any, measures: Any, orientation: Any, position: Any, frame: int | None = None) -> Slice:
    cosines = np.array(orientation.ImageOrientationPatient, np.float64).reshape(2, 3)
    rows, columns = (float(distance) for distance in measures.PixelSpacing)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3) or not min(rows, columns) > 0:
        raise ValueError(f"orientation {cosines.ravel().tolist()}, pixel spacing {[rows, columns]}")
    stated = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness")
    return Slice(
        path,
        frame,
        cosines / np.linalg.norm(cosines, axis=1, keepdims=True),
        np.array(position.ImagePositionPatient, np.float64).reshape(3),
        (rows, columns),
        (int(size.Rows), int(size.Columns)),
        abs(float(stated)) if stated else None,
    )


def _unusable(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        f"{path} cannot be used as an image in space.",
        found=found,
        expected=expected,
        next_step="export the series again, or take the file out of the folder",
    )
