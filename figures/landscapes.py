"""Landscapes of several runs side by side: ``python figures/landscapes.py RUN RUN --task T --out figures/built``.

One scale of colours, one set of directions. What is surveyed stays in the runs' folders and is not computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from style import DOUBLE, arguments, publish

from medseqft_kit.analysis.landscape import Landscape
from medseqft_kit.analysis.landscape_figures import contours, lines, surfaces
from medseqft_kit.analysis.landscape_of_run import View, landscape_of_run
from medseqft_kit.progress import rich_progress
from medseqft_kit.runs.folder import RunFolder


def draw(runs: list[Path], task: str, out: Path, *, steps: int = 21, crops: int = 16, reach: float = 0.5) -> list[Path]:
    """A random plane (contours and surfaces), the plane through three models, the line between two."""
    written: list[Path] = []
    names = [strategy_of(run) for run in runs]
    with rich_progress() as progress:
        for kind in ("random", "through", "line"):
            view = View(task, kind, steps=2 * steps if kind == "line" else steps, crops=crops, reach=reach)
            found = {
                name: landscape_of_run(run, view, price=print, progress=progress)[0]
                for name, run in zip(names, runs, strict=True)
            }
            data = points(found)
            if kind == "line":
                written += publish(lines(found), data, out, "landscape_line", width=DOUBLE, height=70)
                continue
            written += publish(contours(found), data, out, f"landscape_{kind}", width=DOUBLE, height=80)
            if kind == "random":
                written += publish(surfaces(found), data, out, "landscape_surface", width=DOUBLE, height=85)
    return written


def strategy_of(run: Path) -> str:
    """The strategy that a run was made by."""
    return str(RunFolder.open(run).manifest["config"]["strategy"]["name"])


def points(found: Mapping[str, Landscape]) -> pd.DataFrame:
    """One row for each strategy and point."""
    rows = [
        {"strategy": name, "x": x, "y": y, **{what: float(values[row, column]) for what, values in each.values.items()}}
        for name, each in found.items()
        for row, y in enumerate(each.grid.ys)
        for column, x in enumerate(each.grid.xs)
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Read the command line, write the files."""
    parser = arguments(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs of one seed, of different strategies")
    parser.add_argument("--task", required=True)
    parser.add_argument("--steps", type=int, default=21, help="points along each axis")
    given = parser.parse_args()
    draw(given.runs, given.task, given.out, steps=given.steps)


if __name__ == "__main__":
    main()
