"""Validation figures, worked by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from medseqft_kit.evaluation.validation import validation_table

ROWS = [  # strategy, order, seed, stage, task, phase, validation Dice
    ("parallel", 0, 0, 1, "a", "adapt", 0.5),
    ("parallel", 0, 0, 2, "b", "adapt", 0.6),
    ("parallel", 0, 1, 1, "a", "adapt", 0.7),
    ("parallel", 0, 1, 2, "b", "adapt", 0.6),
    ("medseqft", 0, 0, 1, "a", "adapt", 0.6),
    ("medseqft", 0, 0, 1, "a", "consolidate", 0.1),  # M_t, not M'_t
    ("medseqft", 0, 0, 2, "b", "adapt", 0.9),
    ("medseqft", 0, 1, 1, "a", "probe", 0.0),  # a first phase, not the last
    ("medseqft", 0, 1, 1, "a", "adapt", 0.6),
    ("medseqft", 0, 1, 2, "b", "adapt", 0.7),
    *(("multitask", 0, seed, stage, task, "adapt", 0.7) for seed in (0, 1) for stage, task in ((1, "a"), (2, "b"))),
]


def _table() -> pd.DataFrame:
    columns = ["strategy", "order", "seed", "stage", "task", "phase", "validation_dice"]
    rows = pd.DataFrame(ROWS, columns=columns).assign(joint=lambda found: found["strategy"] == "multitask")
    return validation_table(rows).set_index(["strategy", "task"])


def test_the_last_adapting_phase_counts_against_parallel_on_the_same_seed() -> None:
    table = _table()
    assert list(table.loc["medseqft"].index) == ["a", "b", "mean", "later"]
    assert table["dice"][("medseqft", "a")] == pytest.approx(0.6)
    assert table["gain"][("medseqft", "a")] == pytest.approx(0.0)
    assert table["gain"][("medseqft", "b")] == pytest.approx(0.2)
    assert table["gain"][("medseqft", "mean")] == pytest.approx(0.1)
    assert table["gain"][("medseqft", "later")] == pytest.approx(0.2)


def test_joint_training_has_one_figure_for_all_tasks() -> None:
    table = _table()
    assert list(table.loc["multitask"].index) == ["mean"]
    assert table["gain"][("multitask", "mean")] == pytest.approx(0.1)  # 0.7 − (0.5 + 0.6 + 0.7 + 0.6) / 4


def test_the_margin_is_over_seeds() -> None:
    # Gains of the seeds on b: 0.3 and 0.1; t of one degree of freedom is 12.706.
    assert _table()["margin"][("medseqft", "b")] == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_nothing_measured_is_an_empty_table() -> None:
    assert validation_table(pd.DataFrame()).empty
