"""Differences to parallel fine-tuning, worked by hand."""

import pandas as pd
import pytest

from medseqft_kit.errors import RunError
from medseqft_kit.report.comparison import cost, differences, headline, headline_cases, load_comparison

CASES = [  # strategy, order, seed, case, label, dice
    ("parallel", 0, 0, "x", "l", 0.5),
    ("parallel", 0, 0, "x", "m", 0.7),
    ("parallel", 0, 0, "y", "l", 0.4),
    ("parallel", 0, 1, "x", "l", 0.65),
    ("parallel", 0, 1, "y", "l", 0.4),
    ("new", 0, 0, "x", "l", 0.7),
    ("new", 1, 0, "x", "l", 0.9),
    ("new", 0, 0, "y", "l", 0.5),
    ("new", 0, 1, "x", "l", 0.7),
    ("new", 0, 1, "z", "l", 0.0),
]


def write(folder, rows=CASES, strategies=("parallel", "new")):
    columns = ["strategy", "order", "seed", "case", "label", "dice"]
    table = pd.DataFrame(rows, columns=columns).assign(
        stage=1, task="t", predictor="adapted", hd95_mm=1.0, nsd=1.0, missed=0, false_positive=0
    )
    table = pd.concat([table, table.assign(predictor="merged", dice=0.0)])
    table.to_csv(folder / "cases.csv", index=False)
    figures = {
        "predictor": "adapted",
        "dice": 0.5,
        "dice_low": 0.4,
        "dice_high": 0.6,
        "hd95_mm": 1.0,
        "nsd": 1.0,
        "missed": 0,
        "false_positive": 0,
        "cases": 2,
        "seeds": 2,
        "images_seen": 100,
        "seconds": 3.5,
    }
    rows = [
        {"strategy": s, "task": t, **figures, "dice": 0.5 + 0.1 * (s == "new")}
        for s in strategies
        for t in ("t", "mean")
    ]
    pd.DataFrame(rows).to_csv(folder / "comparison.csv", index=False)
    return load_comparison(folder)


def test_labels_and_orders_are_averaged_before_pairs_are_formed(tmp_path):
    cases = headline_cases(write(tmp_path)).set_index(["strategy", "seed", "case"])["dice"]
    assert cases.loc["new"].loc[0]["x"] == pytest.approx(0.8)
    assert cases.loc["parallel"].loc[0]["x"] == pytest.approx(0.6)


def test_pairs_share_seed_and_case_and_cases_without_a_partner_do_not_count(tmp_path):
    found = differences(write(tmp_path))["new", "t"]
    # x, seed 0: 0.8 − 0.6; y, seed 0: 0.5 − 0.4; x, seed 1: 0.7 − 0.65; y and z of seed 1 have no partner.
    assert found.mean == pytest.approx((0.2 + 0.1 + 0.05) / 3)
    assert found.per_seed == pytest.approx((0.15, 0.05))
    assert found.low == pytest.approx(0.1)  # y alone
    assert found.high == pytest.approx(0.125)  # x alone, both seeds
    assert found.margin == pytest.approx(12.706 * 0.05, rel=1e-3)  # t with one degree of freedom


def test_the_mean_over_one_task_is_that_task(tmp_path):
    found = differences(write(tmp_path))
    assert set(found) == {("new", "t"), ("new", "mean")}
    assert found["new", "mean"].mean == pytest.approx(found["new", "t"].mean)
    assert found["new", "mean"].per_seed == pytest.approx(found["new", "t"].per_seed)


def test_without_parallel_there_is_no_difference(tmp_path):
    rows = [row for row in CASES if row[0] == "new"]
    comparison = write(tmp_path, rows, ("new",))
    assert differences(comparison) == {}
    assert headline(comparison) == "Highest mean test Dice over 1 tasks: 0.600, new."


def test_cost_is_summed_over_tasks(tmp_path):
    assert cost(write(tmp_path), "new") == (100.0, 3.5)


def test_both_predictors_and_the_single_runs_are_there(comparison_folder):
    comparison = load_comparison(comparison_folder)
    assert len(comparison.predictors) == 2 * (1 + 1 + 2)
    assert [link.href for link in comparison.links if link.href] == ["runs/parallel/seed_0/order_0/report.html"]
    assert len(comparison.links) == 6


def test_a_comparison_without_a_table_is_in_progress(comparison_folder):
    (comparison_folder / "comparison.csv").unlink()
    (comparison_folder / "cases.csv").unlink()
    comparison = load_comparison(comparison_folder)
    assert comparison.strategies == ()
    assert headline(comparison) == "No result yet."


def test_any_other_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a comparison folder"):
        load_comparison(tmp_path)


def test_a_damaged_table_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "comparison.csv").write_text("strategy,task\na,b\n")
    with pytest.raises(RunError, match=r"comparison\.csv cannot be read"):
        load_comparison(tmp_path)
