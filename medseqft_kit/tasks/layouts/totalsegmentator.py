"""TotalSegmentator, version 2: CT with 117 structures, MR with 50, a binary mask for each.

::

    Totalsegmentator_dataset_v201/
      meta.csv
      s0000/ct.nii.gz   s0000/segmentations/<structure>.nii.gz
      s0001/mri.nii.gz  in the MR data set

Values are those of ``class_map["total"]`` and ``["total_mr"]``; version 1 has other structures under other numbers
and is refused. Masks are read as one map, and only those that a task's ``labels`` name. Many are empty: the structure
lies outside the field of view. A structure whose file is not there was not drawn. Left and right are labels, so do
not flip.

CC BY 4.0 (CT). Wasserthal et al. 2023 (doi 10.1148/ryai.230024), https://zenodo.org/records/10047292;
MR: https://zenodo.org/records/14710732. Preprocessing: 1.5 mm, 128³.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.geometry import PLAUSIBLE_HU, SHEAR_TOLERANCE, largest_cosine
from medseqft_kit.tasks.layouts.known import KnownDefect, cases
from medseqft_kit.tasks.layouts.shared import folders, found, task_of
from medseqft_kit.tasks.types import Case, Masks, Task

LOOKS_FOR = "s0000/ct.nii.gz beside s0000/segmentations (TotalSegmentator)"
SUBJECT, MASKS = r"s\d{4}", "segmentations"
ISSUES = "https://github.com/wasserth/TotalSegmentator/issues"


def _is_ct(facts: CaseFacts) -> bool:
    return facts.case.images[0].name == "ct.nii.gz"


def _sheared(facts: CaseFacts) -> bool:
    return _is_ct(facts) and any(largest_cosine(volume.header) > SHEAR_TOLERANCE for volume in facts.images)


def _no_hu(facts: CaseFacts) -> bool:
    return _is_ct(facts) and any(not PLAUSIBLE_HU[0] <= volume.lowest for volume in facts.images)


def _empty_mr(facts: CaseFacts) -> bool:
    return not _is_ct(facts) and not any(np.any(volume.values) for volume in facts.labels if volume.values is not None)


KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        "axes not at right angles: ITK refuses the file",
        f"{ISSUES}/461",
        "nothing for this toolkit; for ITK write the nearest rotation into sform and qform",
        cases(
            "s",
            "0000 0001 0002 0004 0025 0043 0048 0061 0062 0066 0067 0079 0081 0090 0107 0112 0114 0117 0130 0146 0149 "
            "0154 0169 0189 0193 0208 0209 0226 0235 0236 0242 0254 0278 0282 0295 0299 0301 0311 0326 0352 0353 0361 "
            "0386 0417 0436 0457 0462 0493 0504 0514 0526 0527 0552 0557 0559 0561 0563 0585 0611 0614 0622 0624 0625 "
            "0647 0648 0684 0700 0712 0735 0737 0740 0744 0751 0759 0768 0770 0772 0774 0776 0783 0795 0802 0805 0806 "
            "0808 0809 0816 0829 0833 0837 0843 0844 0845 0860 0867 0874 0909 0910 0930 0944 0949 0976 0978 0982 0986 "
            "1000 1005 1009 1011 1023 1035 1038 1040 1046 1050 1083 1103 1133 1141 1147 1170 1174 1205 1234 1235 1237 "
            "1272 1276 1295 1344 1389 1406 1407 1409 1417 1419",
        ),
        shows=_sheared,
    ),
    KnownDefect(
        "wrong HU, of the archive 2.0.0",
        f"{ISSUES}/193",
        "download 2.0.1: s0184, s0224, s0830 and s0992 were replaced as well",
        cases("s", "0864"),
        shows=_no_hu,
        severity="error",
    ),
    KnownDefect(
        "a structure is drawn wrongly",
        f"{ISSUES}/245",
        "look at lung_upper_lobe_right (s0092), heart (s0201), humerus_right (s0513), lung_lower_lobe_left (s0605)",
        cases("s", "0092 0201 0513 0605"),
        shows=_is_ct,
    ),
    KnownDefect(
        "the heart is drawn below the diaphragm",
        f"{ISSUES}/299",
        "drop the heart of this case",
        cases("s", "0143 1196"),
        shows=_is_ct,
    ),
    KnownDefect(
        "all masks are empty",
        f"{ISSUES}/511",
        "leave the case out",
        cases(
            "s",
            "0026 0048 0057 0069 0077 0078 0084 0086 0091 0094 0097 0098 0101 0102 0109 0111 0116 0122 0134 0136 0140 "
            "0141 0150 0152 0165 0196 0330 0374 0376 0405 0431 0438 0449 0454 0458 0461 0480 0482 0486 0507 0510 0513 "
            "0522 0523 0524 0548 0553 0580 0604 0605",
        ),
        shows=_empty_mr,
    ),
)


def matches(folder: Path) -> bool:
    """Whether there are subjects with an image and a folder of masks."""
    return any((subject / MASKS).is_dir() and _image(subject) is not None for subject in folders(folder, SUBJECT, 2))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`; CT where there are CT. Files are listed, not opened.

    Raises
    ------
    DataError
        If masks have names that version 2 does not know, or the folder mixes CT and MR.
    """
    subjects = {subject: image for subject in folders(folder, SUBJECT, 2) if (image := _image(subject)) is not None}
    kinds = {image.name for image in subjects.values()}
    if len(kinds) > 1:
        raise DataError(
            f"{folder} mixes TotalSegmentator's CT and MR, whose values differ.",
            found="ct.nii.gz and mri.nii.gz",
            expected="one of them",
            next_step="name the folder of one data set",
        )
    data_set = CATALOGUE["totalsegmentator_ct" if kinds == {"ct.nii.gz"} else "totalsegmentator_mr"]
    labelled, unlabelled = [], []
    for subject, image in subjects.items():
        masks = found(subject / MASKS, r"(.+)\.nii\.gz")
        _require_known(subject, set(masks) - set(data_set.structures), data_set.title)
        label = Masks(tuple((masks[name], value) for name, value in data_set.structures.items() if name in masks))
        drawn = frozenset(value for _, value in label.files)
        if drawn:
            whole = len(drawn) == len(data_set.structures)
            labelled.append(Case(subject.name, (image,), label, annotated=None if whole else drawn))
        else:
            unlabelled.append(Case(subject.name, (image,)))
    return task_of(data_set, folder, name, labelled, unlabelled)


def _image(subject: Path) -> Path | None:
    return next((path for name in ("ct.nii.gz", "mri.nii.gz") if (path := subject / name).exists()), None)


def _require_known(subject: Path, unknown: set[str], title: str) -> None:
    if unknown:
        raise DataError(
            f"{subject} holds masks that {title} does not know.",
            found=", ".join(sorted(unknown)[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
            expected="the names of version 2; version 1 has heart_myocardium, face … and other numbers",
            next_step="download version 2 (https://zenodo.org/records/10047292), or take other masks out of the folder",
        )
