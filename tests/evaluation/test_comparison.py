"""The tables of a comparison, worked by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from medseqft_kit.evaluation.comparison import Tables, tables
from medseqft_kit.evaluation.gains import transfer_table
from medseqft_kit.evaluation.harvest import Harvest

Row = tuple[str, int, int, str, str, str, float]  # strategy, order, seed, task, patient, label, dice


def _cases(rows: list[Row], order: list[str]) -> pd.DataFrame:
    """Rows of the stage in which each task was learned; HD95 is ten times the Dice, so that it can be told apart."""
    return pd.DataFrame(
        [
            {
                "strategy": strategy, "order": index, "seed": seed, "stage": order.index(task) + 1, "task": task,
                "predictor": "adapted", "case": patient, "label": label, "dice": dice, "hd95_mm": 10 * dice,
                "nsd": dice, "missed": int(dice == 0), "false_positive": 0, "position": order.index(task) + 1,
                "patient": f"set/{patient}",
            }
            for strategy, index, seed, task, patient, label, dice in rows
        ]
    )  # fmt: skip


def _tables(cases: pd.DataFrame, **more: Any) -> Tables:
    strategies = list(dict.fromkeys(cases["strategy"]))
    runs = cases[["strategy", "order", "seed"]].drop_duplicates()
    stages = cases[["strategy", "order", "seed", "task"]].drop_duplicates()
    values: dict[str, Any] = {
        "cases": cases,
        "costs": stages.assign(seconds=10.0, images_seen=100, peak_bytes=2**30),
        "stages": pd.DataFrame(),
        "generality": pd.DataFrame(),
        "burden": runs.assign(replay_burden=0.25),
        "journeys": pd.DataFrame(),
        "predictors": dict.fromkeys(strategies, "adapted"),
        "sequential": frozenset(),
    }
    return tables(Harvest(**{**values, **more}))


ONE: list[Row] = [
    ("parallel", 0, 0, "a", "x", "one", 0.2),
    ("parallel", 0, 0, "a", "y", "one", 0.4),
    ("parallel", 0, 0, "a", "x", "two", 0.9),  # y lacks the structure: its label mean is of x alone
    ("parallel", 0, 1, "a", "x", "one", 0.0),
    ("parallel", 0, 1, "a", "y", "one", 0.0),
    ("parallel", 0, 1, "a", "x", "two", 0.5),
    ("parallel", 0, 0, "b", "z", "one", 1.0),
    ("parallel", 0, 1, "b", "z", "one", 0.5),
]


def test_cases_are_averaged_within_a_label_labels_within_a_task_runs_last() -> None:
    table = _tables(_cases(ONE, ["a", "b"])).comparison.set_index("task")
    assert list(table.index) == ["a", "b", "mean", "later"]
    assert table.loc["a", "dice"] == pytest.approx(((0.3 + 0.9) / 2 + (0.0 + 0.5) / 2) / 2)
    assert table.loc["b", "dice"] == pytest.approx(0.75)
    assert table.loc["mean", "dice"] == pytest.approx((0.425 + 0.75) / 2)
    assert table.loc["later", "dice"] == pytest.approx(0.75)
    assert table.loc["a", "hd95_mm"] == pytest.approx(4.25)
    assert list(table["missed"]) == [2, 0, 2, 0]
    assert list(table["seeds"]) == [2] * 4
    assert list(table["images_seen"]) == [100, 100, 200, 100]
    assert list(table["seconds"]) == [10.0, 10.0, 20.0, 10.0]
    assert list(table["peak_gib"]) == [1.0] * 4


PAIRS: list[Row] = [
    ("parallel", 0, 0, "a", "x", "l", 0.5),
    ("parallel", 0, 0, "a", "x", "m", 0.7),
    ("parallel", 0, 0, "a", "y", "l", 0.4),
    ("parallel", 0, 0, "b", "x", "l", 0.5),
    ("parallel", 0, 0, "b", "y", "l", 0.5),
    ("parallel", 0, 1, "a", "x", "l", 0.65),
    ("parallel", 0, 1, "a", "y", "l", 0.4),
    ("parallel", 0, 1, "b", "x", "l", 0.5),
    ("parallel", 0, 1, "b", "y", "l", 0.5),
    ("medseqft", 0, 0, "a", "x", "l", 0.8),  # + 0.2 after the labels of parallel's x are averaged
    ("medseqft", 0, 0, "a", "y", "l", 0.5),  # + 0.1
    ("medseqft", 0, 0, "b", "x", "l", 0.7),  # + 0.2
    ("medseqft", 0, 0, "b", "y", "l", 0.7),  # + 0.2
    ("medseqft", 0, 1, "a", "x", "l", 0.7),  # + 0.05
    ("medseqft", 0, 1, "a", "z", "l", 0.0),  # parallel has no such case
    ("medseqft", 0, 1, "b", "x", "l", 0.4),  # − 0.1
    ("medseqft", 0, 1, "b", "y", "l", 0.6),  # + 0.1
]


def test_a_gain_is_taken_on_pairs_of_the_same_seed_order_task_and_case() -> None:
    gains = _tables(_cases(PAIRS, ["a", "b"])).gains.set_index("task")
    assert list(gains["versus"].unique()) == ["parallel"]
    assert gains.loc["a", "gain"] == pytest.approx((0.15 + 0.05) / 2)  # seeds weigh the same
    assert gains.loc["b", "gain"] == pytest.approx((0.2 + 0.0) / 2)
    assert gains.loc["mean", "gain"] == pytest.approx(0.1)
    assert gains.loc["later", "gain"] == pytest.approx(0.1)
    assert gains.loc["a", "margin"] == pytest.approx(12.706 * 0.05, rel=1e-3)  # t with one degree of freedom
    assert gains.loc["b", "hd95_gain_mm"] == pytest.approx(1.0)
    assert (gains["low"] <= gains["gain"]).all()
    assert (gains["gain"] <= gains["high"]).all()


def test_a_patient_of_two_tasks_counts_once_in_the_test() -> None:
    gains = _tables(_cases(PAIRS, ["a", "b"])).gains.set_index("task")
    assert gains.loc["mean", "cases"] == 2  # x and y, though there are two tasks of two


def test_the_corrected_p_is_corrected_over_the_strategies_of_a_task() -> None:
    third = [("other", *row[1:6], row[6] - 0.01) for row in PAIRS if row[0] == "medseqft"]
    gains = _tables(_cases([*PAIRS, *third], ["a", "b"])).gains
    against = gains[(gains["versus"] == "parallel") & (gains["task"] == "b")]
    assert len(against) == 2
    smaller = against.sort_values("p").iloc[0]
    assert smaller["p_holm"] == pytest.approx(min(1.0, 2 * smaller["p"]))
    assert set(gains["versus"]) == {"parallel", "other"}


def test_the_spread_of_orders_is_seen() -> None:
    rows: list[Row] = []
    for order, gain in ((0, 0.1), (1, 0.3)):
        for task in ("a", "b"):
            rows += [("parallel", order, 0, task, "x", "l", 0.5), ("medseqft", order, 0, task, "x", "l", 0.5 + gain)]
    orders = _tables(_cases(rows, ["a", "b"])).orders.set_index(["strategy", "order"])
    assert orders.loc[("medseqft", 0), "gain"] == pytest.approx(0.1)
    assert orders.loc[("medseqft", 1), "gain"] == pytest.approx(0.3)
    assert orders.loc[("parallel", 1), "gain"] == pytest.approx(0.0)
    assert orders.loc[("medseqft", 0), "tasks"] == "a → b"


def test_the_matrix_and_what_is_read_from_it() -> None:
    own = _cases([row for row in PAIRS if row[2] == 0], ["a", "b"])
    merged = own[own["strategy"] == "medseqft"].assign(predictor="merged")
    again = merged[merged["task"] == "a"].assign(stage=2, dice=0.45)
    found = _tables(pd.concat([own, merged, again], ignore_index=True), sequential=frozenset({"medseqft"}))
    matrix = found.matrix.set_index(["stage", "task"])["dice"]
    assert matrix[1, "a"] == pytest.approx(0.65)
    assert pd.isna(matrix[1, "b"])  # nothing was probed
    assert matrix[2, "a"] == pytest.approx(0.45)
    assert matrix[2, "b"] == pytest.approx(0.7)
    continual = found.continual.set_index("strategy").loc["medseqft"]
    assert continual["backward_transfer"] == pytest.approx(0.45 - 0.65)
    assert continual["forgetting"] == pytest.approx(0.2)
    parallel_a = ((0.5 + 0.4) / 2 + 0.7) / 2
    assert continual["forward_transfer"] == pytest.approx(((0.65 - parallel_a) + (0.7 - 0.5)) / 2)
    assert continual["replay_burden"] == pytest.approx(0.25)


def test_fidelity_is_reported_on_validation_and_on_test_cases() -> None:
    own = _cases([row for row in PAIRS if row[2] == 0], ["a", "b"])
    merged = own[own["strategy"] == "medseqft"].assign(predictor="merged", dice=0.35)
    noted = pd.DataFrame(
        [
            {"strategy": "medseqft", "order": 0, "seed": 0, "stage": 2, "task": "b", "phase": "consolidate", "step": 49,
             "joint": False, "validation_dice": 0.5,
             "fidelity": 0.8, "fidelity_whole": 0.99, "moved": 0.1, "moved_adapted": 0.2},
            {"strategy": "medseqft", "order": 0, "seed": 0, "stage": 2, "task": "b", "phase": "adapt", "step": 99,
             "joint": False, "validation_dice": 0.5},
        ]
    )  # fmt: skip
    fidelity = _tables(pd.concat([own, merged], ignore_index=True), stages=noted).fidelity
    assert len(fidelity) == 1
    assert fidelity.loc[0, "test_dice_kept"] == pytest.approx(0.5)
    assert fidelity.loc[0, "steps"] == 50
    assert (fidelity.loc[0, "fidelity"], fidelity.loc[0, "fidelity_whole"]) == (0.8, 0.99)
    assert fidelity.loc[0, "moved"] == 0.1


def test_unseen_tasks_are_judged_against_m0_whatever_the_order() -> None:
    base = {"predictor": "adapted", "label": "l", "nsd": 0.5, "missed": 0, "false_positive": 0, "kind": "transfer"}
    rows = [
        {**base, "strategy": strategy, "order": order, "seed": seed, "stage": stage, "task": "u", "budget": "5",
         "case": case, "patient": case, "dice": dice, "hd95_mm": 3.0}
        for strategy, order, stage, gain in (
            ("foundation", 0, 0, 0.0), ("scratch", 0, 0, -0.2), ("medseqft", 0, 3, 0.1), ("medseqft", 1, 3, 0.3)
        )
        for seed in (0, 1)
        for case, dice in (("x", 0.4 + gain), ("y", 0.6 + gain))
    ]  # fmt: skip
    table = transfer_table(pd.DataFrame(rows)).set_index("strategy")
    assert table.loc["foundation", "dice"] == pytest.approx(0.5)
    assert table.loc["medseqft", "gain"] == pytest.approx(0.2)
    assert table.loc["scratch", "gain"] == pytest.approx(-0.2)
    assert table["gain"].isna()["foundation"]


def test_what_was_not_measured_is_an_empty_table_with_its_columns() -> None:
    found = _tables(_cases([row for row in PAIRS if row[0] == "parallel"], ["a", "b"]))
    for name in ("ranks", "continual", "matrix", "generality", "fidelity", "transfer"):
        table = found.named()[name]
        assert len(table) == 0, name
        assert "strategy" in table.columns, name
