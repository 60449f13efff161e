"""Making an M_0: self-supervised training on unlabelled volumes, of a whole model or of an SSL head for weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from medseqft_kit.config import Model, Pretrain
from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.models.foundation import FoundationModel, with_objective
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.models.recompute import recompute_
from medseqft_kit.objectives.base import Objective, crops_of, stacked
from medseqft_kit.objectives.registry import objective_of, specification
from medseqft_kit.progress import Progress, silent
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.runs.history import write_rows
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.settings import Optimizer, Settings
from medseqft_kit.tasks.layouts import detect_task
from medseqft_kit.tasks.split import grouping, patient_of
from medseqft_kit.tasks.types import Case, Task
from medseqft_kit.tuning.sources import Entries
from medseqft_kit.tuning.tracking import tracking, untracked
from medseqft_kit.tuning.trainer import Training, train
from medseqft_kit.volumes.batches import Batch, BatchSource
from medseqft_kit.volumes.intensity import SCALE
from medseqft_kit.volumes.preprocess import Preprocessing, resolve
from medseqft_kit.volumes.store import TaskVolumes, prepare


@dataclass(frozen=True)
class Pretraining:
    """What M_0 is made from; `without` names the patients that no pre-training may see (test sides of all tasks).

    `start` is a model without an SSL head: it gets one, and that is trained alone, with the parts of the backbone that
    did not come with the weights.
    """

    pretrain: Pretrain
    model: Model
    settings: Settings
    without: frozenset[str] = frozenset()
    start: FoundationModel | None = None


def pretrain_foundation(plan: Pretraining, folder: Path, progress: Progress = silent) -> FoundationModel:
    """Train a fresh model on unlabelled volumes; `folder` receives its store, checkpoint and `pretraining.jsonl`.

    Raises
    ------
    DataError
        If no image is left, data sets differ in their number of channels, or `plan.start` reads another number.
    ConfigError
        If the objective's loss is defined over blocks of draws of one volume, or `plan.start` has an SSL head.
    """
    settings = plan.settings
    scale = SCALE if plan.start is None else plan.start.spec.scale
    entries = pretraining_images(plan, folder, scale, progress)
    channels = {len(volumes.task.channels) for volumes, _ in entries}
    if len(channels) != 1:
        raise DataError(
            "the pre-training data cannot be used together.",
            found=f"{len(entries)} images with {sorted(channels)} channels",
            expected="at least one image, the same number of channels in all",
            next_step="correct `foundation.pretrain.data`",
        )
    model = _beginning(plan, channels.pop())
    ranks, precision = Ranks.here(), resolve_precision(settings.compute.precision, settings.compute.device)
    precision = replace(precision, device=ranks.device(precision.device))
    precision.place_(model).train()
    if settings.compute.recompute:
        recompute_(model.backbone)
    objective = _trainable(objective_of(model))
    region = objective.region(model.spec.patch)
    source = BatchSource(entries, region, plan.pretrain.batch, settings.seed, "pretraining", labelled=False)

    def losses(batches: Sequence[Batch], number: int) -> dict[str, Tensor]:
        image = batches[0].image
        draws = (numpy_generator(settings.seed, "pretraining mask", number, i) for i in range(len(image)))
        pretext = stacked([objective.draw(region, rng) for rng in draws])
        pretext = {name: value.to(image.device) for name, value in pretext.items()}
        return {"reconstruction": objective.losses(model, crops_of(image, pretext), pretext).mean()}

    trained = train(
        Training(
            name="pretraining",
            model=model,
            losses=losses,
            sources=(source,),
            steps=plan.pretrain.steps,
            learning_rates={"": plan.pretrain.learning_rate},
            optimizer=Optimizer(),
            precision=precision,
            batches=settings.budget.batches,
            ranks=ranks,
            checkpoint=folder / "checkpoint_pretraining.safetensors",
            workers=settings.compute.workers,
            checkpoint_seconds=settings.compute.checkpoint_seconds,
            progress=progress,
            tracking=tracking(settings.compute.tracker, folder / "tensorboard", "pretraining")
            if ranks.first
            else untracked,
        )
    )
    if ranks.first:
        write_rows(folder / "pretraining.jsonl", trained.history)
    return model.eval().requires_grad_(True)


def _beginning(plan: Pretraining, channels: int) -> FoundationModel:
    """The model before the first step; what is not to be trained requires no gradient."""
    objective, seed, start = specification(plan.pretrain.objective), plan.settings.seed, plan.start
    if start is None:
        build, network = FoundationModel.build, plan.model
        return build(
            network.architecture, network.size, channels=channels, patch=network.patch, seed=seed, objective=objective
        )
    if start.spec.objective["name"] != "none":
        raise ConfigError(
            "the weights bring an SSL head, and another would score volumes by another loss.",
            found=f"the objective {start.spec.objective['name']}, and `foundation.pretrain` beside the weights",
            expected="one of the two, or weights without a head",
            next_step="remove `foundation.pretrain`",
        )
    if start.spec.channels != channels:
        raise DataError(
            "the pre-training data has another number of channels than the weights read.",
            found=f"{channels}",
            expected=f"{start.spec.channels}",
            next_step="correct `foundation.pretrain.data`",
        )
    model = with_objective(start, objective, seed)
    trained = ("ssl_head.", *map(str, start.spec.origin.get("fresh", ())))  # type: ignore[call-overload]  # a list
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    return model


def _trainable(objective: Objective) -> Objective:
    if objective.joint:
        raise ConfigError(
            f"pre-training with the objective {objective.name} is not offered.",
            found="a loss over the 8 draws of a block of one volume",
            expected="an objective whose crops have losses of their own: a batch here is one crop of each image",
            next_step="set `foundation.pretrain.objective`, or start from weights that were pre-trained so",
        )
    return objective


def pretraining_images(
    plan: Pretraining, folder: Path, scale: tuple[float, float], progress: Progress = silent
) -> Entries:
    """Every image that the pre-training sees, prepared in the store of `folder` at the model's scale."""
    grid, store = Preprocessing(scale=scale), folder / "store"
    return tuple(entry for path in plan.pretrain.data for entry in _entries(plan, path, grid, store, progress))


def _entries(
    plan: Pretraining, path: Path, grid: Preprocessing, store: Path, progress: Progress
) -> list[tuple[TaskVolumes, str]]:
    task = detect_task(path)
    cases = _kept(task, plan)
    if not cases:
        raise DataError(
            f"{path} holds no image that pre-training may see.",
            found=f"{len(task.cases)} labelled and {len(task.unlabelled)} unlabelled images, all of test patients",
            expected="at least one other image",
            next_step="remove it from `foundation.pretrain.data`",
        )
    unlabelled = _without_labels(task, cases)
    volumes = prepare(unlabelled, resolve(grid, unlabelled), [case.id for case in cases], store, progress=progress)
    return [(volumes, case.id) for case in cases]


def _kept(task: Task, plan: Pretraining) -> list[Case]:
    group = grouping(task.patients, plan.settings.split.group)
    images = (*task.cases, *task.unlabelled)
    allowed = [case for case in images if not {case.id, patient_of(case.id, group)} & plan.without]
    order = numpy_generator(plan.settings.split.seed, "pretraining cases", task.name).permutation(len(allowed))
    return [allowed[i] for i in sorted(order[: plan.pretrain.cases])]


def _without_labels(task: Task, cases: Collection[Case]) -> Task:
    return replace(task, cases=(), unlabelled=tuple(replace(case, label=None) for case in cases))
