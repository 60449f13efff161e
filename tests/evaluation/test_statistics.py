"""Intervals, against hand-worked cases and by how often they cover the truth."""

import numpy as np
import pytest

from medseqft_kit.evaluation import statistics
from medseqft_kit.evaluation.statistics import bootstrap_means, interval, paired_bootstrap, seed_margin


def crossed(table):
    """Values, cases and seeds of a (seeds, cases) table."""
    table = np.asarray(table, dtype=float)
    seeds, cases = np.indices(table.shape)
    return table.ravel().tolist(), [f"case_{case}" for case in cases.ravel()], seeds.ravel().tolist()


def simulated(rng, seeds, deviations):
    """Differences of 20 cases around 0 with standard deviations over seeds, over cases and of what is left."""
    of_seed, of_case, left = deviations
    return rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_case, 20) + rng.normal(0, left, (seeds, 20))


def test_with_one_seed_two_cases_give_three_possible_means_a_quarter_half_quarter():
    means = bootstrap_means([0.0, 1.0], ["a", "b"], [7, 7], rng_seed=0)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / len(means) == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert paired_bootstrap([0.0, 1.0], ["a", "b"], [7, 7], rng_seed=0) == (0.5, 0.0, 1.0)


def test_two_seeds_and_two_cases_give_the_products_of_two_independent_draws():
    # y = seed · case with seed, case ∈ {0, 1}: the mean is the product of two means, each 0, ½, 1 with ¼, ½, ¼.
    means = bootstrap_means(*crossed([[0, 0], [0, 1]]), rng_seed=0)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.25, 0.5, 1.0]
    assert counts / len(means) == pytest.approx([7 / 16, 4 / 16, 4 / 16, 1 / 16], abs=0.02)


def test_the_spread_is_that_of_two_crossed_draws_worked_out():
    # Split into seed, case and what is left, which sum to nothing: multinomial weights give each its own variance.
    table = simulated(np.random.default_rng(3), 6, (2.0, 5.0, 4.0))
    seeds, cases = table.shape
    of_seed, of_case = table.mean(axis=1) - table.mean(), table.mean(axis=0) - table.mean()
    left = table - table.mean() - of_seed[:, None] - of_case
    expected = np.mean(of_seed**2) / seeds + np.mean(of_case**2) / cases + np.mean(left**2) / (seeds * cases)
    assert np.var(bootstrap_means(*crossed(table), rng_seed=0)) == pytest.approx(expected, rel=0.04)


def test_seeds_that_agree_on_every_case_are_no_second_sample():
    once = paired_bootstrap(*crossed([[0.0, 1.0, 3.0]]), rng_seed=1)
    thrice = paired_bootstrap(*crossed([[0.0, 1.0, 3.0]] * 3), rng_seed=1)
    assert thrice == pytest.approx(once)


def test_cases_that_agree_within_every_seed_are_no_further_sample_of_seeds():
    one_case = paired_bootstrap(*crossed([[0.0], [1.0], [3.0]]), rng_seed=1)
    many = paired_bootstrap(*crossed([[0.0] * 9, [1.0] * 9, [3.0] * 9]), rng_seed=1)
    assert many == pytest.approx(one_case)


# Standard deviations over seeds, cases and left, and the coverage that the docstring states: what few seeds do to it.
@pytest.mark.parametrize(
    ("seeds", "deviations", "stated"),
    [
        (3, ((3 / 20 * 25) ** 0.5, 5.0, 2.0), 0.89),  # seeds make half of the variance of the mean
        (10, ((10 / 20 * 25) ** 0.5, 5.0, 2.0), 0.93),
        (3, (3.0, 1.0, 1.0), 0.77),  # nearly all of it
        (10, (3.0, 1.0, 1.0), 0.91),
        (10, (1.0, 6.0, 3.0), 0.94),  # cases dominate: more seeds must not make it too sure
    ],
)
def test_the_interval_covers_the_truth_as_often_as_the_docstring_says(monkeypatch, seeds, deviations, stated):
    monkeypatch.setattr(statistics, "DRAWS", 400)
    rng = np.random.default_rng(0)
    trials, covered = 500, 0
    for _ in range(trials):
        _, low, high = paired_bootstrap(*crossed(simulated(rng, seeds, deviations)), rng_seed=0)
        covered += low <= 0 <= high
    assert covered / trials == pytest.approx(stated, abs=0.04)  # 2.5 standard errors and the rounding


def test_orders_of_one_seed_and_case_are_averaged_first():
    values, cases, seeds = [0.0, 1.0, 4.0, 4.0, 4.0], ["a", "a", "b", "b", "b"], [0] * 5
    averaged = bootstrap_means([0.5, 4.0], ["a", "b"], [0, 0], rng_seed=2)
    assert bootstrap_means(values, cases, seeds, rng_seed=2).tolist() == averaged.tolist()
    assert paired_bootstrap(values, cases, seeds, rng_seed=2)[0] == 2.25


def test_an_absent_pair_is_neither_zero_nor_filled():
    # (seed 1, case b) is absent; with all values equal, no draw can differ.
    assert paired_bootstrap([2.0, 2.0, 2.0], ["a", "b", "a"], [0, 0, 1], rng_seed=0) == (2.0, 2.0, 2.0)
    assert paired_bootstrap([1.0, 2.0, 6.0], ["a", "b", "a"], [0, 0, 1], rng_seed=0)[0] == 3.0


def test_seeds_without_a_common_case_still_give_numbers():
    # An eighth of the draws hold absent pairs alone (seed 0 twice with case b twice, …): they are drawn again.
    means = bootstrap_means([0.0, 1.0], ["a", "b"], [0, 1], rng_seed=0)
    assert len(means) == statistics.DRAWS
    assert set(np.unique(means)) == {0.0, 0.5, 1.0}


def test_the_order_of_the_rows_does_not_matter():
    values, cases, seeds = crossed(np.random.default_rng(1).normal(size=(3, 5)))
    straight = bootstrap_means(values, cases, seeds, rng_seed=4)
    assert bootstrap_means(values[::-1], cases[::-1], seeds[::-1], rng_seed=4) == pytest.approx(straight)


def mean_of_two_tasks(table, prefix):
    """Draws of the mean of two tasks with the same values, the second task's cases named with a prefix."""
    values, cases, seeds = crossed(table)
    one = bootstrap_means(values, cases, seeds, rng_seed=0)
    return (one + bootstrap_means(values, [prefix + case for case in cases], seeds, rng_seed=0)) / 2


def test_what_a_seed_does_to_all_tasks_stays_in_the_spread_of_their_mean():
    effect = np.repeat([[0.0], [1.0], [3.0]], 6, axis=1)
    one = bootstrap_means(*crossed(effect), rng_seed=0)
    assert mean_of_two_tasks(effect, prefix="other_") == pytest.approx(one)


def test_what_cases_do_is_independent_between_tasks_unless_they_share_them():
    effect = np.repeat([[0.0, 1.0, 3.0, 2.0, 7.0]], 3, axis=0)
    one = np.var(bootstrap_means(*crossed(effect), rng_seed=0))
    assert np.var(mean_of_two_tasks(effect, prefix="other_")) == pytest.approx(one / 2, rel=0.05)
    assert np.var(mean_of_two_tasks(effect, prefix="")) == pytest.approx(one)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    table = crossed(np.random.default_rng(1).normal(size=(2, 10)))
    assert paired_bootstrap(*table, rng_seed=3) == paired_bootstrap(*table, rng_seed=3)
    assert paired_bootstrap(*table, rng_seed=3) != paired_bootstrap(*table, rng_seed=4)


@pytest.mark.parametrize(("values", "cases", "seeds"), [([], [], []), ([0.1, 0.2], ["a"], [0, 0]), ([0.1], ["a"], [])])
def test_nothing_to_draw_from_or_lengths_that_differ_are_refused(values, cases, seeds):
    with pytest.raises(ValueError, match="found lengths"):
        paired_bootstrap(values, cases, seeds, rng_seed=0)


def test_the_interval_is_the_central_95_percent():
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_the_margin_over_seeds_is_the_tabulated_t_quantile_times_the_standard_error():
    # Sample (1, 2, 3): standard error 1/√3; t for 2 degrees of freedom is 4.303 in any table.
    assert seed_margin([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert seed_margin([1.0]) is None
