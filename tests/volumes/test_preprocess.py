from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from medseqft_kit.errors import ConfigError, DataError, GeometryMismatch
from medseqft_kit.tasks.types import Case
from medseqft_kit.volumes.preprocess import Preprocessing, foreground_voxels, preprocess, preprocess_array, resolve

PLI = np.array([[0, -2.0, 0, 31], [-1.5, 0, 0, 7], [0, 0, -3, 90], [0, 0, 0, 1]])
ROTATED = np.array([[0.8, -0.6, 0, 1], [0.6, 0.8, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
OBLIQUE = ROTATED @ np.diag([1.2, 0.9, 4, 1])


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    waves = np.array([np.sin(axis + rng.normal()) for axis in grid])
    return (400 + 100 * waves.sum(axis=0)).astype(np.float32)


def test_without_resampling_the_result_is_nibabels_closest_canonical_image():
    label = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    volume = preprocess_array(smooth((5, 6, 7))[None], PLI, ("CT",), Preprocessing((2.0, 1.5, 3.0)), label=label)
    want = nib.as_closest_canonical(nib.Nifti1Image(label, PLI))
    np.testing.assert_array_equal(volume.label, np.asarray(want.dataobj))
    np.testing.assert_allclose(volume.grid.affine, want.affine, atol=1e-12)
    assert volume.grid.shape == want.shape == (6, 5, 7)
    assert volume.original.shape == (5, 6, 7)
    np.testing.assert_array_equal(volume.original.affine, PLI)


@pytest.mark.parametrize("affine", [PLI, OBLIQUE, np.diag([-1, 1, 2.5, 1])], ids=["PLI", "oblique", "flipped"])
def test_resampling_agrees_with_scipy_at_the_same_points_in_space(affine):
    image = smooth((9, 10, 8))
    label = (image > 420).astype(np.uint8) + (image > 500)
    volume = preprocess_array(image[None], affine, ("CT",), Preprocessing((1.1, 1.3, 1.9), (0.0, 1000.0)), label=label)
    np.testing.assert_allclose(volume.grid.spacing, (1.1, 1.3, 1.9), atol=1e-9)
    at = np.indices(volume.grid.shape).reshape(3, -1)
    to_file = np.linalg.inv(affine) @ volume.grid.affine
    points = to_file[:3, :3] @ at + to_file[:3, 3:]
    want = map_coordinates(image / 500 - 1.0, points, order=1, mode="nearest").reshape(volume.grid.shape)
    np.testing.assert_allclose(volume.image[0], want, atol=2e-3)  # float16 in [-1, 1] resolves 5e-4
    nearest = map_coordinates(label, points, order=0, mode="nearest").reshape(volume.grid.shape)
    unclear = (np.abs(points % 1 - 0.5) < 1e-3).any(axis=0).reshape(volume.grid.shape)  # half-way: either is nearest
    assert (volume.label == nearest)[~unclear].all()
    assert unclear.mean() < 0.3


def test_the_grid_covers_the_image_to_half_a_voxel():
    affine = np.diag([3.0, 2, 1, 1])
    volume = preprocess_array(smooth((9, 10, 8))[None], affine, ("CT",), Preprocessing((1.0, 1.0, 4.0)))
    extent = (np.array(volume.grid.shape) - 1) * volume.grid.spacing
    assert (np.abs(extent - [24, 18, 7]) <= 0.5 * np.array(volume.grid.spacing) + 1e-9).all()


def test_a_spacing_within_the_tolerance_is_not_resampled():
    wanted = Preprocessing((1.0, 1.0, 1.0))
    assert not wanted.resamples((1.0009, 1.0, 0.9991))
    assert wanted.resamples((1.0011, 1.0, 1.0))
    near, far = np.diag([1.0004, 1, 1, 1]), np.diag([1.02, 1, 1, 1])
    np.testing.assert_array_equal(preprocess_array(smooth((5, 6, 7))[None], near, ("CT",), wanted).grid.affine, near)
    assert preprocess_array(smooth((50, 6, 7))[None], far, ("CT",), wanted).grid.shape == (51, 6, 7)


def test_a_single_slice_survives_resampling():
    volume = preprocess_array(smooth((9, 9, 1))[None], np.diag([1.0, 1, 8, 1]), ("MR",), Preprocessing((2.0, 2.0, 8.0)))
    assert volume.grid.shape == (5, 5, 1)
    assert np.isfinite(volume.image).all()


def test_labels_are_mapped_by_value_and_stay_whole_classes_when_resampled(write_task):
    values = np.zeros((12, 12, 12), int)
    values[2:6], values[6:10], values[10:] = 100, 4, 9
    task = write_task({"a": smooth(values.shape)}, {"a": values}, structures={"x": (4,), "y": (100, 200)}, ignore=9)
    volume = preprocess(task, task.cases[0], Preprocessing((0.7, 0.9, 1.6)))
    assert np.unique(volume.label).tolist() == [0, 1, 2, 255]
    assert sorted(volume.foreground) == [1, 2]
    assert all((volume.label.ravel()[where] == index).all() for index, where in volume.foreground.items())


def test_channels_in_one_file_and_in_several_give_the_same_volume(write_task):
    image = np.stack([smooth((6, 7, 8), seed) for seed in range(2)], axis=-1)
    joint = write_task({"a": image}, channels=("MR", "CT"), name="joint")
    apart = write_task({"first": image[..., 0], "second": image[..., 1]}, channels=("MR", "CT"), name="apart")
    case = Case("a", tuple(case.images[0] for case in apart.cases))
    one, two = preprocess(joint, joint.cases[0], Preprocessing()), preprocess(apart, case, Preprocessing())
    assert one.image.shape == (2, 6, 7, 8)
    np.testing.assert_array_equal(one.image, two.image)
    assert one.air == two.air == tuple(one.image.min(axis=(1, 2, 3)).tolist())


def test_a_fourth_axis_of_one_is_one_channel(write_task):
    task = write_task({"a": smooth((6, 7, 8))[..., None]})
    assert preprocess(task, task.cases[0], Preprocessing()).image.shape == (1, 6, 7, 8)


def test_a_wrong_number_of_channels_names_the_file(write_task):
    task = write_task({"a": np.stack([smooth((6, 7, 8))] * 3, axis=-1)}, channels=("MR", "MR"))
    with pytest.raises(DataError, match=r"a\.nii\.gz") as problem:
        preprocess(task, task.cases[0], Preprocessing())
    assert "3 in" in problem.value.found
    assert "2: MR, MR" in problem.value.expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_names_the_file(write_task, value):
    image = smooth((6, 7, 8))
    image[2, 3, 4] = value
    task = write_task({"a": image})
    with pytest.raises(DataError, match=r"a\.nii\.gz") as problem:
        preprocess(task, task.cases[0], Preprocessing())
    assert problem.value.found.startswith("1 voxels")


def test_a_label_of_another_shape_is_refused_with_both_shapes(write_task):
    task = write_task({"a": smooth((6, 7, 8))}, {"a": np.zeros((6, 7, 4))})
    with pytest.raises(GeometryMismatch) as problem:
        preprocess(task, task.cases[0], Preprocessing())
    assert "(6, 7, 4)" in problem.value.found
    assert "(6, 7, 8)" in problem.value.expected


def test_channels_of_different_shapes_are_refused(write_task):
    task = write_task({"a": smooth((6, 7, 8)), "b": smooth((6, 7, 9))}, channels=("MR", "MR"))
    with pytest.raises(GeometryMismatch, match="channels"):
        preprocess(task, Case("ab", tuple(case.images[0] for case in task.cases)), Preprocessing())


def test_resolve_takes_the_median_spacing_along_ras_axes(write_task):
    images = {name: smooth((6, 7, 8)) for name in "abc"}
    affines = {"a": PLI, "b": np.diag([2.0, 1.5, 3, 1]), "c": np.diag([5.0, 5, 5, 1])}
    task = write_task(images, affine=affines)
    assert resolve(Preprocessing(), task).spacing == pytest.approx((2, 1.5, 3))
    asked = Preprocessing((1.0, 2.0, 3.0))
    assert resolve(asked, task) is asked


@pytest.mark.parametrize(
    ("sizes", "want"),
    [
        ((1.4, 10.0, 1.4), (1.37, 8.0, 1.3)),
        ((10.0, 1.4, 1.4), (8.0, 1.37, 1.3)),
        ((1.4, 1.4, 10.0), (1.37, 1.3, 8.0)),
        ((2.0, 1.4, 1.4), (1.37, 8.0, 1.3)),
        ((1.0, 1.0, 1.0), (1.37, 8.0, 1.3)),
    ],
    ids=str,
)
def test_thick_slices_stay_the_thick_axis_wherever_they_lie(sizes, want):
    assert Preprocessing((1.37, 8.0, 1.3)).target(sizes) == want
    assert Preprocessing((2.0, 2.0, 2.0)).target(sizes) == (2, 2, 2)
    assert Preprocessing().target(sizes) == sizes


def test_detail_within_thick_slices_survives_another_orientation():
    along = np.diag([8.0, 1.5, 1.5, 1])
    volume = preprocess_array(smooth((5, 20, 20))[None], along, ("MR",), Preprocessing((1.5, 8.0, 1.5)))
    assert volume.grid.shape == (5, 20, 20)


def test_the_callers_arrays_are_left_alone():
    image, label = smooth((5, 6, 7))[None], np.ones((5, 6, 7), np.uint8)
    before = image.copy()
    preprocess_array(image, PLI, ("MR",), Preprocessing((1.0, 1.0, 1.0)), label=label)
    np.testing.assert_array_equal(image, before)
    assert (label == 1).all()


@pytest.mark.parametrize(
    "settings",
    [{"spacing": (1.0, 0.0, 1.0)}, {"spacing": (1.0, np.nan, 1.0)}, {"window": (5.0, 5.0)}, {"scale": (1.0, 0.0)}],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError):
        Preprocessing(**settings)


def test_remembered_foreground_is_bounded_and_spread_over_the_structure():
    label = np.zeros((40, 40, 40), np.uint8)
    label[:, :, 10:30] = 3
    label[0, 0, 0] = 7
    label[1, 0, 0] = 255
    remembered = foreground_voxels(label)
    assert sorted(remembered) == [3, 7]
    assert remembered[7].tolist() == [0]
    assert 5_000 < len(remembered[3]) <= 10_000
    rows = np.unravel_index(remembered[3], label.shape)[0]
    assert rows.min() == 0
    assert rows.max() == 39
    assert len(np.unique(remembered[3])) == len(remembered[3])
