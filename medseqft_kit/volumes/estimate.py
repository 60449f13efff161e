"""What preparing a store will take, from the headers alone, before any of it is taken."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.images import read_header
from medseqft_kit.tasks.memory import readable, require_memory
from medseqft_kit.tasks.statistics import ras_spacing
from medseqft_kit.tasks.types import Case, Task
from medseqft_kit.volumes.preprocess import Preprocessing

SPARE = 256 * 2**20
"""Bytes left free on the disk of the store: results must still fit."""


@dataclass(frozen=True)
class Estimate:
    """Bytes.

    Parameters
    ----------
    disk
        That the cases will take in the store.
    memory
        That preprocessing holds at its peak: cases are prepared one at a time, so that of the largest case.
    """

    disk: int
    memory: int

    def __str__(self) -> str:
        return f"{readable(self.disk)} on disk, {readable(self.memory)} of memory at a time"


def estimate(task: Task, preprocessing: Preprocessing, cases: Sequence[Case]) -> Estimate:
    """Read the header of each case's first image; `preprocessing` has its spacing (see ``resolve``)."""
    disk, memory = 0, 0
    for case in cases:
        header = read_header(case.images[0])
        before = float(np.prod(header.grid))
        after = before * float(np.prod(header.spacing) / np.prod(preprocessing.spacing or header.spacing))
        channels = len(task.channels)
        disk += int(after * (2 * channels + (case.label is not None)))
        # Bytes a voxel as measured: read, normalise and turn; and, only where it resamples, MONAI's sampling positions.
        peak = before * (10 * channels + 18)
        if preprocessing.resamples(ras_spacing(header)):
            peak += after * (4 * channels + 22)
        memory = max(memory, int(peak))
    return Estimate(disk, memory)


def require_room(store: Path, needed: Estimate, task: Task) -> None:
    """Refuse before anything is taken.

    Raises
    ------
    DataError
        If the store's disk or the machine's memory does not have that much free.
    """
    require_memory(
        needed.memory,
        f"preprocessing the largest case of {task.name}",
        "close other programs, choose a coarser `spacing`, or use a larger machine",
    )
    existing = next(folder for folder in (store, *store.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed.disk + SPARE > free:
        raise DataError(
            f"the preprocessed volumes of {task.name} do not fit on the disk of {store}.",
            found=f"{readable(free)} free",
            expected=f"{readable(needed.disk)}, and {readable(SPARE)} to spare",
            next_step="free some space, choose a coarser `spacing`, or put the run on another disk",
        )
