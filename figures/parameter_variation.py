"""How far the weights move: ``python figures/parameter_variation.py RUN [RUN …] --out figures/built``.

For each strategy the distance of every model from M_0 and from the one before it, and for the last run, layer by layer.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from landscapes import strategy_of
from plotly.subplots import make_subplots
from style import DOUBLE, arguments, publish

from medseqft_kit.analysis.drift import WHOLE
from medseqft_kit.analysis.drift_figures import heat_map
from medseqft_kit.analysis.drift_of_run import drift_of_run
from medseqft_kit.progress import rich_progress
from medseqft_kit.report.comparison_figures import looks
from medseqft_kit.report.figures import styled

PANELS = {"M_0": "from M₀", "previous": "from the stage's own Mₜ₋₁"}


def draw(runs: list[Path], out: Path) -> list[Path]:
    """Curves over stages, and heat maps of the last run."""
    with rich_progress() as progress:
        found = {strategy_of(run): drift_of_run(run, progress=progress) for run in runs}
    whole = pd.concat(
        [drift.parameters[drift.parameters["layer"] == WHOLE].assign(strategy=name) for name, drift in found.items()]
    )
    written = publish(curves(whole), whole, out, "variation_stages", width=DOUBLE, height=75)
    last = found[list(found)[-1]]
    for measure, table in (("relative", last.parameters), ("cka", last.representations)):
        layers = table["layer"].nunique()
        height = max(60.0, 26 + 3.4 * layers)
        written += publish(heat_map(table, measure), table, out, f"variation_{measure}", width=DOUBLE, height=height)
    return written


def curves(whole: pd.DataFrame) -> go.Figure:
    """Distance of M_t over the stages, all weights together: from M_0, and from M_{t-1}."""
    figure = make_subplots(1, 2, subplot_titles=list(PANELS.values()), shared_yaxes=True, horizontal_spacing=0.04)
    merged = whole[whole["model"].str.fullmatch(r"M_\d+")]
    previous = "M_" + (merged["stage"] - 1).astype(str)
    for column, key in enumerate(PANELS, start=1):
        rows = merged[merged["reference"] == (previous if key == "previous" else key)]
        for name, (colour, symbol) in looks(list(dict.fromkeys(whole["strategy"]))).items():
            part = rows[rows["strategy"] == name]
            figure.add_scatter(
                x=part["stage"],
                y=part["relative"],
                name=name,
                mode="lines+markers",
                line={"color": colour},
                marker={"symbol": symbol, "size": 7},
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="stage t", dtick=1)
    figure.update_yaxes(title_text="‖Mₜ − M‖ / ‖M‖", rangemode="tozero", col=1)
    return styled(figure, height=360, top=64)


def main() -> None:
    """Read the command line, write the files."""
    parser = arguments(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs; the last one is drawn layer by layer")
    given = parser.parse_args()
    draw(given.runs, given.out)


if __name__ == "__main__":
    main()
