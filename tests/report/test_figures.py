"""Figures hold what the files hold, and text from files stays text."""

import numpy as np
import pandas as pd
import pytest

from medseqft_kit.report.figures import (
    learning_curves,
    loss_terms,
    pretraining_curve,
    score_distribution,
    thinned,
)
from medseqft_kit.report.load import load_run


@pytest.fixture
def history(finished_run):
    return load_run(finished_run).stages[0].history


def test_every_named_term_and_the_validation_of_every_phase_is_drawn(history):
    terms = loss_terms(history)
    assert terms == ["segmentation", "distillation", "features", "logits"]
    traces = learning_curves(history, dict.fromkeys(terms, "#000000")).data
    names = [trace.name for trace in traces]
    assert names == [
        "segmentation",
        "distillation",
        "total",
        "validation Dice",
        "features",
        "logits",
        "total",
        "validation Dice",
    ]
    stored = [row["distillation"] for row in history if "distillation" in row]
    assert list(traces[1].y) == pytest.approx(stored)
    assert [list(trace.x) for trace in traces if trace.name == "validation Dice"] == [[19, 39, 59], [19, 39]]


def test_a_term_is_named_once_in_the_legend(history):
    shown = [
        t.name for t in learning_curves(history, dict.fromkeys(loss_terms(history), "#000000")).data if t.showlegend
    ]
    assert sorted(shown) == ["distillation", "features", "logits", "segmentation", "total"]


def test_the_loss_axis_shows_four_decades_at_most():
    row = {"phase": "adapt", "learning_rate": 1e-3}
    history = [
        {**row, "step": 0, "distillation": 1e-12, "total": 2.0},
        {**row, "step": 1, "distillation": 0.1, "total": 1.0},
    ]
    low, high = learning_curves(history, {"distillation": "#000000"}).layout.yaxis.range
    assert 4 < high - low < 4.6
    assert low < np.log10(2.0) < high


def test_a_long_training_is_thinned_and_keeps_its_mean():
    values = np.random.default_rng(0).normal(size=4000)
    steps, means = thinned(list(enumerate(values)))
    assert len(steps) == len(means) == 400
    assert np.mean(means) == pytest.approx(values.mean())
    assert thinned([]) == ([], [])
    assert thinned([(0, 1.5), (1, 2.5)]) == ([0.0, 1.0], [1.5, 2.5])


def test_pretraining_shows_the_reconstruction_loss(finished_run):
    (curve,) = pretraining_curve(load_run(finished_run).pretraining).data
    assert (len(curve.x), curve.y[0]) == (100, 1.0)


def test_scores_are_ordered_split_by_choice_and_carry_their_intervals():
    scores = pd.DataFrame(
        {
            "case": ["x", "y<b>", "z"],
            "mean": [3.0, 1.0, 2.0],
            "low": [2.5, 0.9, 1.8],
            "high": [3.1, 1.2, 2.6],
            "draws": 8,
        }
    )
    chosen, rest, tied = score_distribution(scores, ["y<b>"], ["z"]).data
    assert (list(chosen.x), list(chosen.y), list(rest.x), list(rest.y)) == ([1], [1.0], [2, 3], [2.0, 3.0])
    assert list(rest.error_y.array) == pytest.approx([0.6, 0.1])
    assert list(rest.error_y.arrayminus) == pytest.approx([0.2, 0.5])
    assert (list(tied.x), tied.name) == ([2], "tied at the edge")
    assert "y&lt;b&gt;" in chosen.hovertext[0]
