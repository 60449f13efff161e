"""What a sequence kept, lost and gained, read from the transfer matrix R.

R[i, j] is the test Dice on task j of the backbone after stage i. For j ≤ i the head is the one frozen after stage j;
for j > i it is a fresh one probed on task j, and no function here reads those entries (they may be NaN).
Definitions after Lopez-Paz & Ranzato (arXiv 1706.08840) and Chaudhry et al. (arXiv 1801.10112).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from medseqft_kit.errors import RunError

Matrix = Float[np.ndarray, "stages tasks"]


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
