"""What a task is: named structures, cases on disk, and the rule from file values to classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medseqft_kit.errors import ConfigError, DataError


@dataclass(frozen=True)
class Case:
    """One examination: image files on one grid and, where it is labelled, one label file.

    `images` holds one file for each channel (nnU-Net), or a single file whose fourth axis holds the channels (MSD).
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True)
class Task:
    """A segmentation data set as the rest of the kit sees it.

    Parameters
    ----------
    name
        Unique within a run; names folders and heads.
    root
        The data set's folder.
    layout
        The reader that recognised it, for instance ``"msd"`` or ``"nnunet"``.
    channels
        Modality of each channel, one of ``"CT"``, ``"MR"``, ``"PET"``, ``"other"``.
    structures
        Foreground structure to the file values that mean it, in class order: class ``i + 1`` is the ``i``-th entry.
        File values mentioned by no structure are background.
    declared
        All values that the data set says may occur in a label file, 0 included.
    cases
        Labelled cases, sorted by id.
    unlabelled
        Images without a label (MSD's ``imagesTs``, an unlabelled folder), sorted by id.
    ignore
        File value of unannotated voxels (nnU-Net's ``ignore`` label), or None.
    folds
        Predefined cross-validation (nnU-Net's ``splits_final.json``): each fold's ids of train and held-out cases.
    """

    name: str
    root: Path
    layout: str
    channels: tuple[str, ...]
    structures: Mapping[str, tuple[int, ...]]
    declared: frozenset[int]
    cases: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    ignore: int | None = None
    licence: str = ""
    reference: str = ""
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = field(default=(), repr=False)

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.structures) + 1

    def case(self, case_id: str) -> Case:
        """The case of that id, labelled or not."""
        for case in (*self.cases, *self.unlabelled):
            if case.id == case_id:
                return case
        raise DataError(f"{self.name} has no case {case_id!r}.", next_step=f"medseqft check {self.root}")

    def relabelled(self, structures: Mapping[str, int | tuple[int, ...] | list[int]]) -> Task:
        """The same images under another rule: merge, drop or rename structures by file value.

        Raises
        ------
        ConfigError
            If a value is not declared by the data set, is 0, or is claimed by two structures.
        """
        rule = {name: (v,) if isinstance(v, int) else tuple(v) for name, v in structures.items()}
        values = [value for group in rule.values() for value in group]
        wrong = sorted({v for v in values if v not in self.declared or v == 0 or values.count(v) > 1})
        if wrong or not rule or not all(rule.values()):
            raise ConfigError(
                f"the label mapping of task {self.name} cannot be used.",
                found=", ".join(f"{name}: {list(group)}" for name, group in rule.items()) or "no structure",
                expected=f"each structure at least one of {sorted(self.declared - {0})}, each value once",
                next_step="correct `labels` of this task in the configuration",
            )
        return replace(self, structures=rule)

    def one_by_one(self) -> tuple[Task, ...]:
        """A task for each structure, named after it, on the same images: a data set as a sequence of tasks."""
        names = [re.sub(r"[^A-Za-z0-9_-]+", "_", structure) for structure in self.structures]
        return tuple(
            replace(self, name=name, structures={structure: values})
            for name, (structure, values) in zip(names, self.structures.items(), strict=True)
        )

    def to_classes(self, values: np.ndarray) -> np.ndarray:
        """File values to class indices (uint8); 255 marks voxels to ignore. Same shape."""
        classes = np.zeros(values.shape, dtype=np.uint8)
        for index, group in enumerate(self.structures.values(), start=1):
            classes[np.isin(values, group)] = index
        if self.ignore is not None:
            classes[values == self.ignore] = IGNORE
        return classes

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """Class indices back to file values (the first value of a merged structure), in the smallest integer type."""
        table = np.array([0, *(group[0] for group in self.structures.values())])
        smallest = np.min_scalar_type(int(table.max())) if table.min() >= 0 else np.dtype(np.int16)
        return table[classes].astype(smallest)


IGNORE = 255
"""Class index of voxels that no loss and no metric counts."""
