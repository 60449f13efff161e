"""Pre-training, sequences, and what is asked of many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseqft_kit.cli.commands.arguments import Changes, ConfigFile, Out, RunArgument

Executor = Literal["local", "slurm"]


def demo(out: Out = Path("demo")) -> None:
    """The whole method on phantoms, against parallel fine-tuning; ends with a table and a report."""
    from medseqft_kit.cli.comparison import compare_strategies
    from medseqft_kit.cli.demo import demo_config

    compare_strategies(demo_config(out), out)


def pretrain(config: ConfigFile, out: Out) -> None:
    """Make an M_0 from the unlabelled volumes that the configuration names."""
    from medseqft_kit.config import load_config
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tuning.experiment import foundation_model, read_plans

    settings = load_config(config)
    with rich_progress() as progress:
        foundation_model(settings, read_plans(settings), out, progress)
    typer.echo(out / "pretraining" / "foundation.safetensors")


def run(config: ConfigFile, out: Out = Path("runs"), changes: Changes = None) -> None:
    """Run a whole sequence; the same command on the same folder continues it."""
    from medseqft_kit.cli.tables import show_run
    from medseqft_kit.config import assignments, load_config, varied
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tuning.experiment import run_sequence

    settings = varied(load_config(config), assignments(changes or []))
    with rich_progress() as progress:
        result = run_sequence(settings, out, progress)
    show_run(result)


def add(
    run: RunArgument,
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The next task's data set.")],
    name: Annotated[str | None, typer.Option(help="Name of the task; the folder's by default.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label mapping as YAML, for instance '{organ: [1, 2], tumour: 3}'.")
    ] = None,
    train_cases: Annotated[int | None, typer.Option(help="Labelled cases used; all by default.")] = None,
    modality: Annotated[str | None, typer.Option(help="CT, MR or PET, where the data set holds several.")] = None,
) -> None:
    """The next task arrives: one more stage on an existing run; old tasks are evaluated before and after."""
    from medseqft_kit.cli.tables import show_run
    from medseqft_kit.config import parse_task
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tuning.plan import TaskPlan
    from medseqft_kit.tuning.run import Run

    section = parse_task(dataset, name, labels, train_cases, modality)
    with rich_progress() as progress:
        result = Run(run, progress).add(TaskPlan.from_section(section))
    show_run(result)


def compare(
    config: ConfigFile,
    out: Out = Path("comparison"),
    strategies: Annotated[
        str | None,
        typer.Option(help="Names, separated by commas, or `all`; those of the configuration's `compare` by default."),
    ] = None,
    pilot: Annotated[
        Path | None, typer.Option(help="A finished comparison: say first how many seeds its differences take.")
    ] = None,
    executor: Annotated[
        Executor, typer.Option(help="slurm: every run a job of the cluster, and the tables by the last one.")
    ] = "local",
    changes: Changes = None,
) -> None:
    """The same data, budget and seeds under several strategies; tables with intervals and tests, and a report.

    The same command on the same folder continues it.
    """
    from medseqft_kit.cli.comparison import compare_strategies, show_pilot, submit_to_slurm
    from medseqft_kit.config import assignments, load_config, varied

    if pilot is not None:
        show_pilot(pilot)
    settings = varied(load_config(config), assignments(changes or []))
    names = strategies.split(",") if strategies else None
    (submit_to_slurm if executor == "slurm" else compare_strategies)(settings, out, names)


def transfer(
    run: RunArgument,
    every_stage: Annotated[bool, typer.Option("--every-stage", help="Every M_t, not M_n alone.")] = False,
) -> None:
    """Tune a run's M_n, M_0 and fresh weights on the unseen tasks of its configuration, with few and all labels."""
    from medseqft_kit.cli.comparison import transfer_run

    transfer_run(run, every_stage)
