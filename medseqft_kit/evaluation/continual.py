"""What a sequence kept, lost and gained, read from the transfer matrix R.

R[i, j] is the test Dice on task j of the backbone after stage i. For j ≤ i the head is the one frozen after stage j;
for j > i it is a fresh one probed on task j, and no metric here reads those entries (they may be NaN).
Definitions after Lopez-Paz & Ranzato (arXiv 1706.08840) and Chaudhry et al. (arXiv 1801.10112).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.cases import summarise

Matrix = Float[np.ndarray, "stages tasks"]


def transfer_matrix(cases: pd.DataFrame, order: Sequence[str]) -> Matrix:
    """R of one run from its rows of cases.

    On and below the diagonal R[i, j] reads the predictor ``merged``, the backbone M_i with the head frozen after stage
    j. This holds for the diagonal too: backward transfer compares R[n, j] with R[j, j], and M'_j in its place would
    count what stage 2 loses as forgetting. A strategy without a consolidation has M_j = M'_j, so a diagonal without
    ``merged`` reads ``adapted``. Above the diagonal it reads ``probe``.

    Parameters
    ----------
    cases
        The columns of ``cases.csv`` for all stages of one run; `stage` counts from 1, other tasks' rows are ignored.
    order
        Task names in the order of arrival: n of them.

    Returns
    -------
    (n stages, n tasks), Dice: cases averaged within a label, labels within a task, as
    :func:`medseqft_kit.evaluation.cases.summarise` does. NaN where a row is missing.

    Raises
    ------
    RunError
        If there is more than one seed, which is more than one run, or `order` names a task twice.
    """
    if cases["seed"].nunique() > 1 or len(set(order)) < len(order):
        raise RunError(
            "a transfer matrix belongs to one run.",
            found=f"seeds {', '.join(map(str, cases['seed'].unique()))}; tasks {', '.join(order)}",
            expected="one seed, and each task once",
        )
    stages = {int(str(stage)): summarise(rows) for stage, rows in cases.groupby("stage")}
    matrix = np.full((len(order), len(order)), np.nan)
    for i, j in np.ndindex(*matrix.shape):
        found = stages.get(i + 1, {}).get(order[j], {})
        predictors = ("probe",) if i < j else ("merged", "adapted") if i == j else ("merged",)
        matrix[i, j] = next((found[name]["dice"] for name in predictors if name in found), np.nan)
    return matrix


def backward_transfer(matrix: Matrix) -> float:
    """Mean over all tasks but the last of R[n, j] − R[j, j]: negative where later tasks hurt earlier ones.

    >>> backward_transfer(np.array([[0.8, np.nan], [0.7, 0.9]])).__round__(6)
    -0.1
    """
    _check(matrix, at_least=2)
    return float(np.mean(matrix[-1, :-1] - np.diagonal(matrix)[:-1]))


def forgetting(matrix: Matrix) -> float:
    """Mean over all tasks but the last of max over i ≥ j of R[i, j], minus R[n, j]: never negative.

    >>> forgetting(np.array([[0.8, np.nan], [0.7, 0.9]])).__round__(6)
    0.1
    """
    _check(matrix, at_least=2)
    return float(np.mean([matrix[j:, j].max() - matrix[-1, j] for j in range(len(matrix) - 1)]))


def forward_transfer(matrix: Matrix, parallel: Float[np.ndarray, " alone"]) -> float:
    """Mean of R[j, j] − parallel_j, where parallel_j is the Dice of task j fine-tuned alone from M_0.

    >>> forward_transfer(np.array([[0.8, np.nan], [0.7, 0.9]]), np.array([0.8, 0.8])).__round__(6)
    0.05
    """
    _check(matrix, at_least=1)
    if len(parallel) != len(matrix):
        raise RunError(
            "a parallel result is needed for each task.",
            found=f"{len(parallel)}",
            expected=f"{len(matrix)}",
        )
    return float(np.mean(np.diagonal(matrix) - parallel))


def replay_burden(stored_bytes: int, seen_bytes: int) -> float:
    """Bytes of stored images over bytes of all images seen: 0 without a memory, 1 if every image is kept.

    Raises
    ------
    RunError
        If no image was seen, or more are stored than were.

    >>> replay_burden(stored_bytes=50, seen_bytes=200)
    0.25
    """
    if not 0 <= stored_bytes <= seen_bytes or seen_bytes == 0:
        raise RunError(
            "the images stored must be among those seen.",
            found=f"{stored_bytes} bytes stored, {seen_bytes} bytes seen",
            expected="0 ≤ stored ≤ seen, and something seen",
        )
    return stored_bytes / seen_bytes


def _check(matrix: Matrix, at_least: int) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < at_least:
        raise RunError(
            "this metric needs one row and one column for each task.",
            found=f"a matrix of shape {matrix.shape}",
            expected=f"a square matrix of {at_least} tasks or more",
        )
    if np.isnan(matrix[np.tril_indices(len(matrix))]).any():
        raise RunError(
            "a result of an earlier task is missing.",
            found="NaN on or below the diagonal",
        )
