"""nnU-Net v2, raw.

::

    DatasetNNN_Name/
      dataset.json                      channel_names, labels, file_ending
      imagesTr/<case>_0000.nii.gz …     one file for each channel
      labelsTr/<case>.nii.gz            imagesTs/<case>_0000.nii.gz …
      splits_final.json                 optional: the folds of cross-validation

``dataset`` in dataset.json may list files elsewhere (relative to the folder; environment variables are not expanded).
Regions (a label of several values) are structures where they do not overlap; where they do, the task has no structures
until the configuration says which value belongs to which. Isensee et al. 2021 (doi 10.1038/s41592-020-01008-z);
documentation/dataset_format.md of https://github.com/MIC-DKFZ/nnUNet. Each data set states its own licence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.dataset_json import (
    FILE,
    channels_of,
    load_dataset_json,
    sorted_cases,
    text,
    wrong_entry,
)
from medseqft_kit.tasks.folds import read_folds
from medseqft_kit.tasks.headers import ENDINGS
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = f"{FILE} with `channel_names` (nnU-Net v2)"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()


def matches(folder: Path) -> bool:
    """Whether dataset.json describes channels by ``channel_names``."""
    return (folder / FILE).is_file() and "channel_names" in load_dataset_json(folder)


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened.

    A case of imagesTr without a label, or of labelsTr without an image, is listed too: ``check`` names what is missing.

    Raises
    ------
    DataError
        If dataset.json is damaged, or the files are not NIfTI.
    """
    content = load_dataset_json(folder)
    ending = content.get("file_ending")
    if ending not in ENDINGS:
        raise DataError(
            f"the images of {folder} are not NIfTI.",
            found=f"file_ending: {ending!r}",
            expected=f"file_ending {' or '.join(ENDINGS)}",
            next_step="convert images and labels to NIfTI and correct `file_ending`",
        )
    channels = channels_of(folder, content, "channel_names")
    labels = _values(folder, content.get("labels"))
    ignored = labels.pop("ignore", ())
    cases, rest = sorted_cases(
        folder,
        _listed(folder, content["dataset"])
        if content.get("dataset")
        else _scanned(folder, "imagesTr", "labelsTr", ending, len(channels)),
        _scanned(folder, "imagesTs", None, ending, len(channels)),
    )
    return Task(
        name=name,
        root=folder,
        layout="nnunet",
        channels=channels,
        structures=_structures(labels),
        declared=frozenset({0, *(value for group in labels.values() for value in group), *ignored}),
        cases=cases,
        unlabelled=rest,
        ignore=ignored[0] if ignored else None,
        licence=text(content, "licence", "license"),
        reference=text(content, "reference"),
        folds=read_folds(folder, (case.id for case in cases)),
    )


def _values(folder: Path, labels: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(labels, dict):
        raise wrong_entry(folder, f"labels: {labels!r}", "`labels` maps names to values")
    groups = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in labels.items()}
    single = len(groups.get("ignore", (0,))) == 1
    if not single or not all(group and {type(value) for value in group} == {int} for group in groups.values()):
        raise wrong_entry(folder, f"labels: {labels!r}", "names to integers or lists of integers, `ignore` to one")
    return groups


def _structures(labels: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Foreground by smallest value; nothing where regions overlap."""
    foreground = {name: group for name, group in labels.items() if set(group) - {0}}
    values = [value for group in foreground.values() for value in group]
    if len(values) != len(set(values)):
        return {}
    return dict(sorted(foreground.items(), key=lambda item: min(item[1])))


def _listed(folder: Path, entries: Any) -> list[Case]:
    cases = []
    try:
        for name, entry in entries.items():
            images, label = list(entry["images"]), entry["label"]
            if not all(path.endswith(ENDINGS) for path in (*images, label)):
                raise TypeError
            cases.append(Case(name, tuple(folder / path for path in images), folder / label))
    except (AttributeError, KeyError, TypeError):
        raise wrong_entry(
            folder, f"dataset: {entries!r:.80}", '{case: {"images": [paths], "label": path}}, paths of NIfTI files'
        ) from None
    return cases


def _scanned(folder: Path, images: str, labels: str | None, ending: str, channels: int) -> Iterator[Case]:
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    names = {found[1] for path in _visible(folder / images) if (found := pattern.fullmatch(path))}
    if labels is not None:
        names |= {path.removesuffix(ending) for path in _visible(folder / labels) if path.endswith(ending)}
    for name in sorted(names):
        files = tuple(folder / images / f"{name}_{channel:04d}{ending}" for channel in range(channels))
        yield Case(name, files, folder / labels / f"{name}{ending}" if labels is not None else None)


def _visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
