"""What the check needs to know of a case, gathered in one pass over its files; no array outlives it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.headers import HeaderFacts
from medseqft_kit.tasks.images import read_values
from medseqft_kit.tasks.types import Case


@dataclass(frozen=True, eq=False)
class VolumeFacts:
    """One file that could be read.

    Parameters
    ----------
    nan, infinite
        Numbers of such voxels.
    digest
        Hash of an image's shape and voxels as float32: equal for equal images, whatever type or compression stored
        them. Empty for labels, which may well be equal.
    values
        Sorted distinct finite values of a label; None for images.
    """

    header: HeaderFacts
    nan: int
    infinite: int
    digest: str
    values: NDArray[np.number] | None = None


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """A case's files: those that could be read, and those that could not, with the error."""

    case: Case
    images: tuple[VolumeFacts, ...]
    label: VolumeFacts | None
    missing: tuple[Path, ...]
    unreadable: tuple[tuple[Path, DataError], ...]

    @property
    def volumes(self) -> tuple[VolumeFacts, ...]:
        """Images first, then the label."""
        return (*self.images, self.label) if self.label is not None else self.images


def gather(case: Case) -> CaseFacts:
    """Read every file of a case, one at a time."""
    images: list[VolumeFacts] = []
    label: VolumeFacts | None = None
    missing: list[Path] = []
    unreadable: list[tuple[Path, DataError]] = []
    for path in (*case.images, *((case.label,) if case.label is not None else ())):
        if not path.exists():
            missing.append(path)
            continue
        try:
            facts = _volume(path, is_label=path == case.label)
        except DataError as problem:
            unreadable.append((path, problem))
            continue
        if path == case.label:
            label = facts
        else:
            images.append(facts)
    return CaseFacts(case, tuple(images), label, tuple(missing), tuple(unreadable))


def _volume(path: Path, is_label: bool) -> VolumeFacts:
    values, header = read_values(path, None if is_label else np.float32)
    finite = np.isfinite(values) if values.dtype.kind == "f" else None
    nan = int(np.isnan(values).sum()) if finite is not None and not finite.all() else 0
    infinite = int((~finite).sum()) - nan if finite is not None else 0
    distinct = np.unique(values) if is_label else None
    if distinct is not None and distinct.dtype.kind == "f":
        distinct = distinct[np.isfinite(distinct)]
    return VolumeFacts(header, nan, infinite, "" if is_label else _digest(values), distinct)


def _digest(values: NDArray[np.number]) -> str:
    total = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    for plane in np.moveaxis(values, -1, 0):  # slice by slice: no second copy of the whole volume
        total.update(np.ascontiguousarray(plane.T).data)
    return total.hexdigest()
