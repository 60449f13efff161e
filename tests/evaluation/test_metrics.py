"""Referees: cases worked by hand, brute-force distances in mm from SciPy, MONAI's own metrics on whole arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from medseqft_kit.errors import GeometryMismatch
from medseqft_kit.evaluation.metrics import score_case

ODD = (0.7, 1.3, 4.5)


def blob(shape, low, high, value=1):
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return array


def referee(found, present, spacing, tolerance):
    """Dice, HD95 and NSD from every pair of surface voxels, float64."""
    surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * np.array(spacing) for mask in (found, present)]
    distances = cdist(*surfaces)
    forth, back = distances.min(axis=1), distances.min(axis=0)
    dice = 2 * (found & present).sum() / (found.sum() + present.sum())
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
    return (
        dice,
        hd95,
        ((forth <= tolerance).sum() + (back <= tolerance).sum()) / (len(forth) + len(back)),
    )


def two_structures(rng):
    shape = (17, 13, 11)
    truth = blob(shape, (2, 3, 1), (9, 9, 6)) + blob(shape, (10, 2, 5), (17, 8, 11), 2)
    noise = rng.random(shape) < 0.03
    return np.where(noise, rng.integers(0, 3, shape), np.roll(truth, (1, -1, 1), (0, 1, 2))).astype(np.uint8), truth


def test_a_cube_shifted_by_two_voxels_has_the_scores_worked_by_hand():
    truth, shifted = (
        blob((20, 9, 9), (3, 3, 3), (6, 6, 6)),
        blob((20, 9, 9), (5, 3, 3), (8, 6, 6)),
    )
    # 27 voxels each, 26 of them surface, one layer of 9 shared. Along x at 1.5 mm, the outermost 9 surface voxels lie
    # two layers from the other cube (3 mm), the next 8 one layer (1.5 mm), the 9 of the shared layer touch.
    (row,) = score_case(shifted, truth, (1.5, 1.0, 1.0), ["cube"], nsd_tolerance_mm=1.5)
    assert row.label == "cube"
    assert row.dice == pytest.approx(2 * 9 / 54)
    assert row.hd95_mm == pytest.approx(3.0)
    assert row.nsd == pytest.approx((8 + 9) / 26)
    assert (row.missed, row.false_positive) == (0, 0)


def test_scores_equal_brute_force_surface_distances_in_mm():
    prediction, truth = two_structures(np.random.default_rng(0))
    rows = score_case(prediction, truth, ODD, ["first", "second"], nsd_tolerance_mm=1.0)
    assert [row.label for row in rows] == ["first", "second"]
    for index, row in enumerate(rows, start=1):
        want = referee(prediction == index, truth == index, ODD, 1.0)
        np.testing.assert_allclose((row.dice, row.hd95_mm, row.nsd), want, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own call
def test_scores_equal_monai_on_whole_arrays():
    prediction, truth = two_structures(np.random.default_rng(1))
    hot = [torch.nn.functional.one_hot(torch.tensor(a).long(), 3).movedim(-1, 0)[None] for a in (prediction, truth)]
    want = torch.stack(
        [
            compute_dice(*hot, include_background=False)[0],
            compute_hausdorff_distance(*hot, percentile=95, spacing=ODD)[0],
            compute_surface_dice(*hot, class_thresholds=[2.0, 2.0], spacing=ODD)[0],
        ],
        dim=1,
    )
    rows = score_case(prediction, truth, ODD, ["first", "second"])
    np.testing.assert_allclose([(row.dice, row.hd95_mm, row.nsd) for row in rows], want, rtol=1e-6)


def test_cropping_to_the_structures_changes_no_bit():
    prediction, truth = two_structures(np.random.default_rng(2))
    inner = score_case(prediction, truth, ODD, ["first", "second"])
    frame = ((1, 30), (0, 25), (17, 2))
    outer = score_case(np.pad(prediction, frame), np.pad(truth, frame), ODD, ["first", "second"])
    assert len(inner) == 2
    assert inner == outer


def test_the_larger_direction_counts_whichever_side_is_predicted():
    small, large = (
        blob((12, 12, 30), (5, 5, 2), (8, 8, 5)),
        blob((12, 12, 30), (5, 5, 2), (8, 8, 28)),
    )
    one, other = (score_case(*pair, (1.0, 1.0, 1.0), ["tube"])[0] for pair in ((small, large), (large, small)))
    assert one.hd95_mm == other.hd95_mm > 20


def test_a_missed_structure_costs_the_diagonal_and_is_counted():
    truth = blob((10, 20, 5), (1, 1, 1), (4, 4, 4))
    (row,) = score_case(np.zeros_like(truth), truth, (2.0, 1.0, 3.0), ["organ", "never there"])
    assert (row.dice, row.nsd, row.missed, row.false_positive) == (0, 0, 1, 0)
    assert row.hd95_mm == pytest.approx(np.sqrt(20**2 + 20**2 + 15**2))


def test_an_invented_structure_costs_the_same_and_is_counted():
    found = blob((10, 20, 5), (1, 1, 1), (2, 2, 2), value=2)
    (row,) = score_case(found, np.zeros_like(found), (2.0, 1.0, 3.0), ["never there", "organ"])
    assert (row.label, row.dice, row.nsd, row.missed, row.false_positive) == (
        "organ",
        0,
        0,
        0,
        1,
    )
    assert row.hd95_mm == pytest.approx(np.sqrt(20**2 + 20**2 + 15**2))


def test_what_is_neither_there_nor_predicted_has_no_row():
    nothing = np.zeros((4, 5, 6), np.uint8)
    assert score_case(nothing, nothing, ODD, ["organ"]) == []


def test_ignored_voxels_belong_to_nothing_on_either_side():
    truth = blob((9, 9, 9), (2, 2, 2), (6, 6, 6))
    found = truth.copy()
    found[7:, 7:, 7:] = 1
    truth[7:, 7:, 7:] = 255
    before = found.copy()
    (row,) = score_case(found, truth, ODD, ["organ"])
    assert (row.dice, row.hd95_mm, row.nsd) == (1, 0, 1)
    np.testing.assert_array_equal(found, before)
    only_ignored = score_case(
        np.where(truth == 255, 1, 0).astype(np.uint8),
        np.where(truth == 255, truth, 0),
        ODD,
        ["organ"],
    )
    assert only_ignored == []


def test_a_surface_one_voxel_away_lies_within_one_voxel_although_the_affine_is_float32():
    truth, found = (
        blob((9, 9, 9), (2, 2, 2), (6, 6, 6)),
        blob((9, 9, 9), (3, 2, 2), (7, 6, 6)),
    )
    (row,) = score_case(found, truth, (1.0000001, 1.0, 1.0), ["organ"], nsd_tolerance_mm=1.0)
    assert row.nsd == 1


def test_arrays_on_different_grids_are_refused():
    with pytest.raises(GeometryMismatch, match=r"\(3, 3, 4\)[\s\S]*\(3, 3, 3\)"):
        score_case(np.zeros((3, 3, 4), np.uint8), np.zeros((3, 3, 3), np.uint8), ODD, ["organ"])


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (2, 4, 5, 3), elements=st.integers(0, 2)))
def test_every_structure_on_either_side_has_one_row_within_bounds(pair):
    prediction, truth = pair
    rows = score_case(prediction, truth, ODD, ["first", "second"])
    there = [name for index, name in enumerate(("first", "second"), 1) if (pair == index).any()]
    assert [row.label for row in rows] == there
    diagonal = np.linalg.norm(np.multiply(truth.shape, ODD))
    assert all(0 <= r.dice <= 1 and 0 <= r.nsd <= 1 and 0 <= r.hd95_mm <= diagonal + 1e-9 for r in rows)
