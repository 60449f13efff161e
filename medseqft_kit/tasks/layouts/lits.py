"""LiTS, the liver tumour segmentation challenge.

::

    Training Batch 1/volume-0.nii … volume-27.nii        segmentation-0.nii …
    Training Batch 2/volume-28.nii … volume-130.nii      segmentation-28.nii …
    test-volume-0.nii …                                  images without labels

Uncompressed; all files may also lie in one folder. Values 1 liver, 2 tumor (in 118 of 131). The same scans are MSD's
Task03_Liver, and 28–44 and 46–48 are 3D-IRCADb-1: never on two sides of a split.

CC BY-NC-ND 4.0 as reported of the portal. Bilic et al. 2023 (doi 10.1016/j.media.2022.102680).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import folders, found, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "segmentation-0.nii beside volume-0.nii (LiTS)"
IMAGES, LABELS, TESTS = (rf"{kind}-(\d+)\.nii(?:\.gz)?" for kind in ("volume", "segmentation", "test-volume"))


def _no_geometry(facts: CaseFacts) -> bool:
    return any(np.array_equal(np.abs(volume.header.affine[:3, :3]), np.eye(3)) for volume in facts.images)


KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        "geometry lost: identity affine, 1 mm",
        "https://github.com/PatrickChrist/LITS-CHALLENGE/issues/14 and "
        "https://github.com/assassint2017/MICCAI-LITS2017/issues/33",
        "take the case from MSD's Task03_Liver, or the spacing from 3D-IRCADb-1 (28–44 are its patients 1–17, 46–48 "
        "its 18–20; of 45 it is unknown)",
        frozenset(f"volume-{number}" for number in range(28, 48)),
        shows=_no_geometry,
        severity="error",
    ),
)


def matches(folder: Path) -> bool:
    """Whether segmentations lie in the folder or one below it."""
    return any(found(part, LABELS) for part in _parts(folder))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened."""
    labelled, unlabelled = [], []
    for part in _parts(folder):
        images, labels = found(part, IMAGES), found(part, LABELS)
        ending = next((path.suffix for path in (*images.values(), *labels.values())), ".nii").replace(".gz", ".nii.gz")
        for number in images.keys() | labels.keys():
            image, label = (
                files.get(number, part / f"{kind}-{number}{ending}")
                for kind, files in (("volume", images), ("segmentation", labels))
            )
            labelled.append(Case(f"volume-{number}", (image,), label))
        unlabelled += [Case(f"test-volume-{number}", (path,)) for number, path in found(part, TESTS).items()]
    return task_of(CATALOGUE["lits"], folder, name, labelled, unlabelled)


def _parts(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folders(folder, ".*", 1)
