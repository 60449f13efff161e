"""The parts of the rival's script that need no nnU-Net: labels, splits, seconds to iterations."""

import importlib.util
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseqft_kit.tasks.types import Case, Task

RIVALS = Path(__file__).parents[2] / "figures" / "rivals"


def loaded(path):
    spec = importlib.util.spec_from_file_location(f"rival_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return loaded(RIVALS / "nnunet.py")


@pytest.fixture
def task(tmp_path):
    """Two cases with two channels, in one file and in two; file value 9 is unannotated."""
    affine = np.diag([0.5, 1.0, 2.0, 1.0])
    rng = np.random.default_rng(0)
    cases = []
    for name in ("a", "b"):
        label = tmp_path / f"{name}_label.nii.gz"
        nib.save(nib.Nifti1Image(rng.choice([0, 3, 4, 7, 9], (4, 5, 6)).astype(np.int16), affine), label)
        values = rng.normal(size=(4, 5, 6, 2)).astype(np.float32)
        parts = [values] if name == "a" else [values[..., 0], values[..., 1]]
        files = [tmp_path / f"{name}_{index}.nii.gz" for index in range(len(parts))]
        for file, part in zip(files, parts, strict=True):
            nib.save(nib.Nifti1Image(part, affine), file)
        cases.append(Case(name, tuple(files), label))
    structures = {"organ": (3, 4), "tumour": (7,)}
    return Task("liver", tmp_path, "msd", ("T1", "T2"), structures, frozenset({0, 3, 4, 7, 9}), tuple(cases), ignore=9)


def test_file_values_become_consecutive_classes_and_ignored_voxels_the_last(script, task):
    found = script.nnunet_classes(task, np.array([0, 3, 4, 7, 9]))
    np.testing.assert_array_equal(found, [0, 1, 1, 2, 3])
    facts = script.dataset_json(task, 5)
    assert facts["labels"] == {"background": 0, "organ": 1, "tumour": 2, "ignore": 3}
    assert facts["channel_names"] == {"0": "T1", "1": "T2"}
    assert facts["numTraining"] == 5


def test_a_converted_task_holds_the_runs_own_cases_and_no_label_of_a_test_case(script, task, tmp_path):
    entry = {"train_cases": ["a"], "validation_cases": [], "split": {"test": ["b"]}, "nsd_tolerance_mm": 2.0}
    job = script.Job(task, entry, number=101, stage=1, seconds=1.0)
    script.convert(job, script.Workshop(tmp_path / "shop", tmp_path))
    raw = tmp_path / "shop/raw/Dataset101_liver"
    written = sorted(str(path.relative_to(raw)) for path in raw.rglob("*.nii.gz"))
    images = [
        f"images{side}/{case}_000{channel}.nii.gz" for side, case in (("Tr", "a"), ("Ts", "b")) for channel in "01"
    ]
    assert written == [*images, "labelsTr/a.nii.gz"]
    split = json.loads((tmp_path / "shop/preprocessed/Dataset101_liver/splits_final.json").read_text())
    assert split == [{"train": ["a"], "val": []}]
    whole = nib.load(task.case("a").images[0])
    for channel in (0, 1):
        one = nib.load(raw / f"imagesTr/a_000{channel}.nii.gz")
        np.testing.assert_array_equal(one.get_fdata(), whole.get_fdata()[..., channel])
        np.testing.assert_allclose(one.affine, whole.affine)
        np.testing.assert_array_equal(
            nib.load(raw / f"imagesTs/b_000{channel}.nii.gz").get_fdata(),
            nib.load(task.case("b").images[channel]).get_fdata(),
        )
    label = np.asarray(nib.load(task.case("a").label).dataobj)
    np.testing.assert_array_equal(
        np.asarray(nib.load(raw / "labelsTr/a.nii.gz").dataobj),
        np.select([label == 3, label == 4, label == 7, label == 9], [1, 1, 2, 3]),
    )


def test_a_perfect_prediction_scores_one_and_ignored_voxels_do_not_count(script, task, tmp_path):
    entry = {"split": {"test": ["b"]}, "nsd_tolerance_mm": 2.0}
    job = script.Job(task, entry, number=101, stage=2, seconds=1.0)
    label = nib.load(task.case("b").label)
    classes = script.nnunet_classes(task, np.asarray(label.dataobj))
    for found, dice in ((classes, 1.0), (np.where(classes == 2, 0, classes), 0.0)):
        nib.save(nib.Nifti1Image(found.astype(np.uint8), label.affine), tmp_path / "b.nii.gz")
        organ, tumour = script.score(job, tmp_path, seed=3)
        assert (organ.seed, organ.stage, organ.task, organ.predictor, organ.case) == (3, 2, "liver", "nnunet", "b")
        assert (organ.label, organ.dice) == ("organ", 1.0)
        assert (tumour.label, tumour.dice) == ("tumour", dice)


def test_the_methods_own_time_leaves_evaluation_out(script):
    rows = [
        {"event": "selection", "images": 8, "seconds": 1.5},
        {"event": "phase", "phase": "adapt", "images": 8, "seconds": 20.0},
        {"event": "phase", "phase": "consolidate", "images": 8, "seconds": 30.25},
        {"event": "evaluation", "seconds": 7.0},
    ]
    assert script.method_seconds(rows) == 51.75


@pytest.mark.parametrize("seconds", [0.1, 1.0, 7.3, 60.0, 500.0, 86400.0])
@pytest.mark.parametrize(("iteration", "validation"), [(0.5, 0.2), (3.0, 1.0), (0.05, 0.01)])
def test_epochs_and_iterations_fill_the_time(seconds, iteration, validation):
    epochs, iterations = loaded(RIVALS / "nnunet_trainer" / "schedule.py").schedule(seconds, iteration, validation)
    assert 1 <= epochs <= 20
    assert iterations >= 1
    spent = epochs * (iterations * iteration + validation)
    # rounding: half an iteration for each epoch; less than one epoch of one iteration cannot be spent
    assert abs(spent - max(seconds, iteration + validation)) <= epochs * iteration / 2 + iteration + validation


def test_much_time_is_spent_to_within_two_per_cent():
    epochs, iterations = loaded(RIVALS / "nnunet_trainer" / "schedule.py").schedule(600, 0.5, 0.2)
    assert epochs == 20
    assert iterations == 60  # (600 / 20 − 0.2) / 0.5 = 59.6
