"""Files and voxel values: what is missing, unreadable, not finite, or not a declared label."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medseqft_kit.tasks.facts import CaseFacts, VolumeFacts
from medseqft_kit.tasks.findings import Finding, finding
from medseqft_kit.tasks.geometry import PLAUSIBLE_HU
from medseqft_kit.tasks.headers import is_nifti_name
from medseqft_kit.tasks.types import Task

SHOWN = 6
"""Values listed in a message before it is cut."""


def files_exist(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Images without a label, labels without an image; an unlabelled image that is listed and not there.

    The last is a warning where the data set has labelled cases, which do not need it.
    """
    for path in facts.missing:
        if path not in facts.case.images:
            problem = "image without a label"
        else:
            problem = "label without an image" if facts.case.label is not None else "image is missing"
        yield finding(
            task,
            facts.case.id,
            path,
            problem,
            found="no such file",
            expected="an image and a label of each case" if facts.case.label is not None else "each listed image",
            next_step="restore the file or take the case out of the data set",
            severity="warning" if facts.case.label is None and task.cases else "error",
        )


def files_are_readable(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Truncated, corrupt, no NIfTI at all, or a DICOM series that makes no volume."""
    for path, problem in facts.unreadable:
        yield finding(
            task,
            facts.case.id,
            path,
            "unreadable or truncated file" if is_nifti_name(path) else problem.summary,
            found=problem.found or problem.summary,
            expected=problem.expected or "a complete file",
            next_step=problem.next_step or "copy or download the file again",
        )


def values_are_finite(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """NaN and infinite voxels."""
    for volume in facts.volumes:
        if volume.nan or volume.infinite:
            yield finding(
                task,
                facts.case.id,
                volume.header.path,
                "NaN or infinite voxels",
                found=f"{volume.nan} NaN, {volume.infinite} infinite",
                expected="finite float32 values",
                next_step="replace them, or export the volume again",
            )


def intensities_are_plausible(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Images that are one value throughout; CT outside of what a scanner can measure: warnings."""
    channels = facts.case.channels or task.channels
    for number, volume in enumerate(facts.images):
        lowest, highest = volume.lowest, volume.highest
        ct = channels[min(number, len(channels) - 1)] == "CT"
        problem, expected = "", ""
        if lowest == highest:
            problem, expected = "image without contrast", "different values"
        elif ct and not PLAUSIBLE_HU[0] <= lowest <= highest <= PLAUSIBLE_HU[1]:
            problem, expected = "impossible HU", f"{PLAUSIBLE_HU[0]:g} to {PLAUSIBLE_HU[1]:g}"
        if problem:
            yield finding(
                task,
                facts.case.id,
                volume.header.path,
                problem,
                found=f"{lowest:g} to {highest:g}",
                expected=expected,
                next_step="look at it; export it again, with the scanner's rescaling applied once",
                severity="warning",
            )


def labels_are_integers(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Label values with a fraction."""
    for label in facts.labels:
        values = _values(label)
        fractional = values[values != np.round(values)]
        if fractional.size:
            yield finding(
                task,
                facts.case.id,
                label.header.path,
                "label values that are no integers",
                found=_listed(fractional),
                expected="integers",
                next_step="resample with nearest neighbours; set scl_slope to 1",
            )


def labels_are_declared(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Integer label values that the data set does not declare; in a mask, anything but 0 and 1."""
    for label in facts.labels:
        allowed = sorted(task.declared) if label.means is None else [0, 1]
        values = _values(label)
        undeclared = values[(values == np.round(values)) & ~np.isin(values, allowed)]
        if undeclared.size:
            yield finding(
                task,
                facts.case.id,
                label.header.path,
                "labels outside the declared set",
                found=_listed(undeclared),
                expected=_listed(np.array(allowed)),
                next_step="declare them in dataset.json, or correct the label",
            )


def labels_are_not_empty(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """A label without any structure of the task: a warning. Of several masks, some may be empty."""
    structures = {value for group in task.structures.values() for value in group} or task.declared - {0}
    wanted = [np.array([1]) if label.means is not None else np.array(sorted(structures)) for label in facts.labels]
    if not facts.labels or any(np.isin(_values(label), w).any() for label, w in zip(facts.labels, wanted, strict=True)):
        return
    label, several = facts.labels[0], len(facts.labels) > 1
    yield finding(
        task,
        facts.case.id,
        label.header.path.parent if several else label.header.path,
        "empty label",
        found=f"only {_listed(_values(label))}" + (f" in all {len(facts.labels)} masks" if several else ""),
        expected=f"at least one of {_listed(wanted[0])}",
        next_step="look at the case; take it out if the structure was not annotated",
        severity="warning",
    )


def labels_are_no_images(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """A label file that holds the voxels of an image of its case."""
    images = {volume.digest: volume for volume in facts.images}
    for label in facts.labels:
        if label.digest in images:
            yield finding(
                task,
                facts.case.id,
                label.header.path,
                "label is a copy of the image",
                found=f"same voxels as {images[label.digest].header.path.name}",
                expected="a map of label values",
                next_step="restore the label from its source",
            )


def _values(label: VolumeFacts) -> NDArray[np.number]:
    return label.values if label.values is not None else np.empty(0)


def _listed(values: NDArray[np.number]) -> str:
    more = f" and {values.size - SHOWN} more" if values.size > SHOWN else ""
    return (", ".join(f"{value:.6g}" for value in values[:SHOWN]) or "no finite value") + more
