"""Worked by hand: three tasks; entries above the diagonal are probes, which these metrics do not read."""

import numpy as np
import pandas as pd
import pytest

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.cases import COLUMNS
from medseqft_kit.evaluation.continual import (
    backward_transfer,
    forgetting,
    forward_transfer,
    replay_burden,
    transfer_matrix,
)

NOT_PROBED = np.nan
R = np.array(
    [
        [0.80, NOT_PROBED, NOT_PROBED],
        [0.86, 0.70, NOT_PROBED],
        [0.74, 0.66, 0.90],
    ]
)


def test_backward_transfer_is_the_mean_change_since_a_task_was_learned():
    assert backward_transfer(R) == pytest.approx(((0.74 - 0.80) + (0.66 - 0.70)) / 2)


def test_forgetting_is_measured_from_the_best_stage_since():
    assert forgetting(R) == pytest.approx(((0.86 - 0.74) + (0.70 - 0.66)) / 2)


def test_a_task_that_only_improved_is_not_forgotten():
    assert forgetting(np.array([[0.5, 0.0], [0.6, 0.9]])) == 0


def test_a_good_probe_before_the_task_was_learned_does_not_count():
    probed = np.array([[0.8, 0.99, 0.0], [0.8, 0.7, 0.0], [0.8, 0.7, 0.9]])
    assert forgetting(probed) == 0


def test_forward_transfer_compares_each_task_with_fine_tuning_alone():
    assert forward_transfer(R, np.array([0.80, 0.60, 0.95])) == pytest.approx((0.0 + 0.10 - 0.05) / 3)


@pytest.mark.parametrize("metric", [backward_transfer, forgetting])
def test_one_task_has_nothing_to_forget_and_is_refused(metric):
    with pytest.raises(RunError, match="2 tasks or more"):
        metric(np.array([[0.8]]))


def test_a_missing_result_of_an_old_task_is_an_error_and_not_a_nan():
    with pytest.raises(RunError, match="missing"):
        backward_transfer(np.array([[0.8, 0.0], [np.nan, 0.9]]))


def test_parallel_results_must_match_the_tasks():
    with pytest.raises(RunError, match="for each task"):
        forward_transfer(R, np.array([0.8, 0.6]))


def rows(*found, seed=0):
    """Rows of cases.csv from (stage, task, predictor, case, label, dice)."""
    full = [(seed, stage, *names, dice, 1.0, dice, 0, 0) for stage, *names, dice in found]
    return pd.DataFrame(full, columns=list(COLUMNS))


MEDSEQFT = rows(
    (1, "liver", "adapted", "1", "liver", 0.99),
    (1, "liver", "merged", "1", "liver", 0.80),
    (1, "liver", "merged", "2", "liver", 0.60),
    (1, "liver", "merged", "1", "tumour", 0.10),
    (1, "spleen", "probe", "7", "spleen", 0.30),
    (2, "spleen", "adapted", "7", "spleen", 0.95),
    (2, "spleen", "merged", "7", "spleen", 0.90),
    (2, "liver", "merged", "1", "liver", 0.50),
    (2, "liver", "adapted", "1", "liver", 0.99),
)


def test_a_matrix_reads_the_merged_model_on_and_below_the_diagonal_and_the_probe_above():
    # liver after stage 1: the label liver has (0.8 + 0.6)/2 = 0.7, tumour 0.1; labels weigh the same: 0.4.
    expected = np.array([[0.4, 0.3], [0.5, 0.9]])
    np.testing.assert_allclose(transfer_matrix(MEDSEQFT, ["liver", "spleen"]), expected)
    assert backward_transfer(transfer_matrix(MEDSEQFT, ["liver", "spleen"])) == pytest.approx(0.1)


def test_a_strategy_without_consolidation_has_its_adapted_model_on_the_diagonal_alone():
    cases = rows(
        (1, "liver", "adapted", "1", "liver", 0.99),
        (2, "spleen", "adapted", "7", "spleen", 0.95),
        (2, "liver", "adapted", "1", "liver", 0.99),
        (2, "liver", "merged", "1", "liver", 0.50),
    )
    expected = np.array([[0.99, np.nan], [0.5, 0.95]])
    np.testing.assert_allclose(transfer_matrix(cases, ["liver", "spleen"]), expected)


def test_below_the_diagonal_only_the_merged_model_counts():
    cases = MEDSEQFT[~((MEDSEQFT["predictor"] == "merged") & (MEDSEQFT["task"] == "liver") & (MEDSEQFT["stage"] == 2))]
    assert np.isnan(transfer_matrix(cases, ["liver", "spleen"])[1, 0])


def test_a_stage_to_come_is_nan_and_its_metrics_are_refused():
    matrix = transfer_matrix(MEDSEQFT[MEDSEQFT["stage"] == 1], ["liver", "spleen"])
    np.testing.assert_allclose(matrix, [[0.4, 0.3], [np.nan, np.nan]])
    with pytest.raises(RunError, match="missing"):
        forgetting(matrix)


def test_a_task_outside_the_order_is_ignored_and_the_order_is_the_callers():
    np.testing.assert_allclose(transfer_matrix(MEDSEQFT, ["liver"]), [[0.4]])
    # Told the other order, (stage 1, spleen) and (stage 2, liver) lie on the diagonal, where a probe is not read.
    np.testing.assert_allclose(transfer_matrix(MEDSEQFT, ["spleen", "liver"]), [[np.nan, np.nan], [0.9, 0.5]])


def test_two_runs_or_a_task_twice_make_no_matrix():
    both = pd.concat([MEDSEQFT, MEDSEQFT.assign(seed=1)])
    with pytest.raises(RunError, match="one run"):
        transfer_matrix(both, ["liver", "spleen"])
    with pytest.raises(RunError, match="each task once"):
        transfer_matrix(MEDSEQFT, ["liver", "liver"])


def test_the_table_given_is_left_alone():
    before = MEDSEQFT.copy()
    transfer_matrix(MEDSEQFT, ["liver", "spleen"])
    pd.testing.assert_frame_equal(MEDSEQFT, before)


def test_replay_burden_is_the_share_of_bytes_kept():
    # 8 of 32 volumes of 64³ float32 kept.
    assert replay_burden(8 * 64**3 * 4, 32 * 64**3 * 4) == 0.25
    assert replay_burden(0, 100) == 0


@pytest.mark.parametrize(("stored", "seen"), [(0, 0), (5, 4), (-1, 4)])
def test_more_images_stored_than_seen_is_refused(stored, seen):
    with pytest.raises(RunError, match="among those seen"):
        replay_burden(stored, seen)
