"""Parameter drift and representation similarity along a run, stage by stage, kept in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medseqft_kit.analysis.checkpoints import Checkpoints
from medseqft_kit.analysis.drift import drift
from medseqft_kit.analysis.similarity import gram_matrices, similarity
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import write_text

BATCH = 8
"""Crops in a minibatch of the similarity."""


@dataclass(frozen=True)
class Drift:
    """Tables of a run.

    Parameters
    ----------
    parameters
        stage, task, model, reference, and the columns of :func:`~medseqft_kit.analysis.drift.drift`.
    representations
        stage, task, model, reference, layer, cka: of the same layer in both models.
    folder
        Where both are kept, as ``parameters.csv`` and ``representations.csv``.
    """

    parameters: pd.DataFrame
    representations: pd.DataFrame
    folder: Path


def drift_of_run(run: str | Path, *, crops: int = 32, progress: Progress = silent) -> Drift:
    """How far every M'_t and M_t of a run has moved from M_0 and from M_{t-1}.

    Parameters
    ----------
    crops
        Training crops of each stage's task that the representations are compared on.

    Raises
    ------
    RunError
        If there is no such run, or none of its stages is done.
    """
    checkpoints = Checkpoints.open(run)
    checkpoints.stage(checkpoints.tasks[0] if checkpoints.tasks else "any task")
    parameters: list[pd.DataFrame] = []
    representations: list[pd.DataFrame] = []
    for stage, task in enumerate(checkpoints.tasks, start=1):
        images = [batch.image for batch in checkpoints.crops(task, crops, BATCH, progress)]
        references = list(dict.fromkeys(("M_0", f"M_{stage - 1}")))
        models = {name: checkpoints.model(name) for name in (*references, f"M'_{stage}", f"M_{stage}")}
        grams = {name: gram_matrices(model, images, checkpoints.precision) for name, model in models.items()}
        for reference in references:
            for name in (f"M'_{stage}", f"M_{stage}"):
                moved = drift(models[reference], models[name])
                alike = similarity(grams[reference], grams[name])
                for rows, table in ((moved, parameters), (alike, representations)):
                    table.append(rows.assign(stage=stage, task=task, model=name, reference=reference))
        progress("drift", stage, len(checkpoints.tasks))
    folder = checkpoints.run.path / "analysis" / "drift"
    found = Drift(_table(parameters), _table(representations), folder)
    write_text(folder / "parameters.csv", found.parameters.to_csv(index=False))
    write_text(folder / "representations.csv", found.representations.to_csv(index=False))
    return found


def _table(parts: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(parts, ignore_index=True)
    first = ["stage", "task", "model", "reference"]
    return table[[*first, *(column for column in table if column not in first)]]
