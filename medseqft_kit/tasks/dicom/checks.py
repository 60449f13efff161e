"""What a DICOM series says of itself that a NIfTI file could not: the gantry's tilt, the unit of PET."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medseqft_kit.tasks.dicom.read import is_dicom
from medseqft_kit.tasks.dicom.series import series_at
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.findings import Finding, finding
from medseqft_kit.tasks.geometry import SHEAR_TOLERANCE, largest_cosine
from medseqft_kit.tasks.types import Task

SUV = "GML"
"""Unit of standardised uptake values, g/ml; scanners mostly write BQML (DICOM PS3.3 C.8.9.1.1.3)."""


def slices_are_not_tilted(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Slices that are not at right angles to the table: warnings."""
    for volume in facts.images:
        cosine = largest_cosine(volume.header)
        if cosine > SHEAR_TOLERANCE and is_dicom(volume.header.path):
            yield finding(
                task,
                facts.case.id,
                volume.header.path,
                "gantry tilt",
                found=f"slices {np.degrees(np.arcsin(min(cosine, 1.0))):.3g}° off a right angle",
                expected="slices at right angles to the line they are stacked along",
                next_step="nothing, or resample: the tilt is in the affine, and predictions lie on the tilted slices",
                severity="warning",
            )


def pet_is_in_suv(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """PET in another unit than the scaling of intensities expects: warnings."""
    for volume in facts.images:
        path = volume.header.path
        if "PET" not in (facts.case.channels or task.channels) or not is_dicom(path):
            continue
        import pydicom  # here, because without the extra no image is DICOM

        header = pydicom.dcmread(series_at(path).files[0], specific_tags=["Modality", "Units"])
        if header.get("Modality") == "PT" and header.get("Units") != SUV:
            yield finding(
                task,
                facts.case.id,
                path,
                "PET that is not in SUV",
                found=f"unit {header.get('Units') or 'not stated'}",
                expected=f"{SUV} (g/ml)",
                next_step="convert it to SUV: intensities of PET are scaled from 0 to 15 SUV",
                severity="warning",
            )
