"""Rows of JSON: losses (`history.jsonl`, repeatable) and durations (`timing.jsonl`, not)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medseqft_kit.runs.atomic import room_for, write_text

Row = dict[str, Any]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; none if it does not exist."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row at the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with room_for(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def note(path: Path, row: Mapping[str, Any], *same: str) -> None:
    """Append a row unless the file has one with the same values of `same`: a step that is repeated is noted once."""
    if not any(all(known.get(name) == row.get(name) for name in same) for known in read_rows(path)):
        append_row(path, row)


@contextmanager
def timed(path: Path, event: str, **facts: Any) -> Iterator[Row]:
    """Append the row of :func:`measured`."""
    with measured(event, **facts) as row:
        yield row
    append_row(path, row)


@contextmanager
def measured(event: str, **facts: Any) -> Iterator[Row]:
    """A row that has the seconds of the block once it has ended; the block may add facts to it."""
    row: Row = {"event": event, **facts}
    start = time.perf_counter()
    yield row
    row["seconds"] = round(time.perf_counter() - start, 3)
