"""Pictures of landscapes: contours, surfaces and lines; several side by side share one colour scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from medseqft_kit.analysis.landscape import Landscape
from medseqft_kit.report.comparison_figures import looks
from medseqft_kit.report.figures import INK, model_name, plain, styled

TITLES = {"loss": "training loss", "dice": "training Dice"}
SCALE = "Viridis"
"""Ordered in lightness, so that it reads in grey and with any colour vision."""
LEVELS = 24


def contours(landscapes: Mapping[str, Landscape], quantity: str = "loss") -> go.Figure:
    """One panel for each landscape, by name; models are marked.

    Losses are drawn on a logarithmic scale, since they grow by orders of magnitude away from a minimum.
    """
    figure = _panels(landscapes, "xy")
    shared = _shared_scale(landscapes.values(), quantity)
    for column, found in enumerate(landscapes.values(), start=1):
        figure.add_contour(
            x=found.grid.xs,
            y=found.grid.ys,
            z=_height(found, quantity),
            coloraxis="coloraxis",
            contours={**shared["contours"], "showlines": True},
            line={"width": 0.6, "color": "rgba(255,255,255,0.5)"},
            customdata=found.values[quantity],
            hovertemplate=f"x %{{x:.2f}}, y %{{y:.2f}}: {_title(quantity)} %{{customdata:.3f}}<extra></extra>",
            row=1,
            col=column,
        )
        _mark(figure, found, column)
    _name_axes(figure, landscapes)
    styled(figure, height=430, top=64)
    return figure.update_layout(coloraxis=shared["coloraxis"], showlegend=False)


def surfaces(landscapes: Mapping[str, Landscape], quantity: str = "loss") -> go.Figure:
    """The same in three dimensions, every panel seen from one side and at one scale."""
    figure = _panels(landscapes, "scene")
    shared = _shared_scale(landscapes.values(), quantity)
    low, high = shared["coloraxis"]["cmin"], shared["coloraxis"]["cmax"]
    for column, found in enumerate(landscapes.values(), start=1):
        heights = _height(found, quantity)
        figure.add_surface(
            x=found.grid.xs, y=found.grid.ys, z=heights, coloraxis="coloraxis", hoverinfo="skip", row=1, col=column
        )
    small, height = {"size": 10}, {"range": [low, high], **_ticks(shared)}
    scene = {
        "xaxis": {"title": {"text": "direction 1", "font": small}, "tickfont": small},
        "yaxis": {"title": {"text": "direction 2", "font": small}, "tickfont": small},
        "zaxis": {"title": {"text": ""}, "tickfont": small, **height},  # the bar of colours says what it is
        "aspectmode": "cube",
        "camera": {"eye": {"x": 1.75, "y": 1.75, "z": 1.1}, "center": {"x": 0, "y": 0, "z": -0.2}},
    }
    figure.update_scenes(scene)
    styled(figure, height=480, top=64)
    return figure.update_layout(coloraxis=shared["coloraxis"], showlegend=False)


def lines(landscapes: Mapping[str, Landscape]) -> go.Figure:
    """Loss and Dice along lines between two models, one curve for each landscape."""
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    colours = {name: colour for name, (colour, _) in looks(list(landscapes)).items()}
    for name, found in landscapes.items():
        look = {"color": colours[name], "width": 2}
        for column, quantity in enumerate(TITLES, start=1):
            figure.add_scatter(
                x=found.grid.xs,
                y=found.values[quantity][0],
                mode="lines",
                name=plain(name),
                line=look,
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    first = next(iter(landscapes.values()))
    for column, quantity in enumerate(TITLES, start=1):
        for name, (x, _) in first.marks.items():
            figure.add_vline(x=x, line={"color": INK, "width": 1, "dash": "dot"}, row=1, col=column)
            figure.add_annotation(
                x=x, y=1.0, yref="y domain", text=model_name(name), showarrow=False, yanchor="bottom", row=1, col=column
            )
        figure.update_yaxes(title_text=_title(quantity), row=1, col=column)
    figure.update_xaxes(title_text="way from the first model (0) to the second (1)")
    return styled(figure, height=380, top=84)


def _panels(landscapes: Mapping[str, Landscape], kind: str) -> go.Figure:
    count = len(landscapes)
    titles = [plain(name) for name in landscapes]
    return make_subplots(
        1, count, subplot_titles=titles, specs=[[{"type": kind}] * count], horizontal_spacing=0.16 / max(count, 2)
    )


def _height(found: Landscape, quantity: str) -> Float[np.ndarray, "ys xs"]:
    values = found.values[quantity]
    return np.log10(values) if quantity == "loss" else values


def _shared_scale(landscapes: Iterable[Landscape], quantity: str) -> dict[str, Any]:
    """One range of colours for all panels; a logarithmic one has ticks in the quantity's own numbers."""
    heights = np.concatenate([_height(found, quantity).ravel() for found in landscapes])
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    high = max(high, low + 1e-3)
    bar: dict[str, Any] = {
        "title": {"text": _title(quantity), "side": "right"},
        "thickness": 14,
        "len": 0.9,
        "tickformat": ".2f",
    }
    axis = {"cmin": low, "cmax": high, "colorscale": SCALE, "colorbar": bar, "reversescale": quantity == "dice"}
    shared = {"coloraxis": axis, "contours": {"start": low, "end": high, "size": (high - low) / LEVELS}}
    bar |= _ticks(shared) if quantity == "loss" else {}
    return shared


def _ticks(shared: Mapping[str, Any]) -> dict[str, Any]:
    """Ticks at round losses on an axis of their logarithms; nothing for a linear axis."""
    axis = shared["coloraxis"]
    if axis["reversescale"]:
        return {}
    round_ones = [digit * 10.0**power for power in range(-4, 7) for digit in (1, 1.5, 2, 3, 5, 7)]
    shown = [value for value in round_ones if axis["cmin"] <= np.log10(value) <= axis["cmax"]]
    return {"tickvals": np.log10(shown).tolist() if shown else [], "ticktext": [f"{value:g}" for value in shown]}


def _mark(figure: go.Figure, found: Landscape, column: int) -> None:
    figure.add_scatter(
        x=[x for x, _ in found.marks.values()],
        y=[y for _, y in found.marks.values()],
        mode="markers+text",
        text=[model_name(name) for name in found.marks],
        textposition="top center",
        textfont={"color": "white", "size": 14},
        marker={"color": "white", "size": 9, "line": {"color": INK, "width": 1.5}},
        hoverinfo="text",
        row=1,
        col=column,
    )


def _name_axes(figure: go.Figure, landscapes: Mapping[str, Landscape]) -> None:
    """What a unit along x and y is, which depends on how the plane was laid."""
    through = any(len(found.marks) > 1 for found in landscapes.values())
    unit = "distances between the first two models" if through else "multiples of the filters' norms"
    figure.update_xaxes(title_text=f"first direction ({unit})")
    figure.update_yaxes(title_text="second direction", row=1, col=1)
    for column in range(1, len(landscapes) + 1):  # a distance is one, whichever way it goes
        figure.update_yaxes(scaleanchor="x" if column == 1 else f"x{column}", constrain="domain", row=1, col=column)
    figure.update_xaxes(constrain="domain")


def _title(quantity: str) -> str:
    return TITLES.get(quantity, quantity)
