"""Dice against compute: comparisons of one configuration under several budgets, in one table and one picture.

Make them first, then draw them::

    for times in 1 3 8; do
        medseqft compare examples/hippocampus.yaml --set budget.steps=$((200 * times)) --out runs/hippocampus_$times
    done
    python figures/dice_against_compute.py runs/hippocampus_1 runs/hippocampus_3 runs/hippocampus_8

Of each folder its tables alone are read, so that what is kept of one in docs/results will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from style import DOUBLE, arguments, publish

from medseqft_kit.evaluation.gains import LATER, MEAN
from medseqft_kit.report.comparison_figures import log_ticks, looks
from medseqft_kit.report.figures import styled


def curve(folders: Sequence[Path], task: str = MEAN) -> pd.DataFrame:
    """One row for each folder and strategy: images seen, Dice, its gain over parallel tuning.

    Images are those of all tasks, whatever `task` says: what a run costs.
    """
    found = []
    for folder in folders:
        dice, gains = (pd.read_csv(folder / f"{name}.csv") for name in ("comparison", "gains"))
        costs = dice[dice["task"] == MEAN].set_index("strategy")[["images_seen", "seconds"]]
        rows = dice[dice["task"] == task].drop(columns=["images_seen", "seconds"]).join(costs, on="strategy")
        versus = gains[(gains["task"] == task) & (gains["versus"] == "parallel")]
        rows = rows.merge(versus[["strategy", "gain", "low", "high"]], on="strategy", how="left")
        found.append(rows.assign(comparison=folder.resolve().name))
    columns = [
        "comparison",
        "strategy",
        "images_seen",
        "seconds",
        "dice",
        "dice_low",
        "dice_high",
        "gain",
        "low",
        "high",
    ]
    return pd.concat(found, ignore_index=True)[[*columns, "seeds"]]


def picture(points: pd.DataFrame) -> go.Figure:
    """A line for each strategy: Dice (points) with its interval against images seen, on a logarithmic axis."""
    figure = go.Figure()
    strategies = list(dict.fromkeys(points["strategy"]))
    for strategy, (colour, symbol) in looks(strategies).items():
        rows = points[points["strategy"] == strategy].sort_values("images_seen")
        dice = 100 * rows["dice"]
        figure.add_scatter(
            x=rows["images_seen"],
            y=dice,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": 100 * rows["dice_high"] - dice,
                "arrayminus": dice - 100 * rows["dice_low"],
                "thickness": 1,
                "width": 2,
            },
            mode="lines+markers",
            name=strategy,
            line={"color": colour},
            marker={"symbol": symbol, "size": 8},
        )
    ticks = log_ticks(points["images_seen"])
    figure.update_xaxes(title_text="crops seen in all tasks of a run (log)", type="log", **ticks)
    figure.update_yaxes(title_text="mean test Dice, points")
    return styled(figure, height=460)


def main() -> None:
    """Read the command line, print the table, write the files."""
    parser = arguments(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="comparison folders of one configuration")
    parser.add_argument("--later", action="store_true", help="the tasks after the first alone")
    given = parser.parse_args()
    points = curve(given.folders, LATER if given.later else MEAN)
    shown = points.assign(**{name: 100 * points[name] for name in points.columns if name in SHOWN})
    print(shown.to_string(index=False, float_format="{:.1f}".format))
    publish(picture(points), points, given.out, "dice_against_compute", width=DOUBLE, height=100)


SHOWN = ("dice", "dice_low", "dice_high", "gain", "low", "high")
"""Columns that are printed in Dice points."""

if __name__ == "__main__":
    main()
