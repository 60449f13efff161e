"""Plotly figures about a choice of volumes: slices in mm, and how often a repeat chooses the same.

Slices are axial, seen as radiologists see them: front up, the patient's right on the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Num
from plotly.subplots import make_subplots

from medseqft_kit.report.figures import COLOURS, FONT, INK, MUTED, plain
from medseqft_kit.report.overlays import PERCENTILES, STRUCTURE_COLOURS
from medseqft_kit.volumes.types import Volume

TINT = 0.55
"""Opacity of a label over the image."""
PANEL = 220
"""Height of a slice in pixels."""
ALL, NONE = "all three", "none"
"""Names of curves: every device, and none, which is the paper's procedure."""
RACES = {"approximate": "star", "certified": "diamond"}


def slice_rows(rows: Mapping[str, Sequence[Volume]]) -> go.Figure:
    """The middle slice of each volume, row by row, all in one grey scale.

    Parameters
    ----------
    rows
        Name of a row to its volumes; their first channel is shown.
    """
    columns = max(len(volumes) for volumes in rows.values())
    titles = [
        plain(volumes[column].case) if column < len(volumes) else ""
        for volumes in rows.values()
        for column in range(columns)
    ]
    figure = make_subplots(
        len(rows), columns, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=0.16 / len(rows)
    )
    for row, (name, volumes) in enumerate(rows.items(), start=1):
        for column, volume in enumerate(volumes, start=1):
            figure.add_trace(_grey(volume, volume.grid.shape[2] // 2), row=row, col=column)
        figure.update_yaxes(title_text=f"<b>{plain(name)}</b><br>to the front, mm", row=row, col=1)
    return _sliced(figure, [volume for volumes in rows.values() for volume in volumes], len(rows))


def labelled_slice(volume: Volume, structures: Sequence[str]) -> go.Figure:
    """The slice that shows most of the label: as it is, and with the label over it.

    Parameters
    ----------
    structures
        Names of the classes 1, 2 … of the label.
    """
    assert volume.label is not None
    inside = (volume.label > 0) & (volume.label <= len(structures))
    index = int(inside.sum(axis=(0, 1)).argmax())
    figure = make_subplots(1, 2, subplot_titles=[plain(volume.case), "with its label"], horizontal_spacing=0.02)
    for column in (1, 2):
        figure.add_trace(_grey(volume, index), row=1, col=column)
    for number, name in enumerate(structures, start=1):
        here = np.where(volume.label[:, :, index] == number, 1.0, np.nan)
        colour = STRUCTURE_COLOURS[(number - 1) % len(STRUCTURE_COLOURS)]
        scale = [(0.0, colour), (1.0, colour)]
        tint = go.Heatmap(z=here.T, **_places(volume), colorscale=scale, opacity=TINT, showscale=False)
        figure.add_trace(tint.update(hoverinfo="skip", hoverongaps=False), row=1, col=2)
        mark = {"color": colour, "symbol": "square", "size": 11}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=mark, name=plain(name), row=1, col=2)
    figure.update_yaxes(title_text="to the front, mm", col=1)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 0, "yref": "container", "yanchor": "bottom"}
    return _sliced(figure, [volume], 1).update_layout(legend=legend)


def agreement_curves(curves: pd.DataFrame, races: pd.DataFrame) -> go.Figure:
    """How often a repeat finds the K lowest means of a whole table, against what it spends.

    Parameters
    ----------
    curves
        Columns ``devices``, ``draws``, ``agreement`` (0 to 1): equally many draws of every volume.
    races
        Columns ``method``, ``draws`` (of a volume, on average), ``agreement``.
    """
    figure = go.Figure()
    for number, (name, part) in enumerate(curves.groupby("devices", sort=False)):
        line = {"color": COLOURS[number % len(COLOURS)], "width": 1.4, "dash": "dash"}
        if name in (ALL, NONE):
            line |= {"color": INK if name == ALL else MUTED, "width": 2.4, "dash": "solid"}
        figure.add_scatter(x=part["draws"], y=part["agreement"], mode="lines+markers", name=plain(name), line=line)
    for row in races.to_dict("records"):
        mark = {"symbol": RACES[row["method"]], "size": 14, "color": COLOURS[1], "line": {"color": "white", "width": 1}}
        point = {"x": [row["draws"]], "y": [row["agreement"]], "name": f"{row['method']} race"}
        figure.add_scatter(**point, mode="markers", marker=mark)
    ticks = sorted(set(curves["draws"]))
    figure.update_xaxes(type="log", tickvals=ticks, title_text="draws of a volume, on average")
    figure.update_yaxes(range=[0, 1.04], tickformat=".0%", title_text="repeats with the same choice")
    return _styled(figure, height=420, top=24)


def _grey(volume: Volume, index: int) -> go.Heatmap:
    values = np.asarray(volume.image[0, :, :, index], np.float32)
    hover = "%{x:.0f} mm, %{y:.0f} mm<br>intensity %{z:.2f}<extra></extra>"
    return go.Heatmap(z=np.round(values.T, 3), **_places(volume), coloraxis="coloraxis", hovertemplate=hover)


def _places(volume: Volume) -> dict[str, Num[np.ndarray, " n"]]:
    """Where voxels lie along the first two axes, mm."""
    sides, steps = volume.grid.shape[:2], volume.grid.spacing[:2]
    return {name: np.arange(size) * step for name, size, step in zip("xy", sides, steps, strict=True)}


def _sliced(figure: go.Figure, volumes: Sequence[Volume], rows: int) -> go.Figure:
    """True proportions, one grey scale, units."""
    shown = np.concatenate([np.ravel(volume.image[0]).astype(np.float32) for volume in volumes])
    low, high = (float(value) for value in np.percentile(shown, PERCENTILES))
    _styled(figure, height=100 + PANEL * rows, top=36)
    panels = {"showgrid": False, "zeroline": False, "constrain": "domain", "dtick": 50}
    figure.update_xaxes(**panels, autorange="reversed").update_yaxes(**panels)
    for across, up in zip(figure.select_xaxes(), figure.select_yaxes(), strict=True):
        up.update(scaleanchor=across.plotly_name.replace("axis", ""), showticklabels=up.title.text is not None)
    figure.update_xaxes(title_text="to the right, mm", row=rows)
    bar = {"title": {"text": "intensity (normalised)", "side": "right", "font": {"size": 13}}, "thickness": 12}
    return figure.update_layout(coloraxis={"colorscale": "gray", "cmin": low, "cmax": high, "colorbar": bar})


def _styled(figure: go.Figure, height: int, top: int) -> go.Figure:
    figure.update_annotations(font_size=13).update_xaxes(title_font_size=13).update_yaxes(title_font_size=13)
    margin = {"l": 70, "r": 20, "t": top, "b": 50}
    return figure.update_layout(
        template="plotly_white", height=height, margin=margin, font={"family": FONT, "size": 13}
    )
