"""Data sets: written, fetched, checked."""

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


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in docs/data.md, such as Task09_Spleen.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where its folder is put.")] = Path("data"),
) -> None:
    """Download a public data set where its licence allows that; else say how to get it, and exit with 3."""
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tasks.fetch import fetch as fetch_data_set
    from medseqft_kit.tasks.public_sets import about, find_data_set, instructions

    data_set = find_data_set(name)
    if not data_set.url:
        typer.echo(instructions(data_set))
        raise typer.Exit(3)
    typer.echo(about(data_set))
    if (out / data_set.name).exists():
        typer.echo(f"{out / data_set.name} is there already; nothing is downloaded.")
    with rich_progress() as progress:
        folder = fetch_data_set(data_set, out, progress)
    typer.echo(f"next: medseqft check {folder}")


def check(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET…", help="Folders in a known layout.")],
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
) -> None:
    """Read every header and label; say what is wrong, where, how bad it is and how to mend it."""
    from rich.console import Console

    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tasks.check import check_task, shared_images
    from medseqft_kit.tasks.check_table import findings_table
    from medseqft_kit.tasks.public_sets import about

    with rich_progress() as progress:
        reports = shared_images([check_task(dataset, progress=progress) for dataset in datasets])
    reports = tuple(report.strict() if strict else report for report in reports)
    for dataset, report in zip(datasets, reports, strict=True):
        typer.echo(f"{dataset}: {report.summary}")
        for data_set in report.public:
            typer.echo(about(data_set))
        if report.findings:
            Console().print(findings_table(report))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)
