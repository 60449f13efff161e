"""What the check needs to know of a case, gathered in one pass over its files; no array outlives it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.headers import HeaderFacts
from medseqft_kit.tasks.images import read_values
from medseqft_kit.tasks.labels import read_slices
from medseqft_kit.tasks.types import Case, Label, Masks, Slices


@dataclass(frozen=True, eq=False)
class VolumeFacts:
    """One file that could be read.

    Parameters
    ----------
    nan, infinite
        Numbers of such voxels.
    digest
        Hash of shape and voxels as float32: equal for equal volumes, whatever type or compression stored them.
    lowest, highest
        Of the finite voxels; NaN where there are none.
    values
        Sorted distinct finite values of a label; None for images.
    means
        File value that the ones of a mask stand for; None for images and label maps.
    """

    header: HeaderFacts
    nan: int
    infinite: int
    digest: str
    lowest: float
    highest: float
    values: NDArray[np.number] | None = None
    means: int | None = None


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """A case's files: those that could be read (labels: one map, or masks), and those that could not."""

    case: Case
    images: tuple[VolumeFacts, ...]
    labels: tuple[VolumeFacts, ...]
    missing: tuple[Path, ...]
    unreadable: tuple[tuple[Path, DataError], ...]

    @property
    def volumes(self) -> tuple[VolumeFacts, ...]:
        """Images first, then labels."""
        return (*self.images, *self.labels)


def gather(case: Case) -> CaseFacts:
    """Read every file of a case, one at a time."""
    images: list[VolumeFacts] = []
    labels: list[VolumeFacts] = []
    missing: list[Path] = []
    unreadable: list[tuple[Path, DataError]] = []
    for path, read in (*((path, _image) for path in case.images), *_readers(case.label)):
        if not path.exists():
            missing.append(path)
            continue
        try:
            facts = read(path)
        except DataError as problem:
            unreadable.append((path, problem))
            continue
        (images if facts.values is None else labels).append(facts)
    return CaseFacts(case, tuple(images), tuple(labels), tuple(missing), tuple(unreadable))


def _readers(label: Label | None) -> list[tuple[Path, Callable[[Path], VolumeFacts]]]:
    """What has to be there for a label, and how each of it is read."""
    if isinstance(label, Masks):
        return [(path, partial(_label, means=value)) for path, value in label.files]
    if isinstance(label, Slices):
        return [(label.folder, lambda _: _of_label(*read_slices(label)))]
    return [] if label is None else [(label, _label)]


def _image(path: Path) -> VolumeFacts:
    return _facts(*read_values(path, np.float32))


def _label(path: Path, means: int | None = None) -> VolumeFacts:
    return _of_label(*read_values(path), means)


def _of_label(values: NDArray[np.number], header: HeaderFacts, means: int | None = None) -> VolumeFacts:
    distinct = np.unique(values)
    if distinct.dtype.kind == "f":
        distinct = distinct[np.isfinite(distinct)]
    return replace(_facts(values, header), values=distinct, means=means)


def _facts(values: NDArray[np.number], header: HeaderFacts) -> VolumeFacts:
    finite = np.isfinite(values) if values.dtype.kind == "f" else None
    sound = finite is None or bool(finite.all())
    nan = 0 if sound else int(np.isnan(values).sum())
    infinite = int((~finite).sum()) - nan if finite is not None else 0
    counted = values if sound else values[finite]
    lowest, highest = (float(counted.min()), float(counted.max())) if counted.size else (np.nan, np.nan)
    return VolumeFacts(header, nan, infinite, _digest(values), lowest, highest)


def _digest(values: NDArray[np.number]) -> str:
    total = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    for plane in np.moveaxis(values, -1, 0):  # slice by slice: no second copy of the whole volume
        total.update(np.ascontiguousarray(plane.T, dtype=np.float32).data)
    return total.hexdigest()
