r"""ACDC, cine MR of the heart at end-diastole and end-systole.

::

    database/{training,testing}/patient001/
      patient001_frame01.nii.gz   patient001_frame01_gt.nii.gz
      patient001_frame12.nii.gz   patient001_frame12_gt.nii.gz
      patient001_4d.nii.gz        the whole cycle, no image of ours
      Info.cfg

150 patients, two cases of each: the split goes by patient. Values 1 right ventricle, 2 myocardium, 3 left ventricle
(M&Ms exchanges 1 and 3). Slices of 5 to 10 mm: a patch for anisotropic voxels.

CC BY-NC-SA 4.0. Bernard et al. 2018 (doi 10.1109/TMI.2018.2837502), https://www.creatis.insa-lyon.fr/Challenge/acdc/.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.geometry import VOXEL_SIZE_TOLERANCE_MM
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import folders, found, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "patient001/patient001_frame01.nii.gz (ACDC)"
PATIENT = r"patient\d{3}"
IMAGES = r"(patient\d{3}_frame\d{2})\.nii(?:\.gz)?"


def _sform_of_ones(facts: CaseFacts) -> bool:
    return any(
        np.abs(np.subtract(volume.header.spacing, np.abs(volume.header.pixdim))).max() > VOXEL_SIZE_TOLERANCE_MM
        and np.allclose(volume.header.spacing, 1.0, atol=VOXEL_SIZE_TOLERANCE_MM)
        for volume in facts.images
    )


KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        "voxel size lost in the sform, which says 1 mm",
        "https://github.com/MIC-DKFZ/nnUNet/issues/2741 and https://github.com/Amshaker/unetr_plus_plus/issues/5",
        "write image and label again with the qform in both places (nibabel: image.set_sform(image.get_qform(), 1))",
        shows=_sform_of_ones,
        severity="error",
    ),
)


def matches(folder: Path) -> bool:
    """Whether there are patients with frames."""
    return any(found(patient, IMAGES) for patient in folders(folder, PATIENT, 3))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`: a case for each frame. Files are listed, not opened."""
    cases = [
        Case(frame, (path,), path.with_name(path.name.replace(frame, f"{frame}_gt")))
        for patient in folders(folder, PATIENT, 3)
        for frame, path in found(patient, IMAGES).items()
    ]
    return task_of(CATALOGUE["acdc"], folder, name, cases, patients=rf"({PATIENT})_")
