"""Labels in, whatever holds them: a map of values, a mask for each structure, or pictures beside a DICOM series.

Nothing is converted on disk: what a data set spreads over files becomes a map of its values when it is read.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, UnidentifiedImageError

from medseqft_kit.errors import DataError, GeometryMismatch
from medseqft_kit.tasks import nifti
from medseqft_kit.tasks.dicom.read import series_header
from medseqft_kit.tasks.dicom.series import series_at
from medseqft_kit.tasks.headers import HeaderFacts
from medseqft_kit.tasks.types import IGNORE, Case, Label, Masks, Slices, Task


class TrueClasses(NamedTuple):
    """The label of a case as a task sees it.

    Parameters
    ----------
    classes
        (X, Y, Z) uint8 class indices; 255 marks voxels that nothing counts.
    unknown
        Foreground classes that the label was not drawn for: where it says background, they may be.
    """

    classes: UInt8[np.ndarray, "x y z"]
    unknown: tuple[int, ...]


def read_classes(task: Task, case: Case) -> TrueClasses:
    """The label of a case under the task's rule.

    Raises
    ------
    DataError
        If the case has no label or it cannot be read.
    """
    if case.label is None:
        raise DataError(f"{task.name}, case {case.id} has no label.", expected="a labelled case")
    classes = task.to_classes(read_label(case.label)[0])
    unknown = task.unannotated(case, np.flatnonzero(np.bincount(classes.ravel())).tolist())
    if unknown:
        classes[np.isin(classes, unknown)] = IGNORE  # parts of a structure of which the rest was not drawn
    return TrueClasses(classes, unknown)


def label_files(label: Label) -> tuple[Path, ...]:
    """The files that hold a label."""
    if isinstance(label, Masks):
        return tuple(path for path, _ in label.files)
    return _pictures(label) if isinstance(label, Slices) else (label,)


def read_label(label: Label) -> tuple[Integer[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]]:
    """File values (X, Y, Z) and the affine (float64, mm, RAS+).

    Raises
    ------
    DataError
        If a file cannot be read, is not 3-D, or holds values that are no integers; if pictures and slices do not pair.
    GeometryMismatch
        If masks of one label differ in shape.
    """
    if isinstance(label, Masks):
        return _merged(label)
    if isinstance(label, Slices):
        values, header = read_slices(label)
        return values, header.affine
    return nifti.read_label(label)


def _merged(label: Masks) -> tuple[Integer[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]]:
    if not label.files:
        raise DataError("a label has no mask at all.", expected="a file for each structure")
    (first, _), *_ = label.files
    whole = np.min_scalar_type(max(value for _, value in label.files))
    values = np.zeros(nifti.read_header(first).shape, whole)
    for path, value in label.files:
        mask, affine = nifti.read_label(path)
        if mask.shape != values.shape:
            raise GeometryMismatch(
                f"{path} lies on another grid than the other masks of its case.",
                found=str(mask.shape),
                expected=f"{values.shape}, as {first.name}",
                next_step="download the case again, or resample with nearest neighbours",
            )
        values[mask != 0] = value
    return values, affine


def read_slices(label: Slices) -> tuple[UInt8[np.ndarray, "x y z"], HeaderFacts]:
    """Pictures as a volume on the grid of their series, greys replaced by file values; other greys stay as they are.

    Raises
    ------
    DataError
        If there are not as many pictures as slices, or one cannot be read or has another size.
    """
    series, pictures = series_at(label.series), _pictures(label)
    files = sorted(series.files, key=_numbers)
    if len(pictures) != len(files):
        raise DataError(
            f"{label.folder} and {label.series} do not belong together.",
            found=f"{len(pictures)} pictures",
            expected=f"{len(files)}, one for each slice",
            next_step="download the case again",
        )
    of_slice = dict(zip(files, pictures, strict=True))
    stack = series.stack  # in the order of positions, while the names' order pairs: some series are stored backwards
    greys = np.stack([_picture(of_slice[piece.file], piece.size) for piece in stack.slices], axis=-1)
    values = greys.copy()
    for lowest, highest, value in label.greys:
        values[(greys >= lowest) & (greys <= highest)] = value
    return values, replace(series_header(label.series), path=label.folder)


def _picture(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "x y"]:
    try:
        with Image.open(path) as picture:
            greys = np.asarray(picture.convert("L"), np.uint8)  # a black-and-white picture becomes 0 and 255
    except (OSError, UnidentifiedImageError) as problem:
        raise DataError(f"{path} cannot be read.", found=str(problem), next_step="download the case again") from problem
    if greys.shape != size:
        raise DataError(f"{path} does not fit its slice.", found=f"{greys.shape} pixels", expected=str(size))
    return greys.T


def _pictures(label: Slices) -> tuple[Path, ...]:
    return tuple(sorted((path for path in label.folder.glob("*.png") if path.name[0] != "."), key=_numbers))


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path.stem)]
