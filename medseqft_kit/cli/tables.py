"""Results as Rich tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medseqft_kit.evaluation.cases import summarise
from medseqft_kit.runs.ranks import Ranks

if TYPE_CHECKING:
    from medseqft_kit.tuning.run import Run

SCOPES = {"mean": "all tasks", "later": "after the first"}


def show_run(run: Run) -> None:
    """The test cases of a run, and where its report is; said once, by the first of several processes."""
    if Ranks.here().first:
        show_cases(run.cases())
        print(f"report: {run.report()}")


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
    table = _table("task", "strategy", title="test cases, means over seeds and orders")
    for column in ("Dice", "95 % interval", "HD95 mm", "missed", "cases × seeds", "images seen", "seconds", "peak GiB"):
        table.add_column(column, justify="right")
    for task, of_task in rows.groupby("task", sort=False):
        for row in of_task.to_dict("records"):
            table.add_row(
                SCOPES.get(str(task), escape(str(task))),
                escape(row["strategy"]),
                f"{row['dice']:.3f}",
                f"{row['dice_low']:.3f} … {row['dice_high']:.3f}",
                f"{row['hd95_mm']:.1f}",
                str(int(row["missed"])),
                f"{int(row['cases'])} × {row['seeds']}",
                f"{int(row['images_seen'])}",
                f"{row['seconds']:.0f}",
                f"{row['peak_gib']:.2f}",
            )
        table.add_section()
    _print(table)


def show_gains(rows: pd.DataFrame) -> None:
    """Differences of Dice over all tasks and over those after the first, in points, with interval and test."""
    if rows.empty:
        return
    table = _table("strategy", "versus", "tasks", title="Dice points gained, the same cases and seeds")
    for column in ("gain", "95 % interval", "± over seeds", "p (Holm)", "HD95 mm", "seeds it takes"):
        table.add_column(column, justify="right")
    for row in rows[rows["task"].isin(["mean", "later"])].to_dict("records"):
        table.add_row(
            escape(row["strategy"]),
            escape(row["versus"]),
            SCOPES[row["task"]],
            f"{100 * row['gain']:+.1f}",
            f"{100 * row['low']:+.1f} … {100 * row['high']:+.1f}",
            _known(100 * row["margin"], ".1f"),
            _known(row["p_holm"], ".3f"),
            f"{row['hd95_gain_mm']:+.1f}",
            _known(row["seeds_needed"], ".0f"),
        )
    _print(table)


def show_transfer(rows: pd.DataFrame) -> None:
    """Unseen tasks: Dice, and points gained over M_0."""
    if rows.empty:
        return
    table = _table("unseen task", "labelled cases", "model", title="unseen tasks, Dice points gained over M_0")
    for column in ("Dice", "gain", "95 % interval", "p"):
        table.add_column(column, justify="right")
    for row in rows.to_dict("records"):
        known = row["strategy"] != "foundation"
        table.add_row(
            escape(row["task"]),
            str(row["budget"]),
            escape(f"{row['strategy']}, {row['stage']} tasks" if row["stage"] else row["strategy"]),
            f"{row['dice']:.3f}",
            f"{100 * row['gain']:+.1f}" if known else "–",
            f"{100 * row['low']:+.1f} … {100 * row['high']:+.1f}" if known else "–",
            _known(row["p"], ".3f") if known else "–",
        )
    _print(table)


def _known(value: float | None, how: str) -> str:
    return "–" if value is None or math.isnan(value) else format(value, how)


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
