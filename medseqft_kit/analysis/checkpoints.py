"""The models of a run by name, and fixed labelled crops to look at them with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseqft_kit.errors import RunError
from medseqft_kit.models.foundation import FoundationModel, load_foundation
from medseqft_kit.models.precision import Precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.volumes.batches import Batch, BatchSource
from medseqft_kit.volumes.store import prepare

NAME = re.compile(r"M_(?P<merged>\d+)|M'_(?P<adapted>\d+)")


@dataclass(frozen=True)
class Checkpoints:
    """What a run has made: ``M_0``, and for each stage t that is done ``M'_t`` (stage 1) and ``M_t`` (merged).

    Parameters
    ----------
    run
        The folder of the run.
    """

    run: RunFolder

    @classmethod
    def open(cls, path: str | Path) -> Checkpoints:
        """Those of a run on disk; RunError if there is none."""
        return cls(RunFolder.open(path))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the stages that are done, in order."""
        return tuple(stage["task"] for stage in self.run.stages if stage["done"])

    @property
    def precision(self) -> Precision:
        """Device and format that the run was made with."""
        compute = self.run.manifest["compute"]
        return Precision(compute["device"], compute["precision"])

    def stage(self, task: str) -> int:
        """Number of a task's stage, from 1.

        Raises
        ------
        RunError
            If the run has no finished stage of that task.
        """
        if task not in self.tasks:
            raise RunError(
                f"{self.run.path} has no finished task of this name.",
                found=task,
                expected=", ".join(self.tasks) or "a finished stage",
            )
        return self.tasks.index(task) + 1

    def model(self, name: str) -> FoundationModel:
        """A model by its name, such as ``M'_2``.

        Raises
        ------
        RunError
            If the run has none of that name.
        """
        found = NAME.fullmatch(name)
        number = int(found["merged"] or found["adapted"] or 0) if found else -1
        if found is None or number > len(self.tasks) or (number == 0 and name != "M_0"):
            count = len(self.tasks)
            raise RunError(
                f"{self.run.path} has no model of this name.",
                found=name,
                expected=f"M_0 … M_{count} or M'_1 … M'_{count}" if count else "M_0: no stage is done",
            )
        if number == 0:
            return self.precision.place_(load_foundation(self.run.foundation))
        file = "merged" if found["merged"] else "adapted"
        return self.precision.place_(load_foundation(self.run.stage_folder(number - 1) / f"{file}.safetensors"))

    def with_head(self, name: str, task: str) -> FoundationModel:
        """A model by its name, with the head that `task` was trained with, whichever the model is."""
        model, owner = self.model(name), self.model(f"M'_{self.stage(task)}")
        model.heads[task] = owner.heads[task]
        return model

    def crops(self, task: str, count: int, size: int = 4, progress: Progress = silent) -> Sequence[Batch]:
        """About `count` labelled crops of a task's training cases in batches of `size`: the same in every call.

        They are neither turned nor disturbed, and placed as in training: two of three on a structure.
        """
        self.stage(task)
        entry = self.run.manifest["tasks"][task]
        plan = TaskPlan.from_entry(task, entry)
        volumes = prepare(plan.task, plan.preprocessing, entry["train_cases"], self.run.store, progress=progress)
        patch = self.model("M_0").spec.patch
        source = BatchSource(volumes.entries(), patch, size, seed=0, stream="analysis")
        return [source.batch(step) for step in range(max(1, round(count / size)))]
