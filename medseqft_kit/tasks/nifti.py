"""NIfTI in and out, by nibabel alone: one backend for images and labels, so both see the same geometry."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Integer, Shaped
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.runs.atomic import replacing
from medseqft_kit.tasks.headers import ENDINGS, HeaderFacts, nifti_stream, parse_header
from medseqft_kit.tasks.memory import require_memory

CHUNK = 1 << 20


def read_header(path: Path) -> HeaderFacts:
    """What the header says; no voxel is read.

    Raises
    ------
    DataError
        If the file is missing, is not NIfTI, or cannot hold what its header claims.
    """
    with nifti_stream(path) as stream:
        return parse_header(stream, path)


def read_values(path: Path, dtype: Any = None) -> tuple[NDArray[Any], HeaderFacts]:
    """Voxels with the header's scaling applied, and the header; the file is read to its end.

    Parameters
    ----------
    dtype
        Floating type to convert to; None keeps integers as they are stored and promotes scaled ones.

    Raises
    ------
    DataError
        If the file is truncated, corrupt (a wrong checksum included), larger than the free memory, or does not hold
        real numbers.
    """
    with nifti_stream(path) as stream:
        header = parse_header(stream, path)
        if header.nifti.get_data_dtype().kind not in "iuf":
            raise ValueError(f"voxels of type {header.nifti.get_data_dtype()}, which are no real numbers")
        require_memory(
            math.prod(header.shape) * (header.nifti.get_data_dtype().itemsize + np.dtype(dtype or np.float64).itemsize),
            f"{path}, shape {header.shape},",
            "look at the file: it may hold nothing but zeros; else crop it, or use a larger machine",
        )
        proxy = ArrayProxy(stream, header.nifti, mmap=False)
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which `check` reports
            values = np.asarray(proxy, dtype=dtype)
        while stream.read(CHUNK):  # gzip compares its checksum at the end of the stream only
            pass
    return values.reshape(header.shape, order="F"), header


def read_image(path: Path) -> tuple[Float[np.ndarray, "x y z *c"], Float[np.ndarray, "4 4"]]:
    """An image: float32 (X, Y, Z), or (X, Y, Z, C) with several channels, and its affine (float64, mm, RAS+).

    Raises
    ------
    DataError
        If the file cannot be read, is neither 3-D nor 4-D, or has no usable affine.
    """
    values, header = read_values(path, np.float32)
    _require_usable(header, dimensions=(3, 4))
    return values, header.affine


def read_label(path: Path) -> tuple[Integer[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]]:
    """A label map: integer file values (X, Y, Z) and the affine (float64, mm, RAS+).

    Raises
    ------
    DataError
        If the file cannot be read, is not 3-D, has no usable affine, or holds values that are no integers.
    """
    values, header = read_values(path)
    _require_usable(header, dimensions=(3,))
    if values.dtype.kind in "iu":
        return values, header.affine
    wrong = ~np.isfinite(values) | (values != np.round(values))
    if wrong.any():
        raise DataError(
            f"the label {path} holds values that are no integers.",
            found=f"{values[wrong][0]} and {int(wrong.sum()) - 1} more voxels",
            expected="integers",
            next_step="resample labels with nearest neighbours and save them as integers",
        )
    return values.astype(np.int32), header.affine


def _require_usable(header: HeaderFacts, dimensions: tuple[int, ...]) -> None:
    if len(header.shape) not in dimensions:
        raise DataError(
            f"{header.path} has {len(header.shape)} dimensions.",
            found=f"shape {header.shape}",
            expected=" or ".join(f"{n}-D" for n in dimensions),
            next_step="split the file, one volume for each",
        )
    if not abs(np.linalg.det(header.affine)) > 0:  # NaN included
        raise DataError(
            f"{header.path} has an affine that cannot be inverted.",
            found=f"voxel size {header.spacing} mm",
            expected="three positive voxel sizes",
            next_step="repair the header, for instance with the scanner's own spacing",
        )


def write_labels(path: Path, values: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> None:
    """Write a label map in the smallest of uint8, int16, int32; equal input gives equal bytes.

    sform and qform are both set (code 1, scanner), so that ITK and nibabel agree. A qform cannot hold shear: for a
    sheared affine the sform is exact and the qform the nearest rotation.

    Parameters
    ----------
    path
        Ends with ``.nii.gz`` or ``.nii``.
    values
        Integers or booleans.
    affine
        Voxel index to mm, RAS+.

    Raises
    ------
    ConfigError
        If `values` are of another type or the name has another ending.
    """
    if values.dtype.kind not in "biu":
        raise ConfigError(f"{path} takes labels only.", found=str(values.dtype), expected="an integer type")
    fits = (kind for kind in (np.uint8, np.int16, np.int32) if _holds(kind, values))
    write_volume(path, values.astype(next(fits, np.int32)), affine)


def _holds(kind: type[np.integer[Any]], values: NDArray[Any]) -> bool:
    limits = np.iinfo(kind)
    return values.size == 0 or bool(limits.min <= values.min() and values.max() <= limits.max)


def write_volume(path: Path, values: NDArray[Any], affine: Float[np.ndarray, "4 4"]) -> None:
    """Write voxels as they are, atomically, with sform and qform; equal input gives equal bytes."""
    if not path.name.endswith(ENDINGS):
        raise ConfigError(f"{path} is not named like NIfTI.", expected=f"a name ending in {' or '.join(ENDINGS)}")
    image = nib.Nifti1Image(values, affine)
    image.header.set_sform(affine, code=1)
    image.header.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(file)
