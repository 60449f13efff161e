"""Heat maps of drift: layers from input to output downwards, the models of a run from left to right."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medseqft_kit.analysis.drift import WHOLE
from medseqft_kit.report.figures import model_name, plain, styled

MEASURES = {
    "relative": "distance moved, in multiples of the layer's norm",
    "cosine": "cosine of the angle to the earlier weights",
    "effective_rank": "dimensions of the change (effective rank)",
    "cka": "similarity of representations (linear CKA)",
}
RISING = frozenset({"cosine", "cka"})
"""Measures whose high values mean that little has changed; in all maps dark is much change."""
ROW = 17
"""Pixels of a layer."""


def heat_map(table: pd.DataFrame, measure: str, reference: str = "M_0") -> go.Figure:
    """One measure of drift from `reference` for each layer and model.

    Parameters
    ----------
    table
        `parameters` or `representations` of :class:`~medseqft_kit.analysis.drift_of_run.Drift`.
    measure
        A key of :data:`MEASURES`.
    reference
        ``"M_0"``, or ``"previous"``: each stage's own M_{t-1}.
    """
    chosen = table[_is_reference(table, reference) & table[measure].notna()]
    columns = list(dict.fromkeys(zip(chosen["stage"], chosen["model"], chosen["task"], strict=True)))
    layers = list(dict.fromkeys(chosen["layer"]))
    cells = chosen.pivot_table(index="layer", columns="model", values=measure, sort=False)
    values = cells.reindex(index=layers, columns=[model for _, model, _ in columns]).to_numpy()
    labels = [f"{model_name(model)}<br>{plain(task)}" for _, model, task in columns]
    figure = go.Figure(
        go.Heatmap(
            x=labels,
            y=["all weights" if layer == WHOLE else plain(layer) for layer in layers],
            z=values,
            text=np.vectorize(_short)(values),
            texttemplate="%{text}" if len(columns) <= 12 else "",
            textfont={"size": 10},
            colorscale="Viridis",
            reversescale=measure not in RISING,
            colorbar={"thickness": 14},
            hovertemplate="%{y}<br>%{x}: %{z:.3g}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    from_where = "M<sub>0</sub>" if reference == "M_0" else "the stage's own M<sub>t−1</sub>"
    title = f"Change from {from_where}: {MEASURES[measure]}"
    figure.update_layout(title={"text": title, "x": 0, "xref": "paper", "font": {"size": 12}})
    figure.update_yaxes(autorange="reversed", title_text="layer, from input to output", dtick=1)
    figure.update_xaxes(side="bottom", automargin=True)
    styled(figure, height=max(ROW * len(layers) + 190, 400), top=56)
    longest = max(len(str(layer)) for layer in layers)
    return figure.update_layout(margin={"l": 60 + 6.5 * longest, "b": 80}, showlegend=False)


def _is_reference(table: pd.DataFrame, reference: str) -> pd.Series:
    if reference == "M_0":
        return table["reference"] == "M_0"
    return table["reference"] == "M_" + (table["stage"] - 1).astype(str)


def _short(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
