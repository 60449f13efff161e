"""Results as Rich tables."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medseqft_kit.evaluation.cases import summarise


def show_cases(cases: pd.DataFrame) -> None:
    """One line for each stage, task and predictor; a task that appears in several stages shows before and after."""
    table = _table("stage", "task", "predictor", title="test cases")
    for column in ("Dice", "HD95 mm", "NSD", "missed", "false positive", "cases"):
        table.add_column(column, justify="right")
    for stage, of_stage in cases.groupby("stage", sort=True):
        for task, predictors in summarise(of_stage).items():
            for predictor, figures in predictors.items():
                table.add_row(str(stage), escape(task), predictor, *_figures(figures))
    _print(table)


def show_comparison(rows: Any) -> None:
    """The headline of a comparison: Dice with its interval, HD95 with its misses, and what it cost."""
    table = _table("task", "strategy", "predictor", title="test cases, means over seeds")
    for column in ("Dice", "95 % interval", "HD95 mm", "NSD", "missed", "false pos.", "cases × seeds", "seconds"):
        table.add_column(column, justify="right")
    for task, of_task in rows.groupby("task", sort=False):
        for row in of_task.to_dict("records"):
            table.add_row(
                escape(str(task)),
                row["strategy"],
                row["predictor"],
                f"{row['dice']:.3f}",
                f"{row['dice_low']:.3f} … {row['dice_high']:.3f}",
                f"{row['hd95_mm']:.1f}",
                f"{row['nsd']:.3f}",
                str(int(row["missed"])),
                str(int(row["false_positive"])),
                f"{int(row['cases'])} × {row['seeds']}",
                f"{row['seconds']:.0f}",
            )
        table.add_section()
    _print(table)


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _figures(figures: dict[str, Any]) -> list[str]:
    means = [f"{figures[key]:.{places}f}" for key, places in (("dice", 3), ("hd95_mm", 1), ("nsd", 3))]
    return [*means, *(str(figures[key]) for key in ("missed", "false_positive", "cases"))]


def _print(table: Table) -> None:
    # A log has no width of its own, and Rich's eighty columns would cut every number.
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
