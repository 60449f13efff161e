"""How far the choice of the K most similar volumes can be trusted: ``python figures/mds_agreement.py --help``.

First ``measure`` a table of losses: 1568 draws of every volume, minutes on a CPU. Then ``show`` replays 100 races for
each K from it, and draws how agreement grows with the draws, with and without each device.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medseqft_kit.models.foundation import load_foundation
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.progress import rich_progress
from medseqft_kit.report.selection_figures import ALL, NONE, agreement_curves
from medseqft_kit.selection.engine import Engine
from medseqft_kit.selection.estimate import residuals
from medseqft_kit.selection.race import Rules
from medseqft_kit.selection.replay import DEVICES, LossTable, agrees, chosen_after, replay
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import prepare

PLACES = (5, 10, 20)
STEPS = (16, 40, 72, 136, 264, 520, 1000)


def measure(weights: Path, dataset: Path, out: Path) -> None:
    """Write ``losses.npz``."""
    model, task = load_foundation(weights), load_task(dataset)
    with rich_progress() as progress:
        cases = [case.id for case in task.cases]
        volumes = prepare(task, Preprocessing(), cases, out / "store", progress=progress)
        engine = Engine(model, volumes, resolve_precision(), seed=0)
        LossTable.measured(engine, volumes.cases, progress).write(out / "losses.npz")


def races(table: LossTable, seeds: int) -> pd.DataFrame:
    """One row for each method and K: how many of the seeds agree, and what share of the passes they took."""
    rows = []
    for method in ("approximate", "certified"):
        for k in (each for each in PLACES if each < len(table.cases)):
            found = [replay(table, k, Rules(method), seed) for seed in range(seeds)]  # type: ignore[arg-type]
            passes = [verdict.draws.sum() / (len(table.cases) * 1000) for verdict, _ in found]
            rows.append(
                {
                    "method": method,
                    "k": k,
                    "same": sum(set(verdict.chosen) == truth for verdict, truth in found),
                    "same but for named ties": sum(agrees(verdict, truth) for verdict, truth in found),
                    "passes %": 100 * sum(passes) / seeds,
                    "ties named": sum(len(verdict.ties) for verdict, _ in found) / seeds,
                    "of seeds": seeds,
                }
            )
    return pd.DataFrame(rows)


def curve(table: LossTable, k: int, seeds: int) -> pd.DataFrame:
    """Share of seeds that choose what the whole table chooses, after equally many draws of every volume."""
    truth = frozenset(table.losses.mean(axis=1).argsort()[:k].tolist())
    ways = {ALL: DEVICES, **{f"without {name}": tuple({*DEVICES} - {name}) for name in DEVICES}, NONE: ()}
    return pd.DataFrame(
        {
            "devices": name,
            "draws": draws,
            "agreement": sum(chosen_after(table, k, draws, s, devices) == truth for s in range(seeds)) / seeds,
        }
        for name, devices in ways.items()
        for draws in STEPS
    )


def spread(table: LossTable) -> pd.Series:
    """Variance that a draw adds to a mean over blocks of each size, of what the volumes do not have in common."""
    starts = np.cumsum([0, *table.sizes[:-1]])
    means = np.add.reduceat(table.losses, starts, axis=1) / table.sizes
    found = {}
    for size in sorted(set(table.sizes)):
        blocks = means[:, np.equal(table.sizes, size)]
        rest = residuals(blocks, np.ones(blocks.shape[1]), paired=True)
        found[size] = size * (rest**2).sum() / ((blocks.shape[0] - 1) * (blocks.shape[1] - 1))
    return pd.Series(found, name="variance of a draw, by size of its block")


def picture(drawn: pd.DataFrame, found: pd.DataFrame) -> go.Figure:
    """The curve, and the races as points at what they cost."""
    races = found.assign(draws=10 * found["passes %"], agreement=found["same"] / found["of seeds"])
    return agreement_curves(drawn, races)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="one table of losses")
    for name, meaning in (("weights", "M_0"), ("dataset", "a data set"), ("out", "a folder")):
        measuring.add_argument(name, type=Path, help=meaning)
    showing = commands.add_parser("show", help="races and curve of one table")
    showing.add_argument("table", type=Path, help="losses.npz")
    showing.add_argument("--seeds", type=int, default=100)
    showing.add_argument("--picture", type=Path, help="write the curve for K = 10 there, as SVG")
    given = parser.parse_args()
    if given.command == "measure":
        measure(given.weights, given.dataset, given.out)
        return
    table = LossTable.read(given.table)
    found = races(table, given.seeds)
    print(f"{len(table.cases)} volumes\n{found.to_string(index=False, float_format='{:.2f}'.format)}\n")
    print(found.groupby("method")["passes %"].mean().round(1).to_string())
    drawn = curve(table, 10, given.seeds)
    print(f"\n{spread(table).to_string()}\n")
    print(drawn.pivot(index="draws", columns="devices", values="agreement").to_string())
    if given.picture:
        picture(drawn, found[found["k"] == 10]).write_image(given.picture, width=760, height=420)


if __name__ == "__main__":
    main()
