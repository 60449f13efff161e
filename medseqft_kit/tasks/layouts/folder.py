"""A folder of NIfTI images without labels, for pre-training or prediction.

::

    Folder/
      <case>.nii.gz  or  <case>.nii

Every file is one case with one channel of unknown modality; a dataset.json (Decathlon, with ``unlabelled``) says more
where more is known. Licence and citation are the data's own.
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.tasks.dataset_json import FILE, sorted_cases
from medseqft_kit.tasks.headers import is_nifti_name, stem
from medseqft_kit.tasks.layouts import lits
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "NIfTI files in the folder itself (images without labels)"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()


def matches(folder: Path) -> bool:
    """Whether NIfTI files lie in the folder itself, without a dataset.json and without the labels of LiTS."""
    described = (folder / FILE).exists() or lits.matches(folder)
    return not described and any(map(is_nifti_name, folder.iterdir()))


def read(folder: Path, name: str) -> Task:
    """The images in `folder` as unlabelled cases. Files are listed, not opened."""
    files = filter(is_nifti_name, folder.iterdir())
    _, images = sorted_cases(folder, (), (Case(stem(path), (path,)) for path in files))
    return Task(
        name=name,
        root=folder,
        layout="folder",
        channels=("other",),
        structures={},
        declared=frozenset({0}),
        cases=(),
        unlabelled=images,
    )
