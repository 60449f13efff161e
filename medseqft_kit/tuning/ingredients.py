"""What the content of a stage's products depends on, as JSON: runs that agree in it share the product."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from medseqft_kit.runs.folder import versions
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.phases.base import Phase, Stage
from medseqft_kit.tuning.sources import Entries, PreparedTask
from medseqft_kit.volumes.batches import Source

Ingredients = dict[str, Any]


def of_phase(
    phase: Phase, stage: Stage, sources: tuple[Source, ...], settings: Settings, before: list[str], out: str
) -> Ingredients:
    """Of a trained phase whose model is written to the file `out`; `before` are hashes of M'_1 … M'_{t-1}."""
    joint = "joint" in phase.sources
    return {
        "product": "phase",
        "phase": [type(phase).__name__, _plain(phase)],
        "out": out,
        "task": None if joint else [stage.task, stage.classes],
        "tasks": dict(sorted(stage.tasks.items())) if joint else None,
        "earlier": list(stage.earlier),
        "start": tensors_hash(stage.start.state_dict()),
        "foundation": tensors_hash(stage.foundation.state_dict()),
        "adapted": None if stage.adapted is None else tensors_hash(stage.adapted.state_dict()),
        "adapted_dice": stage.adapted_dice,
        "memory": tensors_hash(stage.memory),
        "before": before,
        "seed": [settings.seed, stage.seed],
        "steps": phase.steps(stage),
        "sources": [[source.stream, _entries(source.entries)] for source in sources],
        **_common(settings),
    }


def of_evaluation(weights: list[str], task: PreparedTask, predictor: str, settings: Settings) -> Ingredients:
    """Of the test scores of a predictor on a task; `weights` are the hashes of the models that it is made of."""
    return {
        "product": "evaluation",
        "weights": weights,
        "task": task.plan.task.name,
        "predictor": predictor,
        "structures": {name: list(values) for name, values in task.plan.task.structures.items()},
        "cases": _entries(task.volumes.entries(task.cases.test)),
        "nsd_tolerance_mm": task.plan.nsd_tolerance_mm,
        "predict": settings.predict.model_dump(mode="json"),
        **_common(settings),
    }


def of_selection(foundation: str, task: PreparedTask, settings: Settings) -> Ingredients:
    """Of a task's buffer, chosen with the M_0 of that hash."""
    return {
        "product": "selection",
        "foundation": foundation,
        "task": task.plan.task.name,
        "cases": _entries(task.volumes.entries(task.cases.train)),
        "buffer": settings.strategy.buffer.model_dump(mode="json", exclude={"scope"}),
        "seed": settings.seed,
        **_common(settings),
    }


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes, whatever order or memory format they are in."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        total.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        total.update(values.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _common(settings: Settings) -> Ingredients:
    compute = settings.compute.model_dump(mode="json", include={"device", "precision", "threads"})
    parts = {"budget", "optimizer", "augment"}
    return {"compute": compute, "versions": versions(), **settings.model_dump(mode="json", include=parts)}


def _plain(phase: Phase) -> dict[str, Any]:
    """A phase's settings; sections of the configuration among them become plain values."""
    fields: dict[str, Any] = asdict(phase)  # type: ignore[call-overload]  # every phase is a dataclass
    return {
        name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value for name, value in fields.items()
    }


def _entries(entries: Entries) -> list[list[str]]:
    return [[volumes.keys[case], case] for volumes, case in entries]
