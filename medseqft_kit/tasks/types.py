"""What a task is: named structures, cases on disk, and the rule from file values to classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medseqft_kit.errors import ConfigError, DataError

Rule = Mapping[str, int | tuple[int, ...] | list[int]]
"""Structure to file values."""


@dataclass(frozen=True)
class Masks:
    """A label in several NIfTI files of 0 and 1: each with the file value that its voxels mean, in this order.

    Where two masks overlap, the later one counts.
    """

    files: tuple[tuple[Path, int], ...]

    def only(self, values: Collection[int]) -> Masks:
        """The masks that mean one of `values`."""
        return Masks(tuple((path, value) for path, value in self.files if value in values))


@dataclass(frozen=True)
class Slices:
    """A label as pictures, one for each slice of a DICOM series; both are paired in the order of their names' numbers.

    Parameters
    ----------
    folder
        Of the PNG files.
    series
        Of the DICOM series, which has the geometry.
    greys
        Lowest grey, highest grey, and the file value that greys between them mean.
    """

    folder: Path
    series: Path
    greys: tuple[tuple[int, int, int], ...]


Label = Path | Masks | Slices
"""A label map (a NIfTI file of values) or what makes one; :mod:`~medseqft_kit.tasks.labels` reads all of them."""
Annotated = frozenset[int] | Literal["present"] | None
"""File values that a case's label was drawn for: these, or those that occur in it, or (None) all that the set knows."""


@dataclass(frozen=True)
class Case:
    """One examination: image files on one grid and, where it is labelled, its label.

    Parameters
    ----------
    images
        One file for each channel (nnU-Net), or a single file whose fourth axis holds the channels (MSD); a folder is a
        DICOM series.
    channels
        Modality of each channel where the data set mixes modalities; empty: those of the task.
    annotated
        What the label was drawn for. A structure outside it is unknown where the label says background.
    """

    id: str
    images: tuple[Path, ...]
    label: Label | None = None
    channels: tuple[str, ...] = ()
    annotated: Annotated = None


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
    patients
        ``"case"``: each case is a patient; else a regular expression whose first group names the patient in an id.
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
    patients: str = "case"

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

    def relabelled(self, structures: Rule) -> Task:
        """The same images under another rule: merge, drop or rename structures by file value.

        Masks that no structure names are left out: they are neither read nor checked.

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
        return self._with_structures(self.name, rule)

    def of_modality(self, modality: str | None) -> Task:
        """The cases of one modality, where the data set holds several; None where it holds one.

        Raises
        ------
        ConfigError
            If the data set has no such images, or holds several modalities and none is asked for.
        """
        kinds = sorted({case.channels or self.channels for case in (*self.cases, *self.unlabelled)} or {self.channels})
        chosen = [kind for kind in kinds if modality is None or modality in kind]
        if len(chosen) != 1:
            raise ConfigError(
                f"{self.root} holds images of {' and '.join('/'.join(kind) for kind in kinds)}.",
                found=f"modality: {modality}" if modality is not None else "no `modality`",
                expected="one of them in a task: intensities are scaled by it",
                next_step=f"give `modality: {kinds[0][0]}` of this task in the configuration",
            )
        cases, unlabelled = (
            tuple(replace(case, channels=()) for case in group if (case.channels or self.channels) == chosen[0])
            for group in (self.cases, self.unlabelled)
        )
        return replace(self, channels=chosen[0], cases=cases, unlabelled=unlabelled)

    def annotated_for(self, structures: Collection[str] | Literal["present"]) -> Task:
        """The same task, every label drawn for these structures alone, or for those that occur in it.

        Raises
        ------
        ConfigError
            If a structure is not the task's.
        """
        unknown = sorted(set(structures) - set(self.structures)) if structures != "present" else []
        if unknown or not structures:
            raise ConfigError(
                f"`annotated` of task {self.name} cannot be used.",
                found=", ".join(unknown) or "no structure",
                expected=f"`present`, or some of {', '.join(self.structures)}",
                next_step="correct `annotated` of this task in the configuration",
            )
        values: Annotated = "present"
        if structures != "present":
            values = frozenset(value for name in structures for value in self.structures[name])
        return replace(self, cases=tuple(replace(case, annotated=values) for case in self.cases))

    def unannotated(self, case: Case, classes: Collection[int]) -> tuple[int, ...]:
        """Foreground classes that a case's label says nothing of, given the class indices that occur in it."""
        numbered = enumerate(self.structures.values(), start=1)
        if case.annotated is None:
            return ()
        if case.annotated == "present":
            return tuple(index for index, _ in numbered if index not in classes)
        return tuple(index for index, values in numbered if not case.annotated.issuperset(values))

    def one_by_one(self) -> tuple[Task, ...]:
        """A task for each structure, named after it, on the same images: a data set as a sequence of tasks."""
        names = [re.sub(r"[^A-Za-z0-9_-]+", "_", structure) for structure in self.structures]
        return tuple(
            self._with_structures(name, {structure: values})
            for name, (structure, values) in zip(names, self.structures.items(), strict=True)
        )

    def _with_structures(self, name: str, rule: Mapping[str, tuple[int, ...]]) -> Task:
        used = {value for group in rule.values() for value in group}
        cases = tuple(
            replace(case, label=case.label.only(used)) if isinstance(case.label, Masks) else case for case in self.cases
        )
        return replace(self, name=name, structures=rule, cases=cases)

    def to_classes(self, values: np.ndarray) -> np.ndarray:
        """File values to class indices (uint8); 255 marks voxels to ignore. Same shape."""
        classes = np.zeros(values.shape, dtype=np.uint8)
        for index, group in enumerate(self.structures.values(), start=1):
            for value in group:
                classes[values == value] = index
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
