"""Splits: one patient, one side, over all tasks of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseqft_kit.errors import ConfigError
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.split import Split, SplitSettings, patient_of, patient_sides, split_tasks
from medseqft_kit.tasks.types import Case, Task

FEW = settings(max_examples=60)


def task(name, *cases, folds=()):
    return Task(
        name=name,
        root=Path(name),
        layout="msd",
        channels=("CT",),
        structures={"organ": (1,)},
        declared=frozenset({0, 1}),
        cases=tuple(Case(case, (Path(f"{case}.nii.gz"),), Path(f"{case}.nii.gz")) for case in sorted(cases)),
        folds=folds,
    )


def patients(count, first=0):
    return [f"p{number:03d}" for number in range(first, first + count)]


def assert_no_leak(splits, group="case"):
    """By sets, without our own helper."""
    for one in splits.values():
        for other in splits.values():
            for a, first in enumerate(one):
                for b, second in enumerate(other):
                    if a != b:
                        assert not {patient_of(c, group) for c in first} & {patient_of(c, group) for c in second}


def test_sixty_twenty_twenty_of_a_hundred():
    split = split_tasks([task("a", *patients(100))], SplitSettings())["a"]
    assert tuple(map(len, split)) == (60, 20, 20)
    assert sorted((*split.train, *split.validation, *split.test)) == patients(100)
    assert isinstance(split, Split)


def test_the_seed_alone_changes_the_split():
    one, again, other = (split_tasks([task("a", *patients(50))], SplitSettings(seed=s)) for s in (0, 0, 1))
    assert one == again
    assert one != other


subsets = st.lists(st.sets(st.integers(0, 39), min_size=6), min_size=1, max_size=4)


@FEW
@given(subsets, st.integers(0, 5))
def test_splits_are_complete_without_leaks_and_without_empty_sides(sets, seed):
    tasks = [task(f"t{i}", *(f"p{n:03d}" for n in members)) for i, members in enumerate(sets)]
    splits = split_tasks(tasks, SplitSettings(seed=seed))
    for one in tasks:
        split = splits[one.name]
        assert sorted((*split.train, *split.validation, *split.test)) == [case.id for case in one.cases]
        assert all(split)
    assert_no_leak(splits)
    assert split_tasks(tasks[::-1], SplitSettings(seed=seed)) == splits


def test_filling_an_empty_side_empties_no_other():
    tasks = [task("a", "p1", "p7", "p3"), task("b", "p7", "p0", "p1", "p6"), task("c", "p0", "p6", "p1")]
    assert all(all(split) for split in split_tasks(tasks, SplitSettings()).values())


@FEW
@given(subsets, st.sets(st.integers(20, 60), min_size=30))
def test_a_new_task_leaves_every_old_case_where_it_was(sets, members):
    old = [task(f"t{i}", *(f"p{n:03d}" for n in members)) for i, members in enumerate(sets)]
    new = task("new", *(f"p{n:03d}" for n in members))
    before = split_tasks(old, SplitSettings())
    after = split_tasks([*old, new], SplitSettings(), patient_sides(before, "case"))
    assert {name: after[name] for name in before} == before
    assert_no_leak(after)
    assert all(after["new"])


def test_a_stratum_is_filled_up_to_the_fractions():
    before = dict.fromkeys(patients(10), "train")
    split = split_tasks([task("a", *patients(20))], SplitSettings(), before)["a"]
    assert tuple(map(len, split)) == (12, 4, 4)


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_small_tasks_have_a_train_then_a_test_then_a_validation_patient(count, sizes):
    assert tuple(map(len, split_tasks([task("a", *patients(count))], SplitSettings())["a"])) == sizes


def test_a_side_of_fraction_zero_stays_empty():
    split = split_tasks([task("a", *patients(10))], SplitSettings(fractions=(0.8, 0.2, 0.0)))["a"]
    assert tuple(map(len, split)) == (8, 2, 0)


def test_single_patient_strata_do_not_leave_a_task_without_test_cases():
    shared = task("all", "x", "y", "z")
    alone = [task(name, name, *patients(9, 10 * i)) for i, name in enumerate("xyz")]
    splits = split_tasks([shared, *alone], SplitSettings())
    assert [len(side) for side in splits["all"]] == [1, 1, 1]
    assert_no_leak(splits)


def test_a_task_whose_patients_are_all_fixed_on_one_side_is_refused():
    with pytest.raises(ConfigError, match="task new has no validation patient"):
        split_tasks([task("new", *patients(5))], SplitSettings(), dict.fromkeys(patients(5), "train"))


def test_frames_of_one_patient_stay_together():
    cases = [f"{patient}_{frame}" for patient in patients(12) for frame in ("ED", "ES")]
    splits = split_tasks([task("heart", *cases)], SplitSettings(group=r"^(p\d+)_"))
    assert [len(side) for side in splits["heart"]] == [14, 4, 6]  # 7, 2 and 3 patients: remainders 0.2, 0.4, 0.4
    assert_no_leak(splits, r"^(p\d+)_")
    assert all(len(side) % 2 == 0 for side in splits["heart"])


@pytest.mark.parametrize("group", ["q(.*)", "p.*", "p(("])
def test_a_pattern_that_names_no_patient_is_refused(group):
    with pytest.raises(ConfigError, match="cannot tell the patient of case 'p000'"):
        split_tasks([task("a", *patients(3))], SplitSettings(group=group))


@pytest.mark.parametrize("fractions", [(0.6, 0.2, 0.3), (1.2, -0.2, 0.0), (0.0, 0.5, 0.5)])
def test_fractions_that_cannot_be_used_are_refused(fractions):
    with pytest.raises(ConfigError, match="fractions cannot be used"):
        SplitSettings(fractions=fractions)


def test_every_patient_is_tested_once_over_five_folds():
    tasks = [task("a", *patients(23)), task("b", *patients(19, 15))]
    folds = [split_tasks(tasks, SplitSettings(fold=fold)) for fold in range(5)]
    for one in tasks:
        tested = [case for fold in folds for case in fold[one.name].test]
        assert sorted(tested) == [case.id for case in one.cases]
        assert all(all(fold[one.name]) for fold in folds)
    for fold in folds:
        assert_no_leak(fold)
    assert split_tasks(tasks[::-1], SplitSettings(fold=2)) == folds[2]
    whole = split_tasks([task("a", *patients(100))], SplitSettings(fold=3))["a"]
    assert tuple(map(len, whole)) == (60, 20, 20)  # a quarter (0.2 of 0.8) of the 80 that the fold leaves
    with pytest.raises(ConfigError, match="no fold 5"):
        split_tasks(tasks, SplitSettings(fold=5))


def test_predefined_folds_are_the_test_sides():
    names = patients(8)
    folds = ((tuple(names[2:]), tuple(names[:2])), (tuple(names[:5]), tuple(names[5:])))
    tasks = [task("a", *names, folds=folds), task("b", *names[4:], *patients(10, 20))]
    splits = split_tasks(tasks, SplitSettings(fold=1))
    assert splits["a"].test == tuple(names[5:])
    assert set(names[5:]) <= set(splits["b"].test)
    assert set(splits["b"].test) & set(patients(10, 20))
    assert_no_leak(splits)
    with pytest.raises(ConfigError, match=r"no fold 2[\s\S]*2 folds"):
        split_tasks(tasks, SplitSettings(fold=2))
    assert split_tasks(tasks, SplitSettings())["a"].test != tuple(names[5:])  # without `fold` they are not used


@pytest.mark.parametrize(("folds", "group", "fixed", "message"), [
    (((("p000", "p001", "p002"), ("p003",)),), "case", {"p003": "train"}, "patient 'p003' on two sides"),
    (((("p000", "p001", "p002"), ("p003",)),), "case", {"p000": "test"}, "patient 'p000' on two sides"),
    (((("p000", "p001"), ("p003",)),), "case", {}, "leaves cases out"),
    (((("p000", "p001", "p002"), ("p003",)),), "(p)", {}, "patient 'p' on two sides"),
])  # fmt: skip
def test_folds_that_contradict_patients_or_the_run_are_refused(folds, group, fixed, message):
    with pytest.raises(ConfigError, match=message):
        split_tasks([task("a", *patients(4), folds=folds)], SplitSettings(fold=0, group=group), fixed)


def test_a_side_of_another_name_is_refused():
    with pytest.raises(ConfigError, match="val"):
        split_tasks([task("a", *patients(4))], SplitSettings(), {"p000": "val"})


def test_real_sets_that_share_patients_do_not_leak(real_data):
    tasks = [load_task(real_data(name)) for name in ("STS_CT", "STS_MR", "STS_PET", "Task04_Hippocampus")]
    splits = split_tasks(tasks, SplitSettings())
    assert splits["STS_CT"] == splits["STS_MR"] == splits["STS_PET"]
    assert {name: tuple(map(len, split)) for name, split in splits.items()} == {
        **dict.fromkeys(("STS_CT", "STS_MR", "STS_PET"), (23, 8, 8)),
        "Task04_Hippocampus": (108, 36, 36),
    }
    assert_no_leak(splits)
