"""Preprocessed volumes on disk, keyed by content and settings; a crop reads only its own bytes.

The store is a cache: an entry is found again whatever run made it, an interrupted preparation continues where it
stopped, and a damaged entry is rebuilt.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseqft_kit.errors import DataError
from medseqft_kit.progress import Progress, silent
from medseqft_kit.tasks.fingerprint import image_hash, label_hash
from medseqft_kit.tasks.types import Case, Task
from medseqft_kit.volumes.entry import FORMAT, UNFINISHED, is_whole, open_entry, write_entry
from medseqft_kit.volumes.estimate import estimate, require_room
from medseqft_kit.volumes.intensity import SCALE
from medseqft_kit.volumes.preprocess import Preprocessing, preprocess, resolve
from medseqft_kit.volumes.types import Volume


@dataclass(frozen=True)
class TaskVolumes:
    """The prepared cases of one task. It holds names only, so it pickles small and opens anew in any process.

    Parameters
    ----------
    cases
        Ids, in the order they were asked for.
    preprocessing
        With the spacing that was used.
    keys
        Case id to the name of its entry in `folder`.
    """

    task: Task
    cases: tuple[str, ...]
    folder: Path
    preprocessing: Preprocessing
    keys: Mapping[str, str] = field(repr=False)

    def volume(self, case_id: str) -> Volume:
        """Open a case: nothing is read until it is sliced. Cheap to call again; keep no list of many (descriptors).

        Raises
        ------
        DataError
            If the case was not prepared, or its entry has been damaged since.
        """
        if case_id not in self.keys:
            raise DataError(
                f"case {case_id!r} of {self.task.name} was not prepared.", found=f"{len(self.cases)} other cases"
            )
        return open_entry(self.folder / self.keys[case_id], case_id)

    def entries(self, cases: Sequence[str] | None = None) -> tuple[tuple[TaskVolumes, str], ...]:
        """(self, case) for the given cases, by default all: what a batch source walks."""
        return tuple((self, case) for case in (self.cases if cases is None else cases))


def prepare(
    task: Task,
    preprocessing: Preprocessing,
    cases: Sequence[str],
    store: Path,
    *,
    progress: Progress = silent,
) -> TaskVolumes:
    """Preprocess the cases that the store does not hold yet, one at a time.

    What it will take is estimated from the headers, compared with what is free, and said in the progress label before
    the first case. Processes that share a store wait for each other.

    Parameters
    ----------
    preprocessing
        Its spacing is resolved by the whole task, not by `cases`.
    cases
        Ids of labelled or unlabelled cases.
    store
        Folder; made where it is missing.

    Raises
    ------
    DataError
        If a file cannot be used (named), or disk or memory do not suffice; entries already made are kept.
    """
    preprocessing = resolve(preprocessing, task)
    chosen = [task.case(case) for case in dict.fromkeys(cases)]
    settings = {case.id: _settings(task, case, preprocessing) for case in chosen}
    keys = {case: _key(value) for case, value in settings.items()}
    store.mkdir(parents=True, exist_ok=True)
    with _alone(store):
        missing = [case for case in chosen if not is_whole(store / keys[case.id])]
        needed = estimate(task, preprocessing, missing)
        require_room(store, needed, task)
        label = f"preparing {task.name} ({needed})"
        for done, case in enumerate(missing):
            progress(label, done, len(missing))
            write_entry(store / keys[case.id], preprocess(task, case, preprocessing), settings[case.id])
        if missing:
            open_entry.cache_clear()  # a rebuilt entry may still be mapped as it was
            progress(label, len(missing), len(missing))
    return TaskVolumes(task, tuple(keys), store, preprocessing, keys)


def _settings(task: Task, case: Case, preprocessing: Preprocessing) -> dict[str, Any]:
    """Everything that an entry's bytes depend on."""
    settings: dict[str, Any] = {
        "format": FORMAT,
        "images": [image_hash(path) for path in case.images],
        "channels": list(case.channels or task.channels),
        "spacing": preprocessing.spacing and [float(size) for size in preprocessing.spacing],
        "window": preprocessing.window and [float(edge) for edge in preprocessing.window],
    }
    if preprocessing.scale != SCALE:
        settings["scale"] = [float(end) for end in preprocessing.scale]
    if case.label is not None:
        rule = [list(values) for values in task.structures.values()]
        settings |= {"label": label_hash(case.label), "structures": rule, "ignore": task.ignore}
        if case.annotated is not None:
            settings["annotated"] = "present" if case.annotated == "present" else sorted(case.annotated)
    return settings


def _key(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Hold the store's lock, which the operating system frees with the process; leftovers then belong to nobody."""
    with (store / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in store.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        yield
