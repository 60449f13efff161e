"""Who wins, by how much, at which price: ``python figures/main_comparison.py runs/phantoms --out figures/built``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from style import DOUBLE, arguments, publish

from medseqft_kit.evaluation.gains import BASELINE, LATER, MEAN
from medseqft_kit.report.comparison_figures import compute, forest, order_spread
from medseqft_kit.report.continual_figures import generality_curves


def draw(folder: Path, out: Path, only: tuple[str, ...] = ()) -> list[Path]:
    """Gains over parallel tuning, Dice against compute, spread over orders, generality; paths of what was written.

    Parameters
    ----------
    folder
        A comparison.
    only
        Strategies to draw; all if empty.
    """
    tables = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    if only:
        tables = {name: _chosen(table, only) for name, table in tables.items()}
    gains, results = tables["gains"], tables["comparison"]
    ours = gains[(gains["versus"] == BASELINE) & gains["task"].isin([MEAN, LATER])]
    line = 5.2  # mm for each strategy
    tall = 30 + line * ours["strategy"].nunique()
    written = publish(forest(ours, "strategy"), ours, out, "main_gains", width=DOUBLE, height=tall)
    priced = results[results["task"] == MEAN]
    written += publish(compute(results), priced, out, "main_compute", width=DOUBLE, height=max(80.0, tall))
    if tables["orders"]["order"].nunique() > 1:
        spread = order_spread(tables["orders"])
        written += publish(spread, tables["orders"], out, "main_orders", width=DOUBLE, height=tall)
    if len(tables["generality"]):
        curves = generality_curves(tables["generality"])
        written += publish(curves, tables["generality"], out, "main_generality", width=DOUBLE, height=max(80.0, tall))
    return written


def _chosen(table: pd.DataFrame, only: tuple[str, ...]) -> pd.DataFrame:
    return table[table["strategy"].isin(only)] if "strategy" in table else table


def main() -> None:
    """Read the command line, write the files."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="a comparison folder")
    parser.add_argument("--strategies", default="", help="names with commas between; all by default")
    given = parser.parse_args()
    draw(given.folder, given.out, tuple(name for name in given.strategies.split(",") if name))


if __name__ == "__main__":
    main()
