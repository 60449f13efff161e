"""What `medseqft import` says of a file: where its tensors went, whose it is, and how its network wants its volumes."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medseqft_kit.models.weights.importing import Imported
from medseqft_kit.models.weights.transfer import Row

COLUMNS = ("matched", "renamed", "adapted", "missing", "mismatched", "unused")


def show_import(imported: Imported) -> None:
    """Print the table of tensors, the family's card and every note."""
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    card, spec, inputs = imported.card, imported.model.spec, imported.card.inputs
    console.print(_counts(imported))
    console.print(_groups(imported))
    network = "".join(f", {name} {value}" for name, value in spec.network.items())
    lines = {
        "family": f"{card.name} ({card.url})",
        "licence": card.licence,
        "network": f"{spec.architecture}, size {spec.size}, {spec.channels} channel(s){network}",
        "pretext": card.pretext,
        "objective": str(spec.objective["name"]),
        "intensities": inputs.intensities,
        "as a task": ", ".join([*_keys(imported)]) or "its preprocessing is not known",
        "patch": " × ".join(map(str, spec.patch)),
    }
    for name, text in lines.items():
        console.print(f"{name:12}{escape(text)}", soft_wrap=True)
    for note in imported.notes:
        console.print(f"- {escape(note)}", soft_wrap=True)


def _keys(imported: Imported) -> list[str]:
    """What a task of the configuration says to be prepared as the weights' training data was."""
    found = {"spacing": imported.card.inputs.spacing, "window": imported.card.inputs.window}
    return [f"{name}: {list(values)}" for name, values in found.items() if values is not None]


def _counts(imported: Imported) -> Table:
    table = Table(title="tensors", title_justify="left")
    table.add_column("part")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for part, counts in imported.transfer.counts().items():
        table.add_row(part, *(str(counts[column]) for column in COLUMNS))
    return table


def _groups(imported: Imported) -> Table:
    """Everything that did not simply arrive, one line for each beginning of names."""
    table = Table(title="what did not simply arrive", title_justify="left")
    for column in ("", "names", "tensors", "why"):
        table.add_column(column)
    groups: dict[tuple[str, str, str], int] = {}
    for row in imported.transfer.of("adapted", "missing", "mismatched", "unused"):
        key = (row.status, _beginning(row), row.note)
        groups[key] = groups.get(key, 0) + 1
    for (status, beginning, note), count in groups.items():
        table.add_row(status, escape(beginning), str(count), escape(note))
    return table


def _beginning(row: Row) -> str:
    name = (row.target or row.source or "").removeprefix("backbone.net.")
    return name if row.status in ("adapted", "mismatched") else f"{name.split('.')[0]}.…"
