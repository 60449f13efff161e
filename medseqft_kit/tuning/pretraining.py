"""Making an M_0: masked reconstruction of unlabelled volumes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from medseqft_kit.config import Model, Pretrain
from medseqft_kit.errors import DataError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.objectives.masked import objective_of
from medseqft_kit.progress import Progress, silent
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.runs.history import write_rows
from medseqft_kit.settings import Optimizer, Settings
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.split import patient_of
from medseqft_kit.tasks.types import Case, Task
from medseqft_kit.tuning.trainer import Training, train
from medseqft_kit.volumes.batches import Batch, BatchSource
from medseqft_kit.volumes.preprocess import Preprocessing, resolve
from medseqft_kit.volumes.store import TaskVolumes, prepare


@dataclass(frozen=True)
class Pretraining:
    """What M_0 is made from; `without` names the patients that no pre-training may see (test sides of all tasks)."""

    pretrain: Pretrain
    model: Model
    settings: Settings
    without: frozenset[str] = frozenset()


def pretrain_foundation(plan: Pretraining, folder: Path, progress: Progress = silent) -> FoundationModel:
    """Train a fresh model on unlabelled volumes; `folder` receives its store, checkpoint and `pretraining.jsonl`.

    Raises
    ------
    DataError
        If no image is left, or data sets differ in their number of channels.
    """
    settings = plan.settings
    entries = [entry for path in plan.pretrain.data for entry in _entries(plan, path, folder / "store", progress)]
    channels = {len(volumes.task.channels) for volumes, _ in entries}
    if len(channels) != 1:
        raise DataError(
            "the pre-training data cannot be used together.",
            found=f"{len(entries)} images with {sorted(channels)} channels",
            expected="at least one image, the same number of channels in all",
            next_step="correct `foundation.pretrain.data`",
        )
    model = FoundationModel.build(
        plan.model.architecture, plan.model.size, channels=channels.pop(), patch=plan.model.patch, seed=settings.seed
    )
    precision = resolve_precision(settings.compute.precision, settings.compute.device)
    precision.place_(model).train()
    source = BatchSource(
        tuple(entries), plan.model.patch, plan.pretrain.batch, settings.seed, "pretraining", labelled=False
    )
    objective = objective_of(model)

    def losses(batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        image = batches[0].image
        shape = (image.shape[2], image.shape[3], image.shape[4])
        draws = (numpy_generator(settings.seed, "pretraining mask", step, i) for i in range(len(image)))
        mask = torch.stack([objective.draw_mask(shape, rng) for rng in draws]).to(image.device)
        return {"reconstruction": objective.losses(model, image, mask).mean()}

    rows = train(
        Training(
            name="pretraining",
            model=model,
            losses=losses,
            sources=(source,),
            steps=plan.pretrain.steps,
            learning_rates={"": plan.pretrain.learning_rate},
            optimizer=Optimizer(),
            precision=precision,
            checkpoint=folder / "checkpoint_pretraining.safetensors",
            workers=settings.compute.workers,
            checkpoint_seconds=settings.compute.checkpoint_seconds,
            progress=progress,
        )
    )
    write_rows(folder / "pretraining.jsonl", rows)
    return model.eval()


def _entries(plan: Pretraining, path: Path, store: Path, progress: Progress) -> list[tuple[TaskVolumes, str]]:
    task = load_task(path)
    cases = _kept(task, plan)
    if not cases:
        raise DataError(
            f"{path} holds no image that pre-training may see.",
            found=f"{len(task.cases)} labelled and {len(task.unlabelled)} unlabelled images, all of test patients",
            expected="at least one other image",
            next_step="remove it from `foundation.pretrain.data`",
        )
    unlabelled = _without_labels(task, cases)
    volumes = prepare(
        unlabelled, resolve(Preprocessing(), unlabelled), [case.id for case in cases], store, progress=progress
    )
    return [(volumes, case.id) for case in cases]


def _kept(task: Task, plan: Pretraining) -> list[Case]:
    group = plan.settings.split.group
    allowed = [case for case in (*task.cases, *task.unlabelled) if patient_of(case.id, group) not in plan.without]
    order = numpy_generator(plan.settings.split.seed, "pretraining cases", task.name).permutation(len(allowed))
    return [allowed[i] for i in sorted(order[: plan.pretrain.cases])]


def _without_labels(task: Task, cases: Collection[Case]) -> Task:
    return replace(task, cases=(), unlabelled=tuple(replace(case, label=None) for case in cases))
