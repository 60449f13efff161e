"""`medseqft compare` and `medseqft transfer`: run, print the tables, write the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from medseqft_kit.cli.tables import show_comparison, show_gains, show_transfer
from medseqft_kit.config import Compare, Config, parse_config
from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.gains import BASELINE, difference, plan
from medseqft_kit.progress import rich_progress
from medseqft_kit.report.page import write_comparison_report, write_report
from medseqft_kit.tuning.comparison import run_comparison
from medseqft_kit.tuning.strategies import STRATEGIES
from medseqft_kit.tuning.transfer import run_transfer


def chosen(config: Config, strategies: Sequence[str] | None) -> Config:
    """The configuration with other strategies; ``["all"]`` are all that there are, and every variant."""
    compare = config.compare or Compare()
    if strategies == ["all"]:
        strategies = [*STRATEGIES, *compare.variants]
    if strategies is not None:
        compare = compare.model_copy(update={"strategies": tuple(strategies)})
    return config.model_copy(update={"compare": compare})


def compare_strategies(config: Config, out: Path, strategies: Sequence[str] | None = None) -> None:
    """Run or continue a comparison, print its headline, write its report and those of its runs."""
    with rich_progress() as progress:
        tables = run_comparison(chosen(config, strategies), out, progress)
        runs = [manifest.parent for manifest in sorted(out.glob("runs/*/seed_*/order_*/manifest.json"))]
        for done, run in enumerate(runs, start=1):
            write_report(run)
            progress("reports", done, len(runs))
    show_comparison(tables.comparison)
    show_gains(tables.gains)
    show_transfer(tables.transfer)
    typer.echo(f"tables: {out}/*.csv\nreport: {write_comparison_report(out)}")


def submit_to_slurm(config: Config, out: Path, strategies: Sequence[str] | None = None) -> None:
    """Submit a comparison to the cluster and say what was submitted; the last job does what is left, and the tables."""
    from medseqft_kit.tuning.cluster import submit_comparison

    submitted = submit_comparison(chosen(config, strategies), out, collect)
    for what, jobs in submitted.items():
        typer.echo(
            f"{what}: {jobs[0]} … {jobs[-1]}, {len(jobs)} jobs" if jobs[1:] else f"{what}: {', '.join(jobs) or '–'}"
        )
    typer.echo(f"logs: {out}/slurm\nafter the last job: {out}/*.csv and {out}/report.html")


def collect(config: Mapping[str, Any], out: Path) -> None:
    """The last job: :func:`compare_strategies` of what the others have left."""
    compare_strategies(parse_config(config), out)


def show_pilot(folder: Path) -> None:
    """Say how many seeds the mean differences of a finished comparison take until their intervals exclude zero.

    Raises
    ------
    RunError
        If the folder holds no finished comparison with parallel fine-tuning and two seeds.
    """
    file = folder / "paired.csv"
    rows = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=["strategy", "seed"])
    if BASELINE not in set(rows["strategy"]) or rows["seed"].nunique() < 2:
        raise RunError(
            f"{folder} cannot serve as a pilot.",
            found=f"strategies {sorted(set(rows['strategy']))}, {rows['seed'].nunique()} seeds",
            expected=f"a finished comparison with {BASELINE} and at least two seeds",
            next_step="medseqft compare CONFIG.yaml --out PILOT",
        )
    for strategy in dict.fromkeys(rows["strategy"]):
        if strategy != BASELINE:
            found = plan(difference(rows, str(strategy), BASELINE))
            typer.echo(f"{strategy} against {BASELINE}, mean over tasks: {found.sentence}")


def transfer_run(run: Path, every_stage: bool) -> None:
    """Tune a run's models on its unseen tasks, print the table."""
    with rich_progress() as progress:
        table = run_transfer(run, every_stage, progress)
    show_transfer(table)
    typer.echo(f"table: {run / 'transfer' / 'transfer.csv'}")
