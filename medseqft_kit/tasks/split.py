"""Train, validation and test by patient, over all tasks of a run at once.

Patients are the union over the tasks; the set of tasks that a patient occurs in is its stratum. Within a stratum,
patients are ordered by a hash of (seed, patient) and cut by the fractions, so the order of tasks and files does not
matter. With a `fold`, test patients come from the fold first and the rest is cut into train and validation.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from medseqft_kit.errors import ConfigError
from medseqft_kit.tasks.folds import by_hash, held_out_patients
from medseqft_kit.tasks.types import Task

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")
PRECEDENCE: tuple[Side, ...] = ("train", "test", "validation")
"""Which side takes the last patient where remainders are equal."""


@dataclass(frozen=True)
class SplitSettings:
    """How to split.

    Parameters
    ----------
    fractions
        Of train, validation and test; they add up to 1. With a fold, the first two share what the fold leaves.
        A side of fraction 0 stays empty.
    group
        ``"case"``: as the data set says (``Task.patients``), which is each case a patient where it says nothing; else a
        regular expression whose first group names the patient.
    fold
        Held-out fold: of the task's own folds (nnU-Net's ``splits_final.json``) where it has them, else of
        :data:`medseqft_kit.tasks.folds.FOLDS` folds in hash order.
    """

    seed: int = 0
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    group: str = "case"
    fold: int | None = None

    def __post_init__(self) -> None:
        usable = len(self.fractions) == 3 and min(self.fractions) >= 0 and self.fractions[0] > 0
        if not usable or abs(sum(self.fractions) - 1) > 1e-6:
            raise ConfigError(
                "the split's fractions cannot be used.",
                found=str(list(self.fractions)),
                expected="three numbers that add up to 1: train (above 0), validation, test",
            )


class Split(NamedTuple):
    """Case ids of each side, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def patient_of(case_id: str, group: str) -> str:
    r"""The patient whom a case belongs to.

    >>> patient_of("SCD0000101_ED", r"(SCD\d+)_")
    'SCD0000101'

    Raises
    ------
    ConfigError
        If `group` is no regular expression with a group, or does not match the case.
    """
    if group == "case":
        return case_id
    try:
        found = re.search(group, case_id)
        patient = found and found[1]
    except (re.error, IndexError):
        patient = None
    if patient is None:
        raise ConfigError(
            f"the split cannot tell the patient of case {case_id!r}.",
            found=f"group: {group!r}",
            expected="`case`, or a regular expression whose first group names the patient, matching every case id",
        )
    return patient


def grouping(of_task: str, group: str) -> str:
    """What names the patients of a task: the setting, or (``case``) what the data set says of itself."""
    return of_task if group == "case" else group


def split_tasks(tasks: Iterable[Task], settings: SplitSettings, fixed: Mapping[str, str] = {}) -> dict[str, Split]:
    """Sides of all labelled cases of all tasks; one patient is on one side everywhere.

    Parameters
    ----------
    fixed
        Patient to side, from an existing run (:func:`patient_sides`): kept as it is, only new patients are assigned.

    Returns
    -------
    dict
        Task name to :class:`Split`. In a task of at least three patients no side is empty, unless its fraction is 0.

    Raises
    ------
    ConfigError
        If settings, folds and `fixed` contradict each other or leave a side of a task without a patient.
    """
    tasks = list(tasks)
    patients = {
        task.name: {case.id: patient_of(case.id, grouping(task.patients, settings.group)) for case in task.cases}
        for task in tasks
    }
    members = {name: set(ids.values()) for name, ids in patients.items()}
    strata = [by_hash(stratum, settings.seed) for stratum in _strata(members)]
    sides = {patient: _side(side) for patient, side in fixed.items()}
    movable: tuple[Side, ...] = SIDES
    if settings.fold is not None:
        held_out = held_out_patients(tasks, patients, strata, settings.fold, sides)
        sides |= dict.fromkeys(held_out, "test")
        strata = [[patient for patient in stratum if sides.get(patient) != "test"] for stratum in strata]
        movable = ("train", "validation")
    for stratum in strata:
        sides |= _cut(stratum, sides, {side: settings.fractions[SIDES.index(side)] for side in movable})
    _fill_empty_sides_(sides, members, settings, free=sides.keys() - fixed.keys(), movable=movable)
    return {name: _split(ids, sides) for name, ids in patients.items()}


def patient_sides(splits: Mapping[str, Split], group: str, of_tasks: Mapping[str, str] = {}) -> dict[str, str]:
    """Patient to side of an existing split: the `fixed` of the next call; `of_tasks` are the tasks' ``patients``."""
    return {
        patient_of(case_id, grouping(of_tasks.get(name, "case"), group)): side
        for name, split in splits.items()
        for side, case_ids in zip(SIDES, split, strict=True)
        for case_id in case_ids
    }


def _side(text: str) -> Side:
    for side in SIDES:
        if text == side:
            return side
    raise ConfigError("a fixed side has no such name.", found=text, expected=", ".join(SIDES))


def _strata(members: Mapping[str, set[str]]) -> list[list[str]]:
    """Patients grouped by the set of tasks they occur in, in an order that the order of tasks does not change."""
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient in set[str]().union(*members.values()):
        strata[tuple(sorted(name for name in members if patient in members[name]))].append(patient)
    return [strata[key] for key in sorted(strata)]


def _cut(stratum: Sequence[str], sides: Mapping[str, Side], fractions: Mapping[Side, float]) -> dict[str, Side]:
    """Sides of the stratum's new patients, such that the whole stratum comes nearest to the fractions."""
    new = [patient for patient in stratum if patient not in sides]
    taken = Counter(sides[patient] for patient in stratum if patient in sides)
    scale = len(stratum) / sum(fractions.values())
    wanted = {side: max(0.0, fraction * scale - taken[side]) for side, fraction in fractions.items()}
    counts = _largest_remainder(wanted if sum(wanted.values()) else fractions, len(new))
    drawn = [side for side in fractions for _ in range(counts[side])]
    return dict(zip(new, drawn, strict=True))


def _largest_remainder(weights: Mapping[Side, float], total: int) -> dict[Side, int]:
    shares = {side: round(weight / sum(weights.values()) * total, 9) for side, weight in weights.items()}
    counts = {side: int(share) for side, share in shares.items()}
    order = sorted(shares, key=lambda side: (counts[side] - shares[side], PRECEDENCE.index(side)))
    for side in order[: total - sum(counts.values())]:
        counts[side] += 1
    return counts


def _fill_empty_sides_(
    sides: dict[str, Side],
    members: Mapping[str, set[str]],
    settings: SplitSettings,
    free: Iterable[str],
    movable: Sequence[Side],
) -> None:
    """Move a free patient onto each empty side of a task; a move never empties a side of any task."""
    wanted = [side for side, fraction in zip(SIDES, settings.fractions, strict=True) if fraction > 0]
    free_in_order = by_hash((patient for patient in free if sides[patient] in movable), settings.seed)
    for name in sorted(members):
        if len(members[name]) < len(SIDES):
            continue
        for empty in (side for side in wanted if side not in {sides[patient] for patient in members[name]}):
            can_leave = [p for p in free_in_order if p in members[name] and _can_leave(p, sides, members)]
            if not can_leave or empty not in movable:
                raise ConfigError(
                    f"task {name} has no {empty} patient.",
                    found=f"{len(members[name])} patients, {len(can_leave)} of them free to change sides",
                    expected="a patient on each side whose fraction is not 0",
                    next_step="add cases, change `split`, or begin a new run, where no patient has a side yet",
                )
            count = Counter(sides[patient] for patient in members[name])
            chosen = max(can_leave, key=lambda p: (count[sides[p]], -sum(p in group for group in members.values())))
            sides[chosen] = empty


def _can_leave(patient: str, sides: Mapping[str, Side], members: Mapping[str, set[str]]) -> bool:
    """Whether the patient's side keeps another patient in each of the tasks that it occurs in."""
    return all(
        any(sides[other] == sides[patient] for other in group - {patient})
        for group in members.values()
        if patient in group and len(group) >= len(SIDES)
    )


def _split(patients: Mapping[str, str], sides: Mapping[str, Side]) -> Split:
    train, validation, test = (
        tuple(sorted(case_id for case_id, patient in patients.items() if sides[patient] == side)) for side in SIDES
    )
    return Split(train, validation, test)
