"""The implicit shapes against solids whose distances and volumes are known."""

from __future__ import annotations

import numpy as np
import pytest

from medseqft_kit.phantoms.shapes import Capsule, Ellipsoid, affine, distance, grid, rotation, union, warp

CUBE = (24, 30, 36)


def test_grid_spans_the_field_of_view_with_voxel_centres():
    points = grid((2, 4, 5))
    assert points.shape == (3, 2, 4, 5)
    np.testing.assert_allclose(points[0, :, 0, 0], [-0.5, 0.5])
    np.testing.assert_allclose(points[1, 0, :, 0], [-0.75, -0.25, 0.25, 0.75])


def test_distance_to_a_ball_is_exact():
    points = grid(CUBE)
    want = np.linalg.norm(points - np.reshape([0.1, -0.2, 0.0], (3, 1, 1, 1)), axis=0) - 0.5
    np.testing.assert_allclose(distance(Ellipsoid((0.1, -0.2, 0.0), (0.5, 0.5, 0.5)), points), want, atol=1e-5)


def test_distance_to_a_capsule_is_that_of_its_balls_and_its_cylinder():
    points = np.array([[0, 0, 0], [0, 0, 0.9], [0.5, 0, 0.2], [0, -0.1, -0.6]], np.float32).T.reshape(3, 4, 1, 1)
    got = distance(Capsule((0.0, 0.0, -0.5), (0.0, 0.0, 0.5), 0.2), points).ravel()
    np.testing.assert_allclose(got, [-0.2, 0.2, 0.3, np.sqrt(0.02) - 0.2], atol=1e-6)


def test_volume_of_an_ellipsoid_agrees_with_the_formula():
    inside = distance(Ellipsoid((0.0, 0.0, 0.0), (0.8, 0.5, 0.6)), grid((64, 64, 64))) < 0
    assert inside.mean() * 8 == pytest.approx(4 / 3 * np.pi * 0.8 * 0.5 * 0.6, rel=0.01)


def test_infinite_half_axis_makes_a_cylinder():
    field = distance(Ellipsoid((0.0, 0.0, 0.0), (0.5, 0.5, float("inf"))), grid(CUBE))
    np.testing.assert_array_equal(field, np.broadcast_to(field[:, :, :1], field.shape))


def test_blended_union_holds_both_parts_and_rounds_only_the_seam():
    points = grid(CUBE)
    a, b = (distance(Ellipsoid((x, 0.0, 0.0), (0.4, 0.4, 0.4)), points) for x in (-0.3, 0.3))
    sharp, round_ = union([a, b]), union([a, b], blend=0.2)
    np.testing.assert_array_equal(sharp, np.minimum(a, b))
    assert (round_ <= sharp).all()
    assert (round_ < sharp).any()
    np.testing.assert_array_equal(round_[np.abs(a - b) > 0.2], sharp[np.abs(a - b) > 0.2])


def test_rotation_is_orthonormal_and_right_handed():
    matrix = rotation(np.array([0.3, -0.2, 1.1]))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_shift_moves_points_and_leaves_the_input_alone():
    points = grid(CUBE)
    before = points.copy()
    moved = affine(points, np.random.default_rng(0), shift=0.1, scale=0.0, turn=0.0, centre=(0.2, 0.0, 0.0))
    offsets = (moved - points).reshape(3, -1)
    assert np.ptp(offsets, axis=1).max() < 1e-5  # the same for every point
    assert np.abs(offsets).max() > 0.01
    np.testing.assert_array_equal(points, before)


def test_warp_is_smooth_and_never_folds():
    moved = warp(grid(CUBE), np.random.default_rng(0), amplitude=0.03)
    for axis in range(3):
        assert np.diff(moved[axis], axis=axis).min() > 0
