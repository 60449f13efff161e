"""KiTS21, kidney, tumour and cyst, each drawn by three annotators.

::

    kits21/data/case_00000/
      imaging.nii.gz
      aggregated_MAJ_seg.nii.gz   aggregated_OR_seg.nii.gz   aggregated_AND_seg.nii.gz
      segmentations/<region>_instance-N_annotation-M.nii.gz   raw/

The majority of the annotators is the label. Values 1 kidney, 2 tumor, 3 cyst; the challenge's regions overlap (kidney
with masses 1, 2, 3; masses 2, 3; tumor 2) and are told to a task by ``labels``. 300 cases; arrays lie as those of
KiTS19.

CC BY-NC-SA 4.0. https://kits-challenge.org/kits21, https://github.com/neheller/kits21.
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.layouts.known import KnownDefect, cases
from medseqft_kit.tasks.layouts.shared import folders, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "case_00000/aggregated_MAJ_seg.nii.gz (KiTS21)"
LABEL = "aggregated_MAJ_seg.nii.gz"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        "one tumour drawn as a cyst too",
        "https://github.com/neheller/kits21/issues/58",
        "update the clone to 2023-03-20 or later",
        cases("case_", "00205"),
    ),
)


def matches(folder: Path) -> bool:
    """Whether case folders hold aggregated segmentations."""
    return any((case / LABEL).exists() or (case / "segmentations").is_dir() for case in _cases(folder))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened."""
    labelled = [Case(case.name, (case / "imaging.nii.gz",), case / LABEL) for case in _cases(folder)]
    return task_of(CATALOGUE["kits21"], folder, name, labelled)


def _cases(folder: Path) -> list[Path]:
    return list(folders(folder, r"case_\d{5}", 3))
