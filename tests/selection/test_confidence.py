import numpy as np
import pytest
from scipy.optimize import brentq

from medseqft_kit.selection.confidence import HORIZONS, Comparisons, Steps, catoni_interval, influence


def test_the_influence_lies_between_the_two_functions_that_catoni_asks_for() -> None:
    x = np.linspace(-20, 20, 4001)
    assert (influence(x) <= np.log1p(x + x**2 / 2) + 1e-12).all()
    assert (influence(x) >= -np.log1p(-x + x**2 / 2) - 1e-12).all()
    assert np.array_equal(influence(-x), -influence(x))


@pytest.mark.parametrize("count", [1, 4, 40])
def test_the_interval_ends_where_the_evidence_does(count: int) -> None:
    rng = np.random.default_rng(count)
    values, variance = rng.standard_t(3, count), rng.uniform(0.5, 2, count)
    ends = []
    for horizon in HORIZONS:
        evidence = np.log(len(HORIZONS) / 0.01)
        steps = np.sqrt(2 * evidence / (variance * horizon))
        budget = (steps**2 * variance / 2).sum() + evidence

        def left(m: float, steps: np.ndarray = steps, budget: float = budget) -> float:
            return float(influence(steps * (values - m)).sum() - budget)

        def right(m: float, steps: np.ndarray = steps, budget: float = budget) -> float:
            return float(influence(steps * (values - m)).sum() + budget)

        ends.append((brentq(left, -1e6, 1e6), brentq(right, -1e6, 1e6)))
    low, high = catoni_interval(values, variance, alpha=0.01)
    assert low == pytest.approx(max(end[0] for end in ends), rel=1e-6)
    assert high == pytest.approx(min(end[1] for end in ends), rel=1e-6)
    assert len(ends) == 2


def test_an_interval_moves_and_stretches_with_its_values() -> None:
    values, variance = np.random.default_rng(0).standard_normal(12), np.ones(12)
    low, high = catoni_interval(values, variance, alpha=0.01)
    moved = catoni_interval(5 + 3 * values, 9 * variance, alpha=0.01)
    np.testing.assert_allclose(moved, (5 + 3 * low, 5 + 3 * high), rtol=1e-9)


def test_at_its_horizon_an_interval_is_hardly_wider_than_a_normal_one_for_the_same_miss() -> None:
    """Half-width √(2 log(2/α) v / n), the best that sub-normal observations allow."""
    n = int(HORIZONS[1])
    values = np.random.default_rng(1).standard_normal(n)
    low, high = catoni_interval(values, np.ones(n), alpha=1e-4)
    assert (high - low) / 2 < 1.35 * np.sqrt(2 * np.log(len(HORIZONS) / 1e-4) / n)


def test_one_wild_observation_hardly_moves_an_interval() -> None:
    values, variance = np.random.default_rng(2).standard_normal(30), np.ones(30)
    wild = np.where(np.arange(30) == 7, 1e6, values)
    calm = np.mean(catoni_interval(values, variance, alpha=0.01))
    low, _ = catoni_interval(wild, variance, alpha=0.01)
    assert abs(low - calm) < 2  # the other end is that of the wild one: it could be the mean of a rare event
    assert wild.mean() > 3e4


def test_comparisons_say_what_the_interval_of_the_differences_says() -> None:
    rng = np.random.default_rng(3)
    seen = Comparisons(4, 1e-3, 0.0)
    values = rng.standard_normal((4, 25)) + np.array([0, 0.3, 2, 4])[:, None]
    smallest = np.full((4, 4), np.inf)
    agreed = 0
    for block in range(25):
        seen.observe(np.arange(4), values[:, block], np.ones(4))
        for i in range(4):
            for j in range(4):
                past = values[i, : block + 1] - values[j, : block + 1]
                _, end = catoni_interval(past, np.full(block + 1, 2.0), alpha=1e-3)
                smallest[i, j] = min(smallest[i, j], end)
                assert seen.lower[i, j] == (i != j and smallest[i, j] < 0)
                agreed += 1
    assert agreed == 400
    assert seen.lower.sum() == 5  # all but the two that lie close together


def test_comparisons_go_on_where_members_leave_and_keep_what_was_certain() -> None:
    seen = Comparisons(3, 1e-2, 0.0)
    for _ in range(20):
        seen.observe(np.arange(3), np.array([0.0, 1.0, 5.0]), np.full(3, 0.5))
    assert seen.lower[0, 2]
    assert seen.lower[1, 2]
    before = seen.lower.copy()
    for _ in range(20):
        seen.observe(np.array([0, 1]), np.array([0.0, 1.0]), np.full(2, 0.5))
    assert (seen.lower >= before).all()
    assert seen.lower[0, 1]
    assert not seen.lower.diagonal().any()


def test_with_a_tolerance_equal_means_are_each_lower_than_the_other() -> None:
    seen = Comparisons(2, 1e-2, 0.5)
    for _ in range(60):
        seen.observe(np.arange(2), np.zeros(2), np.full(2, 0.1))
    assert seen.lower[0, 1]
    assert seen.lower[1, 0]


@pytest.mark.parametrize("tail", ["normal", "skewed", "heavy"])
def test_a_mean_is_missed_at_any_time_less_often_than_alpha_says(tail: str) -> None:
    rng = np.random.default_rng(4)
    shape, alpha = (2000, 60), 0.05
    values = {
        "normal": rng.standard_normal(shape),
        "skewed": (rng.lognormal(0, 1, shape) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e),
        "heavy": rng.standard_t(3, shape) / np.sqrt(3),
    }[tail]
    steps = Steps(alpha)
    missed = np.zeros(shape[0], dtype=bool)
    for step in steps.of(np.ones(())):
        evidence = np.cumsum(influence(step * values) - step**2 / 2, axis=1)
        missed |= (evidence > steps.evidence).any(axis=1)
    share = missed.mean()
    assert share <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / shape[0])
    assert share > 0  # it is a real risk
