"""Worked by hand: three tasks; entries above the diagonal are probes, which these metrics do not read."""

import numpy as np
import pytest

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.continual import (
    backward_transfer,
    forgetting,
    forward_transfer,
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
