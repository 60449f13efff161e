"""What the tables of a run report hold: figures chosen and arranged, nothing computed that `metrics.json` has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseqft_kit.evaluation.continual import backward_transfer, forgetting
from medseqft_kit.report.load import Number, Row, RunRecord, StageRecord


@dataclass(frozen=True)
class TaskResult:
    """The own task of a stage: a line for each label, then their mean (label None), each predictor → figures."""

    predictors: tuple[str, ...]
    lines: tuple[tuple[str | None, Mapping[str, Row]], ...]


@dataclass(frozen=True)
class RetentionCell:
    """An earlier or the own task after a stage: figures, and the change of Dice since the task was learned."""

    figures: Row
    own: bool
    change: float | None


@dataclass(frozen=True)
class TimingRow:
    """All events of one name, with the images that went through the network and what else was noted."""

    event: str
    times: int
    seconds: float
    images: int
    notes: str


def task_result(stage: StageRecord) -> TaskResult | None:
    """Figures of the own task under every predictor; None until evaluated."""
    predictors = stage.metrics.get(stage.task, {})
    if not predictors:
        return None
    labels = dict.fromkeys(label for figures in predictors.values() for label in figures["labels"])
    lines: list[tuple[str | None, Mapping[str, Row]]] = [
        (label, {name: figures["labels"][label] for name, figures in predictors.items() if label in figures["labels"]})
        for label in labels
    ]
    return TaskResult(tuple(predictors), (*lines, (None, predictors)))


def retention(run: RunRecord) -> list[list[RetentionCell | None]]:
    """Stage × task: M_t on every task learned so far; None where a task is not learned yet, or not evaluated.

    M_t is the predictor ``merged``; strategies that do not merge have ``adapted`` alone, which is their M_t.
    """
    learned: dict[str, float] = {}
    matrix = []
    for stage in run.stages:
        line: list[RetentionCell | None] = []
        for task in [other.task for other in run.stages]:
            figures = _of_model(stage.metrics.get(task, {}))
            if figures is None:
                line.append(None)
                continue
            own = task == stage.task
            before = learned.get(task)
            line.append(RetentionCell(figures, own, None if own or before is None else figures["dice"] - before))
            if own:
                learned[task] = figures["dice"]
        matrix.append(line)
    return matrix


def _of_model(predictors: Mapping[str, Row]) -> Row | None:
    return predictors.get("merged", predictors.get("adapted"))


def continual(run: RunRecord) -> dict[str, float]:
    """Backward transfer and forgetting (Dice) where every task learned so far was evaluated; else empty."""
    matrix = np.array([[np.nan if cell is None else cell.figures["dice"] for cell in line] for line in retention(run)])
    size = sum(stage.done for stage in run.stages)
    known = matrix[:size, :size] if size else matrix
    if size < 2 or np.isnan(known[np.tril_indices(size)]).any():
        return {}
    return {"backward transfer": backward_transfer(known), "forgetting": forgetting(known)}


def headline(run: RunRecord) -> str:
    """The result in one sentence."""
    scored = [(stage, figures) for stage in run.stages if (figures := _headline_figures(run, stage)) is not None]
    if not scored:
        return f"No task of {len(run.stages)} is evaluated yet."
    dice = float(np.mean([figures["dice"] for _, figures in scored]))
    missed = sum(int(figures["missed"]) for _, figures in scored)
    done = f"{len(scored)} task{'s' * (len(scored) != 1)}"
    if len(scored) < len(run.stages):
        done = f"{len(scored)} of {len(run.stages)} tasks"
    misses = f"{missed or 'no'} missed structure{'s' * (missed != 1)}"
    text = f"Mean test Dice {dice:.3f} ({run.predictor}) over {done}, {misses}"
    transfer = continual(run).get("backward transfer")
    if transfer is not None:
        text += f"; after the last stage the earlier tasks stand {signed(transfer)} Dice from where they were learned"
    return text + "."


def _headline_figures(run: RunRecord, stage: StageRecord) -> Row | None:
    predictors = stage.metrics.get(stage.task, {})
    return predictors.get(run.predictor, _of_model(predictors))


def timing_rows(rows: Sequence[Row]) -> list[TimingRow]:
    """Events of ``timing.jsonl`` in the order of their first appearance, repeated ones added up."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(" ".join(str(row[key]) for key in ("event", "phase") if key in row), []).append(row)
    return [
        TimingRow(
            event,
            times=len(group),
            seconds=sum(float(row.get("seconds", 0.0)) for row in group),
            images=sum(int(row.get("images", 0)) for row in group),
            notes=", ".join(dict.fromkeys(note for row in group for note in _notes(row))),
        )
        for event, group in grouped.items()
    ]


def _notes(row: Row) -> list[str]:
    known = ("event", "phase", "seconds", "images")
    return [f"{key.replace('_', ' ')} {setting(value)}" for key, value in row.items() if key not in known]


def phase_ends(stage: StageRecord) -> list[str]:
    """For each phase what its last validation found, in a sentence."""
    last = {str(row.get("phase")): row for row in stage.history if "validation_dice" in row}
    sentences = []
    for phase, row in last.items():
        found = [f"{key.replace('_', ' ')} {value:.3g}" for key, value in row.items() if _is_finding(key, value)]
        text = f"{phase} ended after {row['step'] + 1} steps: validation Dice {row['validation_dice']:.3f}"
        sentences.append(", ".join([text, *found]) + ".")
    return sentences


def _is_finding(key: str, value: object) -> bool:
    return isinstance(value, float) and key not in ("validation_dice", "learning_rate")


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of a nested configuration; short lists of plain values are leaves."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for index, inner in enumerate(value):
            yield from flattened(inner, f"{prefix}[{index}]")
    else:
        yield prefix, value


def nsd_heading(run: RunRecord, task: str) -> str:
    """NSD with its tolerance, where the manifest knows it."""
    tolerance = run.manifest.get("tasks", {}).get(task, {}).get("nsd_tolerance_mm")
    return "NSD" if tolerance is None else f"NSD at {tolerance:g} mm"


def config_rows(run: RunRecord) -> list[tuple[str, str, bool]]:
    """Key, value and "differs from the default" for every setting."""
    changed = {key for key, _ in flattened(run.manifest.get("changed", {}))}
    return [(key, setting(value), key in changed) for key, value in flattened(run.manifest.get("config", {}))]


def setting(value: Any) -> str:
    """A setting as a person writes it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(setting(item) for item in value) or "none"
    return str(value) if value != {} else "none"


def number(value: Number | None, digits: int) -> str:
    """A figure with its digits and thousands apart; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}".replace(",", "\u202f")


def duration(seconds: Number | None) -> str:
    """Seconds as a person says them.

    >>> duration(7.25), duration(200), duration(7500)
    ('7.2 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds is None or math.isnan(seconds):
        return "–"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def signed(value: Number) -> str:
    """Three decimals with a sign, and a minus as long as the plus."""
    return f"{value:+.3f}".replace("-", "−")
