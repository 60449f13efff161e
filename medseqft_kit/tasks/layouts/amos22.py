"""AMOS22, abdominal organs on CT and MR.

::

    amos22/
      dataset.json
      imagesTr/amos_0001.nii.gz   labelsTr/amos_0001.nii.gz
      imagesVa/amos_0008.nii.gz   labelsVa/amos_0008.nii.gz
      imagesTs/amos_0003.nii.gz   images without labels

200 + 100 CT and 40 + 20 MR with labels; numbers up to 500 are CT, as the readme and nnU-Net's converter say. A task
takes one of the two by ``modality``. The MR labels lack bladder and prostate, which are unknown there. Values as BTCV
to 9, then different; gallbladder absent in 11 of 200. Preprocessing as for BTCV
(https://github.com/MASILab/3DUX-Net).

CC BY-NC-SA (https://openreview.net/forum?id=Vk4-HUnkEak). Ji et al. 2022 (arXiv 2206.08023),
https://zenodo.org/records/7262581.
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.tasks.catalogue import AMOS, CATALOGUE
from medseqft_kit.tasks.dataset_json import FILE, load_dataset_json
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import found, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "imagesTr/amos_0001.nii.gz (AMOS22)"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()
NAME = r"(amos_\d{4})\.nii\.gz"
LAST_CT = 500
DRAWN_ON_MR = frozenset(AMOS.values()) - {AMOS["bladder"], AMOS["prostate_or_uterus"]}


def matches(folder: Path) -> bool:
    """Whether imagesTr holds files of that name, and dataset.json is not nnU-Net's."""
    described = (folder / FILE).is_file() and "channel_names" in load_dataset_json(folder)
    return bool(found(folder / "imagesTr", NAME)) and not described


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened."""
    labelled, unlabelled = [], []
    for part in ("Tr", "Va"):
        images, labels = found(folder / f"images{part}", NAME), found(folder / f"labels{part}", NAME)
        for case in images.keys() | labels.keys():
            image, label = (folder / f"{kind}{part}" / f"{case}.nii.gz" for kind in ("images", "labels"))
            if labels:
                labelled.append(_case(case, image, label))
            else:  # the earlier archive has no labels of the validation images
                unlabelled.append(_case(case, image, None))
    unlabelled += [_case(case, image, None) for case, image in found(folder / "imagesTs", NAME).items()]
    return task_of(CATALOGUE["amos22_ct"], folder, name, labelled, unlabelled)


def _case(case: str, image: Path, label: Path | None) -> Case:
    if int(case.removeprefix("amos_")) <= LAST_CT:
        return Case(case, (image,), label, channels=("CT",))
    return Case(case, (image,), label, channels=("MR",), annotated=DRAWN_ON_MR if label is not None else None)
