"""Which bytes a result rests on: content hashes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.dicom.read import is_dicom
from medseqft_kit.tasks.dicom.series import series_at
from medseqft_kit.tasks.labels import label_files
from medseqft_kit.tasks.types import Label, Masks, Task


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise DataError(f"{path} cannot be read.", found=str(problem), next_step="restore the file") from problem


def image_hash(path: Path) -> str:
    """SHA-256 of an image: of its file, or of a DICOM series over all of its files, whatever their names."""
    if not is_dicom(path):
        return file_hash(path)
    files = sorted(map(file_hash, series_at(path).files))
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def label_hash(label: Label) -> str:
    """SHA-256 of a label: of its file, or of all its files with what they mean."""
    if isinstance(label, Path):
        return file_hash(label)
    rule = [value for _, value in label.files] if isinstance(label, Masks) else label.greys
    return hashlib.sha256("\n".join((str(rule), *map(file_hash, label_files(label)))).encode()).hexdigest()


def fingerprint(task: Task, case_ids: Iterable[str]) -> str:
    """SHA-256 over the images and labels of some cases; it depends on ids and contents, not on paths or order."""
    total = hashlib.sha256()
    for case_id in sorted(set(case_ids)):
        case = task.case(case_id)
        parts = [*map(image_hash, case.images), label_hash(case.label) if case.label is not None else "unlabelled"]
        total.update("\x1f".join((case_id, *parts, "\n")).encode())
    return total.hexdigest()
