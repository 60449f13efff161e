"""The registry of layouts: a folder in, a task out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.tasks import folder as plain_folder
from medseqft_kit.tasks import msd, nnunet
from medseqft_kit.tasks.types import Task

LAYOUTS = (nnunet, msd, plain_folder)
"""In the order they are tried; each has ``LOOKS_FOR``, ``matches(folder)`` and ``read(folder, name)``."""


def load_task(
    folder: str | Path,
    name: str | None = None,
    labels: Mapping[str, int | tuple[int, ...] | list[int]] | None = None,
) -> Task:
    """Read a data set; its layout is detected, its files are listed and not opened.

    Parameters
    ----------
    name
        Name within a run; the folder's name by default.
    labels
        Structure to file values, in place of what the data set declares (:meth:`Task.relabelled`).

    Raises
    ------
    DataError
        If the folder is in no known layout or its description is damaged.
    ConfigError
        If `labels` does not fit, or is needed because the data set's own structures overlap or are not named.
    """
    task = detect_task(folder, name)
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
    """As :func:`load_task`, but a data set whose structures overlap passes, without structures: enough to check it."""
    root = Path(folder).absolute()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", expected="a data set", next_step="correct the path")
    for layout in LAYOUTS:
        if layout.matches(root):
            return layout.read(root, name or root.resolve().name)
    names = sorted(path.name for path in root.iterdir())
    raise DataError(
        f"{root} is in no layout known here.",
        found=(", ".join(names[:8]) + (" …" if names[8:] else "")) or "an empty folder",
        expected="\n            ".join(layout.LOOKS_FOR for layout in LAYOUTS),
        next_step="write a dataset.json, or convert the data set",
    )
