"""BIDS-like folders: images by subject, labels beside them or under derivatives, matched by the entities of names.

::

    dataset_description.json
    sub-01/[ses-1/]anat/sub-01[_ses-1][_acq-x][_run-1]_T1w.nii.gz
    derivatives/<pipeline>/sub-01/…/sub-01[_ses-1]…[_T1w]_label-lesion_mask.nii.gz    0 and 1
    derivatives/<pipeline>/sub-01/…/sub-01[_ses-1]…[_T1w]_dseg.nii.gz                 values, named by a …dseg.tsv

Also ``rawdata/sub-01`` and ``Training/R001/sub-01`` (ATLAS, whose masks lie beside the images). A label belongs to
the image with the same entities once those that describe the label (``label``, ``desc``, ``seg`` …) are left out, and
with the contrast that the label's name mentions, if it does. Several masks of one image are several structures,
numbered by their names; one that is missing was not drawn. Labels of several raters or pipelines are refused: which
one to believe is not the reader's to say. Images under derivatives are not read. The split goes by subject.

https://bids-specification.readthedocs.io (derivatives, imaging). Each data set states its own licence.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.dataset_json import sorted_cases
from medseqft_kit.tasks.headers import is_nifti_name, stem
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import folders
from medseqft_kit.tasks.types import Case, Label, Masks, Task

LOOKS_FOR = "sub-01/anat/sub-01_T1w.nii.gz (BIDS)"
KNOWN_DEFECTS: tuple[KnownDefect, ...] = ()
SUBJECT = r"sub-[A-Za-z0-9]+"
MODALITY = {
    **dict.fromkeys(
        ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "T2star", "UNIT1", "inplaneT1", "inplaneT2", "cine"), "MR"
    ),
    **dict.fromkeys(("ct", "CT"), "CT"),
    "pet": "PET",
}
LABELS = ("mask", "dseg", "seg", "msk")
OF_THE_LABEL = ("label", "desc", "seg", "atlas", "hemi", "res", "den")
"""Entities that tell labels of one image apart."""


@dataclass(frozen=True)
class Name:
    """A file name taken apart: ``sub-01_T1w_label-lesion_mask.nii.gz`` is a mask of lesions on the T1w image of 01."""

    path: Path
    entities: Mapping[str, str]
    contrast: str
    suffix: str

    @property
    def image(self) -> frozenset[tuple[str, str]]:
        """The entities that an image and its labels share."""
        return frozenset((key, value) for key, value in self.entities.items() if key not in OF_THE_LABEL)

    @property
    def structure(self) -> str:
        """What a label is called after."""
        return next((self.entities[key] for key in ("label", "seg", "desc") if key in self.entities), self.suffix)

    @property
    def is_map(self) -> bool:
        """Whether a label holds values of several structures."""
        return self.suffix == "dseg" or (self.suffix in ("seg", "msk") and "label" not in self.entities)


def matches(folder: Path) -> bool:
    """Whether folders of subjects hold images named after them."""
    return any(name.suffix in MODALITY for name in _names(folder))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened, but for the table that names the values of ``dseg``.

    Raises
    ------
    DataError
        If a label fits no image or several, an image has several labels of one structure, or values have no names.
    """
    names = list(_names(folder))
    images = [each for each in names if each.suffix in MODALITY and "derivatives" not in each.path.parts]
    drawn = _drawn(folder, images, [each for each in names if each.suffix in LABELS])
    values = _values(folder, [label for labels in drawn.values() for label in labels])
    everything = frozenset(values.values())
    labelled, unlabelled = [], []
    for image in images:
        case, channels = stem(image.path), (MODALITY[image.suffix],)
        if labels := drawn.get(image.path):
            label, annotated = _label(labels, values)
            known = None if annotated == everything else annotated
            labelled.append(Case(case, (image.path,), label, channels, known))
        else:
            unlabelled.append(Case(case, (image.path,), channels=channels))
    cases, rest = sorted_cases(folder, labelled, unlabelled)
    return Task(
        name=name,
        root=folder,
        layout="bids",
        channels=(labelled or unlabelled)[0].channels,
        structures={structure: (value,) for structure, value in values.items()},
        declared=frozenset({0, *everything}),
        cases=cases,
        unlabelled=rest,
        patients=rf"^({SUBJECT})",
    )


def _names(folder: Path) -> Iterator[Name]:
    for subject in folders(folder, SUBJECT, 4):
        for path in sorted(subject.rglob("sub-*")):
            if is_nifti_name(path):
                *parts, suffix = stem(path).split("_")
                entities = dict(part.split("-", 1) for part in parts if "-" in part)
                yield Name(path, entities, next((part for part in parts if "-" not in part), ""), suffix)


def _drawn(folder: Path, images: list[Name], labels: list[Name]) -> dict[Path, list[Name]]:
    """Labels by image."""
    drawn: dict[Path, list[Name]] = defaultdict(list)
    for label in labels:
        fits = [each for each in images if each.image == label.image and label.contrast in ("", each.suffix)]
        if len(fits) != 1:
            raise DataError(
                f"the label {label.path} belongs to {'no image' if not fits else 'several images'}.",
                found=", ".join(each.path.name for each in fits) or "no image with the same entities",
                expected="one image with " + "_".join(f"{key}-{value}" for key, value in sorted(label.image)),
                next_step="name the contrast before the label's entities (sub-01_T1w_label-…), or remove the file",
            )
        drawn[fits[0].path].append(label)
    for image, several in drawn.items():
        structures = [label.structure for label in several]
        if len(set(structures)) < len(structures) or (len(several) > 1 and any(label.is_map for label in several)):
            raise DataError(
                f"{image} has several labels: of several raters, pipelines, or maps.",
                found=", ".join(str(label.path.relative_to(folder)) for label in several[:6]),
                expected="one map of values, or one mask of each structure",
                next_step="keep one rater or pipeline (or make a consensus) and move the others out of the folder",
            )
    return drawn


def _values(folder: Path, labels: list[Name]) -> dict[str, int]:
    """Structure to file value: of masks by the order of their names, of maps by the table of names."""
    maps = [label for label in labels if label.is_map]
    if maps and len(maps) < len(labels):
        raise DataError(
            f"{folder} has masks for some images and maps of values for others.",
            found=f"{maps[0].path.name} and {next(label for label in labels if not label.is_map).path.name}",
            expected="one kind of label",
            next_step="move one kind out of the folder",
        )
    if maps:
        return _named_values(folder, maps[0].path)
    return {name: value for value, name in enumerate(sorted({label.structure for label in labels}), start=1)}


def _named_values(folder: Path, label: Path) -> dict[str, int]:
    above = [parent for parent in label.parents if parent.is_relative_to(folder)]
    table = next((path for parent in above for path in sorted(parent.glob("*dseg.tsv"))), None)
    try:
        if table is None:
            raise ValueError("no …dseg.tsv beside it or above it")
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [(row["name"], int(row["index"])) for row in csv.DictReader(file, delimiter="\t")]
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"the values of {label} have no names.",
            found=str(problem),
            expected="a table with the columns index and name",
            next_step=f"write {folder / 'dseg.tsv'}",
        ) from None
    return {name: value for name, value in sorted(rows, key=lambda row: row[1]) if value != 0}


def _label(labels: list[Name], values: Mapping[str, int]) -> tuple[Label, frozenset[int]]:
    """The label of one image, and the values it was drawn for."""
    if labels[0].is_map:
        return labels[0].path, frozenset(values.values())
    masks = sorted((values[label.structure], label.path) for label in labels)
    drawn = frozenset(value for value, _ in masks)
    return (masks[0][1] if len(values) == 1 else Masks(tuple((path, value) for value, path in masks))), drawn
