"""The test scores of a stage: computed, or taken from another run that has the same model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from medseqft_kit.evaluation.agreement import predict_logits_merged
from medseqft_kit.evaluation.cases import CaseRow
from medseqft_kit.evaluation.evaluate import Classifier, evaluate
from medseqft_kit.evaluation.inference import predict_logits
from medseqft_kit.evaluation.options import PredictionOptions
from medseqft_kit.evaluation.segment import segment
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.tasks.types import Task
from medseqft_kit.tuning.context import Context
from medseqft_kit.tuning.ingredients import Ingredients, of_evaluation, tensors_hash
from medseqft_kit.tuning.sources import PreparedTask
from medseqft_kit.volumes.types import Volume


def evaluate_stage(context: Context, index: int, models: Mapping[str, FoundationModel]) -> list[CaseRow]:
    """Own test cases with every predictor, and earlier tasks' with M_t and their own frozen heads."""
    own, folder = context.task_of(index), context.run.stage_folder(index)
    tried = [(own, predictor, model) for predictor, model in models.items()]
    if context.settings.strategy.predictor == "agreement" and context.strategy.start != "scratch":
        tried.append((own, "agreement", models["adapted"]))
    if context.strategy.start == "previous":
        latest = models.get("merged", models["adapted"])
        tried += [(stage["task"], "merged", latest) for stage in context.run.stages[:index]]
    common: dict[str, Any] = {"seed": context.settings.seed, "stage": index + 1}
    rows: list[CaseRow] = []
    for task, predictor, model in tried:
        scores = _scores(context, context.tasks[task], predictor, model, folder, keep=task == own)
        rows += [CaseRow(**{**score, **common}) for score in scores]
    return rows


def _scores(
    context: Context, task: PreparedTask, predictor: str, model: FoundationModel, folder: Path, *, keep: bool
) -> list[Mapping[str, Any]]:
    """Scores by case and label of one model on one task; `keep` writes its predictions too."""
    name = task.plan.task.name
    record, kept = folder / f"record_{name}_{predictor}.json", folder / "predictions" / predictor

    def make() -> list[str]:
        rows = evaluate(
            _classifier(context, task.plan.task, predictor, model),
            task.plan.task,
            task.volumes,
            task.cases.test,
            predictor=predictor,
            seed=context.settings.seed,
            stage=0,
            precision=context.precision,
            nsd_tolerance_mm=task.plan.nsd_tolerance_mm,
            predictions=kept if keep else None,
            progress=context.progress,
        )
        write_json(record, {"rows": [asdict(row) for row in rows]})
        return [record.name, *(f"predictions/{predictor}/{case}.nii.gz" for case in task.cases.test if keep)]

    def ingredients() -> Ingredients:
        made_of = [model, *([context.foundation] if predictor == "agreement" else [])]
        weights = [tensors_hash(each.state_dict()) for each in made_of]
        return {**of_evaluation(weights, task, predictor, context.settings), "kept": keep}

    if not record.is_file():
        context.take_or_make(ingredients, folder, record, make)
    return json.loads(record.read_text(encoding="utf-8"))["rows"]


def _classifier(context: Context, task: Task, predictor: str, model: FoundationModel) -> Classifier:
    """How a predictor segments a test case, with the run's options; `agreement` mixes M_0 and M'_t for each case."""
    options = PredictionOptions(**context.settings.predict.model_dump()).of(task)

    def logits(volume: Volume) -> Tensor:
        if predictor == "agreement":
            return predict_logits_merged(context.foundation, model, task.name, volume, context.precision)
        return predict_logits(model, task.name, volume, context.precision)

    return lambda volume: segment([logits], volume, task, options).classes
