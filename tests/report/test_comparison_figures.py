"""What the figures of a comparison draw, mark and say."""

import numpy as np
import pandas as pd
import pytest

from medseqft_kit.report.comparison_figures import CORE, case_boxes, compute, forest, looks, order_spread
from medseqft_kit.report.continual_figures import generality_curves, transfer_curves, transfer_matrices
from medseqft_kit.report.rank_diagram import critical_difference_diagram
from medseqft_kit.tuning.strategies import STRATEGIES


def named(figure, *names):
    return [trace for trace in figure.data if trace.name in names]


GAINS = pd.DataFrame(
    [
        ("a<b>", "mean", 0.03, 0.01, 0.06),
        ("b", "mean", -0.02, -0.05, -0.01),
        ("c", "mean", 0.01, -0.01, 0.02),
        ("a<b>", "later", 0.04, -0.02, 0.07),
    ],
    columns=["strategy", "task", "gain", "low", "high"],
)


def test_the_forest_orders_strategies_by_gain_and_marks_what_excludes_zero():
    figure = forest(GAINS.assign(versus="parallel"), "strategy")
    assert list(figure.layout.yaxis.ticktext) == ["b", "c", "a&lt;b&gt;"]
    ahead, behind, neither = figure.data[:3]
    assert (list(ahead.x), list(ahead.y), list(behind.x), list(neither.x)) == ([3.0], [2], [-2.0], [1.0])
    assert list(ahead.error_x.array) == pytest.approx([3.0])
    assert list(ahead.error_x.arrayminus) == pytest.approx([2.0])
    assert list(ahead.hovertext) == ["a&lt;b&gt;: +3.0 [+1.0, +6.0] Dice points"]
    assert list(figure.data[5].x) == [4.0]  # after the first task its interval holds zero
    assert {trace.marker.symbol for trace in figure.data[:3]} == {"circle", "diamond", "circle-open"}


def test_a_forest_of_rivals_names_them_and_can_do_without_later_tasks():
    figure = forest(GAINS.iloc[:3].assign(versus=["x", "y", "z"], strategy="medseqft"), "versus")
    assert list(figure.layout.yaxis.ticktext) == ["y", "z", "x"]
    assert "xaxis2" not in figure.layout


def many(far_gain):
    """Eleven strategies within two points of parallel tuning, and one that is far behind."""
    gains = [far_gain, *np.linspace(-0.01, 0.01, 11)]
    rows = [(f"s{i}", "mean", gain, gain - 0.01, gain + 0.01) for i, gain in enumerate(gains)]
    return pd.DataFrame(rows, columns=GAINS.columns)


def test_what_is_far_behind_is_named_at_the_edge_and_leaves_room_for_the_rest():
    figure = forest(many(-0.5), "strategy")
    low, high = figure.layout.xaxis.range
    assert -8 < low < -2
    assert 2 < high < 8
    (note,) = [note for note in figure.layout.annotations if "50.0" in note.text]
    assert (note.text, note.x, note.y) == ("◂ −50.0", low, 0)
    assert forest(many(-0.02), "strategy").layout.xaxis.range is None
    assert forest(many(-0.5)[:5], "strategy").layout.xaxis.range is None
    orders = many(0.9).assign(order=0)
    (note,) = [note for note in order_spread(orders).layout.annotations if "90" in note.text]
    assert note.text == "+90.0 ▸"
    assert order_spread(orders).layout.xaxis.range[1] < 10


def test_the_height_of_a_forest_grows_with_its_strategies():
    rows = pd.concat([GAINS.iloc[[0]].assign(strategy=f"s{i}") for i in range(30)])
    assert forest(rows, "strategy").layout.height - forest(rows[:10], "strategy").layout.height == 20 * 22


def test_no_two_of_seventy_strategies_look_alike_and_the_core_ones_look_the_same_in_every_figure():
    names = [f"s{i}" for i in range(63)]
    every = looks([*names, *CORE])
    assert list(every) == [*names, *CORE]
    assert set(CORE) <= set(STRATEGIES)
    assert len(set(every.values())) == len(every) == 72
    for name in CORE:
        assert looks([*names[::-1], name])[name] == looks([name])[name] == every[name]


def test_long_names_are_cut_and_stay_apart():
    rows = GAINS.iloc[:2].assign(strategy=["n" * 40 + "1", "n" * 40 + "2"], versus="parallel")
    figure = forest(rows, "strategy")
    assert list(figure.layout.yaxis.ticktext) == ["n" * 31 + "…"] * 2
    assert (list(figure.data[0].y), list(figure.data[1].y)) == ([1], [0])


def test_every_order_is_a_mark_on_its_strategy_and_parallel_is_left_out():
    rows = [("parallel", 0, 0.0), ("parallel", 1, 0.0), ("a", 0, 0.03), ("a", 1, -0.01), ("b", 0, 0.02), ("b", 1, 0.04)]
    figure = order_spread(pd.DataFrame(rows, columns=["strategy", "order", "gain"]))
    assert list(figure.layout.yaxis.ticktext) == ["a", "b"]
    first, second = named(figure, "order 0", "order 1")
    assert (list(first.x), list(first.y)) == ([3.0, 2.0], [0, 1])
    assert list(second.x) == [-1.0, 4.0]
    assert [list(line.x) for line in figure.data[:2]] == [[-1.0, 3.0], [2.0, 4.0]]


RANKS = pd.DataFrame(
    {
        "strategy": ["c<i>", "medseqft", "parallel", "d"],
        "rank": [3.6, 1.2, 2.0, 3.2],
        "groups": ["3", "1", "1 2", "2 3"],
        "critical_difference": 1.5,
        "p": 0.01,
    }
)


def test_the_diagram_places_ranks_joins_groups_and_draws_the_critical_difference():
    figure = critical_difference_diagram(RANKS)
    assert [trace.x[0] for trace in named(figure, "medseqft", "parallel", "d", "c&lt;i&gt;")] == [1.2, 2.0, 3.2, 3.6]
    bars = [trace for trace in figure.data if trace.line.width == 4]
    ends = np.array([bar.x for bar in bars])
    assert ends == pytest.approx(np.array([[1.2, 2.0], [2.0, 3.2], [3.2, 3.6]]), abs=0.02)
    assert len({bar.y[0] for bar in bars}) == 3
    line = figure.layout.shapes[0]
    assert line.x1 - line.x0 == pytest.approx(1.5)
    texts = [note.text for note in figure.layout.annotations]
    assert texts == [
        "<b>medseqft</b> 1.2",
        "<b>parallel</b> 2.0",
        "d 3.2",
        "c&lt;i&gt; 3.6",
        "critical difference 1.50",
    ]


def test_better_ranks_are_named_at_the_left_and_no_two_names_share_a_place():
    notes = critical_difference_diagram(RANKS).layout.annotations[:4]
    assert [note.xanchor for note in notes] == ["right", "right", "left", "left"]
    assert len({(note.x, note.y) for note in notes}) == 4


def test_without_groups_the_diagram_has_no_bars():
    assert [trace.line.width for trace in critical_difference_diagram(RANKS.assign(groups="")).data] == [1.4] * 4


def results(*rows):
    table = pd.DataFrame(rows, columns=["strategy", "images_seen", "dice"]).assign(
        task="mean", seconds=12.0, peak_gib=2.0
    )
    return table.assign(dice_low=table["dice"] - 0.1, dice_high=table["dice"] + 0.2)


def test_dice_stands_over_images_seen_with_its_interval():
    figure = compute(results(("parallel", 100, 0.5), ("x<b>", 1000, 0.8), ("y", 10000, 0.7)))
    (marker,) = named(figure, "x&lt;b&gt;")
    assert (marker.x[0], marker.y[0]) == (pytest.approx(1000), 0.8)
    assert (marker.error_y.array[0], marker.error_y.arrayminus[0]) == pytest.approx((0.2, 0.1))
    assert marker.hovertext == "x&lt;b&gt;: 0.800 [0.700, 1.000]<br>1,000 images, 12 s, 2.00 GiB"
    assert list(figure.data[0].x) == pytest.approx([100, 1000])  # y sees more, and is no better
    assert figure.layout.xaxis.type == "log"


def test_what_is_far_below_is_named_at_the_bottom_of_the_compute_figure():
    rows = [(f"s{i}", 400 * (i + 1), 0.6 + i / 100) for i in range(9)]
    figure = compute(results(*rows, ("probe", 400, 0.09)))
    assert figure.layout.yaxis.range[0] > 0.4
    (note,) = figure.layout.annotations
    assert note.text == "◂ probe 0.09"
    assert not compute(results(*rows)).layout.annotations


def test_equal_compute_is_drawn_side_by_side_around_its_place():
    figure = compute(results(("a", 1000, 0.5), ("b", 1000, 0.6), ("c", 1000, 0.7), ("d", 4000, 0.8)))
    places = [named(figure, name)[0].x[0] for name in "abcd"]
    assert len(set(places)) == 4
    assert np.log10(places[:3]).mean() == pytest.approx(3)
    assert places[3] == pytest.approx(4000)


def test_only_means_over_tasks_stand_in_the_compute_figure():
    rows = results(("a", 1000, 0.5), ("a", 10, 0.9)).assign(task=["mean", "t"])
    assert [trace.name for trace in compute(rows).data] == ["best for its compute", "a"]


def test_every_case_of_every_strategy_and_task_is_a_point():
    rows = [(s, t, seed, c, 0.5) for s in ("p", "m<i>") for t in ("a", "b", "c<u>") for seed in (0, 1) for c in "xyz"]
    cases = pd.DataFrame(rows, columns=["strategy", "task", "seed", "case", "dice"])
    figure = case_boxes(cases, ["a", "b", "c<u>"], ["p", "m<i>"])
    assert [len(box.x) for box in figure.data] == [6] * 6
    assert [box.name for box in figure.data[:2]] == ["m&lt;i&gt;", "p"]
    assert list(figure.layout.yaxis.ticktext) == ["m&lt;i&gt;", "p"]  # from the bottom: p is on top
    assert [note.text for note in figure.layout.annotations] == ["a", "b", "c&lt;u&gt;"]


def matrix(strategies):
    rows = [
        (s, i, t, 0.1 * i + 0.01 * j if j < i else np.nan)
        for s in strategies
        for i in (1, 2, 3)
        for j, t in enumerate("zyx")
    ]
    return pd.DataFrame(rows, columns=["strategy", "stage", "task", "dice"]).assign(order=0)


def test_a_matrix_has_stages_down_and_tasks_across_in_their_order():
    figure = transfer_matrices(matrix(["a<b>", "c"]))
    table = figure.data[0]
    assert np.array(table.z) == pytest.approx(
        np.array([[0.1, np.nan, np.nan], [0.2, 0.21, np.nan], [0.3, 0.31, 0.32]]), nan_ok=True
    )
    assert list(table.text[1]) == ["0.20", "0.21", ""]
    assert list(figure.layout.xaxis.ticktext) == ["z", "y", "x"]
    assert figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.annotations[0].text == "a&lt;b&gt;"


def test_the_lowest_matrix_of_every_column_names_the_tasks():
    figure = transfer_matrices(matrix([f"s{i}" for i in range(6)]))  # four, and two below
    shown = [figure.layout[f"xaxis{i or ''}"].showticklabels for i in ("", 2, 3, 4, 5, 6)]
    assert shown == [False, False, True, True, True, True]


def test_generality_is_drawn_by_stage_from_m0_on():
    rows = [("a<b>", 2, 0.4, 0.01), ("a<b>", 0, 0.2, np.nan), ("a<b>", 1, 0.3, 0.02), ("medseqft", 0, 0.25, np.nan)]
    figure = generality_curves(pd.DataFrame(rows, columns=["strategy", "stage", "ssl_loss", "sd"]))
    (curve,) = named(figure, "a&lt;b&gt;")
    assert (list(curve.x), list(curve.y)) == ([0, 1, 2], [0.2, 0.3, 0.4])
    assert list(curve.hovertext) == [
        "a&lt;b&gt;, M0: 0.2000",
        "a&lt;b&gt;, M1: 0.3000 ± 0.0200",
        "a&lt;b&gt;, M2: 0.4000 ± 0.0100",
    ]
    assert list(figure.layout.xaxis.ticktext) == ["M₀", "M₁", "M₂"]
    assert [trace.name for trace in figure.data] == ["a&lt;b&gt;", "<b>medseqft</b>"]  # as the curves end, from above


def test_transfer_is_drawn_against_labelled_cases_and_earlier_models_are_broken_lines():
    rows = [
        (s, stage, task, budget, 0.1 * stage + 0.01 * n)
        for s, stage in (("foundation", 0), ("scratch", 0), ("medseqft", 1), ("medseqft", 2))
        for task in ("u<b>", "v")
        for n, budget in enumerate(("1", "5", "all"))
    ]
    figure = transfer_curves(pd.DataFrame(rows, columns=["strategy", "stage", "task", "budget", "dice"]))
    assert [trace.name for trace in figure.data] == ["M₀", "fresh weights", "medseqft, 1 task", "medseqft, 2 tasks"] * 2
    assert [trace.showlegend for trace in figure.data] == [True] * 4 + [False] * 4
    assert list(figure.data[3].y) == pytest.approx([0.2, 0.21, 0.22])
    assert [trace.line.dash for trace in figure.data[:4]] == ["solid", "solid", "dash", "solid"]
    assert list(figure.layout.xaxis.ticktext) == ["1", "5", "all"]
    assert figure.layout.annotations[0].text == "u&lt;b&gt;"
