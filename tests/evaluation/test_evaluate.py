"""Scores from files: the label file itself, its own grid, its own values."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from scipy.spatial.transform import Rotation

from medseqft_kit.errors import DataError
from medseqft_kit.evaluation.evaluate import evaluate, mean_dice
from medseqft_kit.tasks.types import Case

SPACING = (0.9, 1.3, 2.5)
VALUES_OF = np.array([0, 200, 7])


def affine_of(matrix):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, (-40.5, 12.25, 88.0)
    return affine


AFFINES = {
    "plain": affine_of(np.diag(SPACING)),
    "flipped": affine_of(np.diag([-0.9, 1.3, -2.5])),
    "permuted": affine_of(np.diag([0.9, -1.3, 2.5])[[2, 0, 1]]),
    "oblique": affine_of(Rotation.from_euler("xyz", [17, -12, 25], degrees=True).as_matrix() @ np.diag(SPACING)),
    "oblique, flipped and permuted": affine_of(
        Rotation.from_euler("xyz", [-9, 20, 4], degrees=True).as_matrix() @ np.diag([-0.9, 1.3, -2.5])[[1, 2, 0]]
    ),
}


def run(model, scene, precision, *, spacing=None, **settings):
    volumes = scene.volumes(spacing)
    defaults = {"predictor": "adapted", "seed": 3, "stage": 2, "precision": precision}
    return evaluate(model, scene.task, volumes, volumes.cases, **defaults | settings)


@pytest.mark.parametrize("name", AFFINES)
def test_predictions_lie_on_the_image_they_came_from(scene, oracle, fp32, classes, name, tmp_path):
    case = scene.add("case", classes, affine=AFFINES[name])
    rows = run(oracle, scene, fp32, predictions=tmp_path / "predictions")
    assert [(row.label, row.dice, row.hd95_mm, row.nsd) for row in rows] == [
        ("first", 1.0, 0.0, 1.0),
        ("second", 1.0, 0.0, 1.0),
    ]
    written, image, label = (nib.load(p) for p in (tmp_path / "predictions/case.nii.gz", case.images[0], case.label))
    assert written.shape == image.shape
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(label.dataobj))


@pytest.mark.parametrize("name", AFFINES)
def test_a_resampled_prediction_is_still_scored_on_the_original_grid(scene, oracle, fp32, classes, name, tmp_path):
    case = scene.add("case", classes, affine=AFFINES[name])
    rows = run(oracle, scene, fp32, spacing=(1.5, 1.5, 1.5), predictions=tmp_path)
    written, label = nib.load(tmp_path / "case.nii.gz"), nib.load(case.label)
    assert written.shape == label.shape
    np.testing.assert_allclose(written.affine, label.affine, atol=1e-6)
    masks = [[torch.tensor(np.asarray(file.dataobj) == v) for v in (200, 7)] for file in (written, label)]
    want = compute_dice(*(torch.stack(pair)[None].float() for pair in masks))[0]
    np.testing.assert_allclose([row.dice for row in rows], want, rtol=1e-6)
    assert 0.6 < want.min() < 1


def test_a_miss_on_a_resampled_image_costs_the_originals_diagonal(scene, oracle, fp32, classes):
    scene.add("case", np.zeros_like(classes), labelled=VALUES_OF[classes], affine=AFFINES["oblique"])
    rows = run(oracle, scene, fp32, spacing=(1.5, 1.5, 1.5))
    assert [row.missed for row in rows] == [1, 1]
    assert rows[0].hd95_mm == pytest.approx(np.linalg.norm(np.multiply(classes.shape, SPACING)))


def test_rows_say_where_they_come_from_and_follow_the_given_order(scene, oracle, fp32, classes):
    scene.add("b", classes)
    scene.add("a", classes)
    rows = run(oracle, scene, fp32)
    assert [(r.seed, r.stage, r.task, r.predictor, r.case, r.label) for r in rows] == [
        (3, 2, "organs", "adapted", case, label) for case in ("b", "a") for label in ("first", "second")
    ]


def test_misses_and_inventions_are_rows(scene, oracle, fp32, classes):
    only_first = np.where(classes == 1, 200, 0)
    swapped = np.where(classes == 1, 9, 0)
    scene.add("invented", classes, labelled=only_first)
    scene.add("swapped", np.where(classes == 1, 1, 0), labelled=swapped)
    rows = {(row.case, row.label): row for row in run(oracle, scene, fp32)}
    assert {key: (row.dice, row.missed, row.false_positive) for key, row in rows.items()} == {
        ("invented", "first"): (1, 0, 0),
        ("invented", "second"): (0, 0, 1),
        ("swapped", "first"): (0, 0, 1),
        ("swapped", "second"): (0, 1, 0),
    }
    assert rows["swapped", "second"].hd95_mm == pytest.approx(np.linalg.norm(classes.shape))


def test_unannotated_voxels_are_not_scored(scene, oracle, fp32, classes):
    scene.ignore = 255
    labelled = np.where(classes == 1, 200, np.where(classes == 2, 7, 0))
    labelled[10:] = 255
    scene.add("case", classes, labelled=labelled)
    (row,) = [row for row in run(oracle, scene, fp32) if row.label == "first"]
    assert row.dice == 1
    assert mean_dice(oracle, scene.task, scene.volumes(), ["case"], fp32) == 1


def test_the_tolerance_is_a_setting(scene, oracle, fp32, classes):
    scene.add("case", classes, labelled=np.roll(np.where(classes == 2, 7, 0), 1, axis=2), affine=np.diag([1, 1, 3, 1]))
    (loose,) = [row for row in run(oracle, scene, fp32, nsd_tolerance_mm=3.0) if row.label == "second"]
    (tight,) = [row for row in run(oracle, scene, fp32, nsd_tolerance_mm=0.5) if row.label == "second"]
    assert loose.nsd == 1 > tight.nsd > 0


def test_progress_is_told_case_by_case(scene, oracle, fp32, classes):
    scene.add("a", classes)
    scene.add("b", classes)
    told = []
    run(oracle, scene, fp32, progress=lambda label, done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_a_case_without_a_label_is_refused(scene, oracle, fp32, classes):
    case = scene.add("case", classes)
    scene.cases[0] = Case(case.id, case.images)
    with pytest.raises(DataError, match="no label"):
        run(oracle, scene, fp32, spacing=(1.0, 1.0, 1.0))


def test_validation_averages_cases_within_a_class_and_classes_last(scene, oracle, fp32):
    truth = np.zeros((12, 10, 9), np.uint8)
    truth[2:4, 2:4, 2:4] = 1
    twice = truth.copy()
    twice[2:4, 2:4, 4:6] = 1
    both = truth.copy()
    both[7:9, 7:9, 7:9] = 2
    scene.add("perfect", both)
    scene.add("too large", np.where(both == 2, 2, twice), labelled=VALUES_OF[truth])
    # Class 1: (1 + 2·8 / (8 + 16)) / 2 = 5/6. Class 2: 1, from the one case whose truth holds it.
    volumes = scene.volumes()
    assert mean_dice(oracle, scene.task, volumes, volumes.cases, fp32) == pytest.approx((5 / 6 + 1) / 2)


def test_validation_without_any_structure_says_so(scene, oracle, fp32):
    scene.add("empty", np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"split\.seed"):
        mean_dice(oracle, scene.task, scene.volumes(), ["empty"], fp32)


def test_equal_calls_give_equal_rows_and_equal_bytes(scene, oracle, fp32, classes, tmp_path):
    scene.add("case", classes)
    one, two = (run(oracle, scene, fp32, predictions=tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert (tmp_path / "one/case.nii.gz").read_bytes() == (tmp_path / "two/case.nii.gz").read_bytes()
