"""Intervals, against a hand-worked case and by how often they cover the truth."""

import numpy as np
import pytest

from medseqft_kit.evaluation import statistics
from medseqft_kit.evaluation.statistics import bootstrap_means, interval, paired_bootstrap, seed_margin


def test_two_cases_give_three_possible_means_a_quarter_half_quarter():
    means = bootstrap_means([0.0, 1.0], ["a", "b"], seed=0)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / len(means) == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert paired_bootstrap([0.0, 1.0], ["a", "b"], seed=0) == (0.5, 0.0, 1.0)


def test_all_seeds_of_a_case_are_drawn_together():
    # Two seeds that agree on every case are no second sample: the interval stays that of the cases alone.
    once = paired_bootstrap([0.0, 1.0, 3.0], ["a", "b", "c"], seed=1)
    twice = paired_bootstrap([0.0, 0.0, 1.0, 1.0, 3.0, 3.0], ["a", "a", "b", "b", "c", "c"], seed=1)
    assert twice == pytest.approx(once)


def test_the_interval_covers_the_true_difference_nineteen_times_in_twenty(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 500)
    rng = np.random.default_rng(0)
    cases, seeds, trials, covered = 30, 2, 400, 0
    groups = np.repeat(np.arange(cases), seeds).tolist()
    for trial in range(trials):
        of_case = rng.normal(0.02, 0.05, cases)
        differences = np.repeat(of_case, seeds) + rng.normal(0, 0.03, cases * seeds)
        _, low, high = paired_bootstrap(differences.tolist(), groups, seed=trial)
        covered += low <= 0.02 <= high
    assert 0.90 <= covered / trials <= 0.98


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    differences, groups = np.random.default_rng(1).normal(size=20).tolist(), list(range(20))
    assert paired_bootstrap(differences, groups, seed=3) == paired_bootstrap(differences, groups, seed=3)
    assert paired_bootstrap(differences, groups, seed=3) != paired_bootstrap(differences, groups, seed=4)


@pytest.mark.parametrize(("differences", "groups"), [([], []), ([0.1, 0.2], ["a"])])
def test_nothing_to_draw_from_or_lengths_that_differ_are_refused(differences, groups):
    with pytest.raises(ValueError, match="found lengths"):
        paired_bootstrap(differences, groups, seed=0)


def test_the_interval_is_the_central_95_percent():
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_the_margin_over_seeds_is_the_tabulated_t_quantile_times_the_standard_error():
    # Sample (1, 2, 3): standard error 1/√3; t for 2 degrees of freedom is 4.303 in any table.
    assert seed_margin([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert seed_margin([1.0]) is None
