from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medseqft_kit.volumes.intensity import normalise


def one(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def test_ct_is_clipped_to_the_default_window_and_scaled():
    scaled = normalise(one([-1000, -175, 37.5, 250, 3000]), ["CT"])
    np.testing.assert_allclose(scaled.ravel(), [-1, -1, 0, 1, 1], atol=1e-6)
    assert scaled.dtype == np.float32


def test_a_tasks_own_window_replaces_the_default():
    np.testing.assert_allclose(
        normalise(one([-500, 0, 500]), ["CT"], (-500.0, 1500.0)).ravel(), [-1, -0.5, 0], atol=1e-6
    )


def test_pet_is_clipped_to_fifteen_suv_and_has_no_window():
    np.testing.assert_allclose(normalise(one([0, 7.5, 40]), ["PET"], (-500.0, 1500.0)).ravel(), [-1, 0, 1], atol=1e-6)


def test_a_models_own_scale_replaces_the_default_for_windows_alone():
    scaled = normalise(np.stack([one([-500, 0, 500])[0]] * 2), ["CT", "other"], (-500.0, 500.0), (0.0, 1.0))
    np.testing.assert_allclose(scaled[0].ravel(), [0, 0.5, 1], atol=1e-6)
    assert scaled[1].min() < -1


def test_mr_is_a_z_score_of_its_non_zero_voxels():
    tissue = np.random.default_rng(0).normal(500, 50, 4000)
    scaled = normalise(one([*np.zeros(4000), *tissue]), ["MR"]).ravel()
    kept = stats.mstats.winsorize(tissue, (0.005, 0.005))
    np.testing.assert_allclose(scaled[4000:], np.clip((tissue - kept.mean()) / kept.std(), -5, 5), atol=2e-3)
    assert (scaled[:4000] == -5).all()


def test_a_bright_artefact_does_not_shrink_the_rest():
    tissue = np.random.default_rng(0).normal(500, 50, 4000)
    with_metal = np.append(tissue[:-4], [1e6] * 4)
    clean, metal = (normalise(one(list(v)), ["MR"]).ravel()[:-4] for v in (tissue, with_metal))
    assert 0.95 < metal.std() / clean.std() < 1.05


def test_an_mr_image_without_positive_voxels_is_scored_over_all_of_them():
    scaled = normalise(one([-3.0, -2.0, -1.0]), ["MR"]).ravel()
    assert scaled[0] < 0 < scaled[2]
    assert abs(scaled[1]) < 1e-6


def test_other_channels_are_scored_over_all_voxels():
    values = np.random.default_rng(0).normal(-7, 3, 5000)
    scaled = normalise(one(list(values)), ["other"]).ravel()
    assert abs(scaled.mean()) < 0.01
    assert abs(scaled.std() - 1) < 0.03


@pytest.mark.parametrize("modality", ["CT", "MR", "PET", "other"])
def test_a_constant_channel_stays_finite(modality):
    assert np.isfinite(normalise(np.full((1, 3, 3, 3), 7, np.float32), [modality])).all()


def test_each_channel_follows_its_own_modality_and_the_input_is_left_alone():
    image = np.random.default_rng(0).normal(100, 50, (3, 6, 5, 4)).astype(np.float32)
    before = image.copy()
    together = normalise(image, ["CT", "MR", "PET"])
    for index, modality in enumerate(["CT", "MR", "PET"]):
        np.testing.assert_array_equal(together[index], normalise(image[index : index + 1], [modality])[0])
    np.testing.assert_array_equal(image, before)
