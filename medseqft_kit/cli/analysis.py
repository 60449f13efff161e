"""`medseqft landscape` and `medseqft drift`: look into finished runs, write data and pictures, say where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
import typer

from medseqft_kit.analysis.drift import WHOLE
from medseqft_kit.analysis.drift_figures import heat_map
from medseqft_kit.analysis.drift_of_run import drift_of_run
from medseqft_kit.analysis.landscape import Landscape
from medseqft_kit.analysis.landscape_figures import contours, lines, surfaces
from medseqft_kit.analysis.landscape_of_run import View, landscape_of_run
from medseqft_kit.errors import RunError
from medseqft_kit.progress import rich_progress
from medseqft_kit.report.page import write_figures
from medseqft_kit.runs.folder import RunFolder


def landscape_runs(runs: Sequence[Path], view: View) -> None:
    """Survey one task in one or more runs, write the pictures of all together into the first one's folder."""
    found: dict[str, Landscape] = {}
    folders = []
    with rich_progress() as progress:
        for run in runs:
            try:
                landscape, folder = landscape_of_run(run, view, price=typer.echo, progress=progress)
            except ValueError as problem:
                raise RunError(f"the landscape of {run} cannot be drawn.", found=str(problem)) from problem
            found[_label(run, list(found))] = landscape
            folders.append(folder)
    page = folders[0] / ("landscape.html" if len(runs) == 1 else "landscapes.html")
    write_figures(page, f"Loss landscape of {view.task}", _figures(found, view))
    for folder in folders:
        typer.echo(f"data: {folder / 'landscape.json'}")
    typer.echo(f"pictures: {page}")


def drift_run(run: Path) -> None:
    """Measure drift along a run, print the distance of every model, write tables and heat maps."""
    with rich_progress() as progress:
        found = drift_of_run(run, progress=progress)
    whole = found.parameters[found.parameters["layer"] == WHOLE]
    for row in whole.to_dict("records"):
        typer.echo(f"{row['model']:5} of {row['task']}: {row['relative']:.3f} from {row['reference']}")
    figures = {
        "Weights: how far": heat_map(found.parameters, "relative", "previous"),
        "Weights: in how many dimensions": heat_map(found.parameters, "effective_rank", "previous"),
        "Weights: how far from M_0": heat_map(found.parameters, "relative"),
        "Representations: how alike M_0's": heat_map(found.representations, "cka"),
    }
    page = found.folder / "drift.html"
    write_figures(page, f"Parameter drift of {run.name}", figures)
    typer.echo(f"data: {found.folder}/*.csv\npictures: {page}")


def _figures(found: Mapping[str, Landscape], view: View) -> dict[str, go.Figure]:
    if view.kind == "line":
        return {"Loss and Dice along the line": lines(found)}
    return {
        "Training loss": contours(found, "loss"),
        "Training loss in three dimensions": surfaces(found, "loss"),
        "Training Dice": contours(found, "dice"),
    }


def _label(run: Path, taken: Sequence[str]) -> str:
    """The run's strategy and seed; its folder too, where two runs would have one name."""
    config = RunFolder.open(run).manifest["config"]
    name = f"{config['strategy']['name']}, seed {config['seed']}"
    return f"{name} ({run})" if name in taken else name
