"""Data sets: written, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def phantoms(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the data sets are written.")],
    cases: Annotated[int, typer.Option(help="Labelled cases of each task.")] = 24,
    side: Annotated[int, typer.Option(help="Voxels along each axis.")] = 48,
    seed: Annotated[int, typer.Option(help="Draws the patients.")] = 0,
) -> None:
    """Write the generated phantom data sets (Decathlon layout)."""
    from medseqft_kit.phantoms.write import write_phantoms
    from medseqft_kit.progress import rich_progress

    with rich_progress() as progress:
        written = write_phantoms(
            folder,
            cases=cases,
            shape=(side, side, side),
            seed=seed,
            progress=progress,
        )
    for path in written.values():
        typer.echo(path)


def check(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET…", help="Folders in a known layout.")],
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
) -> None:
    """Read every header and label; say what is wrong, where, how bad it is and how to mend it."""
    from rich.console import Console

    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tasks.check import check_task
    from medseqft_kit.tasks.check_table import findings_table

    with rich_progress() as progress:
        reports = [check_task(dataset, strict, progress=progress) for dataset in datasets]
    for dataset, report in zip(datasets, reports, strict=True):
        typer.echo(f"{dataset}: {report.summary}")
        if report.findings:
            Console().print(findings_table(report))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)
