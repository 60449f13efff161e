"""Plotly figures as pure functions. Text from files is escaped: Plotly reads its labels as a subset of HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from medseqft_kit.report.load import Number, Row

# Okabe & Ito's colour-blind-safe set without its yellow and black, then three of Paul Tol's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933")
MUTED = "#8a929c"
INK = "#24292f"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
NO_LOSS = frozenset({"phase", "step", "total", "learning_rate"})
MOST_POINTS = 400
PHASES = {"adapt": "adapt: full fine-tuning", "consolidate": "consolidate: LoRA distillation"}
MODEL = re.compile(r"M('?)_(\d+)")


def plain(text: object) -> str:
    """Text for Plotly, shown as it is."""
    return html.escape(str(text), quote=False)


def model_name(name: str) -> str:
    """A name as ``M'_2`` in the paper's type; any other as :func:`plain` has it.

    >>> model_name("M'_2"), model_name("M_0")
    ('M′<sub>2</sub>', 'M<sub>0</sub>')
    """
    found = MODEL.fullmatch(name)
    return f"M{'′' * len(found[1])}<sub>{found[2]}</sub>" if found else plain(name)


def loss_terms(rows: Iterable[Row]) -> list[str]:
    """Names of the loss terms in rows of training history, in order of appearance."""
    names = dict.fromkeys(key for row in rows if not is_validation(row) for key in row if key not in NO_LOSS)
    return list(names)


def is_validation(row: Row) -> bool:
    """Whether a row of history holds a validation."""
    return "validation_dice" in row


def learning_curves(history: Sequence[Row], colours: Mapping[str, str]) -> go.Figure:
    """One column for each phase: the named loss terms above, validation Dice below.

    Parameters
    ----------
    history
        Rows of ``history.jsonl``.
    colours
        Colour of each loss term, the same over all stages of a report.
    """
    phases = list(dict.fromkeys(str(row.get("phase", "training")) for row in history))
    titles = [plain(PHASES.get(phase, phase)) for phase in phases]
    figure = make_subplots(
        2,
        len(phases),
        subplot_titles=titles,
        shared_xaxes="columns",
        vertical_spacing=0.08,
        horizontal_spacing=0.08,
        row_heights=[0.6, 0.4],
    )
    named: set[str] = set()
    for column, phase in enumerate(phases, start=1):
        rows = [row for row in history if str(row.get("phase", "training")) == phase]
        _draw_losses(figure, [row for row in rows if not is_validation(row)], colours, column, named)
        _draw_validation(figure, [row for row in rows if is_validation(row)], column)
        figure.update_xaxes(title_text="step", row=2, col=column)
        figure.update_yaxes(_loss_axis(rows), row=1, col=column)
    figure.update_yaxes(title_text="loss (log)", row=1, col=1)
    figure.update_yaxes(range=[0, 1], dtick=0.25, row=2)
    figure.update_yaxes(title_text="validation Dice", row=2, col=1)
    return styled(figure, height=440)


def _loss_axis(rows: list[Row]) -> dict[str, object]:
    """A logarithmic axis of at most four decades: distillation from oneself begins at almost nothing."""
    logs = [math.log10(value) for row in rows for key, value in row.items() if _is_loss(row, key) and value > 0]
    high = max(logs, default=0.0)
    low = max(min(logs, default=-1.0), high - 4)
    pad = 0.05 * (high - low) + 0.02
    ticks = {"dtick": 1} if high - low > 1.5 else {}
    minor = {"showgrid": True, "gridcolor": "#f2f4f6"}
    return {"type": "log", "range": [low - pad, high + pad], "exponentformat": "none", "minor": minor, **ticks}


def _is_loss(row: Row, key: str) -> bool:
    return not is_validation(row) and (key == "total" or key not in NO_LOSS)


def _draw_losses(figure: go.Figure, rows: list[Row], colours: Mapping[str, str], column: int, named: set[str]) -> None:
    terms = [*loss_terms(rows), "total"]
    for term in terms if len(terms) > 2 else terms[:1]:
        steps, values = thinned([(row["step"], row[term]) for row in rows if term in row])
        line = (
            {"color": MUTED, "width": 1, "dash": "dot"} if term == "total" else {"color": colours[term], "width": 1.8}
        )
        figure.add_scatter(
            x=steps,
            y=values,
            name=plain(term),
            line=line,
            mode="lines",
            legendgroup=term,
            showlegend=term not in named,
            row=1,
            col=column,
        )
        named.add(term)


def _draw_validation(figure: go.Figure, rows: list[Row], column: int) -> None:
    figure.add_scatter(
        x=[row["step"] for row in rows],
        y=[row["validation_dice"] for row in rows],
        name="validation Dice",
        mode="lines+markers",
        line={"color": INK, "width": 1.8},
        showlegend=False,
        row=2,
        col=column,
    )


def thinned(points: Sequence[tuple[Number, Number]]) -> tuple[list[float], list[float]]:
    """At most 400 points: means of equal runs of neighbours, so that a long training keeps its shape."""
    if not points:
        return [], []
    parts = np.array_split(np.asarray(points, dtype=np.float64), min(len(points), MOST_POINTS))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0].tolist(), means[:, 1].tolist()


def pretraining_curve(rows: Sequence[Row]) -> go.Figure:
    """Reconstruction loss of M_0's pre-training."""
    steps, values = thinned([(row["step"], row["reconstruction"]) for row in rows if "reconstruction" in row])
    figure = go.Figure(go.Scatter(x=steps, y=values, mode="lines", line={"color": COLOURS[0], "width": 1.8}))
    figure.update_xaxes(title_text="step").update_yaxes(title_text="reconstruction loss", rangemode="tozero")
    return styled(figure, height=260, top=16)


def score_distribution(scores: pd.DataFrame, chosen: Iterable[str], tied: Iterable[str]) -> go.Figure:
    """Scores in ascending order with their intervals; the buffer filled, ties at its edge ringed.

    Parameters
    ----------
    scores
        Columns case, mean, low, high, draws.
    chosen, tied
        Case ids of the buffer, and of those that its edge cannot tell apart.
    """
    ordered = scores.sort_values(["mean", "case"], ignore_index=True)
    kept, ties = set(chosen), set(tied)
    kinds = np.array(["in the buffer" if case in kept else "not chosen" for case in ordered["case"]])
    figure = go.Figure()
    for kind, colour, symbol in (("in the buffer", COLOURS[1], "circle"), ("not chosen", MUTED, "circle-open")):
        part = ordered[kinds == kind]
        above, below = part["high"] - part["mean"], part["mean"] - part["low"]
        hover = [
            f"{plain(row.case)}<br>{row.mean:.5g} [{row.low:.5g}, {row.high:.5g}]<br>{row.draws} draws"
            for row in part.itertuples()
        ]
        figure.add_scatter(
            x=part.index + 1,
            y=part["mean"],
            mode="markers",
            name=kind,
            hovertext=hover,
            hoverinfo="text",
            marker={"color": colour, "symbol": symbol, "size": 7},
            error_y={"array": above, "arrayminus": below, "width": 0, "thickness": 1.2},
        )
    edge = ordered[ordered["case"].isin(ties)]
    if len(edge):
        figure.add_scatter(
            x=edge.index + 1,
            y=edge["mean"],
            mode="markers",
            name="tied at the edge",
            hoverinfo="skip",
            marker={"color": INK, "symbol": "circle-open", "size": 13},
        )
    figure.update_xaxes(title_text="training volumes, ordered by score").update_yaxes(
        title_text="score (SSL loss of M₀)"
    )
    return styled(figure, height=320, top=36)


def styled(figure: go.Figure, height: int, top: int = 58) -> go.Figure:
    """The look that all figures share; `height` and the margin above, `top`, in pixels. The figure is changed."""
    axis = {
        "gridcolor": "#e6e9ed",
        "linecolor": "#b6bdc6",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "#b6bdc6",
        "title": {"font": {"size": 13}, "standoff": 8},
    }
    figure.update_xaxes(**axis).update_yaxes(**axis).update_annotations(font_size=13.5)
    return figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 16, "t": top, "b": 48},
        font={"family": FONT, "size": 13},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"font": {"family": FONT}},
        legend={"orientation": "h", "y": 1, "yref": "container", "yanchor": "top", "x": 0, "xanchor": "left"},
    )
