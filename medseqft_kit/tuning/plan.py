"""A task as a run takes it: the data set plus how many cases, which grid, which tolerance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medseqft_kit.config import TASK_NAME, TaskSection
from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.check import check_task
from medseqft_kit.tasks.fingerprint import fingerprint
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.split import Split, SplitSettings, grouping, patient_of, patient_sides, split_tasks
from medseqft_kit.tasks.types import Masks, Task
from medseqft_kit.volumes.preprocess import Preprocessing, resolve

Drawn = tuple[str, ...] | Literal["present"] | None
"""Structures that labels were drawn for; see :attr:`medseqft_kit.config.TaskSection.annotated`."""


@dataclass(frozen=True)
class TaskPlan:
    """One task of a sequence.

    `train_cases` of None trains on all cases of the split's training side; `preprocessing` and `nsd_tolerance_mm` are
    the task's own. `annotated` says what labels were drawn for, in place of what the data set says of itself.
    """

    task: Task
    train_cases: int | None = None
    preprocessing: Preprocessing = Preprocessing()
    nsd_tolerance_mm: float = 2.0
    annotated: Drawn = None

    def __post_init__(self) -> None:
        if not re.fullmatch(TASK_NAME, self.task.name):
            raise ConfigError(
                f"{self.task.name!r} cannot name a task: it names a folder and a head.",
                expected="letters, digits, - and _",
                next_step="load_task(folder, name=...)",
            )

    @classmethod
    def from_section(cls, section: TaskSection) -> TaskPlan:
        """Read the data set that a configuration names, under its label mapping."""
        task = load_task(section.data, section.name, section.labels, section.modality)
        grid = Preprocessing(section.spacing, section.window)
        drawn = section.annotated
        return cls(_drawn_for(task, drawn), section.train_cases, grid, section.nsd_tolerance_mm, drawn)

    @classmethod
    def from_entry(cls, name: str, entry: Mapping[str, Any]) -> TaskPlan:
        """Read the data set that a manifest names."""
        task = load_task(Path(entry["root"]), name, entry["structures"], entry["channels"][0])
        annotated = entry.get("annotated")
        drawn = tuple(annotated) if isinstance(annotated, list) else annotated
        whole = Preprocessing.read(entry["preprocessing"])
        return cls(_drawn_for(task, drawn), entry["train_limit"], whole, entry["nsd_tolerance_mm"], drawn)


def _drawn_for(task: Task, annotated: Drawn) -> Task:
    return task if annotated is None else task.annotated_for(annotated)


@dataclass(frozen=True)
class Cases:
    """Which cases a run uses: `train` and `validation` are limited by the settings, `test` is the whole side.

    `unlabelled` are the training cases beyond the limit: their images may be seen, their labels are not.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Those whose labels are read."""
        return (*self.train, *self.validation, *self.test)


def check_data(plans: Sequence[TaskPlan]) -> None:
    """Read every file of every task before anything is trained.

    Raises
    ------
    DataError
        With the errors found, the first five in full.
    """
    checked: set[Path] = set()
    errors: list[str] = []
    for plan in plans:
        masks = any(isinstance(case.label, Masks) for case in plan.task.cases)
        if masks or plan.task.root not in checked:
            checked.add(plan.task.root)
            # The data set as it is on disk: a mapping that drops labels must not turn the rest into errors. Of masks
            # only those that the task reads: there can be a hundred for each image.
            for finding in check_task(plan.task if masks else plan.task.root).errors:
                where = f"{finding.task}, {finding.file}: {finding.problem}"
                errors.append(f"{where} (found {finding.found}, expected {finding.expected})")
    if errors:
        more = [f"and {len(errors) - 5} more"] if len(errors) > 5 else []
        raise DataError(
            f"the data has {len(errors)} error{'s' * (len(errors) > 1)}; training was not started.",
            found="\n            ".join(errors[:5] + more),
            expected="none",
            next_step=f"medseqft check {' '.join(str(root) for root in sorted(checked))}",
        )


def split_settings(settings: Settings) -> SplitSettings:
    """The settings' split section in the tasks room's own type."""
    return SplitSettings(**settings.split.model_dump())


def split_plans(
    plans: Sequence[TaskPlan], settings: Settings, before: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Split]:
    """Split all tasks at once, one patient on one side; patients of `before` stay where they are.

    Parameters
    ----------
    before
        Entries of the tasks in an existing run's manifest, by name.
    """
    chosen, entries = split_settings(settings), before or {}
    splits = {name: split_of(entry) for name, entry in entries.items()}
    patients = {name: entry.get("patients", "case") for name, entry in entries.items()}
    return split_tasks([plan.task for plan in plans], chosen, patient_sides(splits, chosen.group, patients))


def split_of(entry: Mapping[str, Any]) -> Split:
    """The split that a manifest's entry keeps."""
    return Split(**{side: tuple(ids) for side, ids in entry["split"].items()})


def patients_tested(plans: Sequence[TaskPlan], settings: Settings) -> frozenset[str]:
    """Patients of the tasks' test sides; where the data sets name them, by the ids of their cases too.

    The same images may be pre-trained on as a folder without that name.
    """
    group = settings.split.group
    patterns = {plan.task.name: grouping(plan.task.patients, group) for plan in plans}
    cases = [(case, patterns[name]) for name, split in split_plans(plans, settings).items() for case in split.test]
    ids = frozenset(case for case, _ in cases) if group == "case" else frozenset()
    return ids | frozenset(patient_of(case, pattern) for case, pattern in cases)


def choose_cases(plan: TaskPlan, split: Split, settings: Settings) -> Cases:
    """Limit a split to the cases that are used.

    Which training cases are kept depends on the run's seed; validation and test cases do not.
    """
    order = numpy_generator(settings.seed, "train cases", plan.task.name).permutation(len(split.train))
    kept = tuple(sorted(split.train[i] for i in order[: plan.train_cases]))
    order = numpy_generator(settings.split.seed, "validation cases", plan.task.name).permutation(len(split.validation))
    validation = tuple(sorted(split.validation[i] for i in order[: settings.budget.validation_cases]))
    beyond = tuple(case for case in split.train if case not in kept)
    return Cases(kept, validation, split.test, beyond)


def resolved(plan: TaskPlan, scale: tuple[float, float]) -> TaskPlan:
    """The plan with its grid filled in from the data, and the scale of intensities that M_0 expects."""
    return replace(plan, preprocessing=replace(resolve(plan.preprocessing, plan.task), scale=scale))


def manifest_entry(plan: TaskPlan, split: Split, cases: Cases) -> dict[str, Any]:
    """What the manifest keeps of a task: enough to read it again and to notice that its files changed."""
    task = plan.task
    return {
        "root": str(task.root.resolve()),
        "layout": task.layout,
        "channels": list(task.channels),
        "structures": {name: list(values) for name, values in task.structures.items()},
        "declared": sorted(task.declared),
        "patients": task.patients,
        "annotated": plan.annotated if plan.annotated in (None, "present") else list(plan.annotated),
        "split": {side: list(ids) for side, ids in split._asdict().items()},
        "train_limit": plan.train_cases,
        "train_cases": list(cases.train),
        "validation_cases": list(cases.validation),
        "preprocessing": asdict(plan.preprocessing),
        "nsd_tolerance_mm": plan.nsd_tolerance_mm,
        "fingerprint": fingerprint(task, cases.all),
    }
