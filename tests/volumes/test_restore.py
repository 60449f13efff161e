from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.nn.functional import one_hot

from medseqft_kit.volumes import restore
from medseqft_kit.volumes.preprocess import Preprocessing, preprocess_array
from medseqft_kit.volumes.restore import restore_logits

ROTATION = np.array([[0.8, -0.6, 0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])


def affine_of(linear: np.ndarray, offset: tuple[float, float, float] = (-31.5, 12.25, 7)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, offset
    return affine


def blobs(shape: tuple[int, int, int], classes: int = 4) -> np.ndarray:
    """Smooth structures: the strongest of some blurred noise fields."""
    rng = np.random.default_rng(3)
    return np.argmax([gaussian_filter(rng.normal(size=shape), 2) for _ in range(classes)], axis=0).astype(np.uint8)


def scores(label: np.ndarray, classes: int = 4) -> torch.Tensor:
    return one_hot(torch.from_numpy(label).long(), classes).permute(3, 0, 1, 2).float()


def test_every_axis_permutation_and_flip_is_undone_exactly():
    label = np.random.default_rng(0).integers(0, 4, (4, 5, 6)).astype(np.uint8)
    turns = 0
    for order, signs in product(permutations(range(3)), product([1, -1], repeat=3)):
        linear = np.eye(3)[list(order)] * np.array(signs) * [1.5, 0.7, 3.0]
        volume = preprocess_array(
            label[None].astype(np.float32), affine_of(linear), ("CT",), Preprocessing(), label=label
        )
        np.testing.assert_array_equal(restore_logits(scores(volume.label), volume), label)
        turns += 1
    assert turns == 48


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0)], ids=["isotropic", "anisotropic"])
def test_an_oblique_image_is_undone_exactly_when_nothing_was_resampled(sizes):
    label = np.random.default_rng(0).integers(0, 4, (7, 5, 6)).astype(np.uint8)
    affine = affine_of(ROTATION @ np.diag(sizes)[:, [2, 0, 1]])
    volume = preprocess_array(label[None].astype(np.float32), affine, ("CT",), Preprocessing(), label=label)
    assert volume.grid.shape != label.shape
    np.testing.assert_array_equal(restore_logits(scores(volume.label), volume), label)


def test_without_resampling_the_smallest_difference_of_logits_decides():
    rng = np.random.default_rng(0)
    affine = affine_of(ROTATION @ np.diag([0.7, 0.7, 5.0])[:, [2, 0, 1]])  # first axis to superior, the others before
    volume = preprocess_array(np.zeros((1, 6, 150, 170), np.float32), affine, ("CT",), Preprocessing())
    assert volume.grid.shape == (150, 170, 6)
    logits = rng.normal(size=(2, 150, 170, 6)).astype(np.float32)
    even = np.indices(logits.shape[1:]).sum(axis=0) % 2 == 0
    logits[1, even] = np.nextafter(logits[0, even], np.float32(9))  # neighbours differ, so any mixing shows
    got = restore_logits(torch.from_numpy(logits), volume)
    np.testing.assert_array_equal(got, logits.argmax(axis=0).transpose(2, 0, 1))


AFFINES = {
    "straight": affine_of(np.diag([1.0, 1.0, 1.0])),
    "flipped": affine_of(np.diag([-1.0, 1.2, -0.9])),
    "permuted": affine_of(np.eye(3)[[2, 0, 1]] * [1.0, -1.3, 0.8]),
    "anisotropic": affine_of(np.diag([0.8, 0.8, 3.1])),
    "oblique": affine_of(ROTATION @ np.diag([1.0, 0.8, 1.7])),
    "sheared": affine_of(np.array([[1.0, 0.1, 0], [0, 1.1, 0.05], [0, 0, 1.4]])),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_resampled_logits_agree_with_scipy_and_nibabel(affine, monkeypatch):
    monkeypatch.setattr(restore, "SLAB", 4 * 13 * 11 * 3)  # several slabs, the last one short
    image = np.zeros((1, 16, 13, 11), np.float32)
    volume = preprocess_array(image, affine, ("CT",), Preprocessing((1.15, 1.4, 1.3)))
    rng = np.random.default_rng(1)
    logits = np.stack([gaussian_filter(rng.normal(size=volume.grid.shape), 1) for _ in range(4)])
    got = restore_logits(torch.from_numpy(logits).float(), volume)
    to_grid = np.linalg.inv(volume.grid.affine) @ affine
    points = to_grid[:3, :3] @ np.indices(image.shape[1:]).reshape(3, -1) + to_grid[:3, 3:]
    want = np.stack([map_coordinates(one, points, order=1, mode="nearest") for one in logits])
    clear = np.diff(np.sort(want, axis=0)[-2:], axis=0)[0] > 1e-4
    assert clear.mean() > 0.99
    assert (got.ravel() == want.argmax(axis=0))[clear].all()

    inside = np.all((points > 0) & (points < np.array(volume.grid.shape)[:, None] - 1), axis=0) & clear
    target = (image.shape[1:], affine)
    nibabels = [resample_from_to(nib.Nifti1Image(one, volume.grid.affine), target, order=1) for one in logits]
    second = np.stack([np.asarray(one.dataobj) for one in nibabels]).argmax(axis=0)
    assert inside.sum() > 500
    assert (got.ravel() == second.ravel())[inside].all()


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_a_structure_comes_back_after_resampling(affine):
    label = blobs((24, 22, 20))
    finer = Preprocessing((0.5, 0.5, 0.5))
    volume = preprocess_array(label[None].astype(np.float32), affine, ("CT",), finer, label=label)
    back = restore_logits(scores(volume.label), volume)
    assert back.dtype == np.uint8
    assert back.shape == label.shape
    assert (back == label).mean() > 0.97


def test_a_single_slice_comes_back():
    label = blobs((15, 14, 1))
    volume = preprocess_array(
        label[None].astype(np.float32), np.diag([1.0, 1, 8, 1]), ("CT",), Preprocessing((0.5, 0.5, 8.0)), label=label
    )
    assert (restore_logits(scores(volume.label), volume) == label).mean() > 0.97


def test_half_precision_and_a_small_slab_change_nothing(monkeypatch):
    label = blobs((12, 10, 8))
    volume = preprocess_array(
        label[None].astype(np.float32), AFFINES["oblique"], ("CT",), Preprocessing((0.6, 0.6, 0.6)), label=label
    )
    whole = restore_logits(scores(volume.label), volume)
    monkeypatch.setattr(restore, "SLAB", 1)
    np.testing.assert_array_equal(restore_logits(scores(volume.label).bfloat16(), volume), whole)


def test_logits_of_another_grid_are_refused():
    volume = preprocess_array(np.zeros((1, 4, 5, 6), np.float32), np.eye(4), ("CT",), Preprocessing())
    with pytest.raises(ValueError, match="do not lie on the grid"):
        restore_logits(torch.zeros(2, 4, 5, 7), volume)
