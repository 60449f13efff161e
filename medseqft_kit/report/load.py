"""A run folder as plain records. The run may still go on: what is not there yet is None or empty, never an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.cases import COLUMNS, read_cases
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.selection.buffer import Buffer, read_buffer, read_scores

Row = Mapping[str, Any]
Number = float | int
NAMES = ("phase", "event")
"""Keys of history and timing whose values are text."""
T = TypeVar("T")


def no_cases() -> pd.DataFrame:
    """A ``cases.csv`` that is not there yet."""
    return pd.DataFrame(columns=list(COLUMNS))


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run.

    Parameters
    ----------
    number
        Place in the sequence, from 1.
    task
        The task that arrived.
    folder
        ``stages/NN_task``; None where the stage has not begun.
    done
        Whether the manifest says so.
    scores
        Columns case, mean, low, high, draws; None where nothing was scored.
    buffer
        What was chosen by score, or None.
    cases
        One row for each case, label and predictor, own and earlier tasks; empty until evaluated.
    metrics
        task → predictor → averages, as in ``metrics.json``; empty until evaluated.
    history, timing
        Rows of ``history.jsonl`` and ``timing.jsonl``.
    """

    number: int
    task: str
    folder: Path | None
    done: bool
    scores: pd.DataFrame | None = None
    buffer: Buffer | None = None
    cases: pd.DataFrame = field(default_factory=no_cases)
    metrics: Mapping[str, Mapping[str, Row]] = field(default_factory=dict)
    history: tuple[Row, ...] = ()
    timing: tuple[Row, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """A whole run: its manifest, its stages in order, and the pre-training of M_0 where it was made in this folder."""

    folder: Path
    manifest: Row
    stages: tuple[StageRecord, ...]
    pretraining: tuple[Row, ...]
    pretraining_timing: tuple[Row, ...]

    @property
    def strategy(self) -> str:
        """Name of the strategy."""
        return str(self.manifest.get("config", {}).get("strategy", {}).get("name", "unknown strategy"))

    @property
    def predictor(self) -> str:
        """The predictor whose figures make the headline."""
        return str(self.manifest.get("config", {}).get("strategy", {}).get("predictor", "adapted"))


def load_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises
    ------
    RunError
        If the folder holds no manifest, or a file in it cannot be read.
    DataError
        If scores or a buffer cannot be read.
    """
    manifest = RunFolder.open(folder).manifest
    entries = list(manifest.get("stages", []))
    begun = {entry["task"] for entry in entries}
    entries += [{"task": task} for task in manifest.get("tasks", {}) if task not in begun]
    stages = tuple(_stage(folder, number, entry) for number, entry in enumerate(entries, start=1))
    made_here = folder / "pretraining"
    return RunRecord(
        folder,
        manifest,
        stages,
        pretraining=_read_rows(made_here / "pretraining.jsonl", step=int),
        pretraining_timing=_read_rows(made_here / "timing.jsonl", event=str, seconds=float),
    )


def _stage(run: Path, number: int, entry: Row) -> StageRecord:
    task, done, name = str(entry["task"]), bool(entry.get("done", False)), entry.get("folder")
    if not name:
        return StageRecord(number, task, None, done)
    folder = run / "stages" / name
    return StageRecord(
        number,
        task,
        folder,
        done,
        scores=_where_present(folder / "scores.csv", read_scores, None),
        buffer=_where_present(folder / "buffer.json", read_buffer, None),
        cases=_where_present(folder / "cases.csv", read_cases, no_cases()),
        metrics=_where_present(folder / "metrics.json", _read_json, {}),
        history=_read_rows(folder / "history.jsonl", phase=str, step=int),
        timing=_read_rows(folder / "timing.jsonl", event=str, seconds=float),
    )


def _where_present(path: Path, read: Callable[[Path], T], otherwise: T) -> T:
    return read(path) if path.is_file() else otherwise


def _read_rows(path: Path, **kinds: type) -> tuple[Row, ...]:
    """The rows of a JSON-lines file; a last line without its end is still being written and is left out.

    Every row has the keys of `kinds`; all values but names are numbers.
    """
    lines = _text(path).split("\n")[:-1] if path.is_file() else []
    rows = tuple(_parsed(line, f"{path}, line {number},") for number, line in enumerate(lines, start=1))
    for number, row in enumerate(rows, start=1):
        known = all(isinstance(row.get(key), (int, float) if kind is float else kind) for key, kind in kinds.items())
        if not known or not all(isinstance(value, int | float) for key, value in row.items() if key not in NAMES):
            raise RunError(
                f"{path}, line {number}, is not what a run writes.",
                found=str(row)[:200],
                expected=", ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items()) + ", numbers",
            )
    return rows


def _read_json(path: Path) -> Any:
    return _parsed(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise RunError(f"{path} cannot be read.", found=str(problem), expected="text in UTF-8") from problem


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise RunError(f"{where} cannot be read.", found=str(problem), expected="a JSON object") from problem
    if not isinstance(value, dict):
        raise RunError(f"{where} cannot be read.", found=type(value).__name__, expected="a JSON object")
    return value
