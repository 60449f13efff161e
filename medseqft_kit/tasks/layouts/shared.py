"""What the readers of public data sets have in common: finding files by name, and a task made of a catalogue entry."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from medseqft_kit.tasks.catalogue import DataSet
from medseqft_kit.tasks.dataset_json import sorted_cases
from medseqft_kit.tasks.types import Case, Task

NEVER = re.compile(r"\.|__MACOSX$")
"""Folders and files that archives made on a Mac carry along, and hidden ones."""


def found(folder: Path, pattern: str) -> dict[str, Path]:
    """Files of a folder whose whole name matches, by the pattern's first group; nothing where there is no folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    matches = ((re.fullmatch(pattern, name), name) for name in names if not NEVER.match(name))
    return {match[1]: folder / name for match, name in matches if match}


def folders(root: Path, pattern: str, depth: int) -> Iterator[Path]:
    """Folders whose whole name matches, at most `depth` levels down, sorted; those that match are not searched."""
    with os.scandir(root) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir() and not NEVER.match(entry.name))
    for name in below:
        if re.fullmatch(pattern, name):
            yield root / name
        elif depth > 1:
            yield from folders(root / name, pattern, depth - 1)


def first_with(root: Path, inner: str, *wrappers: str) -> Path | None:
    """The folder that holds `inner`: `root` itself, or one of the folders that archives wrap around it."""
    return next((root / wrapper for wrapper in ("", *wrappers) if (root / wrapper / inner).is_dir()), None)


def task_of(
    data_set: DataSet,
    root: Path,
    name: str,
    cases: Iterable[Case],
    unlabelled: Iterable[Case] = (),
    patients: str = "case",
) -> Task:
    """The task of a data set in the catalogue."""
    labelled, rest = sorted_cases(root, cases, unlabelled)
    return Task(
        name=name,
        root=root,
        layout=data_set.layout,
        channels=data_set.modality,
        structures={structure: (value,) for structure, value in data_set.structures.items()},
        declared=frozenset({0, *data_set.structures.values()}),
        cases=labelled,
        unlabelled=rest,
        licence=data_set.licence,
        reference=data_set.reference,
        patients=patients,
    )
