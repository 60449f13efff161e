"""`medseqft score` and `medseqft select`: choose cases of a data set with a foundation model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import typer

from medseqft_kit.models.foundation import FoundationModel, load_foundation
from medseqft_kit.progress import Progress, rich_progress, silent
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.selection.buffer import Buffer, select, write_buffer, write_scores
from medseqft_kit.selection.choose import choose
from medseqft_kit.selection.race import Rules
from medseqft_kit.selection.scoring import score_volumes
from medseqft_kit.settings import Buffer as BufferSettings
from medseqft_kit.tasks.layouts import detect_task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes, prepare


def score_dataset(model: Path, dataset: Path, out: Path, k: int, rules: Rules, seed: int) -> None:
    """Race for the `k` lowest scores; of several processes the first writes and tells."""
    with _told() as (progress, first):
        foundation = load_foundation(model)
        volumes = _volumes(foundation, dataset, out, progress)
        journal = out / "draws"
        scores = score_volumes(foundation, volumes, k, rules=rules, seed=seed, progress=progress, journal=journal)
    if first:
        _write(out, select(scores), scores)


def select_cases(model: Path, dataset: Path, out: Path, settings: BufferSettings, seed: int) -> None:
    """Fill a buffer as the settings say."""
    with _told() as (progress, first):
        foundation = load_foundation(model)
        volumes = _volumes(foundation, dataset, out, progress)
        buffer, scores = choose(foundation, volumes, settings, seed=seed, progress=progress, journal=out / "draws")
    if first:
        _write(out, buffer, scores)


@contextmanager
def _told() -> Iterator[tuple[Progress, bool]]:
    """Progress in the first of several processes, and whether this is it."""
    first = Ranks.here().first
    if not first:
        yield silent, first
        return
    with rich_progress() as progress:
        yield progress, first


def _volumes(model: FoundationModel, dataset: Path, out: Path, progress: Progress) -> TaskVolumes:
    task, grid = detect_task(dataset), Preprocessing(scale=model.spec.scale)
    return prepare(task, grid, [case.id for case in task.cases], out / "store", progress=progress)


def _write(out: Path, buffer: Buffer, scores: pd.DataFrame | None) -> None:
    if scores is not None:
        write_scores(out / "scores.csv", scores)
    write_buffer(out / "buffer.json", buffer)
    typer.echo("\n".join(buffer.cases))
    if buffer.certificate:
        typer.echo(_certificate(buffer))
    names = ("scores", "buffer") if scores is not None else ("buffer",)
    files = {"scores": out / "scores.csv", "buffer": out / "buffer.json"}
    typer.echo("   ".join(f"{name}: {files[name]}" for name in names))


def _certificate(buffer: Buffer) -> str:
    """What was proved, in a sentence."""
    facts = buffer.certificate
    told = f"{facts['separated']} of {facts['pairs']} pairs told apart ({facts['method']}, delta {facts['delta']})"
    ties = f"; could as well be exchanged: {', '.join(buffer.ties)}" if buffer.ties else ""
    cost = f"{buffer.passes} forward passes"
    return f"{told}{ties}; an independent repeat would choose the same cases with {facts['repeat']:.0%}; {cost}"
