"""BTCV, the abdomen of "multi-atlas labelling beyond the cranial vault".

::

    RawData/
      Training/img/img0001.nii.gz   Training/label/label0001.nii.gz
      Testing/img/img0061.nii.gz    images without labels

30 and 20 images. Gallbladder absent in 2 of 30. Preprocessing of MONAI's recipe
(https://github.com/Project-MONAI/research-contributions, SwinUNETR/BTCV). TransUNet's "Synapse" is the same 30 scans
with 8 structures.

Data-use form. Landman et al. 2015 (https://www.synapse.org/#!Synapse:syn3193805).
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import first_with, found, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "RawData/Training/img/img0001.nii.gz (BTCV)"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()
IMAGES, LABELS = r"img(\d{4})\.nii\.gz", r"label(\d{4})\.nii\.gz"


def matches(folder: Path) -> bool:
    """Whether Training/img holds files of that name, in the folder or in RawData."""
    root = _root(folder)
    return root is not None and bool(found(root / "Training" / "img", IMAGES))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened."""
    root = _root(folder) or folder
    images, labels = root / "Training" / "img", root / "Training" / "label"
    cases = (
        Case(f"img{number}", (images / f"img{number}.nii.gz",), labels / f"label{number}.nii.gz")
        for number in found(images, IMAGES).keys() | found(labels, LABELS).keys()
    )
    unlabelled = (Case(f"img{number}", (path,)) for number, path in found(root / "Testing" / "img", IMAGES).items())
    return task_of(CATALOGUE["btcv"], folder, name, cases, unlabelled)


def _root(folder: Path) -> Path | None:
    return first_with(folder, "Training/img", "RawData", "Abdomen/RawData")
