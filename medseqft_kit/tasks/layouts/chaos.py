"""CHAOS, abdominal organs of healthy donors: DICOM with pictures as ground truth.

::

    Train_Sets/
      CT/1/DICOM_anon/i0000,0000b.dcm …            CT/1/Ground/liver_GT_000.png …
      MR/1/T1DUAL/DICOM_anon/InPhase/*.dcm         MR/1/T1DUAL/Ground/*.png
      MR/1/T1DUAL/DICOM_anon/OutPhase/*.dcm        the same ground truth
      MR/1/T2SPIR/DICOM_anon/*.dcm                 MR/1/T2SPIR/Ground/*.png
    Test_Sets/…                                    the same without Ground

A task takes CT or MR by ``modality``; each MR series is a case, and the split goes by patient. MR pictures hold greys
about 63 (liver), 126 (right kidney), 189 (left kidney) and 252 (spleen); CT pictures are white where the liver is,
and its other organs are unknown. The i-th picture belongs to the i-th DICOM file by name; in some CT series names and
positions run against each other, so pairing happens before ordering by position. Read natively, with the extra
``[dicom]``.

Licence: https://zenodo.org/records/3431873. Kavur et al. 2021 (doi 10.1016/j.media.2020.101950).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medseqft_kit.errors import MedSeqFTError
from medseqft_kit.tasks.catalogue import CATALOGUE, CHAOS
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.images import read_image
from medseqft_kit.tasks.labels import read_slices
from medseqft_kit.tasks.layouts.known import KnownDefect
from medseqft_kit.tasks.layouts.shared import folders, task_of
from medseqft_kit.tasks.types import Case, Slices, Task

LOOKS_FOR = "CT/1/DICOM_anon or MR/1/T1DUAL in Train_Sets (CHAOS)"
WHITE = ((1, 255, CHAOS["liver"]),)
GREYS = tuple(
    (lowest, highest, CHAOS[structure])
    for structure, lowest, highest in (
        ("liver", 55, 70),
        ("right_kidney", 110, 135),
        ("left_kidney", 175, 200),
        ("spleen", 240, 255),
    )
)
"""https://chaos.grand-challenge.org/Data/"""
LIVER_HU = (80.0, 180.0)
"""Mean of a liver in the portal phase, with pairs in order; it falls below 60 where pictures lie on wrong slices."""


def _on_wrong_slices(facts: CaseFacts) -> bool:
    label = facts.case.label
    if not isinstance(label, Slices) or facts.case.channels != ("CT",):
        return False
    try:
        liver = read_image(facts.case.images[0])[0][read_slices(label)[0] == CHAOS["liver"]]
    except (MedSeqFTError, IndexError):  # said by the checks of files and grids
        return False
    return liver.size > 0 and not LIVER_HU[0] <= float(liver.mean()) <= LIVER_HU[1]


KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        "the liver's mean HU says that pictures lie on wrong slices",
        "https://chaos.grand-challenge.org/Data/",
        "extract the archive again: DICOM files and pictures are paired by the numbers in their names",
        shows=_on_wrong_slices,
        severity="error",
    ),
)


def matches(folder: Path) -> bool:
    """Whether there are patients of CT or MR."""
    return any(True for part in _parts(folder) for _ in _cases(part))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened."""
    cases = [case for part in _parts(folder) for case in _cases(part)]
    labelled = (case for case in cases if case.label is not None)
    unlabelled = (case for case in cases if case.label is None)
    return task_of(CATALOGUE["chaos_mr"], folder, name, labelled, unlabelled, patients=r"^((?:CT|MR)_\d+)")


def _parts(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folders(folder, "(Train|Test)_Sets", 2)


def _cases(part: Path) -> Iterator[Case]:
    for patient in folders(part / "CT", r"\d+", 1) if (part / "CT").is_dir() else ():
        if (patient / "DICOM_anon").is_dir():
            yield _case(f"CT_{patient.name}", patient / "DICOM_anon", patient / "Ground")
    for patient in folders(part / "MR", r"\d+", 1) if (part / "MR").is_dir() else ():
        for sequence in ("T1DUAL", "T2SPIR"):
            dicom, ground = patient / sequence / "DICOM_anon", patient / sequence / "Ground"
            for phase in ("InPhase", "OutPhase") if sequence == "T1DUAL" else ("",):
                if (dicom / phase).is_dir():
                    name = "_".join(filter(None, ("MR", patient.name, sequence, phase)))
                    yield _case(name, dicom / phase, ground)


def _case(name: str, series: Path, ground: Path) -> Case:
    ct = name.startswith("CT")
    channels = ("CT",) if ct else ("MR",)
    if not ground.is_dir():
        return Case(name, (series,), channels=channels)
    label = Slices(ground, series, WHITE if ct else GREYS)
    return Case(name, (series,), label, channels, frozenset({CHAOS["liver"]}) if ct else None)
