"""Files and voxel values: what is missing, unreadable, not finite, or not a declared label."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.findings import Finding, finding
from medseqft_kit.tasks.headers import is_nifti_name
from medseqft_kit.tasks.types import Task

SHOWN = 6
"""Values listed in a message before it is cut."""


def files_exist(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Images without a label, labels without an image; an unlabelled image that is listed and not there.

    The last is a warning where the data set has labelled cases, which do not need it.
    """
    for path in facts.missing:
        if path == facts.case.label:
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


def labels_are_integers(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Label values with a fraction."""
    values = _values(facts)
    fractional = values[values != np.round(values)]
    if facts.label is not None and fractional.size:
        yield finding(
            task,
            facts.case.id,
            facts.label.header.path,
            "label values that are no integers",
            found=_listed(fractional),
            expected="integers",
            next_step="resample with nearest neighbours; set scl_slope to 1",
        )


def labels_are_declared(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Integer label values that the data set does not declare."""
    values = _values(facts)
    undeclared = values[(values == np.round(values)) & ~np.isin(values, sorted(task.declared))]
    if facts.label is not None and undeclared.size:
        yield finding(
            task,
            facts.case.id,
            facts.label.header.path,
            "labels outside the declared set",
            found=_listed(undeclared),
            expected=_listed(np.array(sorted(task.declared))),
            next_step="declare them in dataset.json, or correct the label",
        )


def labels_are_not_empty(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """A label volume without any structure of the task: a warning."""
    structures = {value for group in task.structures.values() for value in group} or task.declared - {0}
    if facts.label is not None and not np.isin(_values(facts), sorted(structures)).any():
        yield finding(
            task,
            facts.case.id,
            facts.label.header.path,
            "empty label",
            found=f"only {_listed(_values(facts))}",
            expected=f"at least one of {_listed(np.array(sorted(structures)))}",
            next_step="look at the case; take it out if the structure was not annotated",
            severity="warning",
        )


def _values(facts: CaseFacts) -> NDArray[np.number]:
    values = facts.label.values if facts.label is not None else None
    return values if values is not None else np.empty(0)


def _listed(values: NDArray[np.number]) -> str:
    more = f" and {values.size - SHOWN} more" if values.size > SHOWN else ""
    return (", ".join(f"{value:.6g}" for value in values[:SHOWN]) or "no finite value") + more
