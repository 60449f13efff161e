"""Fill a buffer as the settings say: by MDS, or by one of its alternatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.objectives.registry import objective_of
from medseqft_kit.progress import Progress, silent
from medseqft_kit.selection import alternatives
from medseqft_kit.selection.buffer import Buffer, buffer_size, select
from medseqft_kit.selection.draws import BLOCK
from medseqft_kit.selection.features import volume_features
from medseqft_kit.selection.race import Rules
from medseqft_kit.selection.scoring import score_volumes
from medseqft_kit.settings import Buffer as BufferSettings
from medseqft_kit.volumes.store import TaskVolumes


def choose(
    model: FoundationModel,
    volumes: TaskVolumes,
    settings: BufferSettings,
    *,
    seed: int = 0,
    precision: Precision | None = None,
    progress: Progress = silent,
    journal: Path | None = None,
) -> tuple[Buffer, pd.DataFrame | None]:
    """The buffer of a task, and the scores where there are any.

    Parameters
    ----------
    model
        M_0.
    volumes
        The training cases.
    settings
        `k` (or `share`), `selection`, and how MDS races. The highest scores are wanted for ablation alone, so no race
        is run for them: all draws are made of every volume.
    journal
        As for :func:`~medseqft_kit.selection.scoring.score_volumes`.

    Raises
    ------
    ConfigError, DataError, ModelError, NumericsError
        As the chosen way does.
    """
    cases, task = volumes.cases, volumes.task.name
    k = cases_kept(settings, len(cases))
    common: dict[str, Any] = {"seed": seed, "precision": precision, "progress": progress}
    if settings.selection == "random":
        return alternatives.random_cases(cases, k, task=task, seed=seed), None
    if settings.selection in ("kmeans", "herding"):
        features = volume_features(model, volumes, **common)
        passes = len(cases) * BLOCK
        if settings.selection == "kmeans":
            return alternatives.kmeans(cases, features, k, task=task, seed=seed, passes=passes), None
        return alternatives.herding(cases, features, k, task=task, passes=passes), None
    method = "exhaustive" if settings.selection == "highest" else settings.certainty
    rules = Rules(method, settings.delta, settings.tolerance, settings.max_draws)
    scores = score_volumes(model, volumes, k, rules=rules, journal=journal, **common)
    return (alternatives.highest if settings.selection == "highest" else select)(scores, k), scores


def refuse_unscorable(model: FoundationModel, settings: BufferSettings) -> None:
    """Stop before anything is computed where the settings score volumes and the model has no loss to do so.

    Raises
    ------
    ModelError
        If the model has no SSL head, or an objective that is not known.
    """
    if settings.selection in ("mds", "highest"):
        objective_of(model)


def cases_kept(settings: BufferSettings, train_cases: int) -> int:
    """K of a task with that many training cases: `k`, or `share` of them."""
    return min(settings.k, train_cases) if settings.k else buffer_size(train_cases, settings.share)
