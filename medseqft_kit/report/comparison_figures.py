"""Who wins, in figures: pure functions of a comparison's tables. With many strategies the rows lie, and heights grow.

Text from files is escaped, and strategies have numbers for places, so that names cut short cannot fall together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from medseqft_kit.evaluation.gains import BASELINE, LATER, MEAN, OURS
from medseqft_kit.report.comparison_words import points
from medseqft_kit.report.figures import COLOURS, INK, MUTED, plain, styled
from medseqft_kit.report.outliers import far, keep_near, keep_near_upright
from medseqft_kit.report.tables import number

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "cross", "hexagon", "pentagon")
CORE = (
    *(BASELINE, OURS, "parallel_distilled", "sequential", "sequential_distilled", "average", "parallel_matched"),
    *("multitask", "scratch"),
)
FIXED = {name: (COLOURS[index], SYMBOLS[index]) for index, name in enumerate(CORE)}
"""The core strategies' colours and symbols, the same in every figure, whatever else is in it."""
SCOPES = {MEAN: "mean over all tasks", LATER: "mean over the tasks after the first"}
LINE = 22
"""Height of a strategy's row in pixels."""
LONGEST_NAME = 32


def short(name: object) -> str:
    """A name as a label, escaped; what is too long for a margin ends in an ellipsis."""
    text = str(name)
    return plain(text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…")


def looks(strategies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Strategy → colour and symbol: the core ones' own; up to 63 others differ in one or both.

    Seven colours and ten symbols have no common factor, so that both may repeat without a pair doing so.
    """
    pairs = zip(cycle(COLOURS[2:]), cycle(SYMBOLS), strict=False)  # blue and orange are parallel's and MedSeqFT's alone
    free = (pair for pair in pairs if pair not in FIXED.values())
    return {name: FIXED.get(name) or next(free) for name in strategies}


def forest(gains: pd.DataFrame, subject: str) -> go.Figure:
    """Gains of Dice with their intervals, best on top: over all tasks, and over those after the first.

    Parameters
    ----------
    gains
        Rows of ``gains.csv`` (Dice); one for each `subject` and task.
    subject
        The column that names a row: ``strategy``, or ``versus`` where one strategy stands against many.
    """
    scopes = [scope for scope in SCOPES if (gains["task"] == scope).any()]
    ordered = gains[gains["task"] == scopes[0]].sort_values("gain", kind="stable")[subject].tolist()
    place = {name: index for index, name in enumerate(ordered)}
    titles = [SCOPES[scope] for scope in scopes]
    figure = make_subplots(1, len(scopes), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    for column, scope in enumerate(scopes, start=1):
        rows = gains[(gains["task"] == scope) & gains[subject].isin(place)]
        placed = rows.assign(place=rows[subject].map(place), name=rows[subject])
        _intervals(figure, placed, column)
        near = placed[~far(placed["gain"])]
        ends = 100 * near["low"].min(), 100 * near["high"].max()
        keep_near(figure, 100 * placed["gain"], placed["place"], ends, column)
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
    _explain_kinds(figure)
    figure.update_xaxes(title_text="gain, Dice points")
    _name_rows(figure, ordered)
    return styled(figure, height=130 + LINE * len(ordered), top=64)


KINDS = (
    ("ahead: the interval excludes zero", COLOURS[0], "circle"),
    ("behind: the interval excludes zero", COLOURS[1], "diamond"),
    ("the interval holds zero", MUTED, "circle-open"),
)


def _intervals(figure: go.Figure, rows: pd.DataFrame, column: int) -> None:
    """Filled where the interval excludes zero; colour and shape say on which side."""
    sides = (rows["low"] > 0, rows["high"] < 0, (rows["low"] <= 0) & (rows["high"] >= 0))
    for (label, colour, symbol), side in zip(KINDS, sides, strict=True):
        part = rows[side]
        texts = [
            f"{plain(row['name'])}: {points(row['gain'])} [{points(row['low'])}, {points(row['high'])}] Dice points"
            for row in part.to_dict("records")
        ]
        figure.add_scatter(
            x=100 * part["gain"],
            y=part["place"],
            mode="markers",
            name=label,
            showlegend=False,
            hovertext=texts,
            hoverinfo="text",
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={
                "array": 100 * (part["high"] - part["gain"]),
                "arrayminus": 100 * (part["gain"] - part["low"]),
                "thickness": 1.6,
                "width": 3,
            },
            row=1,
            col=column,
        )


def _explain_kinds(figure: go.Figure) -> None:
    """All three in the legend, whichever of them there are."""
    for label, colour, symbol in KINDS:
        marker = {"color": colour, "symbol": symbol, "size": 9}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=label, marker=marker, row=1, col=1)


def _name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Names on the vertical axes, from the bottom up."""
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[marked(name) for name in names],
        range=[-0.7, len(names) - 0.3],
        automargin=True,
    )


def marked(name: str) -> str:
    """A strategy's label, bold where all else is compared with it."""
    return f"<b>{short(name)}</b>" if name in (OURS, BASELINE) else short(name)


def order_spread(orders: pd.DataFrame) -> go.Figure:
    """Gain of each strategy in every order of tasks; columns of ``orders.csv``."""
    rows = orders[orders["gain"].notna() & (orders["strategy"] != BASELINE)]
    means = rows.groupby("strategy", sort=False)["gain"].mean().sort_values(kind="stable")
    place = {str(name): index for index, name in enumerate(means.index)}
    figure = go.Figure()
    for name, part in rows.groupby("strategy", sort=False):
        ends = [100 * part["gain"].min(), 100 * part["gain"].max()]
        line = {"color": MUTED, "width": 2}
        figure.add_scatter(
            x=ends, y=[place[str(name)]] * 2, mode="lines", line=line, hoverinfo="skip", showlegend=False
        )
    for index, (order, part) in enumerate(rows.groupby("order", sort=True)):
        figure.add_scatter(
            x=100 * part["gain"],
            y=part["strategy"].map(place),
            mode="markers",
            name=f"order {order:.0f}",
            hovertext=[f"{plain(n)}: {points(g)}" for n, g in zip(part["strategy"], part["gain"], strict=True)],
            hoverinfo="text+name",
            marker={"color": COLOURS[index % len(COLOURS)], "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 10},
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    figure.update_xaxes(title_text="gain over parallel fine-tuning, Dice points")
    near = 100 * rows["gain"][~rows["strategy"].map(far(means))]
    keep_near(figure, 100 * means, pd.Series(place), (near.min(), near.max()))
    _name_rows(figure, list(place))
    return styled(figure, height=110 + LINE * len(place), top=36)


def compute(results: pd.DataFrame) -> go.Figure:
    """Mean Dice against images seen: a marker for each strategy, a dashed line where no other does better with fewer.

    `results` has the columns of ``comparison.csv``; its ``mean`` rows are drawn. Compute that
    is about equal is drawn side by side.
    """
    rows = results[(results["task"] == MEAN) & (results["images_seen"] > 0)]
    rows = rows.assign(place=_beside_one_another(rows)).sort_values("dice", ascending=False)
    look = looks(list(results["strategy"].unique()))
    figure = go.Figure()
    front = rows.sort_values(["images_seen", "dice"], ascending=[True, False])
    front = front[front["dice"] > front["dice"].cummax().shift(fill_value=-1.0)]
    line = {"color": MUTED, "width": 1.2, "dash": "dash"}
    figure.add_scatter(
        x=front["place"], y=front["dice"], mode="lines", line=line, hoverinfo="skip", name="best for its compute"
    )
    for row in rows.to_dict("records"):
        _marker(figure, row, look[row["strategy"]])
    keep_near_upright(figure, rows)
    figure.update_xaxes(type="log", title_text="images seen in all tasks (log)", **log_ticks(rows["images_seen"]))
    figure.update_yaxes(title_text="mean test Dice")
    styled(figure, height=max(420, 90 + 19 * (len(rows) + 1)), top=16)
    return legend_beside(figure)


def _beside_one_another(rows: pd.DataFrame) -> pd.Series:
    """Images seen, moved apart by a marker's width where several strategies share them, or nearly."""
    low, high = _log_range(rows["images_seen"])
    width = 0.014 * (high - low)
    ordered = rows.sort_values(["images_seen", "dice"], ascending=[True, False])
    place = np.log10(ordered["images_seen"])
    groups = place.groupby((place.diff() > 2 * width).cumsum())
    steps = groups.cumcount() - (groups.transform("size") - 1) / 2
    apart = groups.transform("mean") + width * steps
    return 10 ** apart.where(groups.transform("size") > 1, place)


def _marker(figure: go.Figure, row: Mapping[Hashable, Any], look: tuple[str, str]) -> None:
    name, (colour, symbol) = row["strategy"], look
    figure.add_scatter(
        x=[row["place"]],
        y=[row["dice"]],
        mode="markers",
        name=marked(name),
        hovertext=f"{plain(name)}: {row['dice']:.3f} [{row['dice_low']:.3f}, {row['dice_high']:.3f}]<br>"
        f"{row['images_seen']:,.0f} images, {row['seconds']:,.0f} s, {row['peak_gib']:.2f} GiB",
        hoverinfo="text",
        marker={"color": colour, "symbol": symbol, "size": 10, "line": {"color": "white", "width": 0.8}},
        error_y={
            "array": [row["dice_high"] - row["dice"]],
            "arrayminus": [row["dice"] - row["dice_low"]],
            "thickness": 1,
            "width": 0,
        },
    )


def _log_range(values: pd.Series) -> tuple[float, float]:
    """Logarithms of the ends of an axis that holds all values with room."""
    low, high = float(np.log10(values.min())), float(np.log10(values.max()))
    pad = max(0.15 * (high - low), 0.05)
    return low - pad, high + pad


def log_ticks(values: pd.Series) -> dict[str, object]:
    """Settings of a logarithmic axis that holds all values: its range and round ticks, more within one power of ten."""
    low, high = _log_range(values)
    steps = (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [step * 10.0**power for power in range(int(np.floor(low)), int(np.ceil(high)) + 1) for step in steps]
    return {"tickvals": ticks, "ticktext": [number(tick, 0) for tick in ticks], "range": [low, high]}


def legend_beside(figure: go.Figure) -> go.Figure:
    """The legend at the right, one entry a line: for many strategies."""
    beside = {"orientation": "v", "yref": "paper", "y": 1, "x": 1.01, "xanchor": "left", "yanchor": "top"}
    return figure.update_layout(legend={**beside, "font": {"size": 12}, "tracegroupgap": 0})


def case_boxes(cases: pd.DataFrame, tasks: Sequence[str], strategies: Sequence[str]) -> go.Figure:
    """Dice of every test case, one panel for each task, one box for each strategy.

    `cases` has the columns strategy, task, seed, case, dice; one row for each case and seed.
    """
    columns = min(2, len(tasks))
    lines = -(-len(tasks) // columns)
    panel = 90 + LINE * len(strategies)
    figure = make_subplots(
        lines,
        columns,
        subplot_titles=[plain(task) for task in tasks],
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=90 / (panel * lines),
    )
    for index, task in enumerate(tasks):
        for place, strategy in enumerate(reversed(strategies)):
            part = cases[(cases["task"] == task) & (cases["strategy"] == strategy)]
            hover = [
                f"{plain(case)}, seed {seed:.0f}: {dice:.3f}"
                for case, seed, dice in zip(part["case"], part["seed"], part["dice"], strict=True)
            ]
            figure.add_box(
                x=part["dice"],
                y=[place] * len(part),
                name=plain(strategy),
                orientation="h",
                hovertext=hover,
                hoverinfo="text",
                boxpoints="all",
                pointpos=0,
                jitter=0.6,
                width=0.7,
                line={"width": 1.1},
                marker={
                    "size": 3,
                    "opacity": 0.5,
                    "color": {OURS: COLOURS[1], BASELINE: COLOURS[0]}.get(strategy, "#5b6570"),
                },
                showlegend=False,
                row=index // columns + 1,
                col=index % columns + 1,
            )
    figure.update_xaxes(title_text="Dice of a case")
    _name_rows(figure, list(reversed(strategies)))
    return styled(figure, height=50 + panel * lines, top=32)
