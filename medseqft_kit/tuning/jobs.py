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


def run_waiting(jobs: Sequence[Job], processes: int, progress: Progress, label: str) -> None:
    """Run the jobs that are not done, `processes` of them side by side."""
    if waiting := not_done(jobs):
        run_jobs(run_job, waiting, min(processes, len(waiting)), progress, label)


def not_done(jobs: Sequence[Job]) -> list[Plain]:
    """What is left to do, as other processes take it."""
    return [(job.config.model_dump(mode="json"), job.base, job.name, job.weights) for job in jobs if not job.done]


def journey_jobs(journeys: Sequence[Journey], base: Path) -> list[Job]:
    """A job for each model and the task that it goes on to."""
    return [Job(journey.config, base, journey.name, journey.weights) for journey in journeys]


def run_job(config: Mapping[str, Any], base: Path, name: str, weights: str, progress: Progress = silent) -> None:
    """Run a job, or continue it where an earlier call stopped."""
    settings = parse_config(config)
    sequence.Sequence(
        base / name,
        load_foundation(base / weights),
        settings,
        lambda label, done, total, note="": progress(f"{name}: {label}", done, total, note),
        store=base / "store",
        shared=base / "shared",
    ).fit(read_plans(settings), held_back=read_unseen(settings))
