"""KiTS23, kidney, tumour and cyst.

::

    dataset/case_00000/
      imaging.nii.gz         fetched apart: a fresh clone has labels only
      segmentation.nii.gz    instances/<region>_instance-N_annotation-M.nii.gz

489 cases with the numbers 00000–00299 and 00400–00588; values and regions as in KiTS21, arrays as in KiTS19. Without
the folder ``instances`` and without a number of 300 or more it cannot be told from KiTS19, and is read as that.

CC BY-NC-SA 4.0. https://kits-challenge.org/kits23, https://github.com/neheller/kits23.
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import folders, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "case_00400/segmentation.nii.gz or case_00000/instances (KiTS23)"
CASE = r"case_\d{5}"
FIRST_OF_2023 = 300
"""Numbers from here on are in no earlier edition."""


def _without_image(facts: CaseFacts) -> bool:
    return facts.case.images[0] in facts.missing


KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        "the clone holds labels only",
        "https://github.com/neheller/kits23",
        "fetch the images with its download script, or from "
        "https://huggingface.co/datasets/neheller/KiTS-Challenge-Imaging",
        shows=_without_image,
        severity="error",
    ),
)


def matches(folder: Path) -> bool:
    """Whether there are case folders with instances, or with numbers that only this edition has."""
    return any(
        (case / "instances").is_dir()
        or (int(case.name[5:]) >= FIRST_OF_2023 and (case / "segmentation.nii.gz").exists())
        for case in folders(folder, CASE, 2)
    )


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened; a label without an image is a case that the check names."""
    labelled = [
        Case(case.name, (case / "imaging.nii.gz",), case / "segmentation.nii.gz") for case in folders(folder, CASE, 2)
    ]
    return task_of(CATALOGUE["kits23"], folder, name, labelled)
