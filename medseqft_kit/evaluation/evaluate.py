"""Test cases scored on their own grid, and the quick validation that training watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from medseqft_kit.errors import DataError
from medseqft_kit.evaluation.cases import CaseRow
from medseqft_kit.evaluation.inference import predict_classes, predict_logits
from medseqft_kit.evaluation.metrics import score_case
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.tasks.labels import read_classes
from medseqft_kit.tasks.nifti import write_labels
from medseqft_kit.tasks.types import IGNORE, Task
from medseqft_kit.volumes.store import TaskVolumes
from medseqft_kit.volumes.types import Volume

Classifier = Callable[[Volume], np.ndarray]
"""Class indices (uint8, X × Y × Z) on the grid of the original image; how, is its own affair."""


def evaluate(
    model: FoundationModel | Classifier,
    task: Task,
    volumes: TaskVolumes,
    cases: Sequence[str],
    *,
    predictor: str,
    seed: int,
    stage: int,
    precision: Precision,
    nsd_tolerance_mm: float = 2.0,
    predictions: Path | None = None,
    progress: Progress = silent,
) -> list[CaseRow]:
    """Predict cases and score them against the label files themselves, on the grid of the original images.

    Parameters
    ----------
    model
        With a head named `task.name`; or whatever else classifies a volume, such as a mixture of models.
    volumes
        Where the preprocessed volumes of `cases` are read from.
    predictor, seed, stage
        Copied into every row.
    predictions
        Folder for ``<case>.nii.gz`` with original label values in the original geometry; None writes nothing.

    Returns
    -------
    list of CaseRow
        One for each case and structure that is present or predicted, cases in the given order; none for a structure
        that the case's label was not drawn for.

    Raises
    ------
    DataError
        If a case has no label.
    """
    rows: list[CaseRow] = []
    classify = _classifier(model, task.name, precision)
    label = f"{task.name}: testing the {predictor} model"
    for done, case in enumerate(cases, start=1):
        truth, unknown = read_classes(task, task.case(case))
        volume = volumes.volume(case)
        classes = classify(volume)
        if predictions is not None:
            write_labels(predictions / f"{case}.nii.gz", task.to_values(classes), volume.original.affine)
        scores = score_case(classes, truth, volume.original.spacing, task.structures, nsd_tolerance_mm)
        unjudged = {list(task.structures)[index - 1] for index in unknown}
        judged = (score for score in scores if score.label not in unjudged)
        rows += [CaseRow(seed, stage, task.name, predictor, case, **asdict(score)) for score in judged]
        progress(label, done, len(cases))
    return rows


def _classifier(model: FoundationModel | Classifier, task: str, precision: Precision) -> Classifier:
    if isinstance(model, FoundationModel):
        return lambda volume: predict_classes(model, task, volume, precision)
    return model


def mean_dice(
    model: FoundationModel, task: Task, volumes: TaskVolumes, cases: Iterable[str], precision: Precision
) -> float:
    """Validation Dice on the preprocessed grid: cases averaged within a class, classes last.

    A case counts for the classes that its truth holds. Windows overlap by a quarter, and nothing is resampled back, so
    this is faster than :func:`evaluate` and not comparable with it.

    Raises
    ------
    DataError
        If no case is labelled with any class.
    """
    scores: dict[int, list[float]] = {}
    for case in cases:
        volume = volumes.volume(case)
        classes = predict_logits(model, task.name, volume, precision, overlap=0.25).max(0).indices.numpy()
        truth = np.asarray(volume.label) if volume.label is not None else np.zeros(classes.shape, np.uint8)
        for index, dice in _dice(classes.astype(np.uint8), truth).items():
            scores.setdefault(index, []).append(dice)
    if not scores:
        raise DataError(
            f"no validation case of {task.name} holds any of its structures.",
            found="empty labels",
            expected="at least one labelled structure: " + ", ".join(task.structures),
            next_step="give more validation cases, or set another `split.seed`",
        )
    return float(np.mean([np.mean(of_class) for of_class in scores.values()]))


def _dice(classes: UInt8[np.ndarray, "d h w"], truth: UInt8[np.ndarray, "d h w"]) -> dict[int, float]:
    """Dice of each foreground class that the truth holds, ignored voxels left out."""
    counted = truth != IGNORE
    found, present, both = (
        np.bincount(values, minlength=IGNORE)
        for values in (classes[counted], truth[counted], truth[counted & (classes == truth)])
    )
    return {int(k): float(2 * both[k] / (found[k] + present[k])) for k in np.flatnonzero(present) if k > 0}
