from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from medseqft_kit.randomness import numpy_generator, torch_generator
from medseqft_kit.settings import Augment
from medseqft_kit.volumes.augment import Augmentation
from medseqft_kit.volumes.gin import nonlinear


def image(channels: int = 1, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(size=(channels, 7, 8, 9)).astype(np.float32)
    return torch.from_numpy(values)


def by_hand(channel: np.ndarray, alpha: float, seed: int, index: int) -> tuple[np.ndarray, list[int]]:
    """The formula in float64 with SciPy's correlation, weights in the order in which the module draws them."""
    random = torch_generator(seed, "gin", index)
    maps, kernels = [channel.astype(float)], []
    for layer, outputs in enumerate((2, 2, 2, 1)):
        kernels.append((1, 3)[int(torch.randint(2, (), generator=random))])
        weight = torch.randn(outputs, len(maps), *[kernels[-1]] * 3, generator=random).double().numpy()
        bias = torch.randn(outputs, generator=random).double().numpy()
        if layer:
            maps = [np.where(one > 0, one, 0.01 * one) for one in maps]
        maps = [
            sum(correlate(one, kernel, mode="nearest") for one, kernel in zip(maps, kernels_of, strict=True)) + shift
            for kernels_of, shift in zip(weight, bias, strict=True)
        ]
    mixed = alpha * maps[0] + (1 - alpha) * channel
    return mixed * np.linalg.norm(channel) / np.linalg.norm(mixed), kernels


def test_it_is_the_papers_formula_as_scipy_computes_it():
    used = set()
    for seed in range(5):
        want, kernels = by_hand(image()[0].numpy(), 0.7, seed, 0)
        np.testing.assert_allclose(nonlinear(image(), 0.7, seed)[0].numpy(), want, atol=2e-5)
        used |= set(kernels)
    assert used == {1, 3}


def test_every_channel_meets_its_own_network_and_keeps_its_own_norm():
    one = image(2)
    one[1] = one[0] * 3
    bent = nonlinear(one, 0.9, 4)
    torch.testing.assert_close(bent.flatten(1).norm(dim=1), one.flatten(1).norm(dim=1))
    assert not torch.allclose(bent[1], 3 * bent[0], atol=0.1)
    assert torch.equal(bent[:1], nonlinear(one[:1], 0.9, 4))
    np.testing.assert_allclose(bent[1].numpy(), by_hand(one[1].numpy(), 0.9, 4, 1)[0], atol=2e-5)


def test_alpha_zero_gives_the_image_and_the_callers_is_left_alone():
    given = image(2)
    before, state = given.clone(), torch.random.get_rng_state()
    torch.testing.assert_close(nonlinear(given, 0.0, 1), given)
    nonlinear(given, 1.0, 1)
    assert torch.equal(given, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_crop_of_air_alone_stays_finite(value):
    bent = nonlinear(torch.full((1, 6, 6, 6), value), 0.5, 2)
    assert torch.isfinite(bent).all()
    assert float(bent.norm()) == pytest.approx(abs(value) * 6**1.5)


def test_gin_changes_no_other_draw():
    without, with_gin = Augmentation(flip_axes=(0,)), Augmentation(flip_axes=(0,), gin=1.0)
    through = []
    for seed in range(20):
        first, second = np.random.default_rng(seed), np.random.default_rng(seed)
        a, b = without.draw(first), with_gin.draw(second)
        assert first.random() == second.random()  # advanced equally far
        assert a.alpha == 0
        assert {**vars(a), "alpha": 0} == {**vars(b), "alpha": 0}
        through.append(b.alpha)
    assert min(through) > 0
    assert 0.3 < np.mean(through) < 0.7


def test_the_draws_of_before_are_those_of_before_gin_was_there():
    """The order of draws is part of every run's result: five choices, three angles, three factors, two, flips, seed."""
    settings, rng = Augmentation(probability=1.0, flip_axes=(0, 1, 2)), numpy_generator(3, "augment", 1)
    rng.random(5)
    angles, (by, factor, shift) = np.deg2rad(settings.rotation) * rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3)
    gamma, noise = rng.uniform(*settings.gamma), rng.uniform(0, settings.noise)
    flips, noise_seed = rng.random(3) < 0.5, int(rng.integers(2**63))
    drawn = settings.draw(numpy_generator(3, "augment", 1))
    assert drawn.rotation == tuple(angles)
    assert (drawn.zoom, drawn.factor, drawn.shift) == (1 + 0.15 * by, 1 + 0.15 * factor, 0.1 * shift)
    assert (drawn.gamma, drawn.noise, drawn.noise_seed) == (gamma, noise, noise_seed)
    assert drawn.flips == tuple(np.flatnonzero(flips))


def test_the_share_of_crops_is_the_settings_and_a_draw_is_replayed():
    draws = [Augmentation(gin=0.3).draw(np.random.default_rng(seed)) for seed in range(400)]
    assert 0.2 < np.mean([drawn.alpha > 0 for drawn in draws]) < 0.4
    one = next(drawn for drawn in draws if drawn.alpha > 0)
    again = type(one)(**vars(one))
    assert torch.equal(one.apply(image(), None)[0], again.apply(image(), None)[0])
    alone = type(one)(alpha=one.alpha, network_seed=one.network_seed)
    assert torch.equal(alone.apply(image(), None)[0], nonlinear(image(), one.alpha, one.network_seed))


def test_the_setting_is_a_probability():
    assert Augment().gin == 0
    with pytest.raises(ValueError, match="less than or equal to 1"):
        Augment(gin=1.5)
