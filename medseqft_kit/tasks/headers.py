"""What a NIfTI header claims, and whether the file can hold it; decided before any memory is taken."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medseqft_kit.errors import DataError

DEFLATE_LIMIT = 1032
"""zlib cannot pack better than this (zlib.net, "maximum compression factor"), so a header that claims more lies."""
HEADER_BYTES = 540
"""Length of a NIfTI-2 header, the longer of the two."""
ENDINGS = (".nii.gz", ".nii")

Affine = NDArray[np.float64]
_QUIET = logging.Logger("nifti-header", level=logging.CRITICAL)
_UNREADABLE = (OSError, EOFError, zlib.error, HeaderDataError, ValueError, OverflowError)


@dataclass(frozen=True, eq=False)
class HeaderFacts:
    """An image's header as the kit sees it; geometry in float64.

    Parameters
    ----------
    shape
        Stored shape without trailing axes of length 1 beyond the third: (8, 9, 10, 1) is (8, 9, 10).
    affine
        Voxel index to mm, RAS+ (4, 4): the sform where its code is set, else the qform, else made of `pixdim`. A DICOM
        series has the affine of its slices as its sform.
    pixdim
        Voxel size along the three axes as stored, mm; may be zero, negative or in disagreement with `affine`.
    sform, qform
        The two transforms (4, 4) where their codes are set; entries are NaN where one cannot be decoded.
    """

    path: Path
    shape: tuple[int, ...]
    affine: Affine
    pixdim: tuple[float, float, float]
    sform: Affine | None
    qform: Affine | None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Voxels along the three spatial axes; 1 along those that the file lacks."""
        x, y, z = (*self.shape, 1, 1)[:3]
        return x, y, z

    @property
    def channels(self) -> int:
        """Length of the fourth axis; 1 for a 3-D image."""
        return int(np.prod(self.shape[3:], dtype=np.int64))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along the array's axes, mm, from the affine."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True, eq=False)
class NiftiFacts(HeaderFacts):
    """The same of a NIfTI file, with nibabel's header, from which its voxels are read."""

    nifti: nib.Nifti1Header


def is_nifti_name(path: Path) -> bool:
    """Whether a file is named like NIfTI and is no hidden or AppleDouble (``._*``) file."""
    return path.name.endswith(ENDINGS) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """File name without its NIfTI or DICOM ending; a folder's own name, also where it is called ``.``.

    >>> stem(Path("imagesTr/liver_0.nii.gz")), stem(Path("scan/IM0001.dcm"))
    ('liver_0', 'IM0001')
    """
    name = path.name if path.name.strip(".") else path.resolve().name
    return name.removesuffix(".dcm") if name.endswith(".dcm") else name.removesuffix(".gz").removesuffix(".nii")


@contextmanager
def nifti_stream(path: Path) -> Iterator[BufferedIOBase]:
    """Yield the decompressed bytes of a file; whatever is wrong with it arrives as a DataError naming it."""
    if not path.is_file():
        raise DataError(f"{path} is not there.", found="no such file", next_step="restore the file")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield stream
    except _UNREADABLE as problem:
        raise DataError(
            f"{path} cannot be read.",
            found=f"{problem} ({path.stat().st_size} bytes on disk)",
            expected="a complete NIfTI file" + (", compressed with gzip" if path.suffix == ".gz" else ""),
            next_step="copy or download the file again",
        ) from problem
    except MemoryError as problem:
        raise DataError(f"{path} needs more memory than there is.", found=str(problem)) from problem


def parse_header(stream: BufferedIOBase, path: Path) -> NiftiFacts:
    """Read and judge the header at the start of `stream`.

    Raises
    ------
    DataError
        If it is no single-file NIfTI header, or claims more voxels than the file can hold.
    """
    block = stream.read(HEADER_BYTES)
    for kind in (nib.Nifti2Header, nib.Nifti1Header):
        if kind.may_contain_header(block) and len(block) >= kind.sizeof_hdr:
            header = kind(block[: kind.sizeof_hdr], check=False)
            break
    else:
        raise ValueError("no NIfTI header at the start of the file")
    x, y, z = (float(size) for size in header["pixdim"][1:4])  # before nibabel repairs them
    header.check_fix(logger=_QUIET)
    shape = tuple(int(length) for length in header.get_data_shape())
    _require_possible(header, shape, path)
    return NiftiFacts(
        path,
        _without_trailing_ones(shape),
        np.asarray(header.get_best_affine(), dtype=np.float64),
        (x, y, z),
        _transform(header, "sform"),
        _transform(header, "qform"),
        header,
    )


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _transform(header: nib.Nifti1Header, name: str) -> Affine | None:
    if int(header[f"{name}_code"]) == 0:
        return None
    try:
        return np.asarray(getattr(header, f"get_{name}")(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)


def _require_possible(header: nib.Nifti1Header, shape: tuple[int, ...], path: Path) -> None:
    claimed = int(header.get_data_offset())
    voxels = 1  # Python's integers: the product of 16-bit lengths overflows int64
    for length in shape:
        voxels *= length
    claimed += voxels * header.get_data_dtype().itemsize
    on_disk = path.stat().st_size
    possible = on_disk * (DEFLATE_LIMIT if path.suffix == ".gz" else 1)
    if not shape or min(shape) <= 0 or claimed > possible:
        raise DataError(
            f"{path} is truncated or its header is wrong: the file cannot hold what the header claims.",
            found=f"shape {shape}, {claimed} bytes claimed, {on_disk} bytes on disk",
            expected=f"positive lengths and at most {possible} bytes",
            next_step="copy or download the file again",
        )
