"""Axes that keep what is near, where one value is so far that nothing else could be told apart beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medseqft_kit.report.comparison_words import points
from medseqft_kit.report.figures import plain

FAR, FEW = 10.0, 8
"""A value is far if it is more than so many times the range of the middle half away from that; not among few values."""


def far(values: pd.Series) -> pd.Series:
    """Which values are so far from the others that an axis with them shows nothing else."""
    low, high = values.quantile(0.25), values.quantile(0.75)
    reach = FAR * (high - low)
    return (len(values) >= FEW) & ((values < low - reach) | (values > high + reach))


def keep_near(
    figure: go.Figure, values: pd.Series, places: pd.Series, ends: tuple[float, float], column: int | None = None
) -> None:
    """End the horizontal axis where values are far, and say at its edge what they are; `ends` of what is not far."""
    outside = far(values)
    if not outside.any():
        return
    pad = 0.06 * (ends[1] - ends[0])
    low, high = ends[0] - 3 * pad, ends[1] + 3 * pad
    where = {} if column is None else {"row": 1, "col": column}
    figure.update_xaxes(range=[low, high], **where)
    for value, place in zip(values[outside], places[outside], strict=True):
        left = value < low
        figure.add_annotation(
            x=low if left else high,
            y=place,
            text=f"◂ {points(value / 100)}" if left else f"{points(value / 100)} ▸",
            xanchor="left" if left else "right",
            bgcolor="white",
            showarrow=False,
            **where,
        )


def keep_near_upright(figure: go.Figure, rows: pd.DataFrame) -> None:
    """The same for a vertical axis of Dice; `rows` have strategy, place, dice and its interval."""
    outside = far(rows["dice"])
    if not outside.any():
        return
    low, high = rows["dice_low"][~outside].min(), rows["dice_high"][~outside].max()
    figure.update_yaxes(range=[low - 0.08 * (high - low), high + 0.04 * (high - low)])
    for row in rows[outside].to_dict("records"):
        below = bool(row["dice"] < low)
        figure.add_annotation(
            x=np.log10(row["place"]),
            y=0 if below else 1,
            yref="paper",
            text=f"{'◂ ' * below}{plain(row['strategy'])} {row['dice']:.2f}{' ▸' * (not below)}",
            textangle=-90,  # upwards: the arrows then point down and up
            yanchor="bottom" if below else "top",
            showarrow=False,
        )
