"""From a configuration to runs: read the tasks, get M_0, then one sequence or a comparison of several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseqft_kit.config import Config
from medseqft_kit.errors import ConfigError, RunError
from medseqft_kit.models.foundation import FoundationModel, load_foundation, save_foundation
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.history import append_row, measured
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.tuning.at_work import at_work
from medseqft_kit.tuning.plan import TaskPlan, check_data, patients_tested
from medseqft_kit.tuning.pretraining import Pretraining, pretrain_foundation, pretraining_images
from medseqft_kit.tuning.run import Run
from medseqft_kit.tuning.sequence import Sequence
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

    With both, the weights are read and an SSL head is fitted for them there. All data is checked before the first step.
    No image of a patient on any task's test side is used.

    Raises
    ------
    ConfigError
        If `model` says another network than the weights, or weights that have an SSL head are to be given one.
    RunError
        If ``out/pretraining`` was made by other settings.
    """
    if config.foundation.pretrain is None:
        return _given(config, plans)
    folder = out / "pretraining"
    weights = folder / "foundation.safetensors"
    ranks = Ranks.here()
    with at_work(folder, config, ranks):
        hidden = patients_tested([*plans, *read_unseen(config)], config)
        record, wanted = folder / "settings.json", _pretraining_settings(config, hidden)
        if record.is_file():
            _refuse_other_pretraining(folder, json.loads(record.read_text(encoding="utf-8")), wanted)
        if ranks.told(not weights.is_file()):
            check_data(plans)
            if ranks.first:
                write_json(record, wanted)
            start = None if config.foundation.weights is None else _given(config, plans)
            plan = replace(_pretraining(config, hidden), start=start)
            with measured("pretraining") as timing:
                model = pretrain_foundation(plan, folder, progress if ranks.first else silent)
            if ranks.first:
                append_row(folder / "timing.jsonl", timing)
                save_foundation(model, weights)
        if ranks.first:
            for leftover in folder.glob("checkpoint_*.safetensors"):
                leftover.unlink()
        ranks.wait()
    return load_foundation(weights)


def _given(config: Config, plans: list[TaskPlan]) -> FoundationModel:
    """The model of `foundation.weights`, for the channels of the tasks and the patch of the configuration."""
    assert config.foundation.weights is not None
    given = {name: getattr(config.model, name) for name in config.model.model_fields_set}
    channels = len(plans[0].task.channels) if plans else None
    model = load_foundation(config.foundation.weights, channels=channels, patch=given.pop("patch", None))
    differing = [name for name, value in given.items() if getattr(model.spec, name) != value]
    if differing:
        raise ConfigError(
            f"`model` says another network than the weights {config.foundation.weights}.",
            found=", ".join(f"model.{name}: {given[name]}" for name in differing),
            expected=", ".join(f"{name} {getattr(model.spec, name)}, as in the file" for name in differing),
            next_step="remove these keys: with weights the file says it",
        )
    return model


def generality_images(config: Config, plans: list[TaskPlan], out: Path, progress: Progress = silent) -> Entries:
    """The images that M_0, or its SSL head, was made from in ``out/pretraining``; none where it came from elsewhere."""
    if config.foundation.pretrain is None:
        return ()
    hidden = patients_tested([*plans, *read_unseen(config)], config)
    folder = out / "pretraining"
    scale = load_foundation(folder / "foundation.safetensors").spec.scale
    return pretraining_images(_pretraining(config, hidden), folder, scale, progress)


def _pretraining(config: Config, hidden: frozenset[str]) -> Pretraining:
    assert config.foundation.pretrain is not None
    return Pretraining(config.foundation.pretrain, config.model, config, hidden)


def _pretraining_settings(config: Config, hidden: frozenset[str]) -> dict[str, Any]:
    return {
        "pretrain": config.foundation.model_dump(mode="json")["pretrain"],
        "model": config.model.model_dump(mode="json"),
        **({} if config.foundation.weights is None else {"weights": str(config.foundation.weights)}),
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
