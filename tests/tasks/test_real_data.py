"""The readers and the check on real volumes, where they are at hand."""

from __future__ import annotations

import pytest

from medseqft_kit.tasks.check import check_task
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.statistics import spacing_statistics

SETS = {  # name: labelled, unlabelled, structures, modality, median spacing
    "IXI_brain8": (30, 0, 8, "MR", (2.0, 2.0, 2.0)),
    "OpenKBP_Larynx": (27, 0, 2, "CT", (4.64, 4.64, 2.5)),
    "OpenKBP_OAR": (45, 0, 5, "CT", (4.69, 4.69, 3.0)),
    "OpenKBP_unlabelled": (0, 34, 0, "CT", (3.91, 3.91, 2.5)),
    "STS_CT": (39, 0, 1, "CT", (2.93, 2.93, 3.27)),
    "STS_MR": (39, 0, 1, "MR", (2.93, 2.93, 3.27)),
    "STS_PET": (39, 0, 1, "PET", (5.47, 5.47, 3.27)),
    "Sunnybrook_LV": (10, 0, 1, "MR", (1.37, 8.0, 1.37)),
    "Task04_Hippocampus": (180, 0, 2, "MR", (1.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("name", SETS)
def test_a_real_set_loads_and_passes_the_check(real_data, name):
    labelled, unlabelled, structures, modality, spacing = SETS[name]
    task = load_task(real_data(name))
    assert (len(task.cases), len(task.unlabelled), len(task.structures)) == (labelled, unlabelled, structures)
    assert task.channels == (modality,)
    assert task.licence
    assert spacing_statistics(task).median == pytest.approx(spacing, abs=0.01)
    report = check_task(task)
    assert report.findings == ()
    assert report.cases == labelled + unlabelled


def test_all_nine_real_sets_are_listed(real_data):
    beside = {path.name for path in real_data("STS_CT").parent.iterdir() if path.is_dir()}
    assert beside == set(SETS)
    assert len(SETS) == 9
