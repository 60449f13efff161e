"""What the tables of a run say, against the files they come from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medseqft_kit.report.load import RunRecord, StageRecord, load_run
from medseqft_kit.report.tables import (
    config_rows,
    continual,
    duration,
    headline,
    number,
    phase_ends,
    retention,
    setting,
    signed,
    task_result,
    timing_rows,
)


def figures(dice, missed=0):
    return {"dice": dice, "hd95_mm": 1.0, "nsd": 1.0, "missed": missed, "false_positive": 0, "cases": 3, "labels": {}}


def run_of(*metrics):
    names = "abc"[: len(metrics)]
    stages = [StageRecord(i, n, None, True, metrics=m) for i, (n, m) in enumerate(zip(names, metrics, strict=True), 1)]
    return RunRecord(Path("run"), {"config": {}}, tuple(stages), (), ())


SEQUENCE = run_of(
    {"a": {"adapted": figures(0.9), "merged": figures(0.8)}},
    {"a": {"merged": figures(0.7)}, "b": {"adapted": figures(0.5, missed=2), "merged": figures(0.6)}},
)


def test_every_label_has_a_line_for_each_predictor_and_the_mean_comes_last(finished_run):
    stage = load_run(finished_run).stages[1]
    result = task_result(stage)
    assert result.predictors == ("adapted", "merged")
    assert [label for label, _ in result.lines] == ["anterior", "posterior & tail", None]
    stored = json.loads((stage.folder / "metrics.json").read_text())["sub<i>fields"]
    assert result.lines[1][1]["merged"] == stored["merged"]["labels"]["posterior & tail"]
    assert result.lines[2][1]["adapted"]["dice"] == stored["adapted"]["dice"]


def test_earlier_tasks_show_merged_and_their_change_since_they_were_learned():
    matrix = retention(SEQUENCE)
    assert matrix[0][1] is None
    assert [cell.figures["dice"] for cell in (matrix[0][0], *matrix[1])] == [0.8, 0.7, 0.6]
    assert matrix[1][0].change == pytest.approx(-0.1)
    assert (matrix[0][0].change, matrix[1][1].change) == (None, None)
    assert continual(SEQUENCE) == pytest.approx({"backward transfer": -0.1, "forgetting": 0.1})


def test_strategies_that_do_not_merge_have_adapted_as_their_model():
    matrix = retention(run_of({"a": {"adapted": figures(0.9)}}, {"b": {"adapted": figures(0.5)}}))
    assert [[cell and cell.figures["dice"] for cell in line] for line in matrix] == [[0.9, None], [None, 0.5]]


def test_the_headline_takes_the_chosen_predictor_counts_misses_and_says_what_was_lost():
    assert headline(SEQUENCE) == (
        "Mean test Dice 0.700 (adapted) over 2 tasks, 2 missed structures; "
        "after the last stage the earlier tasks stand −0.100 Dice from where they were learned."
    )
    other = replace(SEQUENCE, manifest={"config": {"strategy": {"predictor": "merged"}}})
    assert headline(other).startswith("Mean test Dice 0.700 (merged) over 2 tasks, no missed structures")


def test_a_run_in_progress_says_how_far_it_is():
    assert headline(run_of({}, {})) == "No task of 2 is evaluated yet."
    half = run_of({"a": {"adapted": figures(0.9)}}, {})
    assert headline(half) == "Mean test Dice 0.900 (adapted) over 1 of 2 tasks, no missed structures."
    assert continual(half) == {}


def test_repeated_events_are_added_up():
    rows = [
        {"event": "phase", "phase": "adapt", "seconds": 2.0, "images": 8},
        {"event": "evaluation", "seconds": 1.0},
        {"event": "phase", "phase": "adapt", "seconds": 3.5, "images": 4, "resumed_at": 7},
    ]
    first, second = timing_rows(rows)
    assert (first.event, first.times, first.seconds, first.images, first.notes) == (
        "phase adapt",
        2,
        5.5,
        12,
        "resumed at 7",
    )
    assert (second.event, second.images) == ("evaluation", 0)


def test_the_end_of_each_phase_is_told_with_fidelity(finished_run):
    adapt, consolidate = phase_ends(load_run(finished_run).stages[0])
    assert adapt.startswith("adapt ended after 60 steps: validation Dice 0.7")
    assert consolidate.endswith("fidelity 0.985, merge difference 2.5e-07.")


def test_every_setting_is_listed_and_the_changed_ones_are_marked(finished_run):
    rows = config_rows(load_run(finished_run))
    assert len(rows) == 11
    assert [key for key, _, changed in rows if not changed] == [
        "strategy.name",
        "strategy.predictor",
        "strategy.buffer.scope",
        "seed",
        "budget.batch",
    ]
    assert ("strategy.buffer.k", "4", True) in rows


def test_figures_are_written_for_people():
    assert number(1234567.0, 0) == "1\u202f234\u202f567"
    assert (number(None, 3), number(float("nan"), 3), number(0.5, 3)) == ("–", "–", "0.500")
    assert (signed(-0.0125), signed(0.5)) == ("−0.013", "+0.500")
    assert [duration(s) for s in (7.25, 59.96, 200, 3599.9, 7500, None)] == [
        "7.2 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 00 min",
        "2 h 05 min",
        "–",
    ]
    assert [setting(v) for v in (None, True, [1, None], [], {}, "x")] == [
        "not set",
        "yes",
        "1, not set",
        "none",
        "none",
        "x",
    ]
