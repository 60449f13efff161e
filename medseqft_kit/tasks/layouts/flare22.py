"""FLARE22, thirteen abdominal organs with few labels and many images.

::

    Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz   …/labels/FLARE22_Tr_0001.nii.gz
    Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz         images without labels
    Tuning/images/FLARETs_0001_0000.nii.gz                              Tuning/labels/FLARETs_0001.nii.gz
    Testing/FLARETs_0001_0000.nii.gz                                    images without labels

Names repeat between Tuning and Testing, so those cases are called after their folder. Older pages write
``FLARE_LabeledCase50``. The order of values differs from AMOS and BTCV; the kidneys are 2 and 13.

For research, by the rules of the challenge. https://flare22.grand-challenge.org/Dataset/,
https://zenodo.org/records/7860267.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import folders, found, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "images/FLARE22_Tr_0001_0000.nii.gz (FLARE22)"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()
IMAGES = r"(FLARE22_Tr_\d{4}|FLARETs_\d{4}|Case_\d{5})_0000\.nii\.gz"
LABELS = r"(FLARE22_Tr_\d{4}|FLARETs_\d{4})\.nii\.gz"


def matches(folder: Path) -> bool:
    """Whether the labelled images are somewhere below."""
    return any(case.startswith("FLARE22_Tr_") for part in _parts(folder) for case in found(part / "images", IMAGES))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened."""
    cases, unlabelled = [], []
    for part in _parts(folder):
        images, labels = part / "images", part / "labels"
        for case in found(images, IMAGES).keys() | found(labels, LABELS).keys():
            cases.append(Case(_id(part, case), (images / f"{case}_0000.nii.gz",), labels / f"{case}.nii.gz"))
        unlabelled += [Case(_id(part, case), (path,)) for case, path in found(part, IMAGES).items()]
    return task_of(CATALOGUE["flare22"], folder, name, cases, unlabelled)


def _parts(folder: Path) -> Iterator[Path]:
    yield folder
    for part in folders(folder, "Training|Tuning|Testing|FLARE(22)?_.*", 1):
        yield part
        yield from folders(part, "FLARE(22)?_.*", 1)


def _id(part: Path, case: str) -> str:
    return f"{part.name}_{case}" if case.startswith("FLARETs_") else case
