"""The phases of a stage: each trained, read, or taken from another run of the comparison."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from medseqft_kit.errors import ConfigError
from medseqft_kit.lora.peft_format import save_adapter
from medseqft_kit.models.foundation import FoundationModel, save_foundation
from medseqft_kit.models.recompute import recompute_
from medseqft_kit.runs.atomic import read_tensors, write_json, write_tensors
from medseqft_kit.runs.history import Row, measured, note, read_rows, write_rows
from medseqft_kit.tuning.context import Context
from medseqft_kit.tuning.ingredients import Ingredients, of_phase, tensors_hash
from medseqft_kit.tuning.phases.base import NOTHING, Finished, Phase, Stage
from medseqft_kit.tuning.sources import Sources
from medseqft_kit.tuning.tracking import Tracking, tracking, untracked
from medseqft_kit.tuning.trainer import Trained, Training, train
from medseqft_kit.volumes.batches import Source


def train_phases(context: Context, stage: Stage, sources: Sources, index: int) -> dict[str, FoundationModel]:
    """Train what is missing; the models by predictor: ``adapted`` and, if a consolidation made it, ``merged``."""
    folder, origin = context.run.stage_folder(index), stage.start
    for phase in context.strategy.adapting:
        last = phase is context.strategy.adapting[-1]
        file = folder / ("adapted.safetensors" if last else f"{phase.name}.safetensors")
        model, dice = _phase(context, phase, stage, sources, index, file)
        stage = replace(stage, start=model)
    made = {"adapted": model}
    if context.ranks.first:
        write_tensors(folder / "head.safetensors", model.heads[stage.task].state_dict())
    if context.strategy.consolidation is None:
        if context.ranks.first:
            save_foundation(model, folder / "merged.safetensors")
        return made
    stage = replace(stage, start=origin, adapted=model, adapted_dice=dice)
    merged = folder / "merged.safetensors"
    made["merged"], _ = _phase(context, context.strategy.consolidation, stage, sources, index, merged)
    return made


def _phase(
    context: Context, phase: Phase, stage: Stage, sources: Sources, index: int, file: Path
) -> tuple[FoundationModel, float]:
    """The model of a phase, trained or taken or read, and its last validation Dice."""
    folder, record = file.parent, _record(file.parent, phase)
    source: dict[str, bool] = {}
    if context.ranks.told(not record.is_file()):
        stage = replace(stage, memory=_memory(context, phase, index))
        crops = replace(sources, stage=stage).of(phase)
        if context.ranks.first:
            source["reused"] = _train_once(context, phase, stage, crops, index, file)
        else:
            _trained(context, phase, stage, crops, folder)
        context.ranks.wait()
    history, timing = _read_record(record)
    if context.ranks.first:
        _write_history(folder / "history.jsonl", phase.name, history)
        note(folder / "timing.jsonl", {**timing, **source}, "event", "phase")
    return context.load(file), [row for row in history if "validation_dice" in row][-1]["validation_dice"]


def _train_once(
    context: Context, phase: Phase, stage: Stage, sources: tuple[Source, ...], index: int, file: Path
) -> bool:
    """Put the phase's files into the stage's folder, trained now or by another run that shares them: whether so."""
    folder, record = file.parent, _record(file.parent, phase)
    earlier = context.earlier_models(index) if phase is context.strategy.consolidation else []

    def ingredients() -> Ingredients:
        before = [tensors_hash(read_tensors(path)) for path in earlier]
        return of_phase(phase, stage, sources, context.settings, before, file.name)

    reused = context.take_or_make(ingredients, folder, record, lambda: _train(context, phase, stage, sources, file))
    if reused:
        with _tracking(context, phase, folder)(0) as track:
            track(_read_record(record)[0])
    return reused


def _memory(context: Context, phase: Phase, index: int) -> Mapping[str, Tensor]:
    """What the phase left at the end of the previous stage."""
    if index == 0 or context.strategy.start != "previous":
        return NOTHING
    file = context.run.stage_folder(index - 1) / f"memory_{phase.name}.safetensors"
    return read_tensors(file) if file.is_file() else NOTHING


def _train(context: Context, phase: Phase, stage: Stage, sources: tuple[Source, ...], file: Path) -> list[str]:
    """Train one phase; names of the files that it made beside `file`."""
    folder, batches = file.parent, context.settings.budget.batches
    with measured("phase", phase=phase.name) as timing:
        trained, finished = _trained(context, phase, stage, sources, folder)
        rows = trained.history
        timing["images"] = batches * sum(source.size for source in sources) * sum("total" in row for row in rows)
        timing["waited"] = round(trained.waited, 3)
        timing["peak_bytes"] = _peak_bytes(context.precision.device)
    rows[-1] |= finished.facts
    made = [file.name, _record(folder, phase).name]
    if finished.memory:
        write_tensors(folder / f"memory_{phase.name}.safetensors", finished.memory)
        made.append(f"memory_{phase.name}.safetensors")
    if finished.adapter is not None:
        save_adapter(finished.adapter, folder / "adapter")
        made += [path.relative_to(folder).as_posix() for path in sorted((folder / "adapter").iterdir())]
    save_foundation(finished.model, file)
    write_json(_record(folder, phase), {"history": rows, "timing": timing})
    return made


def _trained(
    context: Context, phase: Phase, stage: Stage, sources: tuple[Source, ...], folder: Path
) -> tuple[Trained, Finished]:
    """What every rank does of a phase: all but the writing."""
    settings, state = context.settings, phase.begin(stage)
    if state.carried and settings.budget.batches > 1:
        raise ConfigError(
            f"{context.strategy.name} follows its own weights from step to step and takes one batch in each.",
            found=f"budget.batches: {settings.budget.batches}",
            expected="1",
        )
    context.precision.place_(state.model).train()
    if settings.compute.recompute:
        recompute_(state.model.backbone)
    steps = phase.steps(stage)
    training = Training(
        name=phase.name,
        model=state.model,
        losses=lambda batches, number: phase.losses(state, batches),
        sources=sources,
        steps=steps,
        learning_rates=phase.learning_rates(settings.optimizer),
        optimizer=settings.optimizer,
        precision=context.precision,
        checkpoint=folder / f"checkpoint_{phase.name}.safetensors",
        carried=state.carried,
        sharpness=settings.optimizer.sharpness if phase.seeks_flatness else 0.0,
        check=lambda step: phase.check(stage, state),
        checks=settings.budget.checks * max(1, math.ceil(steps / stage.steps)),
        checks_first=phase.checks_first,
        batches=settings.budget.batches,
        ranks=context.ranks,
        workers=settings.compute.workers,
        checkpoint_seconds=settings.compute.checkpoint_seconds,
        progress=lambda label, done, total, note="": context.progress(f"{stage.task}: {label}", done, total, note),
        tracking=_tracking(context, phase, folder) if context.ranks.first else untracked,
    )
    trained = train(training)
    return trained, phase.finish(stage, state)


def _tracking(context: Context, phase: Phase, folder: Path) -> Tracking:
    tracker, run = context.settings.compute.tracker, f"{folder.name}/{phase.name}"
    return tracking(tracker, context.run.path / "tensorboard", run)


def _record(folder: Path, phase: Phase) -> Path:
    """The file that says that a phase is finished, written last."""
    return folder / f"record_{phase.name}.json"


def _read_record(path: Path) -> tuple[list[Row], Row]:
    record = json.loads(path.read_text(encoding="utf-8"))
    return record["history"], record["timing"]


def _peak_bytes(device: str) -> int:
    """Most memory so far: of the accelerator where one is used, else of this process."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write_history(path: Path, phase: str, rows: list[Row]) -> None:
    others = [row for row in read_rows(path) if row["phase"] != phase]
    write_rows(path, [*others, *rows])
