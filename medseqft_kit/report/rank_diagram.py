"""Mean ranks of strategies, and which of them a test does not tell apart."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medseqft_kit.report.comparison_figures import FIXED, LINE, LONGEST_NAME, marked
from medseqft_kit.report.figures import INK, MUTED, plain, styled


def critical_difference_diagram(ranks: pd.DataFrame) -> go.Figure:
    """Mean ranks on an axis; a bar joins strategies that the test does not tell apart. Columns of ``ranks.csv``.

    Source: Demšar, JMLR 7 (2006), §3.2.2.
    """
    ordered = ranks.sort_values("rank", kind="stable", ignore_index=True)
    low, high = float(np.floor(ordered["rank"].min())), float(np.ceil(ordered["rank"].max()))
    width = float(ordered["critical_difference"].iloc[0])
    high = max(high, low + width)
    bars = _groups(ordered)
    first, half = 18 + 9 * len(bars), -(-len(ordered) // 2)
    depth = first + LINE * half
    figure = go.Figure()
    for index, row in enumerate(ordered.to_dict("records")):
        left = index < half
        y = float(first + LINE * (index if left else len(ordered) - 1 - index))
        _leader(figure, row, (low if left else high, y), "right" if left else "left")
    for level, (start, end) in enumerate(bars):
        # Drawn beyond the ranks, so that a bar's end is not taken for a leader.
        x = [start - 0.004 * (high - low), end + 0.004 * (high - low)]
        bar = {"color": INK, "width": 4}
        figure.add_scatter(x=x, y=[14 + 9 * level] * 2, mode="lines", line=bar, hoverinfo="skip")
    _difference_bar(figure, low, width, depth)
    margin = 60 + 7 * max(min(len(name), LONGEST_NAME) for name in ordered["strategy"])
    figure.update_xaxes(range=[low, high], side="top", title_text="mean rank over all test cases (1 is best)")
    styled(figure, height=depth + 110, top=96)
    figure.update_xaxes(showgrid=False).update_yaxes(range=[depth, 0], visible=False)
    return figure.update_layout(showlegend=False, margin={"l": margin, "r": margin, "b": 14})


def _groups(ranks: pd.DataFrame) -> list[tuple[float, float]]:
    """Lowest and highest rank of each group."""
    members: dict[str, list[float]] = {}
    for rank, groups in zip(ranks["rank"], ranks["groups"], strict=True):
        for group in str(groups).split():
            members.setdefault(group, []).append(rank)
    return [(min(found), max(found)) for _, found in sorted(members.items(), key=lambda item: int(item[0]))]


def _leader(figure: go.Figure, row: Mapping[Hashable, Any], end: tuple[float, float], anchor: str) -> None:
    """From a rank on the axis down and out to the strategy's name."""
    rank, name, (edge, y) = float(row["rank"]), str(row["strategy"]), end
    colour, _ = FIXED.get(name, (MUTED, ""))
    figure.add_scatter(
        x=[rank, rank, edge],
        y=[0, y, y],
        mode="lines",
        line={"color": colour, "width": 1.4},
        name=plain(name),
        hovertext=f"{plain(name)}: mean rank {rank:.2f}",
        hoverinfo="text",
    )
    shift = -5 if anchor == "right" else 5
    figure.add_annotation(x=edge, y=y, text=f"{marked(name)} {rank:.1f}", showarrow=False, xanchor=anchor, xshift=shift)


def _difference_bar(figure: go.Figure, start: float, width: float, depth: int) -> None:
    y = 1 + 66 / depth
    bar = {"type": "line", "yref": "paper", "y0": y, "y1": y, "line": {"color": INK, "width": 2}}
    figure.add_shape(x0=start, x1=start + width, **bar)
    for end in (start, start + width):
        figure.add_shape(**bar | {"y0": y - 5 / depth, "y1": y + 5 / depth}, x0=end, x1=end)
    text = {"text": f"critical difference {width:.2f}", "xanchor": "left", "yanchor": "middle", "xshift": 8}
    figure.add_annotation(x=start + width, y=y, yref="paper", showarrow=False, **text)
