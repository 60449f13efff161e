"""Cross-validation: nnU-Net's ``splits_final.json`` where a data set has it, folds in hash order elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.randomness import derived_seed
from medseqft_kit.tasks.dataset_json import load_json
from medseqft_kit.tasks.types import Task

FILE = "splits_final.json"
FOLDS = 5
"""Folds of a task that has none of its own: nnU-Net's number."""
Folds = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def read_folds(folder: Path, case_ids: Iterable[str]) -> Folds:
    """The predefined folds (ids of train, held-out cases), sorted; empty where the file is absent.

    The file is a list with ``{"train": [ids], "val": [ids]}`` for each fold, beside dataset.json.

    Raises
    ------
    DataError
        If the file has another form, names cases that the data set lacks, or one case on both sides of a fold.
    """
    path = folder / FILE
    if not path.exists():
        return ()
    try:
        folds = [tuple(tuple(sorted(map(str, fold[side]))) for side in ("train", "val")) for fold in load_json(path)]
    except (TypeError, KeyError):
        raise DataError(
            f"{path} has another form.",
            expected='[{"train": [case, …], "val": [case, …]}, …]',
            next_step=f"repair or remove {path}",
        ) from None
    known = set(case_ids)
    for number, (train, held_out) in enumerate(folds):
        unknown, both = {*train, *held_out} - known, set(train) & set(held_out)
        if unknown or both:
            raise DataError(
                f"fold {number} of {path} does not fit the data set.",
                found=f"{sorted(unknown or both)[:5]} {'not in the data set' if unknown else 'on both sides'}",
                expected="each case of the data set on one side",
                next_step=f"repair or remove {path}",
            )
    return tuple((train, held_out) for train, held_out in folds)


def by_hash(patients: Iterable[str], seed: int) -> list[str]:
    """Patients in an order that depends on `seed` and their names alone."""
    return sorted(patients, key=lambda patient: (derived_seed(seed, "split", patient), patient))


def held_out_patients(
    tasks: Iterable[Task],
    patients: Mapping[str, Mapping[str, str]],
    strata: Sequence[Sequence[str]],
    fold: int,
    fixed: Mapping[str, str],
) -> set[str]:
    """Test patients of a fold, those of `fixed` not repeated.

    Parameters
    ----------
    patients
        Task name to case id to patient.
    strata
        All patients, in hash order within each stratum; numbered through, every :data:`FOLDS`-th is held out.
    fixed
        Patient to side, already decided.

    Raises
    ------
    ConfigError
        If there is no such fold, or a patient would be on two sides.
    """
    said = dict(fixed)
    told: set[str] = set()
    for task in tasks:
        for patient, side in _own_fold(task, patients[task.name], fold).items():
            if (said.setdefault(patient, side) == "test") != (side == "test"):
                raise _leak(task, fold, patient, f"{said[patient]} by another task or the existing run, now {side}")
            told.add(patient)
    rest = [patient for stratum in strata for patient in stratum if patient not in said]
    if rest and not 0 <= fold < FOLDS:
        raise _no_such_fold("tasks without folds of their own", fold, FOLDS)
    return {patient for patient in told - fixed.keys() if said[patient] == "test"} | set(rest[fold::FOLDS])


def _own_fold(task: Task, patients: Mapping[str, str], fold: int) -> dict[str, str]:
    if not task.folds:
        return {}
    if not 0 <= fold < len(task.folds):
        raise _no_such_fold(f"task {task.name}", fold, len(task.folds))
    train, held_out = task.folds[fold]
    _require_complete(task, patients.keys() - {*train, *held_out}, fold)
    sides = {patients[case_id]: "train" for case_id in train}
    for patient in (patients[case_id] for case_id in held_out):
        if sides.get(patient) == "train":
            raise _leak(task, fold, patient, "train and held out")
        sides[patient] = "test"
    return sides


def _require_complete(task: Task, missing: Collection[str], fold: int) -> None:
    if missing:
        raise ConfigError(
            f"fold {fold} of task {task.name} leaves cases out.",
            found=f"{len(missing)} cases on no side: {', '.join(sorted(missing)[:5])}",
            expected="each case in `train` or `val`",
            next_step=f"complete {task.root / FILE}, or split without `fold`",
        )


def _no_such_fold(whose: str, fold: int, count: int) -> ConfigError:
    return ConfigError(f"{whose}: no fold {fold}.", found=f"{count} folds", expected=f"`fold` from 0 to {count - 1}")


def _leak(task: Task, fold: int, patient: str, found: str) -> ConfigError:
    return ConfigError(
        f"fold {fold} of task {task.name} would put patient {patient!r} on two sides.",
        found=found,
        expected="one patient, one side, over all tasks",
        next_step=f"correct {task.root / FILE}, or split without `fold`",
    )
