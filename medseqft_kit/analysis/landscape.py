"""The loss around a model, point by point, without moving or copying the model.

Li et al., arXiv 1712.09913. The interface of models and metrics is that of the `loss-landscapes` package. The points of
a grid are shared among ranks, noted as they are found, and not computed again when the same call comes back.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float
from loss_landscapes.metrics import Metric

from medseqft_kit.analysis.directions import Plane
from medseqft_kit.analysis.metrics import Movable
from medseqft_kit.models.modes import evaluating
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.history import append_row, read_rows
from medseqft_kit.runs.ranks import Ranks

Point = tuple[float, float]


@dataclass(frozen=True)
class Grid:
    """Coordinates of the points: multiples of a plane's two directions. A line has one y, 0."""

    xs: tuple[float, ...]
    ys: tuple[float, ...] = (0.0,)

    @classmethod
    def around(cls, reach: float, steps: int) -> Grid:
        """A square of `steps` × `steps` points from −`reach` to `reach`; an odd number holds the middle."""
        side = tuple(np.linspace(-reach, reach, steps).tolist())
        return cls(side, side)

    def __len__(self) -> int:
        return len(self.xs) * len(self.ys)


@dataclass(frozen=True)
class Landscape:
    """What was found on a grid.

    Parameters
    ----------
    grid
        Where.
    values
        Name of a quantity to its values, one row for each y.
    marks
        Name of a model to where it lies.
    """

    grid: Grid
    values: Mapping[str, Float[np.ndarray, "ys xs"]]
    marks: Mapping[str, Point] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write all as JSON."""
        values = {name: found.tolist() for name, found in self.values.items()}
        write_json(path, {**asdict(self.grid), "values": values, "marks": dict(self.marks)})

    @classmethod
    def load(cls, path: Path) -> Landscape:
        """Read what :meth:`save` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        values = {name: np.array(rows, dtype=float) for name, rows in found["values"].items()}
        marks = {name: (at[0], at[1]) for name, at in found["marks"].items()}
        return cls(Grid(tuple(found["xs"]), tuple(found["ys"])), values, marks)


def survey(
    model: Movable,
    plane: Plane,
    grid: Grid,
    metric: Metric,
    *,
    marks: Mapping[str, Point] | None = None,
    journal: Path | None = None,
    progress: Progress = silent,
) -> Landscape:
    """Evaluate `metric` at every point of `grid`.

    Parameters
    ----------
    model
        Its weights stand still: each point is a forward pass with other weights in their place.
    plane
        Names of its directions are those of `model.weights()`.
    metric
        A number, or a tuple of numbers named by its attribute `names`, for a model.
    journal
        Where points are noted as they are found. Points of another plane, grid or metric that it holds are discarded.
    """
    ranks, names = Ranks.here(), tuple(getattr(metric, "names", ("value",)))
    notes = _Notes(journal if ranks.first else None, _key(plane, grid, metric))
    known: dict[Point, tuple[float, ...]] = ranks.told(notes.read())
    points = [(x, y) for y, x in product(grid.ys, grid.xs)]
    waiting = [point for point in points if point not in known]
    with evaluating(model.network):
        for start in range(0, len(waiting), len(grid.xs)):
            row = waiting[start : start + len(grid.xs)]
            own = [(point, _value(model, plane, point, metric)) for point in row[ranks.index :: ranks.count]]
            found = dict(ranks.together(own))
            notes.add(found)
            known |= found
            progress("loss landscape", len(known), len(points))
    table = np.array([known[point] for point in points]).reshape(len(grid.ys), len(grid.xs), len(names))
    return Landscape(grid, {name: table[:, :, index] for index, name in enumerate(names)}, dict(marks or {}))


def seconds_for(model: Movable, grid: Grid, metric: Metric) -> float:
    """About how long a survey takes here: the model's own point, timed after one to warm up, times the grid's size."""
    with evaluating(model.network):
        metric(model)
        start = time.perf_counter()
        metric(model)
    return (time.perf_counter() - start) * len(grid) / Ranks.here().count


def _value(model: Movable, plane: Plane, point: Point, metric: Metric) -> tuple[float, ...]:
    with model.at(plane.at(*point)):
        found = metric(model)
    return tuple(found) if isinstance(found, tuple) else (float(found),)


@dataclass(frozen=True)
class _Notes:
    """Points in a file of rows; the first row says what they are points of."""

    path: Path | None
    key: str

    def read(self) -> dict[Point, tuple[float, ...]]:
        rows = read_rows(self.path) if self.path is not None else []
        if self.path is None or (rows and rows[0].get("key") == self.key):
            return {(row["at"][0], row["at"][1]): tuple(row["found"]) for row in rows[1:]}
        self.path.unlink(missing_ok=True)
        append_row(self.path, {"key": self.key})
        return {}

    def add(self, found: Mapping[Point, Sequence[float]]) -> None:
        if self.path is not None:
            for point, values in found.items():
                append_row(self.path, {"at": point, "found": values})


def _key(plane: Plane, grid: Grid, metric: Metric) -> str:
    """A hash of everything that the values depend on."""
    digest = hashlib.sha256(json.dumps(asdict(grid)).encode())
    for part in (plane.origin, plane.first, plane.second):
        for name, tensor in sorted(part.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
    digest.update(str(getattr(metric, "key", type(metric).__name__)).encode())
    return digest.hexdigest()
