"""FLARE23, thirteen abdominal organs and tumours, partly labelled.

::

    imagesTr2200/FLARE23_0001_0000.nii.gz
    labelsTr2200/FLARE23_0001.nii.gz      labelsTr2200/20230507-fix/FLARE23_0042.nii.gz   corrected, takes precedence
    unlabeledTr1800/FLARE23_2201_0000.nii.gz   (or unlabelTr1800, names without _0000)    images without labels
    validation/…                                                                          images without labels

A label holds 13 organs, or a tumour, or 5 organs and a tumour; what does not occur in it was not drawn and is
unknown. The annotation of tumours is not exhaustive either. Very odd shapes occur (79 rows).

For research, by the rules of the challenge; sources keep their own licences. Ma et al. 2024 (arXiv 2408.12534),
https://codalab.lisn.upsaclay.fr/competitions/12239.
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import folders, found, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "imagesTr2200/FLARE23_0001_0000.nii.gz (FLARE23)"
IMAGES, LABELS = r"(FLARE23_\d{4})_0000\.nii\.gz", r"(FLARE23_\d{4})\.nii\.gz"
ANY_IMAGE = r"(.+?)(?:_0000)?\.nii\.gz"
FIX = "20230507-fix"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()


def matches(folder: Path) -> bool:
    """Whether imagesTr2200 holds files of that name."""
    return bool(found(folder / "imagesTr2200", IMAGES))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened."""
    images, labels = folder / "imagesTr2200", folder / "labelsTr2200"
    corrected = found(labels / FIX, LABELS)
    cases = [
        Case(
            case,
            (images / f"{case}_0000.nii.gz",),
            corrected.get(case, labels / f"{case}.nii.gz"),
            annotated="present",
        )
        for case in found(images, IMAGES).keys() | found(labels, LABELS).keys()
    ]
    unlabelled = [
        Case(case, (path,))
        for part in folders(folder, r"unlabel(ed)?Tr\d+|validation", 1)
        for case, path in found(part, ANY_IMAGE).items()
    ]
    return task_of(CATALOGUE["flare23"], folder, name, cases, unlabelled)
