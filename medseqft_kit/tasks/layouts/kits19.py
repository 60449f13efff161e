"""KiTS19, kidney and tumour.

::

    data/case_00000 … case_00209/{imaging.nii.gz, segmentation.nii.gz}
    data/case_00210 … case_00299/imaging.nii.gz       images without labels
    data/kits.json

Values 1 kidney, 2 tumor. Arrays are (slices, rows, columns) with a diagonal affine, so that the axes' anatomical
names are wrong (https://github.com/neheller/kits19/issues/9): a set to be trained together with others should be
KiTS23, reoriented. Window of Isensee & Maier-Hein 2019 (arXiv 1908.02182).

CC BY-NC-SA 4.0. Heller et al. 2021 (doi 10.1016/j.media.2020.101821), https://github.com/neheller/kits19.
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.layouts import kits21, kits23
from medseqft_kit.tasks.layouts.known import KnownDefect, cases
from medseqft_kit.tasks.layouts.shared import folders, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "case_00000/imaging.nii.gz (KiTS19)"
LABELLED = 210
"""Cases with smaller numbers have a segmentation."""


def _wide(facts: CaseFacts) -> bool:
    return any(796 in volume.header.grid for volume in facts.images)


KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        "second contrast phase appended without labels",
        "https://github.com/neheller/kits19/issues/6",
        "cut the image and the label behind the labelled phase, or leave the case out",
        cases("case_", "00015 00025 00061 00117"),
    ),
    KnownDefect(
        "perhaps a second contrast phase without labels",
        "https://github.com/neheller/kits19/issues/6",
        "look at the slices behind the labelled ones",
        cases("case_", "00037"),
    ),
    KnownDefect(
        "label error",
        "https://github.com/neheller/kits19/issues/21",
        "take the case from KiTS21 or KiTS23, or leave it out",
        cases("case_", "00015"),
    ),
    KnownDefect(
        "512 × 796 pixels where all others have 512 × 512",
        "https://github.com/neheller/kits19/issues/6",
        "nothing, unless a tool insists on equal sizes",
        cases("case_", "00160"),
        shows=_wide,
    ),
)


def matches(folder: Path) -> bool:
    """Whether there are case folders, and nothing in them is of a later edition."""
    later = kits21.matches(folder) or kits23.matches(folder)
    return not later and any((case / "imaging.nii.gz").exists() for case in folders(folder, kits23.CASE, 2))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened."""
    labelled, unlabelled = [], []
    for case in folders(folder, kits23.CASE, 2):
        image, label = case / "imaging.nii.gz", case / "segmentation.nii.gz"
        if label.exists() or int(case.name[5:]) < LABELLED:
            labelled.append(Case(case.name, (image,), label))
        else:
            unlabelled.append(Case(case.name, (image,)))
    return task_of(CATALOGUE["kits19"], folder, name, labelled, unlabelled)
