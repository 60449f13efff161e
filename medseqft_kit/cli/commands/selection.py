"""Buffers: MDS and its alternatives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseqft_kit.cli.commands.arguments import FoundationArgument, Out

Selection = Literal["mds", "highest", "random", "kmeans", "herding"]


def score(
    model: FoundationArgument,
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A data set; labels are not read.")],
    out: Out,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Cases in the buffer.")],
    max_draws: Annotated[int, typer.Option("--max-draws", min=16, help="Most crops and masks of a volume.")] = 1000,
    approximate: Annotated[bool, typer.Option("--approximate", help="Decide by normal intervals: cheaper.")] = False,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="All draws of every volume, as the paper.")] = False,
    delta: Annotated[float, typer.Option(help="Probability that a certified choice is wrong.")] = 0.05,
    tolerance: Annotated[float, typer.Option(help="Scores that differ by less are ties.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Draws the crops and masks.")] = 0,
) -> None:
    """MDS: race for the K volumes with the lowest SSL loss of M_0; write scores.csv and buffer.json.

    Interrupted, the same command goes on. Several processes share the work: torchrun -m medseqft_kit score …
    """
    from medseqft_kit.cli.selection import score_dataset
    from medseqft_kit.errors import ConfigError
    from medseqft_kit.selection.race import Method, Rules

    if approximate and exhaustive:
        raise ConfigError("a race is approximate or exhaustive.", found="--approximate --exhaustive", expected="one")
    method: Method = "approximate" if approximate else "exhaustive" if exhaustive else "certified"
    score_dataset(model, dataset, out, top_k, Rules(method, delta, tolerance, max_draws), seed)


def select(
    model: FoundationArgument,
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A data set; labels are not read.")],
    out: Out,
    method: Annotated[Selection, typer.Option(help="How.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Cases in the buffer.")],
    max_draws: Annotated[int, typer.Option("--max-draws", min=16, help="Most crops and masks of a volume.")] = 1000,
    seed: Annotated[int, typer.Option(help="Draws whatever is random.")] = 0,
) -> None:
    """Fill a buffer by MDS or one of its alternatives; write buffer.json, and scores.csv where there are scores."""
    from medseqft_kit.cli.selection import select_cases
    from medseqft_kit.settings import Buffer as BufferSettings

    select_cases(model, dataset, out, BufferSettings(selection=method, k=top_k, max_draws=max_draws), seed)
