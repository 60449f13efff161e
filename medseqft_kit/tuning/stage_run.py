"""One stage on disk: select, train phase by phase, evaluate; every finished part is a file and is not redone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medseqft_kit.evaluation.cases import read_cases, summarise, write_cases
from medseqft_kit.evaluation.evaluate import mean_dice
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.precision import Precision
from medseqft_kit.randomness import derived_seed
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.history import timed
from medseqft_kit.tuning.context import Context
from medseqft_kit.tuning.phases.base import Stage
from medseqft_kit.tuning.sources import PreparedTask, Sources
from medseqft_kit.tuning.stage_evaluation import evaluate_stage
from medseqft_kit.tuning.stage_selection import stage_buffer
from medseqft_kit.tuning.stage_training import train_phases
from medseqft_kit.tuning.strategies import Strategy
from medseqft_kit.tuning.trainer import placed
from medseqft_kit.volumes.batches import Batch


def run_stage(context: Context, index: int) -> None:
    """Bring one stage to its end; what an earlier call finished is read, not repeated."""
    folder = context.run.stage_folder(index)
    if context.ranks.told(not (folder / "metrics.json").is_file()):
        if context.ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
        buffer = stage_buffer(context, index) if context.strategy.selects else ()
        stage = _stage(context, index)
        models = train_phases(context, stage, Sources(context.settings, context.tasks, stage, buffer), index)
        if context.ranks.first:
            _evaluate(context, index, models)
    if context.ranks.first:
        _tidy(folder, context.strategy)
        context.run.finish_stage(index)
    context.ranks.wait()


def _evaluate(context: Context, index: int, models: dict[str, FoundationModel]) -> None:
    """Test the models; the metrics, which come last, say that the stage has all that it needs."""
    folder = context.run.stage_folder(index)
    with timed(folder / "timing.jsonl", "evaluation"):
        rows = evaluate_stage(context, index, models)
    write_cases(folder / "cases.csv", rows)
    write_json(folder / "metrics.json", summarise(read_cases(folder / "cases.csv")))


def _stage(context: Context, index: int) -> Stage:
    name = context.task_of(index)
    in_sequence = context.strategy.start == "previous"
    sought = sorted(context.tasks) if context.strategy.joint else [name]
    seed = derived_seed(context.settings.seed, "stage", "joint" if len(sought) > 1 else name)

    def validate(model: FoundationModel) -> float:
        judged = [task for task in sought if task in model.heads]
        return float(np.mean([_validation_dice(model, context.tasks[task], context.precision) for task in judged]))

    def labelled(count: int) -> Iterator[Batch]:
        source = Sources(context.settings, context.tasks, stage, ()).plain(f"{name} estimates")
        return (placed(source.batch(step), context.precision) for step in range(count))

    stage = Stage(
        task=name,
        classes=context.tasks[name].plan.task.classes,
        tasks={task: prepared.plan.task.classes for task, prepared in context.tasks.items()},
        earlier=tuple(stage["task"] for stage in context.run.stages[:index]) if in_sequence else (),
        foundation=context.foundation,
        start=_start(context, index),
        seed=seed,
        steps=context.strategy.steps(context.settings.budget),
        validate=validate,
        labelled=labelled,
        before=lambda: [context.load(file) for file in context.earlier_models(index)],
    )
    return stage


def _validation_dice(model: FoundationModel, task: PreparedTask, precision: Precision) -> float:
    return mean_dice(model, task.plan.task, task.volumes, task.cases.validation, precision)


def _start(context: Context, index: int) -> FoundationModel:
    if context.strategy.start == "scratch":
        fresh = FoundationModel.of_spec(context.foundation.spec, derived_seed(context.settings.seed, "scratch"))
        return frozen_copy(context.precision.place_(fresh))
    if index == 0 or context.strategy.start == "foundation":
        return context.foundation
    return context.load(context.run.stage_folder(index - 1) / "merged.safetensors")


def _tidy(folder: Path, strategy: Strategy) -> None:
    """Remove what only an interrupted stage needs."""
    shutil.rmtree(folder / "draws", ignore_errors=True)
    passing = [f"{phase.name}.safetensors" for phase in strategy.adapting[:-1]]
    for leftover in (*folder.glob("checkpoint_*.safetensors"), *folder.glob("record_*.json")):
        leftover.unlink()
    for name in passing:
        (folder / name).unlink(missing_ok=True)
