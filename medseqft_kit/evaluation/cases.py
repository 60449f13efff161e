"""`cases.csv`, the ground of every table, and the means computed from it alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from medseqft_kit.errors import RunError
from medseqft_kit.runs.atomic import write_text

MEASURES = ("dice", "hd95_mm", "nsd")
COUNTS = ("missed", "false_positive")


@dataclass(frozen=True)
class CaseRow:
    """One case, label and predictor; `hd95_mm` in mm, `missed` and `false_positive` are 0 or 1."""

    seed: int
    stage: int
    task: str
    predictor: str
    case: str
    label: str
    dice: float
    hd95_mm: float
    nsd: float
    missed: int
    false_positive: int


COLUMNS = tuple(column.name for column in fields(CaseRow))
TYPES = {
    "seed": int,
    "stage": int,
    **dict.fromkeys(MEASURES, float),
    **dict.fromkeys(COUNTS, int),
}


def write_cases(path: Path, rows: Iterable[CaseRow]) -> None:
    """Write rows in the given order, six decimals, so that equal runs give equal bytes."""
    table = pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))
    write_text(path, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def read_cases(path: Path) -> pd.DataFrame:
    """Read a `cases.csv`; ids such as ``001`` and labels such as ``NA`` stay text. Columns in front are kept.

    Raises
    ------
    RunError
        If the file is missing or lacks a column.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return table.astype({column: TYPES.get(column, str) for column in COLUMNS})
    except (OSError, KeyError, ValueError) as problem:
        raise RunError(
            f"{path} cannot be read.",
            found=str(problem),
            expected="a table with the columns " + ", ".join(COLUMNS),
        ) from problem


def summarise(cases: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """Means by task and predictor: cases are averaged within a label, labels within a task.

    Parameters
    ----------
    cases
        What :func:`read_cases` returns. Seeds and stages are not told apart: pass the rows that belong together.

    Returns
    -------
    dict
        Task → predictor → ``dice, hd95_mm, nsd`` (means), ``missed, false_positive`` (counts), ``cases`` (distinct
        cases with a row) and ``labels``: label → the same keys.
    """
    return {
        str(task): {str(predictor): _task(rows) for predictor, rows in of_task.groupby("predictor", sort=False)}
        for task, of_task in cases.groupby("task", sort=False)
    }


def mean_over_tasks(summary: Mapping[str, Mapping[str, Mapping[str, Any]]], predictor: str) -> dict[str, float]:
    """Every task's means averaged with equal weight, its counts added, for the tasks that `predictor` was tried on.

    Raises
    ------
    RunError
        If there is no such task.
    """
    tasks = [predictors[predictor] for predictors in summary.values() if predictor in predictors]
    if not tasks:
        known = sorted({name for predictors in summary.values() for name in predictors})
        raise RunError(
            "no task has results of this predictor.",
            found=predictor,
            expected=", ".join(known) or "none",
        )
    means = {key: sum(task[key] for task in tasks) / len(tasks) for key in MEASURES}
    return {
        **means,
        **{key: sum(task[key] for task in tasks) for key in (*COUNTS, "cases")},
    }


def _task(rows: pd.DataFrame) -> dict[str, Any]:
    labels = {str(label): _label(of_label) for label, of_label in rows.groupby("label", sort=False)}
    means = {key: sum(label[key] for label in labels.values()) / len(labels) for key in MEASURES}
    return {**means, **_counts(rows), "labels": labels}


def _label(rows: pd.DataFrame) -> dict[str, Any]:
    return {**{key: float(rows[key].mean()) for key in MEASURES}, **_counts(rows)}


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    return {
        **{key: int(rows[key].sum()) for key in COUNTS},
        "cases": int(rows["case"].nunique()),
    }
