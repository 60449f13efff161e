"""From a configuration to runs: read the tasks, get M_0, then one sequence or a comparison of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseqft_kit.config import Config
from medseqft_kit.errors import RunError
from medseqft_kit.models.foundation import FoundationModel, load_foundation, save_foundation
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.history import timed
from medseqft_kit.runs.interrupt import stopping_cleanly
from medseqft_kit.runs.lock import locked
from medseqft_kit.tuning.plan import TaskPlan, check_data, patients_tested
from medseqft_kit.tuning.pretraining import Pretraining, pretrain_foundation, pretraining_images
from medseqft_kit.tuning.sequence import Run, Sequence, threads_of
from medseqft_kit.tuning.sources import Entries


def run_sequence(config: Config, out: Path, progress: Progress = silent) -> Run:
    """One run of the configuration's strategy and seed; continues where an earlier call stopped."""
    plans = read_plans(config)
    model = foundation_model(config, plans, out, progress)
    return Sequence(out, model, config, progress).fit(plans, held_back=read_unseen(config))


def read_plans(config: Config) -> list[TaskPlan]:
    """The tasks of the sequence, in the order of arrival."""
    return [TaskPlan.from_section(section) for section in config.tasks]


def read_unseen(config: Config) -> list[TaskPlan]:
    """The tasks that are held back."""
    return [TaskPlan.from_section(section) for section in config.unseen]


def foundation_model(config: Config, plans: list[TaskPlan], out: Path, progress: Progress = silent) -> FoundationModel:
    """M_0: read from `foundation.weights`, or pre-trained in ``out/pretraining`` (once).

    All data is checked before the first step. No image of a patient on any task's test side is used.

    Raises
    ------
    RunError
        If ``out/pretraining`` was made by other settings.
    """
    if config.foundation.weights is not None:
        return load_foundation(config.foundation.weights)
    folder = out / "pretraining"
    weights = folder / "foundation.safetensors"
    with locked(folder), stopping_cleanly(), threads_of(config):
        hidden = patients_tested([*plans, *read_unseen(config)], config)
        record, wanted = folder / "settings.json", _pretraining_settings(config, hidden)
        if record.is_file():
            _refuse_other_pretraining(folder, json.loads(record.read_text(encoding="utf-8")), wanted)
        if not weights.is_file():
            check_data(plans)
            write_json(record, wanted)
            plan = _pretraining(config, hidden)
            with timed(folder / "timing.jsonl", "pretraining"):
                model = pretrain_foundation(plan, folder, progress)
            save_foundation(model, weights)
            (folder / "checkpoint_pretraining.safetensors").unlink(missing_ok=True)
    return load_foundation(weights)


def generality_images(config: Config, plans: list[TaskPlan], out: Path, progress: Progress = silent) -> Entries:
    """The images that M_0 was made from in ``out/pretraining``; none where the weights came from elsewhere."""
    if config.foundation.pretrain is None:
        return ()
    hidden = patients_tested([*plans, *read_unseen(config)], config)
    return pretraining_images(_pretraining(config, hidden), out / "pretraining", progress)


def _pretraining(config: Config, hidden: frozenset[str]) -> Pretraining:
    assert config.foundation.pretrain is not None
    return Pretraining(config.foundation.pretrain, config.model, config, hidden)


def _pretraining_settings(config: Config, hidden: frozenset[str]) -> dict[str, Any]:
    return {
        "pretrain": config.foundation.model_dump(mode="json")["pretrain"],
        "model": config.model.model_dump(mode="json"),
        "seed": config.seed,
        "precision": config.compute.precision,
        "not_seen": sorted(hidden),
    }


def _refuse_other_pretraining(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        raise RunError(
            f"{folder} holds a pre-training of other settings.",
            found=f"different: {', '.join(differing)}",
            expected="the settings of this configuration",
            next_step="give another --out",
        )
