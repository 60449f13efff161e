"""COVID-19-20, the lesion challenge on lung CT.

::

    COVID-19-20_v2/
      Train/volume-covid19-A-0003_ct.nii.gz        Train/volume-covid19-A-0003_seg.nii.gz
      Validation/volume-covid19-A-0011_ct.nii.gz   images without labels

199 and 50 images, slices of 5 mm, one structure that may be tiny. Preprocessing recommended by MONAI's challenge
baseline (https://github.com/Project-MONAI/tutorials, 3d_segmentation/challenge_baseline). The first archive, without
``_v2``, had wrong segmentations and geometry: nnU-Net's code of the challenge refers to corrected files. Not to be
confused with TCIA's unlabelled ``volume-covid19-A-0706_day011.nii.gz`` and with Zenodo's record 3757476.

Terms of the challenge. Roth et al. 2022 (doi 10.1016/j.media.2022.102605).
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.geometry import same_grid
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import found, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "Train/volume-covid19-A-…_ct.nii.gz (COVID-19-20)"
IMAGES = r"(volume-covid19-A-\d+)_ct\.nii\.gz"
LABELS = r"(volume-covid19-A-\d+)_seg\.nii\.gz"


def _off_grid(facts: CaseFacts) -> bool:
    return bool(facts.images and facts.labels) and not same_grid(facts.images[0].header, facts.labels[0].header)


KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        "pair of the first archive",
        "https://covid-segmentation.grand-challenge.org/COVID-19-20/",
        "take COVID-19-20_v2, in which segmentations and geometry are corrected",
        shows=_off_grid,
        severity="error",
    ),
)


def matches(folder: Path) -> bool:
    """Whether Train holds images of that name."""
    return bool(found(folder / "Train", IMAGES))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened; an image of Train without a label lacks a file."""
    images, labels = found(folder / "Train", IMAGES), found(folder / "Train", LABELS)
    cases = (
        Case(case, (folder / "Train" / f"{case}_ct.nii.gz",), folder / "Train" / f"{case}_seg.nii.gz")
        for case in images.keys() | labels.keys()
    )
    unlabelled = (Case(case, (path,)) for case, path in found(folder / "Validation", IMAGES).items())
    return task_of(CATALOGUE["covid19_20"], folder, name, cases, unlabelled)
