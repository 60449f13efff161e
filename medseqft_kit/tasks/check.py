"""``medseqft check``: everything that is wrong with a data set, at once, before hours of training find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseqft_kit.errors import MedSeqFTError
from medseqft_kit.progress import Progress, silent
from medseqft_kit.tasks import across, contents, geometry
from medseqft_kit.tasks.dicom import checks as dicom
from medseqft_kit.tasks.facts import CaseFacts, gather
from medseqft_kit.tasks.findings import CheckReport, Finding, shown
from medseqft_kit.tasks.layouts import defects_known_of, detect_task
from medseqft_kit.tasks.public_sets import data_sets_in
from medseqft_kit.tasks.types import Task

__all__ = ["CASE_CHECKS", "CheckReport", "Finding", "check_task", "shared_images"]

CASE_CHECKS: tuple[Callable[[Task, CaseFacts], Iterator[Finding]], ...] = (
    contents.files_exist,
    contents.files_are_readable,
    geometry.spacing_is_positive,
    geometry.dimensions_fit,
    geometry.grids_agree,
    geometry.header_agrees_with_itself,
    dicom.slices_are_not_tilted,
    dicom.pet_is_in_suv,
    contents.values_are_finite,
    contents.intensities_are_plausible,
    contents.labels_are_integers,
    contents.labels_are_declared,
    contents.labels_are_not_empty,
    contents.labels_are_no_images,
    defects_known_of,
)


def check_task(source: Task | str | Path, strict: bool = False, progress: Progress = silent) -> CheckReport:
    """Read every file of a data set and collect all that is wrong; nothing is changed, nothing is raised.

    One case is in memory at a time.

    Parameters
    ----------
    source
        A task, or the folder of one.
    strict
        Make every warning (empty labels, duplicates, unusual spacing, ambiguous headers) an error.
    """
    if isinstance(source, Task):
        report = _check(source, progress)
    else:
        try:
            report = _check(detect_task(source), progress)
        except MedSeqFTError as problem:
            report = CheckReport(Path(source).resolve().name, 0, (_of_the_folder(Path(source), problem),))
    return report.strict() if strict else report


def _check(task: Task, progress: Progress) -> CheckReport:
    cases = (*task.cases, *task.unlabelled)
    findings: list[Finding] = []
    seen: list[across.Seen] = []
    for number, case in enumerate(cases):
        progress(f"checking {task.name}", number, len(cases))
        with np.errstate(all="ignore"):  # NaN in a header or a volume is a finding, not a warning of NumPy's
            facts = gather(case)
            findings += [found for check in CASE_CHECKS for found in check(task, facts)]
        seen += across.remember(facts)
    progress(f"checking {task.name}", len(cases), len(cases))
    findings += across.stray_files(task)
    findings += across.apple_doubles(task)
    findings += across.duplicate_images(task, seen)
    findings += across.unusual_spacing(task, seen)
    if not cases:
        findings.append(_no_cases(task))
    images = {image.digest: f"{shown(task, image.path)} of {task.name}" for image in seen}
    return CheckReport(task.name, len(cases), tuple(findings), images, data_sets_in(task))


def shared_images(reports: Sequence[CheckReport]) -> tuple[CheckReport, ...]:
    """The same reports, with a warning for each image that an earlier data set among them holds too.

    Public sets are made of each other: LiTS is MSD's Task03_Liver, FLARE takes from both.
    """
    first: dict[str, str] = {}
    told = []
    for report in reports:
        twins = [(file, first[digest]) for digest, file in report.images.items() if digest in first]
        told.append(replace(report, findings=(*report.findings, *(_twin(report, *twin) for twin in twins))))
        first = {**report.images, **first}
    return tuple(told)


def _twin(report: CheckReport, file: str, other: str) -> Finding:
    return Finding(
        "warning",
        report.task,
        "",
        file.removesuffix(f" of {report.task}"),
        "image of another data set",
        found=f"same voxels as {other}",
        expected="each image in one data set",
        next_step="name one patient for both by `split.group`, or leave one out: test cases leak into training",
    )


def _no_cases(task: Task) -> Finding:
    return Finding(
        "error",
        task.name,
        "",
        str(task.root),
        "no cases",
        found=f"layout {task.layout}, nothing listed",
        expected="at least one image",
        next_step="add images, or correct the list in dataset.json",
    )


def _of_the_folder(folder: Path, problem: MedSeqFTError) -> Finding:
    return Finding(
        "error",
        folder.resolve().name,
        "",
        str(folder),
        problem.summary,
        found=problem.found or "",
        expected=problem.expected or "",
        next_step=problem.next_step or "",
    )
