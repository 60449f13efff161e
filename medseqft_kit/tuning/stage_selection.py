"""The buffer of a stage: chosen, read, or taken from another run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medseqft_kit.randomness import derived_seed
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.history import measured, note
from medseqft_kit.selection.buffer import Buffer, read_buffer, write_buffer, write_scores
from medseqft_kit.selection.choose import choose
from medseqft_kit.tuning.context import Context
from medseqft_kit.tuning.ingredients import of_selection, tensors_hash
from medseqft_kit.tuning.sources import Entries, PreparedTask

RECORD = "record_selection.json"


def stage_buffer(context: Context, index: int) -> Entries:
    """The buffer of this stage: chosen with M_0, then joined with the earlier ones if the scope says so."""
    folder = context.run.stage_folder(index)
    if context.ranks.told(not (folder / RECORD).is_file()):
        if context.ranks.first:
            _select_once(context, index, folder)
        else:
            _chosen(context, context.tasks[context.task_of(index)], None)
        context.ranks.wait()
    if context.ranks.first:
        note(folder / "timing.jsonl", json.loads((folder / RECORD).read_text(encoding="utf-8")), "event")
    joined = range(index + 1) if _joins(context) else range(index, index + 1)
    buffers = [read_buffer(context.run.stage_folder(i) / "buffer.json") for i in joined]
    return tuple(entry for buffer in buffers for entry in _entries(context, buffer))


def _select_once(context: Context, index: int, folder: Path) -> None:
    task = context.tasks[context.task_of(index)]
    context.take_or_make(
        lambda: of_selection(tensors_hash(context.foundation.state_dict()), task, context.settings),
        folder,
        folder / RECORD,
        lambda: _select(context, task, folder),
    )


def _chosen(context: Context, task: PreparedTask, journal: Path | None) -> tuple[Buffer, pd.DataFrame | None]:
    return choose(
        context.foundation,
        replace(task.volumes, cases=task.cases.train),
        context.settings.strategy.buffer,
        seed=derived_seed(context.settings.seed, "selection", task.plan.task.name),
        precision=context.precision,
        progress=context.progress,
        journal=journal,
    )


def _select(context: Context, task: PreparedTask, folder: Path) -> list[str]:
    made = ["buffer.json", RECORD]
    with measured("selection") as timing:
        buffer, scores = _chosen(context, task, folder / "draws")
        timing["images"] = buffer.passes
    if scores is not None:
        write_scores(folder / "scores.csv", scores)
        made.append("scores.csv")
    write_buffer(folder / "buffer.json", replace(buffer, task=task.plan.task.name))
    write_json(folder / RECORD, timing)
    return made


def _joins(context: Context) -> bool:
    return context.settings.strategy.buffer.scope == "all" and context.strategy.start == "previous"


def _entries(context: Context, buffer: Buffer) -> Entries:
    return tuple((context.tasks[buffer.task].volumes, case) for case in buffer.cases)
