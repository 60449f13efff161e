"""Tests of significance against SciPy, against hand-worked cases, and against the example worked in Demšar (2006)."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medseqft_kit.evaluation.significance import (
    blocks,
    critical_difference,
    holm,
    nemenyi_quantile,
    signed_rank,
)

# Demšar (2006), Table 6: AUC of C4.5 on 14 data sets, with the minimal leaf size (m) and the confidence (cf) tuned.
# The paper ranks two values of its 13th row apart that it prints as 0.975 both: hence 0.9751.
DEMSAR = pd.DataFrame(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ],
    columns=["C4.5", "m", "cf", "m+cf"],
)


def table_of(rows):
    return pd.DataFrame(rows, columns=["strategy", "task", "order", "seed", "case", "dice"])


def test_demsars_example_has_his_mean_ranks_and_critical_difference():
    found = critical_difference(DEMSAR, alpha=0.10)
    assert list(found.ranks) == ["m+cf", "m", "cf", "C4.5"]
    assert found.ranks == pytest.approx({"m+cf": 1.964, "m": 2.000, "cf": 2.893, "C4.5": 3.143}, abs=5e-4)
    assert critical_difference(DEMSAR).cd == pytest.approx(1.25, abs=5e-3)
    assert found.cd == pytest.approx(1.12, abs=5e-3)
    assert found.blocks == 14


def test_demsars_reading_tuning_m_differs_from_plain_c45_at_ten_percent_and_cf_from_nothing():
    assert critical_difference(DEMSAR, alpha=0.10).groups == (("m+cf", "m", "cf"), ("cf", "C4.5"))
    assert critical_difference(DEMSAR, alpha=0.05).groups == (("m+cf", "m", "cf", "C4.5"),)


@pytest.mark.parametrize(
    ("strategies", "alpha", "published"),
    [(2, 0.05, 1.960), (3, 0.05, 2.343), (5, 0.05, 2.728), (10, 0.05, 3.164), (4, 0.10, 2.291), (10, 0.10, 2.920)],
)
def test_quantiles_are_demsars_table_5a(strategies, alpha, published):
    assert nemenyi_quantile(strategies, alpha) == pytest.approx(published, abs=1e-3)


def test_friedmans_p_is_scipys_ties_included():
    assert critical_difference(DEMSAR).p == stats.friedmanchisquare(*DEMSAR.to_numpy().T).pvalue


def test_friedmans_p_by_hand():
    # Three strategies, the same order in all of four blocks: χ² = 12·4/(3·4)·(1 + 4 + 9) − 3·4·4 = 8, p = exp(−4).
    found = critical_difference(pd.DataFrame([[0.9, 0.8, 0.7]] * 4, columns=["a", "b", "c"]))
    assert found.p == pytest.approx(np.exp(-4))
    assert found.ranks == {"a": 1, "b": 2, "c": 3}


def test_a_strategy_apart_stands_in_no_group_and_groups_may_overlap():
    # Ranks 1, 2, 3, 4, 5 in 40 blocks: CD = 2.728·√(5·6/240) = 0.96, nobody stands with anybody.
    far = pd.DataFrame([[5.0, 4.0, 3.0, 2.0, 1.0]] * 40, columns=list("abcde"))
    assert critical_difference(far).groups == ()
    # In 12 blocks CD = 1.76: neighbours stand together, and no pair lies within another.
    assert critical_difference(far[:12]).groups == (("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"))


def test_where_friedman_does_not_reject_all_are_one_group():
    alike = pd.DataFrame([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]] * 3, columns=list("abc"))
    assert critical_difference(alike).p == pytest.approx(1.0)
    assert critical_difference(alike).groups == (("a", "b", "c"),)


def test_nemenyi_is_not_read_where_friedman_does_not_reject_even_if_it_would_separate():
    # Eight strategies on five Latin squares, mean rank 4.5 each; where the first is behind the last they change places.
    # Then 3.625 and 5.375 are the only two off 4.5: 1.75 apart, over CD = 3.031·√(72/240) = 1.66, while Friedman's
    # χ² = 12·40/72·2·0.875² = 10.2 stays under 14.07.
    square = [[float((strategy + block) % 8) for strategy in range(8)] for block in range(8)]
    table = pd.DataFrame([[row[7], *row[1:7], row[0]] if row[0] < row[7] else row for row in square * 5])
    found = critical_difference(-table)
    spread = max(found.ranks.values()) - min(found.ranks.values())
    assert (spread, found.cd) == pytest.approx((1.75, 1.66), abs=5e-3)
    assert found.p == pytest.approx(stats.chi2.sf(480 / 72 * 2 * 0.875**2, 7))
    assert [len(group) for group in found.groups] == [8]


def test_strategies_equal_on_every_block_are_alike_and_not_nan():
    found = critical_difference(pd.DataFrame([[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]], columns=list("abc")))
    assert (found.p, found.groups) == (1.0, (("a", "b", "c"),))


@pytest.mark.parametrize("table", [[[1.0, 2.0]] * 5, [[1.0, 2.0, 3.0]], [[1.0, 2.0, np.nan]] * 5])
def test_tables_that_cannot_be_ranked_are_refused(table):
    with pytest.raises(ValueError, match="expected 2 × 3"):
        critical_difference(pd.DataFrame(table))


@pytest.mark.parametrize("size", [5, 20, 80])
def test_the_signed_rank_test_is_scipys(size):
    differences = np.random.default_rng(size).normal(0.3, 1.0, size)
    assert signed_rank(differences.tolist()).p == stats.wilcoxon(differences, zero_method="zsplit").pvalue


def test_the_signed_rank_test_by_hand():
    # All six positive: of 2⁶ signs one is as extreme on each side, p = 2/64; all ranks on one side.
    found = signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert (found.p, found.effect, found.pairs) == (2 / 64, 1.0, 6)


def test_the_effect_is_the_favourable_share_of_ranks_minus_the_other():
    # Ranks of |d|: 1, 2.5, 2.5, 4; positive are 1, 2.5 and 4 of 10.
    assert signed_rank([0.1, 0.2, -0.2, 0.5]).effect == pytest.approx((7.5 - 2.5) / 10)
    assert signed_rank([-0.1, -0.2, 0.2, -0.5]).effect == pytest.approx(-(7.5 - 2.5) / 10)
    # Zeros have the two lowest ranks, 1.5 each, and favour nobody: 3 + 4 of 10.
    assert signed_rank([0.0, 0.0, 0.3, 0.5]).effect == pytest.approx(0.7)


def test_zeros_keep_their_ranks_in_the_test_too():
    # Four zeros take ranks 1 to 4, so the two negative ones have 5 and 6, sum 11. Of the 2⁶ signs, the sets of ranks
    # 5 … 10 with a sum of 11 or less are none, the six single ones and {5, 6}: p = 2·8/64. Without zeros it is 2·5/64.
    differences = [-0.1, -0.2, 0.3, 0.4, 0.5, 0.6]
    assert signed_rank([0.0] * 4 + differences).p == pytest.approx(16 / 64)
    assert signed_rank(differences).p == pytest.approx(10 / 64)


def test_one_missed_case_does_not_rule_the_effect():
    assert signed_rank([0.01] * 19 + [-0.9]).effect == pytest.approx((19 * 10 - 20) / 210)


def test_no_difference_at_all_is_no_evidence():
    found = signed_rank([0.0, 0.0, 0.0])
    assert (found.p, found.effect) == (1.0, 0.0)


@pytest.mark.parametrize("differences", [[], [0.1, np.nan]])
def test_nothing_to_rank_is_refused(differences):
    with pytest.raises(ValueError, match="expected one finite number"):
        signed_rank(differences)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


CASES = table_of(
    [
        (strategy, task, order, seed, case, base + {"parallel": 0.0, "medseqft": 0.1 * (number + 1)}[strategy])
        for strategy in ("parallel", "medseqft")
        for task, base in (("liver", 0.5), ("spleen", 0.2))
        for order in (0, 1)
        for seed in (0, 1, 2)
        for number, case in enumerate(("1", "2", "3"))
    ]
)


def test_blocks_average_orders_and_seeds_and_keep_tasks_apart():
    found = blocks(CASES)
    assert found.shape == (6, 2)
    assert list(found.columns) == ["parallel", "medseqft"]
    assert found.loc[("liver", "2"), "medseqft"] == pytest.approx(0.7)
    assert blocks(CASES, by="task")["medseqft"].to_dict() == pytest.approx({"liver": 0.7, "spleen": 0.4})


def test_a_seed_that_one_strategy_lacks_is_left_out_for_all():
    # Seed 2 of parallel is not there yet, and medseqft's would raise its own mean alone.
    rows = CASES[~((CASES["strategy"] == "parallel") & (CASES["seed"] == 2))].copy()
    rows.loc[rows["seed"] == 2, "dice"] = 1.0
    assert blocks(rows).equals(blocks(CASES[CASES["seed"] < 2]))


def test_an_order_that_one_strategy_lacks_is_left_out_for_all():
    rows = CASES[~((CASES["strategy"] == "parallel") & (CASES["order"] == 1))].copy()
    rows.loc[rows["order"] == 1, "dice"] = 1.0
    assert blocks(rows).equals(blocks(CASES[CASES["order"] == 0]))
    # Without the column, all rows of a seed are one run's.
    pd.testing.assert_frame_equal(blocks(CASES.drop(columns="order")), blocks(CASES))


def test_strategies_that_share_no_run_have_no_blocks():
    apart = CASES[CASES["strategy"] == "medseqft"].assign(strategy="late", seed=9)
    assert len(blocks(pd.concat([CASES, apart]))) == 0


def test_the_table_given_is_left_alone():
    before = CASES.copy()
    blocks(CASES, by="task")
    pd.testing.assert_frame_equal(CASES, before)
