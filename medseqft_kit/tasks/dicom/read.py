"""A series as voxels and geometry, as if it had been converted to NIfTI and read by nibabel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.dicom.series import series_at
from medseqft_kit.tasks.dicom.slices import is_dicom_file
from medseqft_kit.tasks.dicom.stack import Stack
from medseqft_kit.tasks.headers import ENDINGS, HeaderFacts


def is_dicom(path: Path) -> bool:
    """Whether a path is meant as DICOM: a folder, or a file that begins as DICOM files do."""
    return path.is_dir() or (not path.name.endswith(ENDINGS) and is_dicom_file(path))


def series_header(path: Path) -> HeaderFacts:
    """Shape and geometry of the series at `path`, proven to be a volume; no voxel is read.

    Raises
    ------
    ConfigError
        If the extra ``[dicom]`` is not installed.
    DataError
        If `path` does not mean one series, or its slices make no volume.
    """
    return _facts(path, series_at(path).stack)


def read_series(path: Path) -> tuple[Float[np.ndarray, "x y z"], HeaderFacts]:
    """Voxels (columns, rows, slices) with the rescaling of each slice applied (CT: HU), and the geometry.

    Slices are ordered by position, never by name. SimpleITK's GDCM decodes series of single slices, with all its
    codecs; pydicom decodes enhanced multi-frame files.

    Raises
    ------
    ConfigError
        If the extra ``[dicom]`` is not installed.
    DataError
        If `path` does not mean one series, its slices make no volume, or its pixels cannot be decoded.
    """
    stack = series_at(path).stack
    try:
        values = _single_slices(stack) if stack.slices[0].frame is None else _frames(stack)
    except (RuntimeError, ValueError, AttributeError, NotImplementedError) as problem:
        raise DataError(
            f"the pixels of {path} cannot be decoded.",
            found=str(problem).strip().splitlines()[-1],
            expected="complete DICOM files",
            next_step="copy or export the series again, uncompressed if it still fails",
        ) from problem
    return values, _facts(path, stack)


def _single_slices(stack: Stack) -> Float[np.ndarray, "x y z"]:
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(piece.file) for piece in stack.slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    image = reader.Execute()  # kept by name: the view does not keep it alive
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(image).T)


def _frames(stack: Stack) -> Float[np.ndarray, "x y z"]:
    import pydicom

    stored = pydicom.dcmread(stack.slices[0].file).pixel_array.reshape(-1, *stack.slices[0].size)
    values = np.empty(stack.shape, np.float32)
    for number, piece in enumerate(stack.slices):
        values[..., number] = (stored[piece.frame] * piece.slope + piece.intercept).T
    return values


def _facts(path: Path, stack: Stack) -> HeaderFacts:
    x, y, z = (float(size) for size in np.linalg.norm(stack.affine[:3, :3], axis=0))
    return HeaderFacts(path, stack.shape, stack.affine, (x, y, z), sform=stack.affine, qform=None)
