"""A run on disk: looked at, predicted with, and continued by the next task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.cases import read_cases
from medseqft_kit.evaluation.load import Which, load_predictor
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.types import Task
from medseqft_kit.tuning.at_work import at_work
from medseqft_kit.tuning.manifest import scale_of
from medseqft_kit.tuning.plan import TaskPlan, check_data, resolved
from medseqft_kit.tuning.stages import plan_stages, run_stages, with_added_tasks
from medseqft_kit.tuning.strategies import Strategy, build_strategy


@dataclass(frozen=True)
class Run:
    """A run on disk: look at it, predict with it, add the next task."""

    path: Path
    progress: Progress = silent

    def add(self, task: Task | TaskPlan) -> Run:
        """Fine-tune one more task from where the run stands; everything before is reused and stays as it is.

        The new stage evaluates the old tasks with the new M_t, beside what they were before.

        Raises
        ------
        RunError
            If the run is unfinished, or has a task of that name.
        """
        new = task if isinstance(task, TaskPlan) else TaskPlan(task)
        settings, ranks = _settings(RunFolder.open(self.path)), Ranks.here()
        with at_work(self.path, settings, ranks):
            if ranks.first:
                self._plan(new, settings)
            ranks.wait()
            folder = RunFolder.open(self.path)
            run_stages(folder, with_added_tasks(folder, []), settings, folder.store, self.progress)
        return self

    def _plan(self, new: TaskPlan, settings: Settings) -> None:
        """Add a stage for the task, unless it waits to be finished."""
        folder = RunFolder.open(self.path)
        names = [stage["task"] for stage in folder.stages]
        if new.task.name not in names:
            _refuse_unfinished(folder)
            check_data([new])
            plan_stages(folder, [resolved(new, scale_of(folder))], settings)
        elif folder.stages[-1]["task"] != new.task.name or folder.stages[-1]["done"]:
            raise RunError(
                f"{self.path} has a task {new.task.name!r} already.",
                found=", ".join(names),
                expected="a new name",
                next_step="give another --name",
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of arrival."""
        return tuple(stage["task"] for stage in RunFolder.open(self.path).stages)

    def cases(self) -> pd.DataFrame:
        """All stages' `cases.csv` in one table."""
        folder = RunFolder.open(self.path)
        done = [i for i, stage in enumerate(folder.stages) if stage["done"]]
        return pd.concat([read_cases(folder.stage_folder(i) / "cases.csv") for i in done], ignore_index=True)

    @property
    def headline(self) -> Which:
        """Which model predicts unless said otherwise: `strategy.predictor`."""
        which: Which = RunFolder.open(self.path).manifest["config"]["strategy"]["predictor"]
        return which

    def model(self, task: str, which: Which | None = None) -> Predictor:
        """What predicts one task: M'_t, M_t or M_0 mixed with M'_t; `strategy.predictor` unless said otherwise."""
        return load_predictor(self.path, task, which or self.headline)

    @property
    def strategy(self) -> Strategy:
        """The strategy that the run was made with."""
        return build_strategy(_settings(RunFolder.open(self.path)).strategy)

    def stage_of(self, task: str) -> tuple[Path, Path]:
        """Folder of a task's stage, and the file of the model that it started from (M_0's where that was fresh)."""
        folder = RunFolder.open(self.path)
        index = self.tasks.index(task)
        before = index > 0 and self.strategy.start == "previous"
        start = folder.stage_folder(index - 1) / "merged.safetensors" if before else folder.foundation
        return folder.stage_folder(index), start

    def report(self) -> Path:
        """Write `report.html` and return its path."""
        from medseqft_kit.report.page import write_report

        return write_report(self.path)


def _settings(folder: RunFolder) -> Settings:
    return Settings.model_validate(
        {key: value for key, value in folder.manifest["config"].items() if key in Settings.model_fields}
    )


def _refuse_unfinished(folder: RunFolder) -> None:
    waiting = [stage["task"] for stage in folder.stages if not stage["done"]]
    if waiting:
        raise RunError(
            f"{folder.path} is not finished.",
            found=f"waiting: {', '.join(waiting)}",
            expected="all stages done",
            next_step="medseqft run CONFIG.yaml --out DIR: it continues",
        )
