"""Tasks made of tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseqft_kit.errors import ConfigError
from medseqft_kit.tasks.types import Case, Task


@pytest.fixture
def task() -> Task:
    structures = {"left kidney": (1,), "tumour": (3, 4)}
    cases = (Case("a", (Path("a.nii.gz"),), Path("a_label.nii.gz")),)
    return Task("renal", Path("renal"), "msd", ("CT",), structures, frozenset({0, 1, 2, 3, 4}), cases)


def test_each_structure_becomes_a_task_of_its_own_on_the_same_images(task: Task) -> None:
    kidney, tumour = task.one_by_one()
    assert (kidney.name, tumour.name) == ("left_kidney", "tumour")  # names name folders
    assert kidney.cases == tumour.cases == task.cases
    values = np.array([0, 1, 2, 3, 4])
    assert kidney.to_classes(values).tolist() == [0, 1, 0, 0, 0]
    assert tumour.to_classes(values).tolist() == [0, 0, 0, 1, 1]
    assert (kidney.classes, tumour.classes) == (2, 2)
    assert list(task.structures) == ["left kidney", "tumour"]


def test_a_value_that_is_not_declared_makes_no_task(task: Task) -> None:
    with pytest.raises(ConfigError, match="label mapping"):
        task.relabelled({"cyst": 7})
