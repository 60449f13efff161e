"""A folder of DICOM series without labels, as an archive exports them, for pre-training, checking or prediction.

::

    Folder/
      <any folders>/<any name>      the files of one or several series; other files are passed over

Each series is a case with one channel of the modality that it states. Reports, structure sets, segmentations and files
without the DICOM preamble are no images and are passed over. Needs the extra ``[dicom]``. Licence and citation are the
data's own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.dataset_json import FILE, modality, sorted_cases
from medseqft_kit.tasks.dicom.series import Series, find_series
from medseqft_kit.tasks.dicom.slices import is_dicom_file
from medseqft_kit.tasks.headers import is_nifti_name
from medseqft_kit.tasks.layouts import chaos
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "DICOM files in the folder or below it, and no NIfTI (images without labels)"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()


def matches(folder: Path) -> bool:
    """Whether DICOM files lie anywhere in the folder, and nothing that another layout would read."""
    if (folder / FILE).exists() or chaos.matches(folder):
        return False
    found = False
    for path in folder.rglob("*"):
        if is_nifti_name(path):
            return False
        found = found or is_dicom_file(path)
    return found


def read(folder: Path, name: str) -> Task:
    """The series in `folder` as unlabelled cases, named after their folders; only headers are read.

    A folder in which nothing but damaged headers was found is a case too: whoever reads its image is told.

    Raises
    ------
    ConfigError
        If the extra ``[dicom]`` is not installed.
    DataError
        If a series lies in two folders, or there are DICOM files but no images.
    """
    damaged: list[Path] = []
    series = find_series(folder, damaged)
    if not series:
        find_series(folder)  # says which header is damaged, if one is
        raise DataError(f"{folder} holds DICOM files, but no images.", expected="slices with a position in space")
    channels = [(modality(one.modality.replace("PT", "PET")),) for one in series]
    cases = [
        Case(case, (one.files[0],), channels=kind)
        for case, one, kind in zip(_names(folder, series), series, channels, strict=True)
    ]
    whole = {one.files[0].parent for one in series}
    lost = {file.parent: file for file in damaged if file.parent not in whole}
    cases += [Case(_name(folder, parent), (file,), channels=channels[0]) for parent, file in lost.items()]
    _, unlabelled = sorted_cases(folder, (), cases)
    return Task(
        name=name,
        root=folder,
        layout="dicom",
        channels=channels[0],
        structures={},
        declared=frozenset({0}),
        cases=(),
        unlabelled=unlabelled,
    )


def _names(folder: Path, series: tuple[Series, ...]) -> list[str]:
    """The path below `folder`, joined; with the series' number, and its first file, where that is not enough."""
    names = [_name(folder, one.files[0].parent) for one in series]
    for detail in ("series{0.number:03d}", "{0.files[0].stem}"):
        count = Counter(names)
        names = [
            f"{name}_{detail.format(one)}" if count[name] > 1 else name for name, one in zip(names, series, strict=True)
        ]
    return names


def _name(folder: Path, below: Path) -> str:
    return "_".join(below.relative_to(folder).parts) or folder.name
