"""The layouts, one file each, and what picks among them: a folder in, a task out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.findings import Finding
from medseqft_kit.tasks.layouts import (
    acdc,
    amos22,
    bids,
    brats,
    btcv,
    chaos,
    covid19_20,
    dicom,
    flare22,
    flare23,
    kits19,
    kits21,
    kits23,
    lits,
    msd,
    nnunet,
    totalsegmentator,
)
from medseqft_kit.tasks.layouts import folder as plain_folder
from medseqft_kit.tasks.layouts.known import KnownDefect, known_defects
from medseqft_kit.tasks.types import Rule, Task


class Layout(Protocol):
    """A module that reads one layout; files are listed, and their contents never decide."""

    LOOKS_FOR: str
    KNOWN_DEFECTS: tuple[KnownDefect, ...]

    def matches(self, folder: Path) -> bool:
        """Whether the folder is in this layout, and in no other."""

    def read(self, folder: Path, name: str) -> Task:
        """The task in it."""


LAYOUTS: dict[str, Layout] = {
    "nnunet": nnunet,
    "msd": msd,
    "acdc": acdc,
    "amos22": amos22,
    "bids": bids,
    "brats": brats,
    "btcv": btcv,
    "chaos": chaos,
    "covid19_20": covid19_20,
    "flare22": flare22,
    "flare23": flare23,
    "kits19": kits19,
    "kits21": kits21,
    "kits23": kits23,
    "lits": lits,
    "totalsegmentator": totalsegmentator,
    "dicom": dicom,
    "folder": plain_folder,
}


def load_task(
    folder: str | Path,
    name: str | None = None,
    labels: Rule | None = None,
    modality: str | None = None,
) -> Task:
    """Read a data set; its layout is detected, its files are listed and not opened.

    Parameters
    ----------
    name
        Name within a run; the folder's name by default.
    labels
        Structure to file values, in place of what the data set declares (:meth:`Task.relabelled`).
    modality
        Which images, where a data set holds several kinds: ``"CT"``, ``"MR"`` or ``"PET"``.

    Raises
    ------
    DataError
        If the folder is in no known layout or its description is damaged.
    ConfigError
        If `labels` does not fit, or is needed because the data set's own structures overlap or are not named; if
        `modality` does not fit, or is needed because the data set holds several.
    """
    task = detect_task(folder, name).of_modality(modality)
    if labels is not None:
        return task.relabelled(labels)
    if task.cases and not task.structures:
        raise ConfigError(
            f"the structures of {task.root} overlap or have no names.",
            found=f"label values {sorted(task.declared)}",
            expected="each value in one structure",
            next_step="give `labels` of this task in the configuration, for instance {tumour: [1, 2], oedema: 3}",
        )
    return task


def detect_task(folder: str | Path, name: str | None = None) -> Task:
    """As :func:`load_task`, but overlapping structures or several modalities pass: enough to check a data set.

    Raises
    ------
    DataError
        If the folder is in no known layout, in several (it holds several data sets), or its description is damaged.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", expected="a data set", next_step="correct the path")
    fitting = [layout for layout in LAYOUTS.values() if layout.matches(root)]
    if len(fitting) == 1:
        return fitting[0].read(root, name or root.resolve().name)
    if fitting:
        raise DataError(
            f"{root} holds several data sets.",
            found="\n            ".join(layout.LOOKS_FOR for layout in fitting),
            expected="one",
            next_step="name the folder of one of them",
        )
    names = sorted(path.name for path in root.iterdir())
    raise DataError(
        f"{root} is in no layout known here.",
        found=(", ".join(names[:8]) + (" …" if names[8:] else "")) or "an empty folder",
        expected="\n            ".join(layout.LOOKS_FOR for layout in LAYOUTS.values()),
        next_step="write a dataset.json, or convert the data set",
    )


def defects_known_of(task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Defects of this case that others have reported of the data set."""
    return known_defects(LAYOUTS[task.layout].KNOWN_DEFECTS, task, facts) if task.layout in LAYOUTS else iter(())
