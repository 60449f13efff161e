"""Sequences side by side, each in a process of its own; what they have in common is shared through one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseqft_kit.config import Config, parse_config
from medseqft_kit.models.foundation import load_foundation
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.workers import run_jobs
from medseqft_kit.tuning import sequence
from medseqft_kit.tuning.experiment import read_plans, read_unseen
from medseqft_kit.tuning.members import Journey


@dataclass(frozen=True)
class Job:
    """A run in `base`/`name` that starts from the model in `base`/`weights`; `base` holds store and shared products."""

    config: Config
    base: Path
    name: str
    weights: str

    @property
    def done(self) -> bool:
        """Whether every stage is."""
        folder = RunFolder(self.base / self.name)
        return folder.exists and all(stage["done"] for stage in RunFolder.open(folder.path).stages)


Plain = tuple[Mapping[str, Any], Path, str, str]
"""A job as other processes take it."""


def run_waiting(groups: Sequence[Sequence[Job]], processes: int, progress: Progress, label: str) -> None:
    """Run the jobs that are not done, `processes` groups side by side; one process takes a group's jobs in turn."""
    if waiting := not_done(groups):
        run_jobs(run_group, [(group,) for group in waiting], min(processes, len(waiting)), progress, label)


def not_done(groups: Sequence[Sequence[Job]]) -> list[list[Plain]]:
    """What is left to do, as other processes take it."""
    waiting = [[_plain(job) for job in group if not job.done] for group in groups]
    return [group for group in waiting if group]


def journey_jobs(journeys: Sequence[Journey], base: Path) -> list[list[Job]]:
    """A group for each model that goes on: its journeys are short, and a process takes seconds to begin."""
    groups: dict[str, list[Job]] = {}
    for journey in journeys:
        groups.setdefault(f"{journey.label} {journey.seed} {journey.weights}", []).append(
            Job(journey.config, base, journey.name, journey.weights)
        )
    return list(groups.values())


def _plain(job: Job) -> Plain:
    return job.config.model_dump(mode="json"), job.base, job.name, job.weights


def run_group(group: Sequence[Plain], progress: Progress = silent) -> None:
    """Run jobs one after another; each continues where an earlier call stopped."""
    for config, base, name, weights in group:
        _run(config, base, name, weights, progress)


def _run(config: Mapping[str, Any], base: Path, name: str, weights: str, progress: Progress) -> None:
    settings = parse_config(config)
    sequence.Sequence(
        base / name,
        load_foundation(base / weights),
        settings,
        lambda label, done, total, note="": progress(f"{name}: {label}", done, total, note),
        store=base / "store",
        shared=base / "shared",
    ).fit(read_plans(settings), held_back=read_unseen(settings))
