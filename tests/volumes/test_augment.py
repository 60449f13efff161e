from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from medseqft_kit.randomness import numpy_generator
from medseqft_kit.volumes.augment import Augmentation, Drawn

EVERYTHING = Augmentation(flip_axes=(0, 1, 2), probability=1.0)


def crop(shape: tuple[int, ...] = (2, 9, 10, 11), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    label = torch.from_numpy(rng.integers(0, 3, shape[1:]).astype(np.uint8))
    label[0] = 255
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32)), label


def test_a_draw_is_a_function_of_the_generator_alone():
    image, label = crop()
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = EVERYTHING.apply(image, label, numpy_generator(0, "augment", 3))
    again = EVERYTHING.apply(image, label, numpy_generator(0, "augment", 3))
    other = EVERYTHING.apply(image, label, numpy_generator(0, "augment", 4))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_a_draw_can_be_printed_and_replayed():
    image, label = crop()
    drawn = EVERYTHING.draw(np.random.default_rng(5))
    replayed = eval(repr(drawn))  # only builtins inside, which is what makes a draw printable
    want = EVERYTHING.apply(image, label, np.random.default_rng(5), (1.0, 1.0, 3.0))
    got = replayed.apply(image, label, (1.0, 1.0, 3.0))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_the_callers_tensors_are_left_alone_and_types_kept():
    image, label = crop()
    before = image.clone(), label.clone()
    moved, turned = EVERYTHING.apply(image, label, np.random.default_rng(0))
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])
    assert type(moved) is type(turned) is torch.Tensor
    assert (moved.shape, moved.dtype) == (image.shape, torch.float32)
    assert (turned.shape, turned.dtype) == (label.shape, torch.uint8)
    assert set(turned.unique().tolist()) <= {0, 1, 2, 255}


def test_the_identity_changes_nothing():
    image, label = crop()
    same = Drawn().apply(image, label)
    assert torch.equal(same[0], image)
    assert torch.equal(same[1], label)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.4, 1.4, 8.0)], ids=["isotropic", "thick slices"])
def test_the_movement_is_rigid_in_mm_as_scipy_does_it(spacing):
    image, label = crop((1, 12, 13, 9))
    drawn = Drawn(rotation=(0.1, -0.2, 0.25), zoom=1.1)
    moved, turned = drawn.apply(image, label, spacing)
    size, inverse = np.diag(spacing), np.diag(1 / np.array(spacing))
    matrix = inverse @ Rotation.from_euler("XYZ", drawn.rotation).as_matrix() @ size * drawn.zoom
    centre = (np.array(image.shape[1:]) - 1) / 2
    offset = centre - matrix @ centre
    want = affine_transform(image[0].numpy().astype(float), matrix, offset, order=1, mode="nearest")
    np.testing.assert_allclose(moved[0].numpy(), want, atol=1e-4)
    nearest = affine_transform(label.numpy(), matrix, offset, order=0, mode="nearest")
    assert (turned.numpy() == nearest).mean() > 0.999


def test_flips_flip_image_and_label_together():
    image, label = crop()
    flipped, turned = Drawn(flips=(0, 2)).apply(image, label)
    np.testing.assert_array_equal(flipped.numpy(), image.numpy()[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(turned.numpy(), label.numpy()[::-1, :, ::-1])


def test_intensities_follow_the_written_formula_channel_by_channel():
    image, _ = crop()
    got, _ = Drawn(factor=1.2, shift=-0.3, gamma=0.8).apply(image, None)
    for channel, result in zip(image.double().numpy(), got.numpy(), strict=True):
        low, span = channel.min(), np.ptp(channel)
        want = (((channel - low) / span) ** 0.8 * span + low) * 1.2 - 0.3
        np.testing.assert_allclose(result, want, atol=1e-5)


def test_noise_has_the_drawn_deviation():
    image = torch.zeros(1, 24, 24, 24)
    noisy, _ = Drawn(noise=0.25, noise_seed=7).apply(image, None)
    assert abs(float(noisy.std()) - 0.25) < 0.01
    assert abs(float(noisy.mean())) < 0.01


def test_draws_stay_within_the_settings_and_use_both_sides():
    settings = Augmentation(rotation=10.0, scale=0.2, flip_axes=(1,), probability=0.5)
    draws = [settings.draw(np.random.default_rng(seed)) for seed in range(400)]
    angles = np.rad2deg([drawn.rotation for drawn in draws])
    assert -10 <= angles.min() < -8
    assert 8 < angles.max() <= 10
    zooms = np.array([drawn.zoom for drawn in draws])
    assert 0.8 <= zooms.min() < 0.85
    assert 1.15 < zooms.max() <= 1.2
    assert 0.4 < np.mean([drawn.flips == (1,) for drawn in draws]) < 0.6
    assert {drawn.flips for drawn in draws} == {(), (1,)}
    assert 0.4 < np.mean([drawn.gamma != 1 for drawn in draws]) < 0.6


def test_nothing_is_flipped_by_default():
    assert not any(Augmentation().draw(np.random.default_rng(seed)).flips for seed in range(50))


def test_a_crop_of_air_alone_stays_finite():
    moved, _ = EVERYTHING.apply(torch.full((1, 8, 8, 8), -1.0), None, np.random.default_rng(0))
    assert torch.isfinite(moved).all()
