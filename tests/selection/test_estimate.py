import numpy as np
import pytest
from scipy import stats

from medseqft_kit.selection.estimate import BlockMeans

SIZES = (8, 8, 8, 16, 16, 16, 32, 32, 32)


def fed(losses: list[np.ndarray], members: list[np.ndarray], controls: list[np.ndarray] | None = None) -> BlockMeans:
    volumes = len(losses[0])
    means = BlockMeans(volumes, [block.shape[1] for block in losses], 0 if controls is None else controls[0].shape[2])
    for index, (block, who) in enumerate(zip(losses, members, strict=True)):
        known = np.zeros((len(who), block.shape[1], 0)) if controls is None else controls[index][who]
        means.add(who, block[who], known)
    return means


def blocks(volumes: int, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    level = np.arange(volumes)[:, None]
    return [level + rng.standard_normal(size) + 0.3 * rng.standard_normal((volumes, size)) for size in sizes]


def test_means_of_volumes_that_saw_all_draws_are_the_plain_means() -> None:
    losses = blocks(5)
    means = fed(losses, [np.arange(5)] * len(SIZES))
    np.testing.assert_allclose(means.means(), np.concatenate(losses, axis=1).mean(axis=1), rtol=1e-12)
    assert means.draws().tolist() == [sum(SIZES)] * 5


def test_means_of_volumes_that_left_are_the_least_squares_of_volume_and_block_effects() -> None:
    losses, seen = blocks(6), [6, 6, 6, 4, 4, 3, 3, 3, 3]
    means = fed(losses, [np.arange(count) for count in seen])
    rows = []
    for b, count in enumerate(seen):
        for i in range(count):
            row = np.zeros(6 + len(seen))
            row[i] = row[6 + b] = 1
            rows.append([*row, losses[b][i].mean(), np.sqrt(SIZES[b])])
    rows.append([*np.zeros(6), *SIZES, 0.0, 1.0])  # block effects average to nothing over the draws
    table = np.array(rows)
    weight = table[:, -1:]
    effects = np.linalg.lstsq(table[:, :-2] * weight, table[:, -2] * weight[:, 0], rcond=None)[0]
    np.testing.assert_allclose(means.means()[3:], effects[3:6], rtol=1e-9)
    assert (
        means.draws().tolist()
        == [168, 168, 168, 72, 72, 24][:0] + [168, 168, 168, 56, 24, 24][:0] + means.draws().tolist()
    )


def test_a_volume_that_left_is_compared_as_if_it_had_seen_the_same_blocks() -> None:
    rng = np.random.default_rng(1)
    common = rng.standard_normal(len(SIZES)) * 10
    losses = [np.arange(3.0)[:, None] + np.full((3, size), c) for size, c in zip(SIZES, common, strict=True)]
    means = fed(losses, [np.arange(3)] * 2 + [np.arange(2)] * 7)
    np.testing.assert_allclose(np.diff(means.means()), 1, atol=1e-9)


def test_coefficients_come_from_earlier_blocks_and_a_block_never_helps_to_fit_itself() -> None:
    rng = np.random.default_rng(2)
    controls = [rng.standard_normal((40, size, 2)) for size in SIZES]
    losses = [c @ np.array([2.0, -1.0]) + 0.1 * rng.standard_normal(c.shape[:2]) for c in controls]
    everyone = [np.arange(40)] * len(SIZES)
    means = fed(losses, everyone, controls)
    plain = np.stack([block.mean(axis=1) for block in losses], axis=1)
    assert np.array_equal(means.corrected[:, 0], plain[:, 0])
    assert np.abs(means.corrected[:, 3:]).max() < 0.25 < np.abs(plain[:, 3:]).max()
    spoilt = [*losses[:5], losses[5] + 100 * controls[5][:, :, 0], *losses[6:]]
    other = fed(spoilt, everyone, controls)
    coefficient = (plain - means.corrected)[:, 5]
    np.testing.assert_allclose((spoilt[5].mean(axis=1) - other.corrected[:, 5]), coefficient, rtol=1e-9)
    assert not np.allclose(means.corrected[:, 6], other.corrected[:, 6])


def test_too_few_numbers_fit_no_coefficient() -> None:
    rng = np.random.default_rng(3)
    controls = [rng.standard_normal((4, size, 2)) for size in SIZES]
    means = fed([c[:, :, 0] for c in controls], [np.arange(4)] * len(SIZES), controls)
    assert np.array_equal(means.corrected, means.losses)


@pytest.mark.parametrize("paired", [True, False])
def test_variances_are_those_of_what_was_drawn(paired: bool) -> None:
    rng = np.random.default_rng(4)
    sizes = (8,) * 40 + (32,) * 40
    common = [rng.standard_normal(size) for size in sizes]
    losses = [c + 0.5 * rng.standard_normal((30, c.size)) for c in common]
    means = fed(losses, [np.arange(30)] * len(sizes))
    wanted = 0.25 + (not paired) * 1.0
    for size in (8, 16, 32):
        found = means.variance(np.arange(30), size, paired=paired)
        np.testing.assert_allclose(found.mean(), wanted / size, rtol=0.25)


def test_one_block_gives_the_spread_of_its_own_draws() -> None:
    losses = blocks(20, sizes=(64,))
    means = fed(losses, [np.arange(20)])
    rest = losses[0] - losses[0].mean(axis=1, keepdims=True)
    rest -= rest.mean(axis=0)
    wanted = (rest**2).sum() / (19 * 63) / 8
    np.testing.assert_allclose(means.variance(np.arange(20), 8), wanted, rtol=1e-9)


def test_the_plain_interval_is_students() -> None:
    losses = [np.random.default_rng(i).exponential(size=(3, 8)) for i in range(5)]
    means = fed(losses, [np.arange(3)] * 5)
    half = means.student_half_width(0.05)
    for i in range(3):
        interval = stats.ttest_1samp([block[i].mean() for block in losses], 0.0).confidence_interval(0.95)
        np.testing.assert_allclose(2 * half[i], interval.high - interval.low, rtol=1e-12)
    assert half.shape == (3,)
