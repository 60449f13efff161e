"""The traps of real data: patches larger than a volume, nine thick slices, axes that run posterior, left, inferior."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.volumes.augment import Augmentation
from medseqft_kit.volumes.batches import BatchSource
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.restore import restore_logits
from medseqft_kit.volumes.store import prepare

SPACINGS = {
    "STS_MR": (2.93, 2.93, 3.27),
    "STS_PET": (5.47, 5.47, 3.27),
    "Sunnybrook_LV": None,
    "Task04_Hippocampus": (1.0, 1.0, 1.0),
    "OpenKBP_OAR": (4.69, 4.69, 3.0),
}


def smallest(task, count=2):
    return sorted(task.cases, key=lambda case: np.prod(nib.load(case.images[0]).shape))[:count]


@pytest.mark.parametrize("name", SPACINGS)
def test_a_real_case_is_prepared_cut_and_restored(name, real_data, tmp_path):
    task = load_task(real_data(name))
    cases = [case.id for case in smallest(task)]
    volumes = prepare(task, Preprocessing(), cases, tmp_path / "store")
    if SPACINGS[name] is not None:
        np.testing.assert_allclose(volumes.preprocessing.spacing, SPACINGS[name], atol=0.02)
    source = BatchSource(volumes.entries(), (32, 32, 32), 2, 0, "real", Augmentation())
    batch = source.batch(0)
    assert torch.isfinite(batch.image).all()
    assert set(batch.label.unique().tolist()) <= {*range(task.classes), 255}
    for case in cases:
        volume = volumes.volume(case)
        truth = nib.load(task.case(case).label)
        scores = one_hot(torch.from_numpy(np.array(volume.label)).long()).permute(3, 0, 1, 2).float()
        back = restore_logits(scores, volume)
        classes = task.to_classes(np.asarray(truth.dataobj))
        assert back.shape == truth.shape
        kept = sorted(volume.grid.shape) == sorted(classes.shape)  # not resampled: exact
        assert (back == classes).mean() > (1 - 1e-12 if kept else 0.97)


def test_a_volume_smaller_than_the_patch_is_padded(real_data, tmp_path):
    task = load_task(real_data("STS_MR"))
    case = smallest(task, 1)[0].id
    assert sorted(nib.load(task.case(case).images[0]).shape) == [18, 25, 25]
    volumes = prepare(task, Preprocessing(), [case], tmp_path / "store")
    batch = BatchSource(volumes.entries(), (32, 32, 32), 1, 0, "small").batch(0)
    assert int((batch.label != 255).sum()) == volumes.volume(case).label.size


def test_thick_slices_are_never_refined_whichever_axis_they_are_nearest_to(real_data, tmp_path):
    task = load_task(real_data("Sunnybrook_LV"))
    cases = [case.id for case in task.cases]
    volumes = prepare(task, Preprocessing(), cases, tmp_path / "store")
    grids = [volumes.volume(case).grid for case in cases]
    thick = {int(np.argmax(grid.spacing)) for grid in grids}
    assert len(cases) == 10
    assert len(thick) == 2  # nearest to anterior in eight cases, to left in two
    assert all(sorted(np.round(grid.spacing, 1).tolist()) == [1.4, 1.4, 8.0] for grid in grids)
    assert all(min(grid.shape) >= 9 for grid in grids)
