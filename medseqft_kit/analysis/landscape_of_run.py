"""The landscape of one task of a run, kept in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from medseqft_kit.analysis.checkpoints import Checkpoints
from medseqft_kit.analysis.directions import Plane, line, plane_through, random_plane
from medseqft_kit.analysis.landscape import Grid, Landscape, Point, seconds_for, survey
from medseqft_kit.analysis.metrics import Movable, Segmentation, TaskNetwork
from medseqft_kit.progress import Progress, silent

Kind = Literal["random", "through", "line"]
"""The random filter-normalised plane around a model; the plane through three; the line between two."""
COUNTS: Mapping[Kind, int] = MappingProxyType({"random": 1, "through": 3, "line": 2})
BEYOND = 0.3
"""A plane through models, or a line, reaches beyond the outermost by this share of what lies between them."""


@dataclass(frozen=True)
class View:
    """What is looked at.

    Parameters
    ----------
    task
        Whose training loss and Dice, and whose head.
    kind
        See :data:`Kind`.
    models
        Names of one, three or two models; by default M'_t; M_0, M_{t-1} and M_t (for the first task M_0, M'_1, M_1);
        M_{t-1} and M'_t.
    steps
        Points along each axis.
    reach
        Of a random plane, in multiples of the filters' norms.
    crops
        Labelled training crops that every point is judged by.
    seed
        Of the random directions: equal seeds give runs the same ones, each in the scale of its own filters.
    """

    task: str
    kind: Kind = "random"
    models: tuple[str, ...] = ()
    steps: int = 21
    reach: float = 1.0
    crops: int = 16
    seed: int = 0

    def named(self, stage: int) -> tuple[str, ...]:
        """`models`, or the default at stage t."""
        if self.models:
            return self.models
        before = f"M_{stage - 1}"
        if self.kind == "random":
            return (f"M'_{stage}",)
        if self.kind == "line":
            return before, f"M'_{stage}"
        return ("M_0", f"M'_{stage}", f"M_{stage}") if stage == 1 else ("M_0", before, f"M_{stage}")


def landscape_of_run(
    run: str | Path,
    view: View,
    *,
    price: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> tuple[Landscape, Path]:
    """Survey a task's training loss and Dice; the same call goes on, or reads what it found.

    All models get the head that the task was trained with, M'_t's, so only a plane around one model moves the head.

    Parameters
    ----------
    price
        Told what the survey costs before it begins.

    Returns
    -------
    tuple
        The landscape, and its folder in the run: ``analysis/landscape/TASK_KIND…`` with ``landscape.json``.

    Raises
    ------
    RunError
        If the run lacks the task or a model.
    ValueError
        If the models are too few or too many, or span no plane.
    """
    checkpoints = Checkpoints.open(run)
    names = view.named(checkpoints.stage(view.task))
    if len(names) != COUNTS[view.kind]:
        raise ValueError(f"a view of kind {view.kind!r} takes {COUNTS[view.kind]} models, not {len(names)}")
    batches = checkpoints.crops(view.task, view.crops, progress=progress)
    metric = Segmentation(batches, checkpoints.precision)
    networks = [Movable(TaskNetwork(checkpoints.with_head(name, view.task), view.task)) for name in names]
    plane, marks = _plane(view, names, networks)
    grid = _grid(view, marks)
    folder = checkpoints.run.path / "analysis" / "landscape" / "_".join((view.task, view.kind, *names))
    seconds = seconds_for(networks[0], grid, metric)
    price(
        f"{len(grid)} points × {metric.crops} crops = {len(grid) * metric.crops} forward passes, about {seconds:.0f} s"
    )
    journal = folder / "points.jsonl"
    found = survey(networks[0], plane, grid, metric, marks=marks, journal=journal, progress=progress)
    found.save(folder / "landscape.json")
    return found, folder


def _plane(view: View, names: tuple[str, ...], networks: list[Movable]) -> tuple[Plane, dict[str, Point]]:
    weights = [network.weights() for network in networks]
    if view.kind == "random":
        return random_plane(weights[0], view.seed), {names[0]: (0.0, 0.0)}
    if view.kind == "line":
        return line(weights[0], weights[1]), dict(zip(names, ((0.0, 0.0), (1.0, 0.0)), strict=True))
    plane, places = plane_through((weights[0], weights[1], weights[2]))
    return plane, dict(zip(names, places, strict=True))


def _grid(view: View, marks: Mapping[str, Point]) -> Grid:
    if view.kind == "random":
        return Grid.around(view.reach, view.steps)
    xs, ys = ([at[axis] for at in marks.values()] for axis in (0, 1))
    return Grid(_axis(xs, view.steps), _axis(ys, view.steps) if view.kind == "through" else (0.0,))


def _axis(places: list[float], steps: int) -> tuple[float, ...]:
    low, high = min(places), max(places)
    beyond = BEYOND * (high - low)
    width = high - low + 2 * beyond
    return tuple(low - beyond + width * index / (steps - 1) for index in range(steps))
