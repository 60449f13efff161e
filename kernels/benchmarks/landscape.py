"""A loss landscape beside the package and the bare passes: ``python kernels/benchmarks/landscape.py``.

The floor is one forward pass for each point and batch, without a loss. The package moves a copy of the model from point
to point; its directions are scaled layer by layer, since its filter-wise scaling divides by zero on a fresh norm layer.
Ours is checked against moved copies of the model before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loss_landscapes
import numpy as np
import torch
from run import HERE, describe

from medseqft_kit.analysis.directions import Plane, random_plane
from medseqft_kit.analysis.landscape import Grid, survey
from medseqft_kit.analysis.metrics import Movable, Segmentation, TaskNetwork
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.modes import evaluating
from medseqft_kit.models.precision import Precision, resolve_precision
from medseqft_kit.volumes.batches import Batch

PATCH, BATCHES, CROPS, CLASSES = 32, 4, 4, 3
SIZES = ("small", "base")
"""Of the SegResNet: 8 filters and 16, at the first level. Loss and Dice cost the same for both."""
ROUNDS = 3


def material(size: str, precision: Precision) -> tuple[Movable, Segmentation]:
    """A SegResNet with a head, and labelled crops of noise: what they show does not matter for the time."""
    model = FoundationModel.build("segresnet", size, patch=(PATCH, PATCH, PATCH))
    model.add_head_("task", CLASSES)
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(BATCHES):
        image = torch.randn(CROPS, 1, PATCH, PATCH, PATCH, generator=draw)
        label = torch.randint(CLASSES, (CROPS, PATCH, PATCH, PATCH), generator=draw)
        batches.append(Batch(image, label, ("noise",) * CROPS, "task"))
    return Movable(TaskNetwork(precision.place_(model), "task").eval()), Segmentation(batches, precision)


def worst_error(network: Movable, plane: Plane, metric: Segmentation) -> float:
    """Largest relative difference of the loss between ours and a copy of the model that was moved, at three points."""
    errors = []
    for point in ((0.0, 0.0), (0.3, -0.2), (-0.5, 0.5)):
        ours = survey(network, plane, Grid((point[0],), (point[1],)), metric).values["loss"][0, 0]
        moved = copy.deepcopy(network.network)
        moved.load_state_dict(plane.at(*point), strict=False)
        want = metric(Movable(moved))[0]
        errors.append(abs(ours - want) / abs(want))
    return max(errors)


def bare(network: Movable, metric: Segmentation, points: int) -> None:
    """The forward passes of a grid, and nothing else."""
    with torch.no_grad(), evaluating(network.network), metric.precision.autocast():
        for _ in range(points):
            for image, _ in metric.batches:
                network.network(image)


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def measured(size: str, steps: int, precision: Precision) -> dict[str, Any]:
    """The three ways on one network, in turns: rounds and medians, seconds, and the error that was found before."""
    network, metric = material(size, precision)
    plane, grid = random_plane(network.weights(), 0), Grid.around(1.0, steps)
    error = worst_error(network, plane, metric)
    if error > 1e-5:
        raise SystemExit(f"WRONG, no speed shown: losses differ by {error:.2e}")
    ways: dict[str, Callable[[], Any]] = {
        "bare forward passes": lambda: bare(network, metric, len(grid)),
        "ours": lambda: survey(network, plane, grid, metric),
        "loss-landscapes": lambda: loss_landscapes.random_plane(
            network, metric, 1, steps, normalization="layer", deepcopy_model=True
        ),
    }
    bare(network, metric, 2)
    rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(ROUNDS)]
    medians = {name: float(np.median([each[name] for each in rounds])) for name in ways}
    print(f"SegResNet, {size}: {len(grid)} points, {metric.crops} crops of {PATCH}³, {torch.get_num_threads()} threads")
    for name, taken in medians.items():
        print(f"{name:20} {taken:7.2f} s   {taken / medians['bare forward passes']:5.2f} times the bare passes")
    return {"points": len(grid), "crops": metric.crops, "error": error, "rounds": rounds, "medians": medians}


def main() -> None:
    """Read the command line, check, time, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=7, help="points along each axis")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "landscape.json")
    given = parser.parse_args()
    precision = resolve_precision()
    found = {size: measured(size, given.steps, precision) for size in SIZES}
    machine = describe(torch.device(precision.device))
    content = {"machine": machine, "precision": precision.name, **found}
    given.out.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
