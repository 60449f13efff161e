"""A check's findings as a table for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from medseqft_kit.tasks.findings import CheckReport

COLOURS = {"error": "red", "warning": "yellow"}


def findings_table(report: CheckReport) -> Table:
    """One row for each finding, errors first; texts are shown literally, never as markup."""
    table = Table(title=Text(report.summary), title_justify="left", show_lines=True)
    for heading in ("severity", "case and file", "problem", "found", "expected", "next step"):
        table.add_column(heading, overflow="fold")
    for found in (*report.errors, *report.warnings):
        table.add_row(
            Text(found.severity, style=COLOURS[found.severity]),
            Text(f"{found.case}\n{found.file}" if found.case else found.file),
            *(Text(cell) for cell in (found.problem, found.found, found.expected, found.next_step)),
        )
    return table
