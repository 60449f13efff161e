"""Images in, whatever holds them: a NIfTI file, or a DICOM series (its folder, or one of its files).

Labels and predictions are NIfTI: see :mod:`~medseqft_kit.tasks.nifti`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from medseqft_kit.tasks import nifti
from medseqft_kit.tasks.dicom.read import is_dicom, read_series, series_header
from medseqft_kit.tasks.headers import HeaderFacts


def read_header(path: Path) -> HeaderFacts:
    """Shape and geometry; no voxel is read. Raises what the reader of the format raises, a DataError for bad data."""
    return series_header(path) if is_dicom(path) else nifti.read_header(path)


def read_values(path: Path, dtype: Any = None) -> tuple[NDArray[Any], HeaderFacts]:
    """Voxels and header; `dtype` as in :func:`~medseqft_kit.tasks.nifti.read_values`, float32 for DICOM."""
    return read_series(path) if is_dicom(path) else nifti.read_values(path, dtype)


def read_image(path: Path) -> tuple[Float[np.ndarray, "x y z *c"], Float[np.ndarray, "4 4"]]:
    """An image: float32 (X, Y, Z), or (X, Y, Z, C) with several channels, and its affine (float64, mm, RAS+).

    Raises
    ------
    DataError
        If it cannot be read, is neither 3-D nor 4-D, or has no usable geometry.
    ConfigError
        If it is DICOM and the extra ``[dicom]`` is not installed.
    """
    if not is_dicom(path):
        return nifti.read_image(path)
    values, header = read_series(path)
    return values, header.affine
