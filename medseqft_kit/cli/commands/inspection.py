"""Looking inside a run, and at the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseqft_kit.cli.commands.arguments import RunArgument

Plane = Literal["random", "through", "line"]


def landscape(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders; several share one colour scale.")],
    task: Annotated[str, typer.Option("--task", help="Whose training loss and Dice.")],
    plane: Annotated[
        Plane, typer.Option(help="random: around a model; through: three models; line: between two.")
    ] = "random",
    models: Annotated[str, typer.Option(help="One, three or two of M_0, M'_1, M_1, …, with commas between.")] = "",
    steps: Annotated[int, typer.Option(min=2, help="Points along each axis.")] = 21,
    reach: Annotated[float, typer.Option(help="Of a random plane, in multiples of the filters' norms.")] = 1.0,
    crops: Annotated[int, typer.Option(min=1, help="Training crops that each point is judged by.")] = 16,
    seed: Annotated[int, typer.Option(help="Draws the random directions.")] = 0,
) -> None:
    """Training loss and Dice around or between the models of a run, as data and pictures.

    Interrupted, the same command goes on. Several processes share the work: torchrun -m medseqft_kit …
    """
    from medseqft_kit.analysis.landscape_of_run import View
    from medseqft_kit.cli.analysis import landscape_runs

    named = tuple(name for name in models.split(",") if name)
    landscape_runs(runs, View(task, plane, named, steps, reach, crops, seed))


def drift(run: RunArgument) -> None:
    """How far the weights and representations of a run have moved from M_0 and from stage to stage, layer by layer."""
    from medseqft_kit.cli.analysis import drift_run

    drift_run(run)


def doctor(
    tune: Annotated[bool, typer.Option("--tune", help="Measure the kernel backends of a run ahead of time.")] = False,
    config: Annotated[Path | None, typer.Option(help="The run to tune for; without it, the default settings.")] = None,
) -> None:
    """Versions, device, CPU features, and which kernel backend is taken for what."""
    from medseqft_kit.cli.doctor import diagnose, show, tune_kernels

    if tune:
        tune_kernels(config)
    show(diagnose())
