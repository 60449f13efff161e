"""One stage on disk: select, train phase by phase, evaluate; every finished part is a file and is not redone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseqft_kit.evaluation.cases import CaseRow, read_cases, summarise, write_cases
from medseqft_kit.evaluation.evaluate import evaluate, mean_dice
from medseqft_kit.lora.peft_format import save_adapter
from medseqft_kit.models.foundation import FoundationModel, frozen_copy, load_foundation, save_foundation
from medseqft_kit.models.precision import Precision
from medseqft_kit.progress import Progress
from medseqft_kit.randomness import derived_seed
from medseqft_kit.runs.atomic import write_json, write_tensors
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.history import Row, read_rows, timed, write_rows
from medseqft_kit.selection.buffer import Buffer, read_buffer, write_buffer, write_scores
from medseqft_kit.selection.choose import choose
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.phases.base import Phase, Stage
from medseqft_kit.tuning.plan import Cases, TaskPlan
from medseqft_kit.tuning.strategies import Strategy
from medseqft_kit.tuning.trainer import Training, train
from medseqft_kit.volumes.augment import Augmentation
from medseqft_kit.volumes.batches import BatchSource
from medseqft_kit.volumes.store import TaskVolumes

Entries = tuple[tuple[TaskVolumes, str], ...]


@dataclass(frozen=True)
class PreparedTask:
    """A task whose volumes are in the store."""

    plan: TaskPlan
    cases: Cases
    volumes: TaskVolumes


@dataclass(frozen=True)
class Context:
    """What all stages of a run share."""

    run: RunFolder
    settings: Settings
    strategy: Strategy
    foundation: FoundationModel
    precision: Precision
    tasks: Mapping[str, PreparedTask]
    progress: Progress


def run_stage(context: Context, index: int) -> None:
    """Bring one stage to its end; what an earlier call finished is read, not repeated."""
    folder = context.run.stage_folder(index)
    folder.mkdir(parents=True, exist_ok=True)
    name = context.run.stages[index]["task"]
    task = context.tasks[name]
    buffer = _buffer(context, index, folder) if context.strategy.selects else ()
    stage = Stage(
        task=name,
        classes=task.plan.task.classes,
        foundation=context.foundation,
        start=_start(context, index),
        seed=derived_seed(context.settings.seed, "stage", name),
        steps=context.settings.budget.steps,
        validate=lambda model: mean_dice(model, task.plan.task, task.volumes, task.cases.validation, context.precision),
    )
    models = _train_phases(context, stage, buffer, folder)
    if not (folder / "metrics.json").is_file():
        with timed(folder / "timing.jsonl", "evaluation"):
            rows = _evaluate(context, index, models, folder)
        write_cases(folder / "cases.csv", rows)
        write_json(folder / "metrics.json", summarise(read_cases(folder / "cases.csv")))
    for leftover in folder.glob("checkpoint_*.safetensors"):
        leftover.unlink()
    context.run.finish_stage(index)


def _start(context: Context, index: int) -> FoundationModel:
    if index == 0 or context.strategy.start == "foundation":
        return context.foundation
    return _placed(context, load_foundation(context.run.stage_folder(index - 1) / "merged.safetensors"))


def _placed(context: Context, model: FoundationModel) -> FoundationModel:
    return frozen_copy(context.precision.place_(model))


def _buffer(context: Context, index: int, folder: Path) -> Entries:
    """The buffer of this stage: chosen with M_0, then joined with the earlier ones if the scope says so."""
    name = context.run.stages[index]["task"]
    if not (folder / "buffer.json").is_file():
        task = context.tasks[name]
        with timed(folder / "timing.jsonl", "selection") as facts:
            buffer, scores = choose(
                context.foundation,
                replace(task.volumes, cases=task.cases.train),
                context.settings.strategy.buffer,
                seed=derived_seed(context.settings.seed, "selection", name),
                precision=context.precision,
                progress=context.progress,
                journal=folder / "draws",
            )
            facts["images"] = buffer.passes
        if scores is not None:
            write_scores(folder / "scores.csv", scores)
        write_buffer(folder / "buffer.json", replace(buffer, task=name))
        shutil.rmtree(folder / "draws", ignore_errors=True)
    joined = range(index + 1) if _joins(context) else range(index, index + 1)
    buffers = [read_buffer(context.run.stage_folder(i) / "buffer.json") for i in joined]
    return tuple(entry for buffer in buffers for entry in _entries(context, buffer))


def _joins(context: Context) -> bool:
    return context.settings.strategy.buffer.scope == "all" and context.strategy.start == "previous"


def _entries(context: Context, buffer: Buffer) -> Entries:
    return tuple((context.tasks[buffer.task].volumes, case) for case in buffer.cases)


def _train_phases(context: Context, stage: Stage, buffer: Entries, folder: Path) -> dict[str, FoundationModel]:
    """Train what is missing; the models by predictor: ``adapted`` and, if a second phase made it, ``merged``."""
    made: dict[str, FoundationModel] = {}
    for phase, predictor in zip(context.strategy.phases, ("adapted", "merged"), strict=False):
        file = folder / f"{predictor}.safetensors"
        if not file.is_file():
            _train_phase(context, phase, stage, buffer, file)
        made[predictor] = _placed(context, load_foundation(file))
        rows = [row for row in read_rows(folder / "history.jsonl") if "validation_dice" in row]
        stage = replace(stage, adapted=made["adapted"], adapted_dice=rows[-1]["validation_dice"])
    if "merged" not in made:
        save_foundation(made["adapted"], folder / "merged.safetensors")
    head = made["adapted"].heads[stage.task]
    write_tensors(folder / "head.safetensors", head.state_dict())
    return made


def _train_phase(context: Context, phase: Phase, stage: Stage, buffer: Entries, file: Path) -> None:
    settings, folder = context.settings, file.parent
    state = phase.begin(stage)
    context.precision.place_(state.model).train()
    sources = _sources(context, phase, stage, buffer)
    training = Training(
        name=phase.name,
        model=state.model,
        losses=lambda batches, step: phase.losses(state, batches),
        sources=sources,
        steps=phase.steps(stage),
        learning_rates=phase.learning_rates(settings.optimizer),
        optimizer=settings.optimizer,
        precision=context.precision,
        checkpoint=folder / f"checkpoint_{phase.name}.safetensors",
        check=lambda step: phase.check(stage, state),
        checks=settings.budget.checks * math.ceil(phase.steps(stage) / stage.steps),
        workers=settings.compute.workers,
        checkpoint_seconds=settings.compute.checkpoint_seconds,
        progress=lambda label, done, total: context.progress(f"{stage.task}: {label}", done, total),
    )
    with timed(folder / "timing.jsonl", "phase", phase=phase.name) as facts:
        rows = train(training)
        finished = phase.finish(stage, state)
        facts["images"] = sum(source.size for source in sources) * sum("total" in row for row in rows)
    rows[-1] |= finished.facts
    _write_history(folder / "history.jsonl", phase.name, rows)
    if finished.adapter is not None:
        save_adapter(finished.adapter, folder / "adapter")
    save_foundation(finished.model, file)


def _sources(context: Context, phase: Phase, stage: Stage, buffer: Entries) -> tuple[BatchSource, ...]:
    settings = context.settings
    task = context.tasks[stage.task]
    augment = settings.augment
    augmentation = Augmentation(flip_axes=augment.flip_axes) if augment.enabled else None
    labelled = tuple((task.volumes, case) for case in task.cases.train)
    patch, size, seed = stage.foundation.spec.patch, settings.budget.batch, settings.seed
    stream = f"{stage.task} {phase.name}"
    sources = [BatchSource(labelled, patch, size, seed, stream, augmentation)]
    if phase.uses_buffer:
        sources.append(BatchSource(buffer, patch, size, seed, f"{stream} buffer", augmentation, labelled=False))
    return tuple(sources)


def _write_history(path: Path, phase: str, rows: list[Row]) -> None:
    others = [row for row in read_rows(path) if row["phase"] != phase]
    write_rows(path, [*others, *rows])


def _evaluate(context: Context, index: int, models: Mapping[str, FoundationModel], folder: Path) -> list[CaseRow]:
    """Own test cases with every predictor, and earlier tasks' with M_t and their own frozen heads."""
    own = context.run.stages[index]["task"]
    common: dict[str, Any] = {
        "seed": context.settings.seed,
        "stage": index + 1,
        "precision": context.precision,
        "progress": context.progress,
    }
    rows: list[CaseRow] = []
    for predictor, model in models.items():
        kept = folder / "predictions" / predictor
        rows += _evaluate_task(context.tasks[own], model, predictor=predictor, predictions=kept, **common)
    if context.strategy.start == "previous":
        latest = models.get("merged", models["adapted"])
        for stage in context.run.stages[:index]:
            rows += _evaluate_task(context.tasks[stage["task"]], latest, predictor="merged", **common)
    return rows


def _evaluate_task(task: PreparedTask, model: FoundationModel, **how: Any) -> list[CaseRow]:
    tolerance = task.plan.nsd_tolerance_mm
    return evaluate(model, task.plan.task, task.volumes, task.cases.test, nsd_tolerance_mm=tolerance, **how)
