"""Medical Segmentation Decathlon (MSD).

::

    TaskNN_Name/
      dataset.json
      imagesTr/<case>.nii.gz   labelsTr/<case>.nii.gz   imagesTs/<case>.nii.gz

Image and label share their name; several channels are the fourth axis of the image. ``training`` lists pairs and may
be missing; ``test`` and ``unlabelled`` list images without labels, as text or ``{"image": …}``. Keys of ``labels``
and ``modality`` are numbers in text. Simpson et al. 2019 (arXiv 1902.09063), Antonelli et al. 2022 (doi
10.1038/s41467-022-30695-9); the ten data sets are CC BY-SA 4.0, others in this layout state their own licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.dataset_json import (
    FILE,
    by_number,
    channels_of,
    load_dataset_json,
    sorted_cases,
    text,
    wrong_entry,
)
from medseqft_kit.tasks.folds import read_folds
from medseqft_kit.tasks.headers import ENDINGS, stem
from medseqft_kit.tasks.layouts import amos22
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = f"{FILE} with `modality` (Medical Segmentation Decathlon)"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()


def matches(folder: Path) -> bool:
    """Whether dataset.json describes channels by ``modality``, and the data set is not AMOS22, which holds two."""
    return (folder / FILE).is_file() and "modality" in load_dataset_json(folder) and not amos22.matches(folder)


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened.

    Raises
    ------
    DataError
        If dataset.json is damaged or lists cases that cannot be told apart.
    """
    content = load_dataset_json(folder)
    labels = by_number(folder, content.get("labels") or {}, "labels")
    structures: dict[str, tuple[int, ...]] = {}
    for value, structure in labels:
        if value != 0:
            structures[str(structure)] = (*structures.get(str(structure), ()), value)
    labelled = [_pair(folder, entry) for entry in _list(folder, content, "training")]
    unlabelled = [_image(folder, entry) for key in ("test", "unlabelled") for entry in _list(folder, content, key)]
    _refuse_first_nnunet(folder, labelled)
    cases, rest = sorted_cases(folder, _visible(labelled), _visible(unlabelled))
    return Task(
        name=name,
        root=folder,
        layout="msd",
        channels=channels_of(folder, content, "modality"),
        structures=structures,
        declared=frozenset({0, *(value for value, _ in labels)}),
        cases=cases,
        unlabelled=rest,
        licence=text(content, "licence", "license"),
        reference=text(content, "reference"),
        folds=read_folds(folder, (case.id for case in cases)),
    )


def _list(folder: Path, content: Mapping[str, Any], key: str) -> list[Any]:
    found = content.get(key) or []
    if not isinstance(found, list):
        raise wrong_entry(folder, f"{key}: {found!r}", f"`{key}` is a list")
    return found


def _image(folder: Path, entry: Any) -> Case:
    path = entry.get("image") if isinstance(entry, dict) else entry
    if not (isinstance(path, str) and path.endswith(ENDINGS)):
        raise wrong_entry(folder, entry, f"the path of an image ending in {' or '.join(ENDINGS)}")
    return Case(stem(Path(path)), (folder / path,))


def _pair(folder: Path, entry: Any) -> Case:
    label = entry.get("label") if isinstance(entry, dict) else None
    if not (isinstance(label, str) and label.endswith(ENDINGS)):
        raise wrong_entry(folder, entry, f'{{"image": path, "label": path}}, both ending in {" or ".join(ENDINGS)}')
    image = _image(folder, entry)
    return Case(image.id, image.images, folder / label)


def _visible(cases: list[Case]) -> Iterator[Case]:
    return (case for case in cases if not case.images[0].name.startswith("."))  # AppleDouble files of the archives


def _refuse_first_nnunet(folder: Path, cases: list[Case]) -> None:
    if cases and not cases[0].images[0].exists():
        first_channel = cases[0].images[0].with_name(f"{cases[0].id}_0000.nii.gz")
        if first_channel.exists():
            raise DataError(
                f"{folder} is nnU-Net's first raw layout.",
                found=f"{first_channel.name}, while {FILE} lists {cases[0].images[0].name}",
                expected="the Decathlon's layout, or nnU-Net v2's with `channel_names`",
                next_step="nnUNetv2_convert_old_nnUNet_dataset",
            )
