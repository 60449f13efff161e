"""Which series lie in a folder, and which one a path means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.dicom.slices import Slice, is_dicom_file, parse, require_extra, slices_of
from medseqft_kit.tasks.dicom.stack import Stack, stacked

if TYPE_CHECKING:
    from pydicom import Dataset

SHOWN = 12
"""Series listed in a message before it is cut."""


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one series that lie in one folder; whether they make a volume, :attr:`stack` finds out.

    Parameters
    ----------
    number
        Series number; 0 where there is none.
    slices
        In the order of their files' names.
    """

    uid: str
    number: int
    description: str
    modality: str
    slices: tuple[Slice, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Each file once, sorted by name."""
        return tuple(dict.fromkeys(piece.file for piece in self.slices))

    @property
    def title(self) -> str:
        """For people: number, description, modality and number of slices."""
        return f"{self.number} “{self.description or 'no description'}” ({self.modality}, {len(self.slices)} slices)"

    @property
    def stack(self) -> Stack:
        """The slices as a volume.

        Raises
        ------
        DataError
            If they make none; see :func:`~medseqft_kit.tasks.dicom.stack.stacked`.
        """
        return stacked(self.slices, f"{self.title} in {self.files[0].parent}")


def find_series(folder: Path, damaged: list[Path] | None = None) -> tuple[Series, ...]:
    """All image series in a folder and the folders in it; only headers are read. Other files are passed over.

    Sorted by folder, series number and UID. Each enhanced multi-frame file is a series of its own.

    Parameters
    ----------
    damaged
        DICOM files whose header cannot be used are added here and passed over. None: the first ends the search.

    Raises
    ------
    ConfigError
        If the extra ``[dicom]`` is not installed.
    DataError
        If a header is damaged and `damaged` is None, or if one series lies in two folders (copies, or halves that would
        each look whole).
    """
    require_extra()
    series = _grouped((path for path in sorted(folder.rglob("*")) if is_dicom_file(path)), damaged)
    first: dict[str, Series] = {}
    for one in series:
        twin = first.setdefault(one.uid, one)
        if twin.files[0].parent != one.files[0].parent:
            raise DataError(
                f"the DICOM series {one.title} lies in two folders.",
                found=f"{twin.files[0].parent} and {one.files[0].parent}",
                expected="all of its files in one folder, each once",
                next_step="remove the copy, or move the parts into one folder",
            )
    return series


def series_at(path: Path) -> Series:
    """The series that a path means: a folder that holds one, or any file of it in a folder that holds several.

    Raises
    ------
    ConfigError
        If the extra ``[dicom]`` is not installed.
    DataError
        If there is no series, or the folder holds several: they are listed, each with a file that names it.
    """
    require_extra()
    if path.is_dir():
        found = find_series(path)
    else:
        neighbours = sorted(file for file in path.parent.iterdir() if is_dicom_file(file))
        found = tuple(one for one in _grouped(iter(neighbours)) if path in one.files)
    if not found:
        raise DataError(
            f"{path} holds no DICOM images.",
            expected="slices or enhanced multi-frame files, with a position in space",
            next_step="correct the path",
        )
    if len(found) > 1:
        listed = [f"{one.title}: {one.files[0]}" for one in found[:SHOWN]]
        raise DataError(
            f"{path} holds {len(found)} DICOM series.",
            found="\n            ".join(listed + [f"and {len(found) - SHOWN} more"] * (len(found) > SHOWN)),
            expected="one series",
            next_step="name the file of the one that is meant, in place of the folder",
        )
    return found[0]


def _grouped(files: Iterator[Path], damaged: list[Path] | None = None) -> tuple[Series, ...]:
    groups: dict[tuple[Path, int, str, str], tuple[Dataset, list[Slice]]] = {}
    for file in files:
        try:
            header = parse(file)
            slices = slices_of(header, file)
        except DataError:
            if damaged is None:
                raise
            damaged.append(file)
            continue
        if slices:
            alone = str(file) if slices[0].frame is not None else ""
            key = (file.parent, int(header.get("SeriesNumber") or 0), str(header.get("SeriesInstanceUID", "")), alone)
            groups.setdefault(key, (header, []))[1].extend(slices)
    return tuple(
        Series(
            uid,
            number,
            str(header.get("SeriesDescription") or "").strip(),
            str(header.get("Modality") or "unknown modality"),
            tuple(slices),
        )
        for (_, number, uid, _), (header, slices) in sorted(groups.items())
    )
