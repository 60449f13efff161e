"""What shows only when the cases of a data set are seen together, and files that belong to no case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.findings import Finding, Severity, finding
from medseqft_kit.tasks.headers import is_nifti_name, stem
from medseqft_kit.tasks.labels import label_files
from medseqft_kit.tasks.types import Task

UNUSUAL_RATIO = 3.0
"""A voxel edge this many times larger or smaller than the data set's median."""
PLAUSIBLE_MM = (0.02, 20.0)
"""Voxel edges of clinical volumes; outside, metres or micrometres were meant."""


@dataclass(frozen=True)
class Seen:
    """What is remembered of an image after its case is done."""

    case: str
    path: Path
    digest: str
    spacing: tuple[float, ...]
    identity: bool


def remember(facts: CaseFacts) -> Iterator[Seen]:
    """The images of a case; spacing sorted, so that orientation does not matter."""
    for volume in facts.images:
        header = volume.header
        identity = bool(np.array_equal(np.abs(header.affine[:3, :3]), np.eye(3)))
        yield Seen(facts.case.id, header.path, volume.digest, tuple(sorted(header.spacing)), identity)


def duplicate_images(task: Task, seen: Sequence[Seen]) -> Iterator[Finding]:
    """Images with equal voxels under different names: warnings."""
    first: dict[str, Seen] = {}
    for image in seen:
        earlier = first.setdefault(image.digest, image)
        if earlier is not image:
            yield finding(
                task,
                image.case,
                image.path,
                "duplicate image",
                found=f"same voxels as {earlier.path.name}",
                expected="each image once",
                next_step="remove one, or name one patient for both by `split.group`, or test cases leak into training",
                severity="warning",
            )


def unusual_spacing(task: Task, seen: Sequence[Seen]) -> Iterator[Finding]:
    """Voxel sizes far from the data set's own, or a header without geometry among others that have it: warnings."""
    positive = [image for image in seen if all(0 < size < np.inf for size in image.spacing)]  # others are errors
    median = np.median([image.spacing for image in positive], axis=0) if positive else np.ones(3)
    for image in positive:
        spacing = np.array(image.spacing)
        far = max((spacing / median).max(), (median / spacing).max()) > UNUSUAL_RATIO
        implausible = spacing.min() < PLAUSIBLE_MM[0] or spacing.max() > PLAUSIBLE_MM[1]
        lost = image.identity and not np.allclose(median, 1.0, atol=1e-3)
        if far or implausible or lost:
            yield finding(
                task,
                image.case,
                image.path,
                "unusual spacing",
                found=f"{_row(spacing)} mm" + (", an identity affine" if lost else ""),
                expected=f"near the data set's median {_row(median)} mm, within {UNUSUAL_RATIO:g} times",
                next_step="compare with the scanner's records; a lost header often says 1 mm",
                severity="warning",
            )


def stray_files(task: Task) -> Iterator[Finding]:
    """NIfTI files of imagesTr and labelsTr that no case uses.

    Half a pair is an error; a pair that the data set's list leaves out is a warning.
    """
    cases = (*task.cases, *task.unlabelled)
    used = {path for case in cases for path in (*case.images, *(label_files(case.label) if case.label else ()))}
    stray: dict[str, list[Path]] = defaultdict(list)
    for folder in ("imagesTr", "labelsTr"):
        if task.layout in ("msd", "nnunet") and (task.root / folder).is_dir():
            for path in sorted((task.root / folder).iterdir()):
                if is_nifti_name(path) and path not in used:
                    stray[stem(path)].append(path)
    for name, paths in sorted(stray.items()):
        problem, severity = _what_stray_files_are(task, paths)
        yield finding(
            task,
            name,
            paths[0],
            problem,
            found="not part of any case",
            expected="an image and a label, listed in dataset.json"
            if task.layout == "msd"
            else f"<case>_0000 … _{len(task.channels) - 1:04d} for each case",
            next_step="add what is missing, or remove the file",
            severity=severity,
        )


def apple_doubles(task: Task) -> Iterator[Finding]:
    """Files ``._*`` that macOS puts into archives: skipped here, taken for images by other tools. A warning."""
    files = sorted(task.root.rglob("._*"))
    if files:
        yield finding(
            task,
            "",
            files[0],
            "AppleDouble files",
            found=f"{len(files)} files named ._…",
            expected="none",
            next_step="delete them: find . -name '._*' -delete",
            severity="warning",
        )


def _what_stray_files_are(task: Task, paths: list[Path]) -> tuple[str, Severity]:
    if task.layout == "nnunet":
        return "file that fits no declared channel", "error"
    if len(paths) > 1:
        return "pair that is not listed", "warning"
    return ("label without an image" if paths[0].parent.name == "labelsTr" else "image without a label"), "error"


def _row(sizes: np.ndarray) -> str:
    return " × ".join(f"{size:.4g}" for size in sizes)
